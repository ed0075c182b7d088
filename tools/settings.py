"""Print every setting as a Markdown table, or renew those of docs/config.md; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.settings import main  # noqa: E402

if __name__ == "__main__":
    main()
