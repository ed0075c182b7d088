"""Draw the characters of Debian's free fonts: the data set glyphs; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.make_glyphs import main  # noqa: E402

if __name__ == "__main__":
    main()
