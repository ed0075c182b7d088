"""Fetch and unpack Tiny ImageNet, and sort its validation images into classes; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.download_tiny_imagenet import main  # noqa: E402

if __name__ == "__main__":
    main()
