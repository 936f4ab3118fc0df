"""Arguments that several commands share, and checks of their values."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ocpgem.errors import RequestError

Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and KEY=VALUE."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, as optim.lr=1e-4"
    )


def checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a run directory, a model file, a released checkpoint or the name of one (import-checkpoint --list)",
    )


def several_models_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --ensemble and --forces-from."""
    parser.add_argument(
        "--ensemble",
        type=Path,
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="another member: predictions become the mean of all members, with their spread; may be repeated",
    )
    parser.add_argument(
        "--forces-from",
        type=Path,
        action="append",
        metavar="CHECKPOINT",
        help="take the forces from this model and only the energy from the others; may be repeated",
    )


def nproc_argument(parser: argparse.ArgumentParser) -> None:
    """Add --nproc."""
    parser.add_argument("--nproc", type=int, default=1, help="ranks on this machine (default: 1)")


def inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command that runs a model over data takes."""
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="systems per batch and rank (default: 16)"
    )
    parser.add_argument("--max-edges", type=positive, help="edges per batch and rank at most")
    parser.add_argument(
        "--workers", type=not_negative, default=1, help="loader processes per rank (default: 1)"
    )
    nproc_argument(parser)


def processes_argument(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def require_parent(path: Path) -> None:
    """Refuse a path to write that is a folder, or whose folder does not exist."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent} is not a folder, so {path.name} cannot be written there")


def require_different(files: Sequence[Path]) -> None:
    """Refuse to write one file over another of the same command."""
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise RequestError(
                f"{file} is named for two outputs, of which one would be lost; name another file"
            )
        seen.add(file.resolve())


def benchmark_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which data a leaderboard file is of."""
    parser.add_argument(
        "--benchmark",
        choices=["oc20", "oc22"],
        default="oc20",
        help="the ocp dialect takes float16 for OC20 and float32 for OC22 (default: oc20)",
    )
