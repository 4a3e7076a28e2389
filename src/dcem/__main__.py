"""`python -m dcem` is the command `dcem`."""

import sys

from dcem.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
