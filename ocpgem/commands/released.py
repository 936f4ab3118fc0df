"""Commands for released checkpoints: `import-checkpoint`, `export-checkpoint`."""

import argparse
from pathlib import Path

from ocpgem.commands.arguments import Subparsers, checkpoint_argument, require_parent
from ocpgem.commands.output import download_progress
from ocpgem.errors import RequestError


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    imported = commands.add_parser(
        "import-checkpoint", help="read a released GemNet (fairchem v1 / OCP, or the original code)"
    )
    what = imported.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "source",
        type=Path,
        nargs="?",
        metavar="FILE_OR_DIR",
        help="a checkpoint, or a folder with a state dict and the constructor's arguments",
    )
    what.add_argument("--list", action="store_true", help="show the released checkpoints")
    what.add_argument(
        "--download", metavar="NAME", help="fetch a released checkpoint; goes on where it stopped"
    )
    imported.add_argument("--out", type=Path, help="model file to write, or file to download to")
    imported.add_argument(
        "--scale-file",
        metavar="FILE",
        help="scale factors (.json or .pt) of a checkpoint that lacks them; none: it was trained without",
    )
    imported.add_argument(
        "--config", type=Path, metavar="FILE.yml", help="released configuration of a checkpoint that lacks it"
    )
    imported.add_argument(
        "--element-references",
        type=Path,
        metavar="FILE",
        help="energies of elements (.npz, .pt, .json) of a checkpoint that lacks them, as those of OC22 do",
    )
    imported.add_argument(
        "--weights",
        choices=["ema", "raw"],
        help="moving averages or last weights (default: the averages where the file keeps both)",
    )
    imported.set_defaults(command=_import_checkpoint)

    exported = commands.add_parser(
        "export-checkpoint", help="write a model as a checkpoint of fairchem v1 (or of the original code)"
    )
    checkpoint_argument(exported)
    exported.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="file to write")
    exported.set_defaults(command=_export_checkpoint)


def _import_checkpoint(args: argparse.Namespace) -> int:
    if args.source is None and (args.scale_file or args.config or args.weights or args.element_references):
        raise RequestError(
            "--scale-file, --config, --weights and --element-references belong to a checkpoint that is read; name it"
        )
    if args.list:
        from ocpgem.models.import_weights.catalogue import CATALOGUE, describe

        print("\n\n".join(map(describe, CATALOGUE)))
        return 0
    from ocpgem.models.import_weights.catalogue import fetch, find

    entry = None if args.download is None else find(args.download)
    if args.out is None:
        raise RequestError("say with --out where the result should be written")
    require_parent(args.out)
    if entry is not None:
        with download_progress(entry.name) as progress:
            notes = fetch(entry, args.out, progress)
        print("\n".join(notes))
        return 0
    if args.out.exists():
        raise RequestError(f"--out {args.out} exists already; choose another name or remove it first")
    from ocpgem.checkpoint import save_potential
    from ocpgem.models.import_weights.released import import_released
    from ocpgem.models.potential import n_parameters

    imported = import_released(
        args.source,
        scale_file=args.scale_file,
        config_file=args.config,
        weights=args.weights,
        element_references=args.element_references,
    )
    save_potential(imported.potential, args.out, imported.facts)
    print("\n".join(imported.notes))
    print(
        f"{imported.potential.config.variant}, {n_parameters(imported.potential):,} parameters, in {args.out}"
    )
    return 0


def _export_checkpoint(args: argparse.Namespace) -> int:
    from ocpgem.checkpoint import load_potential
    from ocpgem.models.import_weights.export import export_released

    require_parent(args.out)
    print("\n".join(export_released(load_potential(args.checkpoint), args.out)))
    return 0
