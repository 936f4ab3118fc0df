"""The command line. Each command imports what it needs when it runs, so that `--help` is immediate."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ocpgem import __version__
from ocpgem.errors import OcpgemError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from ocpgem.data.dataset import Dataset
    from ocpgem.evaluate.predict import Effort
    from ocpgem.models.potential import Potential

Command = Callable[[argparse.Namespace], int]


def run() -> NoReturn:
    """Run the command of this process's arguments and end the process with its exit code.

    One of several ranks ends at once, without the interpreter's own shutdown: there, with torch 2.13, rank 1 aborted
    ("terminate called without an active exception", exit code 134) in 4 of 12 runs of a two-rank test whose work was
    done. What does it is not known; 6 runs that ended this way did not abort. Everything written is closed by then.
    """
    code = main()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the work failed, 2 the request was wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    try:
        nproc = getattr(args, "nproc", 1)
        if nproc != 1 and "RANK" not in os.environ:
            from ocpgem.launch.local import run_local

            return run_local(_without_nproc(arguments), nproc)
        command: Command = args.command
        return command(args)
    except OcpgemError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a path that may not be read or written, a full disk
        if error.strerror is None:
            raise
        if os.environ.get("RANK", "0") == "0":
            place = f"{error.filename}: " if error.filename else ""
            print(f"error: {place}{error.strerror}", file=sys.stderr)
        return OcpgemError.exit_code


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; overrides (KEY=VALUE) may also stand behind options."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    unknown = [item for item in rest if item.startswith("-") or "=" not in item]
    if rest and (unknown or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other error is reported."""

    def error(self, message: str) -> NoReturn:
        self.exit(RequestError.exit_code, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py", description="Train, evaluate and use GemNet potentials at Open Catalyst scale."
    )
    parser.add_argument("--version", action="version", version=f"ocpgem {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_training(commands)
    _add_evaluation(commands)
    _add_data(commands)
    _add_released(commands)
    _add_information(commands)
    return parser


def _add_training(commands: "argparse._SubParsersAction[_Parser]") -> None:
    train = commands.add_parser(
        "train", help="train a model; goes on by itself where the run directory has a checkpoint"
    )
    _config_arguments(train)
    train.add_argument(
        "--run-dir", type=Path, help="where everything of the run goes (default: runs/<name of CONFIG>)"
    )
    _nproc_argument(train)
    train.set_defaults(command=_train)

    fit = commands.add_parser("fit-scales", help="fit the scale factors of a configuration's model")
    _config_arguments(fit)
    fit.add_argument("--out", type=Path, required=True, help="JSON file to write, for scale_factors.file")
    fit.set_defaults(command=_fit_scales)


def _add_evaluation(commands: "argparse._SubParsersAction[_Parser]") -> None:
    evaluate = commands.add_parser("evaluate", help="score a model on labelled data")
    _checkpoint_argument(evaluate)
    evaluate.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="data set; may be repeated (default: the validation sets of the run)",
    )
    evaluate.add_argument("--json", type=Path, help="also write the metrics to this file")
    _inference_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help="write the energies and forces of a data set")
    _checkpoint_argument(predict)
    predict.add_argument("--data", type=Path, required=True, help="data set")
    predict.add_argument("--out", type=Path, required=True, help="npz file to write")
    predict.add_argument(
        "--dialect",
        choices=["ocp", "hub", "raw"],
        default="ocp",
        help="ocp: free atoms in float16, as the first leaderboard host; hub: all atoms, as the present host; "
        "raw: all atoms, nothing cast, with the labels (default: ocp)",
    )
    _inference_arguments(predict)
    predict.set_defaults(command=_predict)

    report = commands.add_parser(
        "report", help="write the report of a run: curves, parity plots, one HTML file"
    )
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.set_defaults(command=_report)


