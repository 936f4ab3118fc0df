"""The command that compares runs: `compare`."""

import argparse
from pathlib import Path

from ocpgem.commands.arguments import Subparsers, require_parent
from ocpgem.commands.output import make_console
from ocpgem.errors import RequestError


def add_commands(commands: Subparsers) -> None:
    """Add the command of this module."""
    compare = commands.add_parser("compare", help="runs side by side: settings that differ, results, curves")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    compare.add_argument(
        "--out", type=Path, default=Path("compare.png"), help="figure to write (default: compare.png)"
    )
    compare.set_defaults(command=_compare)


def _compare(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.compare import comparison_curves, comparison_table, read_runs
    from ocpgem.evaluate.figures import LIGHT

    require_parent(args.out)
    if args.out.suffix != ".png":
        raise RequestError(f"--out is {args.out}; the figure is written as PNG, so the name must end in .png")
    runs = read_runs(args.runs)
    console = make_console()
    console.width = console.width if console.is_terminal else 160
    console.print(comparison_table(runs))
    args.out.write_bytes(comparison_curves(LIGHT, runs))
    print(f"curves drawn in {args.out}")
    return 0
