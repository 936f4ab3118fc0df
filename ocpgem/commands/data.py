"""Commands on data sets: `data convert | split | merge | shard | edges | inspect`."""

import argparse
from pathlib import Path

from ocpgem.commands.arguments import (
    Subparsers,
    not_negative,
    positive,
    processes_argument,
    require_parent,
)
from ocpgem.errors import RequestError
from ocpgem.files import written_whole


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    data = commands.add_parser("data", help="convert, divide, join and inspect data sets").add_subparsers(
        required=True, metavar="ACTION"
    )
    _add_convert(data)

    split = data.add_parser("split", help="divide a data set at random into parts")
    split.add_argument("dataset", type=Path, metavar="DATASET")
    split.add_argument("--out", type=Path, required=True, help="folder; each part becomes OUT/NAME")
    split.add_argument(
        "--parts",
        nargs="+",
        required=True,
        metavar="NAME=SIZE",
        help="a share (train=0.8) or a number (test=100) of systems, or of frames with --by frame",
    )
    split.add_argument(
        "--by",
        choices=["system", "frame"],
        default="system",
        help="keep all frames of a system in one part, or not (default: system)",
    )
    split.add_argument("--seed", type=not_negative, default=0, help="(default: 0)")
    processes_argument(split)
    split.set_defaults(command=_split)

    merge = data.add_parser("merge", help="join data sets in order")
    merge.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    merge.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    merge.add_argument("--shards", type=positive, help="number of shards (default: 50,000 records in each)")
    merge.add_argument(
        "--renumber", action="store_true", help="raise the sids of each set above those before it"
    )
    processes_argument(merge)
    merge.set_defaults(command=_merge)

    shard = data.add_parser("shard", help="write a data set in another number of shards")
    shard.add_argument("dataset", type=Path, metavar="DATASET")
    shard.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    shard.add_argument(
        "--shards", type=positive, metavar="N", help="how many (default: 50,000 records in each)"
    )
    processes_argument(shard)
    shard.set_defaults(command=_shard)

    edges = data.add_parser(
        "edges",
        help="search the edges of a model's graph once and keep them beside data sets",
        description="Loaders then read edges instead of searching them, where data.stored_edges is true. They are kept "
        "in DATASET/edges, a folder for each graph (cutoffs, neighbours, rules); what was interrupted goes on.",
    )
    edges.add_argument(
        "datasets",
        type=Path,
        nargs="*",
        metavar="DATASET",
        help="folders of data sets of ocpgem (default: those of CONFIG)",
    )
    edges.add_argument(
        "--config", type=Path, required=True, metavar="CONFIG", help="whose model says which edges"
    )
    edges.add_argument("--anew", action="store_true", help="make them again where they are there")
    processes_argument(edges)
    edges.set_defaults(command=_edges)

    inspect = data.add_parser(
        "inspect",
        help="what a data set holds: counts, elements, labels, edges",
        description="PATH: a data set of ocpgem, a released LMDB or a folder of them, an ase-lmdb file, or a file that "
        "ASE reads. Of large sets, records spread evenly over the set are looked at, and the output says how many.",
    )
    inspect.add_argument("path", type=Path, metavar="PATH")
    inspect.add_argument("--figure", type=Path, metavar="FILE.png", help="also draw it")
    inspect.add_argument(
        "--check", action="store_true", help="also read all records and verify every checksum"
    )
    processes_argument(inspect)
    inspect.set_defaults(command=_inspect)