def _add_data(commands: "argparse._SubParsersAction[_Parser]") -> None:
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
    split.add_argument("--seed", type=_not_negative, default=0, help="(default: 0)")
    _processes_argument(split)
    split.set_defaults(command=_split)

    merge = data.add_parser("merge", help="join data sets in order, or write one in other shards")
    merge.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    merge.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    merge.add_argument("--shards", type=_positive, help="number of shards (default: 50,000 records in each)")
    merge.add_argument(
        "--renumber", action="store_true", help="raise the sids of each set above those before it"
    )
    _processes_argument(merge)
    merge.set_defaults(command=_merge)

    inspect = data.add_parser("inspect", help="what a data set holds")
    inspect.add_argument("path", type=Path, metavar="PATH")
    inspect.add_argument(
        "--check", action="store_true", help="also read all records and verify every checksum"
    )
    _processes_argument(inspect)
    inspect.set_defaults(command=_inspect)


def _add_convert(data: "argparse._SubParsersAction[_Parser]") -> None:
    convert = data.add_parser(
        "convert",
        help="structure files, released LMDBs, archives of molecules or raw OC20 archives to a data set",
        description="A raw OC20 archive is a folder of N.extxyz.xz with N.txt.xz. LMDBs and pickled lists (.pkl, "
        ".pt) are those of the released OC20 and OC22 tools; nothing in them is run. An npz file is an archive of "
        "molecules (COLL, MD17, rMD17, sGDML). Anything else is read with ASE (extxyz, traj, db, VASP's vasprun.xml "
        "and OUTCAR, ...).",
    )
    convert.add_argument(
        "source", type=Path, nargs="+", metavar="SOURCE", help="files, or folders of files of one kind"
    )
    convert.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    _processes_argument(convert)
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
        help="leave out records without energy and forces, or without energy, or none (default: forces)",
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
        "--skip-unreadable", action="store_true", help="leave out what cannot be read of a file and go on"
    )
    convert.set_defaults(command=_convert)


def _processes_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )


def _add_released(commands: "argparse._SubParsersAction[_Parser]") -> None:
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
        "--weights",
        choices=["ema", "raw"],
        help="moving averages or last weights (default: the averages where the file keeps both)",
    )
    imported.set_defaults(command=_import_checkpoint)

    exported = commands.add_parser(
        "export-checkpoint", help="write a model as a checkpoint of fairchem v1 (or of the original code)"
    )
    _checkpoint_argument(exported)
    exported.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="file to write")
    exported.set_defaults(command=_export_checkpoint)


def _add_information(commands: "argparse._SubParsersAction[_Parser]") -> None:
    config = commands.add_parser("config", help="look at a configuration").add_subparsers(
        required=True, metavar="ACTION"
    )
    for action, text in (
        ("show", "print it with includes and defaults filled in"),
        ("check", "say what is wrong with it"),
    ):
        sub = config.add_parser(action, help=text)
        _config_arguments(sub)
        sub.set_defaults(command=_show_config if action == "show" else _check_config)
    imported = config.add_parser("import", help="translate a configuration of fairchem v1 / OCP")
    imported.add_argument("file", type=Path, metavar="FILE", help="YAML file; what it includes is read, too")
    imported.add_argument("--out", type=Path, help="YAML file to write (default: print it)")
    imported.add_argument(
        "--gpus", type=_positive, default=1, help="on how many GPUs the old run was made (default: 1)"
    )
    imported.set_defaults(command=_import_config)
    models = commands.add_parser("models", help="the variants of GemNet and their sizes")
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(command=_models)
    doctor = commands.add_parser("doctor", help="what is installed and what this machine can run")
    doctor.set_defaults(command=_doctor)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, as optim.lr=1e-4"
    )


def _checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run directory or a model file")


def _nproc_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, default=1, help="ranks on this machine (default: 1)")


