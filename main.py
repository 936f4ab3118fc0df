"""The command line of ocpgem: `python main.py --help`."""

from ocpgem.cli import run

if __name__ == "__main__":
    run()
