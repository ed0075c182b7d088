"""Keep a teacher's answers to all crops and flips of the training images; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.cache_teacher import main  # noqa: E402

if __name__ == "__main__":
    main()
