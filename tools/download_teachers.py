"""Fetch and unpack the trained CIFAR-100 teachers that mdistiller publishes; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.download_teachers import main  # noqa: E402

if __name__ == "__main__":
    main()
