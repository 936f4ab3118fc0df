"""From a request to a plan: everything is read, resolved and checked before anything is queued or written."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from ocpgem.config import dump_config, load_config
from ocpgem.errors import OcpgemError, RequestError
from ocpgem.launch.job_states import jobs_of_run, states_of
from ocpgem.launch.preflight import (
    Findings,
    check_account,
    check_folder,
    check_partition,
    checked,
)
from ocpgem.launch.profile import ClusterProfile
from ocpgem.launch.records import Element
from ocpgem.launch.slurm import SlurmError, have_slurm
from ocpgem.launch.submission import FROZEN_CONFIG, Plan, check_job_name, job_name
from ocpgem.launch.sweep import SweepSection, names_of, overrides_of
from ocpgem.train.config import TrainConfig
from ocpgem.train.examine import examine
from ocpgem.train.run import run_path
from ocpgem.train.run_directory import RunDirectory


@dataclass(frozen=True)
class TrainRequest:
    """What `submit CONFIG` was given."""

    config: Path
    overrides: list[str]
    profile: ClusterProfile
    run_dir: Path | None = None
    name: str | None = None
    sweep: SweepSection | None = None
    snapshot: bool = False


def plan_training(request: TrainRequest, found: Findings) -> Plan:
    """Resolve the configuration, or those of a sweep, and check every run. Mistakes go into `found`.

    Raises ConfigError where a configuration is wrong.
    """
    home = (request.run_dir or run_path(request.config)).resolve()
    settings = request.sweep.runs() if request.sweep else [{}]
    places = [home] if request.sweep is None else [home / name for name in names_of(settings)]
    configs = [
        load_config(request.config, [*request.overrides, *overrides_of(each)], TrainConfig)
        for each in settings
    ]
    check_folder(home, found)
    checked(lambda: check_job_name(request.name), found)
    for config, place in zip(configs, places, strict=True):
        checked(lambda config=config, place=place: RunDirectory(place).check(config), found)  # type: ignore[misc]
        _check_active(place, found)
    for config, place in zip(configs, places, strict=True):
        check_training(config, place, request.profile, found)
    found.mistakes, found.notes = list(dict.fromkeys(found.mistakes)), list(dict.fromkeys(found.notes))
    return Plan(
        kind="train",
        name=request.name or job_name("train", home),
        home=home,
        elements=[
            Element(str(place), ["train", FROZEN_CONFIG, "--run-dir", str(place)], config.steps)
            for config, place in zip(configs, places, strict=True)
        ],
        configs=[dump_config(config) for config in configs],
        profile=request.profile,
        parallel=request.sweep.parallel if request.sweep else None,
        snapshot=request.snapshot,
    )


def check_training(config: TrainConfig, place: Path, profile: ClusterProfile, found: Findings) -> None:
    """What a run in the folder `place` would be refused for, what its ranks need, and whether they have their cores."""
    begun, other_python = RunDirectory(place).has_begun, profile.python is not None
    examined = examine(config, profile.n_ranks, begun, other_python)
    found.mistakes += map(str, examined.mistakes)
    found.notes += examined.notes
    if not examined.mistakes:
        checked(lambda: _check_memory(config, profile, found), found)
    loaders = config.data.workers + 1
    if profile.cpus_per_task is not None and profile.cpus_per_task < loaders:
        found.notes.append(
            f"cpus_per_task is {profile.cpus_per_task}, but each rank runs {loaders} processes (data.workers + 1)"
        )


def _check_memory(config: TrainConfig, profile: ClusterProfile, found: Findings) -> None:
    """Compare what a rank needs at most with the memory of a GPU, where the profile tells it."""
    if not profile.gpus_per_node or profile.gpu.memory_gb is None:
        return
    from ocpgem.train.estimate import GPUS, Device, estimate

    name = f"GPU of {profile.gpu.memory_gb:g} GB"
    device = Device(name, int(profile.gpu.memory_gb * 1e9), GPUS["A100-80GB"].tflops)
    need = estimate(config, profile.n_ranks, device)
    batch, gb = need.batch, need.total_bytes / 1e9
    what = f"{batch.n_systems} systems, {batch.n_atoms} atoms and {batch.n_edges} edges"
    if not need.fits:
        found.mistakes.append(
            f"a rank would need about {gb:.3g} GB for {what}, more than a {name} (gpu.memory_gb of the profile); "
            "set data.max_edges, lower data.batch_size or use more ranks"
        )
    else:
        found.notes.append(f"a rank needs about {gb:.3g} GB for {what}; a {name} is asked for")


@dataclass(frozen=True)
class CommandRequest:
    """What `submit evaluate ...` was given."""

    args: Namespace
    """The parsed arguments of the command; `checks` among them makes its checks, as the command itself does."""
    words: list[str]
    """The same as they were given."""
    profile: ClusterProfile
    run_dir: Path | None = None
    name: str | None = None
    snapshot: bool = False


def plan_command(request: CommandRequest, found: Findings) -> Plan:
    """A job that runs `evaluate`, `predict` or `relax`. Mistakes go into `found`."""
    args, kind = request.args, request.words[0]
    if getattr(args, "nproc", 1) != 1:
        raise RequestError(
            "--nproc starts ranks on this machine; on a cluster give --nodes and --tasks-per-node"
        )
    checkpoint = Path(args.checkpoint)
    own = checkpoint if checkpoint.is_dir() else Path("runs") / f"{kind}-{checkpoint.stem}"
    home = (request.run_dir or own).resolve()
    for check in args.checks(args):
        checked(check, found)
    check_folder(home, found)
    checked(lambda: check_job_name(request.name), found)
    resumes = kind != "evaluate" or any((args.json, args.csv, args.markdown))
    if not resumes:
        found.notes.append(
            "an evaluation without --json, --csv or --markdown keeps nothing on its way: after a time limit it is not "
            "started again"
        )
    return Plan(
        kind=kind,
        name=request.name or job_name(kind, home),
        home=home,
        elements=[Element(str(home), request.words)],
        configs=[],
        profile=request.profile,
        snapshot=request.snapshot,
        resumes=resumes,
    )


def check_cluster(profile: ClusterProfile, found: Findings, needed: bool) -> bool:
    """Hold the profile against what SLURM says of partition, account and limits; returns whether it answers.

    needed: a SLURM that is absent or does not answer is a mistake; else the latter is a note. Raises SlurmError where
    that is the only mistake.
    """
    if not have_slurm():
        if needed:
            found.mistakes.append(
                "there is no SLURM here (sbatch and scontrol are missing); run submit on a login node, rehearse with "
                "slurm/local_cluster.sh, or look at the script with --dry-run"
            )
        return False
    try:
        check_partition(profile, found)
        check_account(profile, found)
    except SlurmError as error:
        if needed and not found.mistakes:
            raise
        if needed:
            found.mistakes.append(str(error))
        else:
            found.notes.append(
                f"SLURM did not answer; partition, account and limits were not checked ({error})"
            )
        return False
    return True


def _check_active(run_dir: Path, found: Findings) -> None:
    """Two jobs must not train in one run directory."""
    try:
        jobs = [job for job in jobs_of_run(run_dir) if job.submission.kind == "train"]
    except OcpgemError:
        return
    for job, state in zip(jobs, states_of(jobs), strict=True):
        if state.active:
            found.mistakes.append(
                f"{run_dir} is in use by job {job.number} ({state.name}); cancel it first "
                f"(python main.py cancel {run_dir}) or choose another --run-dir"
            )
