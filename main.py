"""The command line of ocpgem: `python main.py --help`."""

import sys

from ocpgem.cli import main

if __name__ == "__main__":
    sys.exit(main())