def _inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_positive, default=16, help="systems per batch and rank (default: 16)"
    )
    parser.add_argument("--max-edges", type=_positive, help="edges per batch and rank at most")
    parser.add_argument(
        "--workers", type=_not_negative, default=1, help="loader processes per rank (default: 1)"
    )
    _nproc_argument(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _without_nproc(arguments: list[str]) -> list[str]:
    kept = [argument for argument in arguments if not argument.startswith("--nproc=")]
    if "--nproc" in kept:
        place = kept.index("--nproc")
        del kept[place : place + 2]
    return kept


def _train(args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    from ocpgem.train.run import run_path, train

    path = args.run_dir or run_path(args.config)
    summary = train(config, path)
    from ocpgem.parallel import group

    if group.is_main():
        _print_metrics(summary.metrics, f"validation after step {summary.steps_done}")
        state = "finished" if summary.finished else "stopped"
        print(f"{state} after step {summary.steps_done} of {config.steps}; everything is in {path}")
    group.shutdown()
    return 0


def _fit_scales(args: argparse.Namespace) -> int:
    import json

    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    _require_parent(args.out)
    figure = args.out.with_suffix(".png")
    if figure == args.out:
        raise RequestError(f"--out {args.out} is for the factors, as JSON; the figure beside it ends in .png")
    from rich.table import Table

    from ocpgem.evaluate.figures import LIGHT, activation_variances
    from ocpgem.train.run import fit_scales_of

    console = _console()
    fitted = fit_scales_of(config, console)
    table = Table(title="scale factors", title_justify="left")
    for column in ("factor of", "value", "variance before", "variance of its reference"):
        table.add_column(column, justify="left" if column == "factor of" else "right", no_wrap=True)
    for scale in fitted:
        table.add_row(
            scale.name,
            f"{scale.factor:.4f}",
            f"{scale.variance_before:.4g}",
            f"{scale.variance_reference:.4g}",
        )
    console.print(table)
    args.out.write_text(json.dumps({scale.name: scale.factor for scale in fitted}, indent=2) + "\n")
    figure.write_bytes(
        activation_variances(
            LIGHT,
            [scale.name.removeprefix("model.") for scale in fitted],
            [scale.variance_unscaled for scale in fitted],
            [scale.variance_scaled for scale in fitted],
        )
    )
    print(f"written to {args.out}; name it as scale_factors.file in a configuration")
    print(f"variances of the activations with and without the factors drawn in {figure}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.predict import evaluate
    from ocpgem.parallel import group

    sets = _named_data(args)
    if args.json is not None:
        _require_parent(args.json)
    potential = _load_for_inference(args)
    results = {
        name: evaluate(potential, dataset, _effort(args), label=f"evaluate {name}")
        for name, dataset in sets.items()
    }
    if group.is_main():
        _print_metrics(results, f"{args.checkpoint}")
        if args.json is not None:
            from ocpgem.evaluate.tables import write_json

            write_json(results, args.json)
            print(f"metrics written to {args.json}")
    group.shutdown()
    return 0


def _predict(args: argparse.Namespace) -> int:
    from ocpgem.data.open import open_dataset
    from ocpgem.evaluate.predict import predict
    from ocpgem.parallel import group

    dataset = open_dataset(args.data)
    potential = _load_for_inference(args)
    done = predict(potential, dataset, args.out, args.dialect, _effort(args))
    if group.is_main():
        if done.metrics is not None:
            _print_metrics({args.data.name: done.metrics}, f"{args.checkpoint}")
        print(f"{done.n_systems} systems written to {done.path}")
    group.shutdown()
    return 0


def _report(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.report import write_report

    print(f"report written to {write_report(args.run_dir)}")
    return 0


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


def _inspect(args: argparse.Namespace) -> int:
    from ocpgem.data.inspect import describe

    if args.check:  # first: describing stops at the first damaged record, this counts them
        from ocpgem.data.verify import verify

        print(verify(args.path, args.workers))
    describe(args.path)
    return 0


def _import_checkpoint(args: argparse.Namespace) -> int:
    if args.source is None and (args.scale_file or args.config or args.weights):
        raise RequestError(
            "--scale-file, --config and --weights belong to a checkpoint that is read; name it"
        )
    if args.list:
        from ocpgem.models.import_weights.catalogue import CATALOGUE, describe

        print("\n\n".join(map(describe, CATALOGUE)))
        return 0
    from ocpgem.models.import_weights.catalogue import fetch, find

    entry = None if args.download is None else find(args.download)
    if args.out is None:
        raise RequestError("say with --out where the result should be written")
    _require_parent(args.out)
    if entry is not None:
        with _download_progress(entry.name) as progress:
            notes = fetch(entry, args.out, progress)
        print("\n".join(notes))
        return 0
    if args.out.exists():
        raise RequestError(f"--out {args.out} exists already; choose another name or remove it first")
    from ocpgem.checkpoint import save_potential
    from ocpgem.models.import_weights.released import import_released
    from ocpgem.models.potential import n_parameters

    imported = import_released(
        args.source, scale_file=args.scale_file, config_file=args.config, weights=args.weights
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

    _require_parent(args.out)
    print("\n".join(export_released(load_potential(args.checkpoint), args.out)))
    return 0


def _show_config(args: argparse.Namespace) -> int:
    from ocpgem.config import dump_config, load_config
    from ocpgem.train.config import TrainConfig

    print(dump_config(load_config(args.config, args.overrides, TrainConfig)), end="")
    return 0


def _import_config(args: argparse.Namespace) -> int:
    from ocpgem.train.import_config import import_config

    if args.out is not None:
        _require_parent(args.out)
    imported = import_config(args.file, args.gpus)
    if args.out is None:
        print(imported.text, end="")
    else:
        args.out.write_text(imported.text)
        print(f"written to {args.out}, with {imported.n_notes} notes at its top")
    if imported.mistakes is not None:
        raise RequestError(f"the translation of {args.file} has to be completed: {imported.mistakes}")
    return 0


def _models(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from ocpgem.models.overview import describe_variants

    variants = describe_variants()
    if args.json:
        print(json.dumps([dataclasses.asdict(variant) for variant in variants], indent=2))
        return 0
    from rich.table import Table

    table = Table(title="variants of GemNet, in their published sizes", title_justify="left")
    for column in ("model.variant", "parameters", "forces", "path", "cutoff", "neighbours"):
        left = column in ("model.variant", "forces", "path")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for variant in variants:
        paths = variant.paths
        table.add_row(
            variant.variant,
            f"{variant.n_parameters:,}",
            variant.forces,
            "\n".join(path.name for path in paths),
            "\n".join(f"{path.cutoff:g} A" for path in paths),
            "\n".join(str(path.max_neighbors or "all") for path in paths),
            end_section=True,
        )
    _console().print(table)
    return 0


def _check_config(args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    missing = [path for path in (config.data.train, *config.data.val.values()) if not Path(path).exists()]
    if missing:
        raise RequestError(
            f"{args.config} is well-formed, but these data sets do not exist: {', '.join(missing)}"
        )
    print(f"{args.config}: no mistakes found")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from ocpgem import doctor

    return doctor.main()


def _named_data(args: argparse.Namespace) -> "dict[str, Dataset]":
    """The data sets to score: those named, else the validation sets of the run."""
    from ocpgem.data.open import open_dataset

    named: dict[str, str] = {}
    for item in args.data:
        name, separator, path = item.partition("=")
        if not separator:
            name, path = Path(item).name, item
        if name in named:
            raise RequestError(f"--data names {name} twice; give the sets different names as NAME=PATH")
        named[name] = path
    if not named:
        config_file = args.checkpoint / "config.yaml"
        if not config_file.is_file():
            raise RequestError(
                f"{args.checkpoint} is not a run directory, so say with --data what to score it on"
            )
        from ocpgem.config import parse_config
        from ocpgem.train.config import TrainConfig

        named = parse_config(config_file.read_text(), TrainConfig, str(config_file)).data.val
    return {name: open_dataset(path) for name, path in named.items()}


def _load_for_inference(args: argparse.Namespace) -> "Potential":
    from ocpgem.checkpoint import load_potential
    from ocpgem.parallel import group
    from ocpgem.parallel.device import choose_device

    potential = load_potential(args.checkpoint)
    device = choose_device()
    group.init_from_environment(device)
    return potential.to(device)


def _effort(args: argparse.Namespace) -> "Effort":
    from ocpgem.data.loader import WorkerSettings
    from ocpgem.evaluate.predict import Effort

    return Effort(args.batch_size, args.max_edges, WorkerSettings(workers=args.workers))


def _print_metrics(results: dict[str, dict[str, float]], title: str) -> None:
    if not results:
        return
    from ocpgem.evaluate.tables import metrics_table

    _console().print(metrics_table(results, title))


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file or a pipe has no width to keep to


@contextmanager
def _download_progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function to call with the bytes that are here and their final number."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        task = display.add_task(name, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)


def _require_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent} is not a folder, so {path.name} cannot be written there")
