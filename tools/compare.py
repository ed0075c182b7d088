"""Train configurations over several seeds and print them side by side; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.compare import main  # noqa: E402

if __name__ == "__main__":
    main()
