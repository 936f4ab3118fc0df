"""Commands that use a model: `evaluate`, `predict`, `report`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ocpgem.commands.arguments import (
    Subparsers,
    checkpoint_argument,
    inference_arguments,
    require_parent,
    several_models_arguments,
)
from ocpgem.commands.output import print_metrics
from ocpgem.errors import RequestError

if TYPE_CHECKING:
    from ocpgem.data.dataset import Dataset
    from ocpgem.evaluate.open_model import Model
    from ocpgem.evaluate.predict import Effort


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    evaluate = commands.add_parser("evaluate", help="score a model on labelled data")
    checkpoint_argument(evaluate)
    several_models_arguments(evaluate)
    evaluate.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="data set; may be repeated (default: the validation sets of the run)",
    )
    evaluate.add_argument("--json", type=Path, help="also write the metrics to this file")
    inference_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help="write the energies and forces of a data set")
    checkpoint_argument(predict)
    several_models_arguments(predict)
    predict.add_argument("--data", type=Path, required=True, help="data set")
    predict.add_argument("--out", type=Path, required=True, help="npz file to write")
    predict.add_argument(
        "--dialect",
        choices=["ocp", "hub", "raw"],
        default="ocp",
        help="ocp: free atoms in float16, as the first leaderboard host; hub: all atoms, as the present host; "
        "raw: all atoms, nothing cast, with the labels (default: ocp)",
    )
    inference_arguments(predict)
    predict.set_defaults(command=_predict)

    report = commands.add_parser(
        "report", help="write the report of a run: curves, parity plots, one HTML file"
    )
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.set_defaults(command=_report)


def _evaluate(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.predict import evaluate
    from ocpgem.parallel import group

    sets = _named_data(args)
    if args.json is not None:
        require_parent(args.json)
    potential = _load_for_inference(args)
    results = {
        name: evaluate(potential, dataset, _effort(args), label=f"evaluate {name}")
        for name, dataset in sets.items()
    }
    if group.is_main():
        print_metrics(results, f"{args.checkpoint}")
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
            print_metrics({args.data.name: done.metrics}, f"{args.checkpoint}")
        print(f"{done.n_systems} systems written to {done.path}")
    group.shutdown()
    return 0


def _report(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.report import write_report

    print(f"report written to {write_report(args.run_dir)}")
    return 0


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
        from ocpgem.train.unusable import usable_validation_sets

        config = parse_config(config_file.read_text(), TrainConfig, str(config_file))
        return usable_validation_sets(config.data, args.checkpoint)
    return {name: open_dataset(path) for name, path in named.items()}


def _load_for_inference(args: argparse.Namespace) -> "Model":
    from ocpgem.evaluate.open_model import load_together
    from ocpgem.parallel import group
    from ocpgem.parallel.device import choose_device

    device = choose_device()
    group.init_from_environment(device)
    return load_together([args.checkpoint, *args.ensemble], forces_from=args.forces_from, device=device)


def _effort(args: argparse.Namespace) -> "Effort":
    from ocpgem.data.loader import WorkerSettings
    from ocpgem.evaluate.predict import Effort

    return Effort(args.batch_size, args.max_edges, WorkerSettings(workers=args.workers))
