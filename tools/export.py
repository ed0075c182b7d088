"""Write a trained network as state dict, ONNX or torch.export; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.export import main  # noqa: E402

if __name__ == "__main__":
    main()
