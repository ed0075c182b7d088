"""Write the configurations of the newer methods; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.commands.make_configs import main  # noqa: E402

if __name__ == "__main__":
    main()
