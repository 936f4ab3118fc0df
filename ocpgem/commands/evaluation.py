"""Commands that use a model: `evaluate`, `predict`, `report`."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ocpgem.commands.arguments import (
    Subparsers,
    benchmark_argument,
    checkpoint_argument,
    inference_arguments,
    require_different,
    require_parent,
    several_models_arguments,
)
from ocpgem.commands.output import make_console, print_metrics
from ocpgem.errors import DataError, RequestError

if TYPE_CHECKING:
    from ocpgem.data.dataset import Dataset
    from ocpgem.evaluate.metrics import Scores
    from ocpgem.evaluate.open_model import Model
    from ocpgem.evaluate.predict import Effort, Task
    from ocpgem.parallel.signals import StopRequest


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
    for kind, what in (("json", "JSON"), ("csv", "CSV"), ("markdown", "Markdown")):
        evaluate.add_argument(
            f"--{kind}", type=Path, metavar="FILE", help=f"also write the metrics as {what}"
        )
    _task_argument(evaluate)
    inference_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate, checks=_checks_of_evaluate)

    predict = commands.add_parser("predict", help="write the energies and forces of a data set")
    checkpoint_argument(predict)
    several_models_arguments(predict)
    predict.add_argument("--data", type=Path, required=True, help="data set")
    predict.add_argument("--out", type=Path, required=True, help="npz file to write")
    predict.add_argument(
        "--dialect",
        choices=["ocp", "hub", "raw"],
        default="ocp",
        help="ocp: free atoms, cast, sorted, as the first leaderboard host; hub: all atoms, as the present host; "
        "raw: all atoms, nothing cast, with the labels (default: ocp)",
    )
    benchmark_argument(predict)
    _task_argument(predict)
    inference_arguments(predict)
    predict.set_defaults(command=_predict, checks=_checks_of_predict)

    report = commands.add_parser(
        "report", help="write the report of a run: curves, parity plots, one HTML file"
    )
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.set_defaults(command=_report)


def _task_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=["s2ef", "is2re"],
        help="s2ef: energy and forces of each structure; is2re: the energy of its relaxed structure, directly "
        "(default: is2re for a model without forces on data that hold relaxed energies, else s2ef)",
    )


def files_of(args: argparse.Namespace) -> list[Path]:
    """The files that `evaluate` is to write; without one, nothing of it outlives an interruption."""
    return [file for file in (args.json, args.csv, args.markdown) if file is not None]


def _checks_of_evaluate(args: argparse.Namespace) -> list[Callable[[], object]]:
    """What can be said of a request without computing; each check raises what `evaluate` itself would."""
    from ocpgem.evaluate.open_model import check_models

    paths = [_named(item)[1] for item in args.data]
    return [
        *(partial(require_parent, file) for file in files_of(args)),
        partial(_data_paths, args),
        *(partial(_open_for, args.task, path) for path in dict.fromkeys(paths)),
        *([] if paths else [partial(_named_data, args)]),
        partial(check_models, [args.checkpoint, *args.ensemble], args.forces_from),
    ]


def _checks_of_predict(args: argparse.Namespace) -> list[Callable[[], object]]:
    """The same for `predict`."""
    from ocpgem.data.open import open_dataset
    from ocpgem.evaluate.open_model import check_models
    from ocpgem.evaluate.prediction_set import check_target

    return [
        partial(check_target, args.out, args.dialect),
        partial(open_dataset, args.data),
        partial(check_models, [args.checkpoint, *args.ensemble], args.forces_from),
    ]


def _open_for(task: "Task | None", path: str) -> "Dataset":
    """A data set, with the labels of a task that is asked for."""
    from ocpgem.data.open import open_dataset

    return _labelled(open_dataset(path), task or "s2ef")


def _evaluate(args: argparse.Namespace) -> int:
    from ocpgem.parallel.signals import stop_with_parts_kept

    nothing_kept = (
        "arrived; nothing is kept without --json, --csv or --markdown, so the same command begins anew"
    )
    stop = stop_with_parts_kept(None if files_of(args) else nothing_kept)
    with stop.listening():
        return _evaluate_until(stop, args)


def _evaluate_until(stop: "StopRequest", args: argparse.Namespace) -> int:
    from ocpgem.evaluate.predict import evaluate_sets, remove_parts
    from ocpgem.parallel import group

    files = files_of(args)
    require_different(files)
    for file in files:
        require_parent(file)
    sets = _named_data(args)
    potential = _load_for_inference(args)
    tasks = {name: _task(args, potential, dataset) for name, dataset in sets.items()}
    sets = {name: _labelled(dataset, tasks[name]) for name, dataset in sets.items()}
    scores = evaluate_sets(potential, sets, _effort(args, stop), keep=files[0] if files else None)
    if group.is_main():
        _show_scores(scores, args)
        if files:
            remove_parts(files[0], sets)
    group.shutdown()
    return 0


def _show_scores(scores: "dict[str, Scores]", args: argparse.Namespace) -> None:
    """Print the table of the metrics and write it to the files that were asked for."""
    from ocpgem.evaluate import tables
    from ocpgem.files import write_text

    results = {name: each.values for name, each in scores.items()}
    intervals = tables.intervals_of(scores)
    title = " + ".join(map(str, [args.checkpoint, *args.ensemble]))
    if args.forces_from:
        title += f", forces of {' + '.join(map(str, args.forces_from))}"
    make_console().print(tables.metrics_table(results, title, intervals))
    contents = (
        (args.json, lambda: tables.as_json(results, scores)),
        (args.csv, lambda: tables.as_csv(results, intervals)),
        (args.markdown, lambda: tables.as_markdown(results, title, intervals)),
    )
    for path, content in contents:
        if path is not None:
            write_text(path, content())
            print(f"metrics written to {path}")


def _predict(args: argparse.Namespace) -> int:
    from ocpgem.parallel.signals import stop_with_parts_kept

    stop = stop_with_parts_kept()
    with stop.listening():
        return _predict_until(stop, args)


def _predict_until(stop: "StopRequest", args: argparse.Namespace) -> int:
    from ocpgem.data.labels import Relabelled
    from ocpgem.data.open import open_dataset
    from ocpgem.evaluate.predict import predict
    from ocpgem.evaluate.provenance import record_of
    from ocpgem.parallel import group

    dataset = open_dataset(args.data)
    potential = _load_for_inference(args)
    task = _task(args, potential, dataset)
    record = record_of(potential, [args.checkpoint, *args.ensemble, *(args.forces_from or [])], dataset, task)
    if task == "is2re":
        dataset = Relabelled(dataset, relaxed=True, required=False)
    effort = _effort(args, stop)
    done = predict(
        potential, dataset, args.out, args.dialect, effort,
        task=task, provenance=record, benchmark=args.benchmark,
    )  # fmt: skip
    if group.is_main():
        if done.n_resumed:
            print(f"{done.n_resumed} systems were done before")
        if done.metrics is not None:
            print_metrics({args.data.name: done.metrics}, f"{args.checkpoint}")
        print(f"{done.n_systems} systems written to {done.path}")
    group.shutdown()
    return 0


def _task(args: argparse.Namespace, model: "Model", dataset: "Dataset") -> "Task":
    """What to predict: as asked for, else what fits the model and the data."""
    from ocpgem.evaluate.open_model import has_forces

    if args.task is not None:
        return "is2re" if args.task == "is2re" else "s2ef"
    return "is2re" if not has_forces(model) and dataset[0].energy_relaxed is not None else "s2ef"


def _labelled(dataset: "Dataset", task: "Task") -> "Dataset":
    """The data to be scored, with the labels of the task; energies of unrelaxed structures are none of is2re."""
    if task == "s2ef":
        return dataset
    from ocpgem.data.labels import Relabelled

    first = dataset[0]
    if first.energy_relaxed is None and first.energy is not None:
        raise DataError(
            f"{first.where} has an energy but no relaxed one (energy_relaxed), so it cannot be scored as is2re; "
            "--task s2ef compares with the energy of the structure itself"
        )
    return dataset if first.energy_relaxed is None else Relabelled(dataset, relaxed=True)


def _report(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.report import write_report

    print(f"report written to {write_report(args.run_dir)}")
    return 0


def _named_data(args: argparse.Namespace) -> "dict[str, Dataset]":
    """The data sets to score: those named, else the validation sets of the run."""
    from ocpgem.data.open import open_dataset

    named = _data_paths(args)
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


def _data_paths(args: argparse.Namespace) -> dict[str, str]:
    """Name -> path of the data sets that --data names."""
    named: dict[str, str] = {}
    for item in args.data:
        name, path = _named(item)
        if name in named:
            raise RequestError(f"--data names {name} twice; give the sets different names as NAME=PATH")
        named[name] = path
    return named


def _named(item: str) -> tuple[str, str]:
    """Name and path of `[NAME=]PATH`."""
    name, separator, path = item.partition("=")
    return (name, path) if separator else (Path(item).name, item)


def _load_for_inference(args: argparse.Namespace) -> "Model":
    from ocpgem.evaluate.open_model import load_together
    from ocpgem.parallel import group
    from ocpgem.parallel.device import set_up_device

    device = set_up_device()
    group.init_from_environment(device)
    return load_together([args.checkpoint, *args.ensemble], forces_from=args.forces_from, device=device)


def _effort(args: argparse.Namespace, stop: "StopRequest") -> "Effort":
    from ocpgem.data.loader import WorkerSettings
    from ocpgem.evaluate.predict import Effort
    from ocpgem.parallel.device import choose_device

    settings = WorkerSettings(args.workers, pin_memory=choose_device().type == "cuda")
    return Effort(args.batch_size, args.max_edges, settings, stop=stop)
