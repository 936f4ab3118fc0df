"""Commands that train: `train`, `fit-scales`, `fit-targets`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ocpgem.commands.arguments import Subparsers, config_arguments, nproc_argument, require_parent
from ocpgem.commands.output import make_console, print_metrics
from ocpgem.errors import RequestError

if TYPE_CHECKING:
    from ocpgem.parallel.signals import StopRequest
    from ocpgem.train.parts import TrainSummary
    from ocpgem.train.targets import Targets


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    train = commands.add_parser(
        "train", help="train a model; goes on by itself where the run directory has a checkpoint"
    )
    config_arguments(train)
    train.add_argument(
        "--run-dir", type=Path, help="where everything of the run goes (default: runs/<name of CONFIG>)"
    )
    nproc_argument(train)
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what memory and time the run needs, and start nothing",
    )
    train.add_argument(
        "--gpu",
        metavar="KIND",
        help="with --dry-run: the GPU of each rank, as A100-80GB (default: this machine)",
    )
    train.set_defaults(command=_train)

    fit = commands.add_parser("fit-scales", help="fit the scale factors of a configuration's model")
    config_arguments(fit)
    fit.add_argument("--out", type=Path, required=True, help="JSON file to write, for scale_factors.file")
    fit.set_defaults(command=_fit_scales)

    targets = commands.add_parser(
        "fit-targets", help="fit the normalisation and the energies of elements to a configuration's data"
    )
    config_arguments(targets)
    targets.add_argument("--out", type=Path, required=True, help="JSON file to write, for normalization.file")
    nproc_argument(targets)
    targets.set_defaults(command=_fit_targets)


def _train(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args)
    if args.gpu is not None:
        raise RequestError("--gpu belongs to --dry-run; a run takes the GPU that it finds")
    from ocpgem.parallel.signals import StopRequest

    stop = StopRequest()
    with stop.listening():
        return _train_until(stop, args)


def _dry_run(args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    if args.nproc < 1:
        raise RequestError(f"--nproc is {args.nproc}; it must be at least 1")
    from ocpgem.train.estimate import as_text, device_named, estimate
    from ocpgem.train.examine import examine
    from ocpgem.train.run import run_path
    from ocpgem.train.run_directory import RunDirectory

    run = RunDirectory(args.run_dir or run_path(args.config))
    examined = examine(config, args.nproc, run.has_begun)
    examined.require()
    for note in examined.notes:
        print(f"note: {note}")
    print(as_text(estimate(config, args.nproc, device_named(args.gpu), say=print)))
    return 0


def _train_until(stop: "StopRequest", args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    from ocpgem.parallel.signals import exit_code_of
    from ocpgem.train.run import run_path, train
    from ocpgem.train.unusable import summary_of_skipped

    path = args.run_dir or run_path(args.config)
    summary = train(config, path, stop)
    from ocpgem.parallel import group

    if group.is_main():
        print_metrics(summary.metrics, f"validation after step {summary.steps_done}")
        for line in summary_of_skipped(path):
            print(line)
        print(_ending(summary, config.steps, path))
    group.shutdown()
    return 0 if summary.stopped_by is None else exit_code_of(summary.stopped_by)


def _ending(summary: "TrainSummary", steps: int, path: Path) -> str:
    """What happened and what to do next."""
    done = f"after step {summary.steps_done} of {steps}"
    if summary.stopped_by is None:
        return f"finished {done}; everything is in {path}"
    return (
        f"stopped {done} by {summary.stopped_by.name}; the state is saved in {summary.checkpoint}; "
        "start the same command again to go on from there"
    )


def _fit_scales(args: argparse.Namespace) -> int:
    import json

    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    require_parent(args.out)
    figure = args.out.with_suffix(".png")
    if figure == args.out:
        raise RequestError(f"--out {args.out} is for the factors, as JSON; the figure beside it ends in .png")
    from rich.table import Table

    from ocpgem.evaluate.figures import LIGHT, activation_variances
    from ocpgem.train.run import fit_scales_of

    console = make_console()
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


def _fit_targets(args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    require_parent(args.out)
    if not config.normalization.fits_something:
        raise RequestError(
            f"the normalization of {args.config} fits nothing; add normalization=fit, "
            "normalization.element_references.fit=least_squares or both"
        )
    from ocpgem.files import write_text
    from ocpgem.parallel import group
    from ocpgem.train.targets import fit_targets
    from ocpgem.train.unusable import usable_training_set

    group.init_from_environment("cpu")
    train_set = usable_training_set(config, say=print if group.is_main() else lambda text: None)
    targets = fit_targets(
        config.normalization, train_set, config.loss.forces > 0, "fitting the normalisation"
    )
    if group.is_main():
        write_text(args.out, targets.normalization.model_dump_json(indent=2) + "\n")
        _print_targets(targets)
        print(f"written to {args.out}; name it as normalization.file in a configuration")
    group.shutdown()
    return 0


def _print_targets(targets: "Targets") -> None:
    from ase.data import chemical_symbols
    from rich.table import Table

    from ocpgem.train.targets import describe_targets

    assert targets.moments is not None, "something was fitted"
    console = make_console()
    energies = targets.normalization.element_energies
    if energies:
        table = Table(title="energies of elements", title_justify="left")
        for column in ("element", "records", "energy (eV)"):
            table.add_column(column, justify="left" if column == "element" else "right")
        for number, energy in sorted(energies.items()):
            n_records = int(targets.moments.n_records[number])
            table.add_row(chemical_symbols[number], f"{n_records:,}", f"{energy:.6f}")
        console.print(table)
    for remark in targets.remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    print(f"normalisation: {describe_targets(targets.normalization)}")