def _add_convert(data: Subparsers) -> None:
    convert = data.add_parser(
        "convert",
        help="structure files, released LMDBs, archives of molecules or raw OC20 archives to a data set",
        description="A raw OC20 archive is a folder of N.extxyz.xz with N.txt.xz. LMDBs and pickled lists (.pkl, "
        ".pt) are those of the released OC20 and OC22 tools, .aselmdb files those of fairchem; nothing in them is run. "
        "An npz file is an archive of "
        "molecules (COLL, MD17, rMD17, sGDML). Anything else is read with ASE (extxyz, traj, db, VASP's vasprun.xml "
        "and OUTCAR, ...).",
    )
    convert.add_argument(
        "source", type=Path, nargs="+", metavar="SOURCE", help="files, or folders of files of one kind"
    )
    convert.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    processes_argument(convert)
    convert.add_argument("--chunks", help="raw OC20: only these archives, as 0-3,7 (default: all)")
    other = convert.add_argument_group("sources other than raw OC20 archives")
    other.add_argument(
        "--units",
        metavar="UNIT",
        help="of the energies: eV, kcal/mol, kJ/mol or hartree; forces are in UNIT/A (default: as the file says, "
        "else guessed, and said)",
    )
    other.add_argument(
        "--tags",
        default="keep",
        metavar="RULE",
        help="keep those of the file; 0, 1 or 2 for all atoms; slab or slab:C,H: fixed atoms 0, free atoms of the "
        "adsorbate's elements (C,H,N,O unless named) 2, others 1 (default: keep)",
    )
    other.add_argument(
        "--require",
        choices=["forces", "energy", "nothing"],
        default="forces",
        help="leave out records without energy and forces, or without energy (IS2RE), or none (test sets) (default: "
        "forces)",
    )
    other.add_argument(
        "--max-force",
        type=float,
        metavar="X",
        help="leave out records with a larger force on a free atom, eV/A",
    )
    other.add_argument(
        "--max-energy-per-atom",
        type=float,
        metavar="X",
        help="leave out records with a larger |energy| / atoms, eV",
    )
    other.add_argument("--renumber", action="store_true", help="number systems anew although the files do")
    other.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out records that are damaged or refused, and the rest of a file that cannot be read on",
    )
    convert.set_defaults(command=_convert)


def _convert(args: argparse.Namespace) -> int:
    from ocpgem.data.sources import is_raw_oc20

    if args.chunks is not None or any(is_raw_oc20(source) for source in args.source):
        return _convert_raw_oc20(args)
    from ocpgem.data.convert import Options, convert_files
    from ocpgem.data.screening import Limits

    limits = Limits(args.require, args.max_force, args.max_energy_per_atom)
    options = Options(args.units, args.tags, limits, args.renumber, args.skip_unreadable)
    print(convert_files(args.source, args.out, options, args.workers, say=print))
    return 0


def _convert_raw_oc20(args: argparse.Namespace) -> int:
    from ocpgem.data.raw_oc20 import convert_raw_oc20, parse_chunks

    if len(args.source) > 1:
        raise RequestError(
            "raw OC20 archives are converted one folder at a time; data merge joins the results"
        )
    defaults = {"tags": "keep", "require": "forces", "renumber": False, "skip_unreadable": False}
    for option in ("units", "max_force", "max_energy_per_atom", *defaults):
        if getattr(args, option) != defaults.get(option):
            raise RequestError(
                f"{args.source[0]} is a raw OC20 archive, whose units, tags and numbers are fixed; leave out "
                f"--{option.replace('_', '-')}"
            )
    chunks = None if args.chunks is None else parse_chunks(args.chunks)
    print(convert_raw_oc20(args.source[0], args.out, args.workers, chunks))
    return 0


def _split(args: argparse.Namespace) -> int:
    from ocpgem.data.split import parse_parts, split_dataset

    print(split_dataset(args.dataset, args.out, parse_parts(args.parts), args.by, args.seed, args.workers))
    return 0


def _merge(args: argparse.Namespace) -> int:
    from ocpgem.data.merge import merge_datasets

    print(merge_datasets(args.datasets, args.out, args.shards, args.renumber, args.workers))
    return 0


def _shard(args: argparse.Namespace) -> int:
    from ocpgem.data.merge import merge_datasets

    print(merge_datasets([args.dataset], args.out, args.shards, workers=args.workers).summary)
    return 0


def _edges(args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.data.edge_store import store_edges
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, (), TrainConfig)
    entries = [*config.data.train_sets, *config.data.val_sets.values()]
    for path in args.datasets or dict.fromkeys(Path(entry.path) for entry in entries):
        print(store_edges(path, config.model.graph_spec, args.workers, args.anew))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from ocpgem.data.inspect import describe

    if args.figure is not None:
        require_parent(args.figure)
        if args.figure.suffix.lower() != ".png":
            raise RequestError(f"--figure {args.figure} should end in .png")
    if args.check:  # first: describing stops at the first damaged record, this counts them
        from ocpgem.data.verify import verify

        print(verify(args.path, args.workers))
    found = describe(args.path)
    if args.figure is not None:
        from ocpgem.evaluate.data_figure import data_figure
        from ocpgem.evaluate.figures import LIGHT

        with written_whole(args.figure) as file:
            file.write(data_figure(LIGHT, found, str(args.path)))
        print(f"figure: {args.figure}")
    return 0
