"""OC20 and OC22 by name: download, compare, unpack, convert and count, in one command that goes on where it stopped.

    python datasets/download.py --list
    python datasets/download.py s2ef_train_200K                      # to data/oc20/s2ef/200k/train
    python datasets/download.py is2res_train_val_test_lmdbs --splits 10k/train val_id

See datasets/README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by numpy in the workers, of which there is one per core

from ocpgem.commands.output import download_progress, make_console
from ocpgem.data.archives import ARCHIVES, BASE_URL, BYTES_PER_FRAME, Archive, find
from ocpgem.errors import INTERRUPTED, OcpgemError, RequestError


def show_list(archives: Sequence[Archive]) -> None:
    """Print what can be obtained, with its sizes."""
    from rich.table import Table

    table = Table(
        "archive", "download", "unpacked", "converted", "records by split, in OUT/SPLIT", "default OUT"
    )
    for archive in archives:
        splits = "\n".join(
            f"{s.name} {s.n_frames or 0:,}".replace(" 0", " (not published)") for s in archive.splits
        )
        converted = "" if archive.n_frames is None else _gb(archive.n_frames * BYTES_PER_FRAME)
        sizes = _gb(archive.size), _gb(archive.unpacked), converted
        table.add_row(archive.name, *sizes, splits, archive.home, end_section=True)
    make_console().print(table)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Obtain a published archive of OC20 or OC22 as data sets of ocpgem. A run that was interrupted "
        "goes on when the same command is given again."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="as --list shows it")
    parser.add_argument(
        "--list", action="store_true", help="show what can be obtained, with sizes and splits"
    )
    parser.add_argument(
        "--out", type=Path, help="each split becomes OUT/SPLIT (default: where configs/ look for it)"
    )
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="only these of the archive's data sets (default: all)"
    )
    parser.add_argument(
        "--store", type=Path, metavar="FOLDER", help="where to download and unpack (default: OUT/archives)"
    )
    parser.add_argument("--keep-archive", action="store_true", help="do not remove the archive at the end")
    parser.add_argument(
        "--base-url", default=BASE_URL, metavar="URL", help="of a mirror (default: %(default)s)"
    )
    parser.add_argument(
        "--unverified",
        action="store_true",
        help="take an archive whose checksum or number of records is not the published one",
    )
    parser.add_argument("--workers", type=int, help="processes of the conversion (default: one per core)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, archives: tuple[Archive, ...]) -> None:
    """Do what the command line says."""
    if args.list:
        show_list(archives)
        return
    if args.name is None:
        raise RequestError("name an archive; --list shows them")
    archive = find(args.name, archives)
    from ocpgem.data.obtain import Order, obtain  # takes a second, in which --list and Ctrl-C should not wait

    out = Path(archive.home) if args.out is None else args.out
    order = Order(
        archive,
        out,
        out / "archives" if args.store is None else args.store,
        splits=args.splits,
        base_url=args.base_url,
        keep_archive=args.keep_archive,
        verify=not args.unverified,
        workers=args.workers,
    )
    made = obtain(order, lambda sentence: print(sentence, flush=True), download_progress)
    print(f"ready: {', '.join(map(str, made))}")


def main(arguments: Sequence[str] | None = None, archives: tuple[Archive, ...] = ARCHIVES) -> int:
    """The command line; `archives` is the catalogue."""
    args = parse(arguments)
    try:
        run(args, archives)
    except OcpgemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
