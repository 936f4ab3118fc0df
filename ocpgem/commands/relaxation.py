"""Commands that move atoms: `relax`."""

import argparse
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ocpgem.commands.arguments import (
    Subparsers,
    checkpoint_argument,
    not_negative,
    nproc_argument,
    positive,
    several_models_arguments,
)
from ocpgem.commands.output import print_metrics
from ocpgem.errors import RequestError

if TYPE_CHECKING:
    from ocpgem.evaluate.relax.dataset import RelaxReport
    from ocpgem.evaluate.relax.optimizers import FireSettings, LbfgsSettings
    from ocpgem.parallel.signals import StopRequest

_PATIENCE = timedelta(days=7)  # ranks may need very different times; the others wait at the end
_MOST_PROBLEMS = 10  # shown


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    relax = commands.add_parser(
        "relax",
        help="relax the structures of a data set (IS2RE, IS2RS); goes on where an earlier call stopped",
    )
    checkpoint_argument(relax)
    several_models_arguments(relax)
    relax.add_argument("--data", type=Path, required=True, help="data set")
    relax.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    relax.add_argument(
        "--fmax", type=float, default=0.02, help="eV/A; longest force at the end (default: 0.02)"
    )
    relax.add_argument("--steps", type=not_negative, default=300, help="steps at most (default: 300)")
    relax.add_argument("--optimizer", choices=["lbfgs", "fire"], default="lbfgs", help="default: lbfgs")
    relax.add_argument(
        "--maxstep",
        type=float,
        default=0.2,
        help="A, the longest step; OC20's own relaxations used 0.04 (default: 0.2)",
    )
    relax.add_argument("--memory", type=positive, help="steps that L-BFGS remembers (default: 50)")
    relax.add_argument("--damping", type=float, help="factor on the steps of L-BFGS (default: 1)")
    relax.add_argument("--alpha", type=float, help="eV/A^2, first curvature of L-BFGS (default: 70)")
    relax.add_argument(
        "--trajectories",
        choices=["none", "traj", "extxyz"],
        default="none",
        help="also write the way of each system, for ASE (default: none)",
    )
    relax.add_argument(
        "--every", type=positive, default=1, help="keep every so many-th structure of a way (default: 1)"
    )
    relax.add_argument(
        "--batch-size", type=positive, default=32, help="systems at once per rank (default: 32)"
    )
    relax.add_argument("--max-edges", type=positive, help="edges at once per rank at most")
    nproc_argument(relax)
    relax.set_defaults(command=_relax, checks=_checks_of_relax)


def _checks_of_relax(args: argparse.Namespace) -> list[Callable[[], object]]:
    """What can be said of a request without computing; each check raises what `relax` itself would."""
    from ocpgem.data.open import open_dataset
    from ocpgem.evaluate.open_model import check_models
    from ocpgem.evaluate.relax.loop import RelaxSettings
    from ocpgem.evaluate.relax.store import check_folder

    return [
        partial(_optimizer, args),
        partial(RelaxSettings, args.fmax, args.steps),
        partial(check_folder, args.out),
        partial(open_dataset, args.data),
        partial(check_models, [args.checkpoint, *args.ensemble], args.forces_from),
    ]


def _relax(args: argparse.Namespace) -> int:
    from ocpgem.parallel.signals import stop_with_parts_kept

    stop = stop_with_parts_kept()
    with stop.listening():
        return _relax_until(stop, args)


def _relax_until(stop: "StopRequest", args: argparse.Namespace) -> int:
    optimizer = _optimizer(args)
    from ocpgem.data.open import open_dataset
    from ocpgem.evaluate.open_model import load_together
    from ocpgem.evaluate.relax.dataset import RelaxTask, relax_dataset
    from ocpgem.evaluate.relax.loop import RelaxSettings
    from ocpgem.parallel import group
    from ocpgem.parallel.device import set_up_device

    every = 0 if args.trajectories == "none" else args.every
    task = RelaxTask(
        RelaxSettings(args.fmax, args.steps, optimizer, every),
        args.trajectories,
        args.batch_size,
        args.max_edges,
        stop=stop,
    )
    dataset = open_dataset(args.data)
    device = set_up_device()
    group.init_from_environment(device, _PATIENCE)
    model = load_together([args.checkpoint, *args.ensemble], forces_from=args.forces_from, device=device)
    report = relax_dataset(model, dataset, args.out, task)
    if report is not None:
        _print(report, args)
    group.shutdown()
    return 0


def _optimizer(args: argparse.Namespace) -> "LbfgsSettings | FireSettings":
    from ocpgem.evaluate.relax.optimizers import FireSettings, LbfgsSettings

    own = {name: getattr(args, name) for name in ("memory", "damping", "alpha")}
    own = {name: value for name, value in own.items() if value is not None}
    if args.optimizer == "lbfgs":
        return LbfgsSettings(maxstep=args.maxstep, **own)
    if own:
        raise RequestError(f"--{next(iter(own))} belongs to L-BFGS; leave it out with --optimizer fire")
    return FireSettings(maxstep=args.maxstep)


def _print(report: "RelaxReport", args: argparse.Namespace) -> None:
    from ocpgem.evaluate.relax.scores import relaxed_scores

    scores = relaxed_scores(report.predictions)
    if scores:
        print_metrics({args.data.name: scores}, "relaxed structures against those of the data")
    n_systems = len(report.predictions)
    earlier = f", {report.n_earlier} of them by an earlier call" if report.n_earlier else ""
    print(
        f"{n_systems} systems relaxed{earlier}: {report.n_converged} to {args.fmax:g} eV/A, "
        f"{n_systems - report.n_converged} not; {report.mean_steps:.1f} steps on average"
    )
    for problem in report.problems[:_MOST_PROBLEMS]:
        print(f"warning: {problem}; its last good structure was taken")
    if len(report.problems) > _MOST_PROBLEMS:
        print(f"warning: {len(report.problems) - _MOST_PROBLEMS} more could not go on; see systems.csv")
    print(
        f"energies, positions and forces in {report.path}, one line per system in {report.path.parent / 'systems.csv'}"
    )
