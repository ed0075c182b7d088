"""Draw t-SNE maps and logit correlations of a student and its teacher; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.visualize import main  # noqa: E402

if __name__ == "__main__":
    main()
