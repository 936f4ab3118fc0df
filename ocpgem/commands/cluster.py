"""Commands for a SLURM cluster: `submit`, `jobs`, `logs`, `cancel`."""

import argparse
import difflib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ocpgem.commands import evaluation, relaxation
from ocpgem.commands.arguments import Subparsers, positive
from ocpgem.commands.output import make_console
from ocpgem.errors import OcpgemError, RequestError

if TYPE_CHECKING:
    from ocpgem.launch.job_states import Job, State
    from ocpgem.launch.preflight import Findings
    from ocpgem.launch.profile import ClusterProfile
    from ocpgem.launch.submission import Plan

_OPTIONS = {
    "nodes": "nodes",
    "gpus_per_node": "GPUs on each node",
    "tasks_per_node": "ranks on each node (default: one for each GPU)",
    "cpus_per_task": "cores of each rank",
    "memory": "memory of each node, as 64G",
    "time": "time limit, as 24:00:00",
    "partition": "",
    "account": "",
    "qos": "quality of service",
    "constraint": "features that the nodes must have",
    "exclude": "nodes not to use",
}
_COMMANDS = ("evaluate", "predict", "relax")
_WAIT_SECONDS = 90.0
_COLUMNS = (
    *("job", "what", "run", "state", "step", "loss", "systems/s", "run left", "limit in"),
    "last error or detail",
)


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    _add_submit(commands)
    jobs = commands.add_parser(
        "jobs", help="this project's jobs on the cluster, with state, loss and last error"
    )
    jobs.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="only those of these run directories")
    jobs.add_argument("--all", action="store_true", help="also those that ended more than a day ago")
    jobs.set_defaults(command=_jobs)

    logs = commands.add_parser("logs", help="what the jobs of a run have printed, in order")
    logs.add_argument("run", type=Path, metavar="RUN")
    logs.add_argument("--rank", type=int, default=0, help="which rank's output (default: 0)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the last job ends")
    logs.set_defaults(command=_logs)

    cancel = commands.add_parser("cancel", help="end the jobs of a run; training saves a checkpoint first")
    cancel.add_argument("run", type=Path, metavar="RUN")
    cancel.set_defaults(command=_cancel)


def _add_submit(commands: Subparsers) -> None:
    submit = commands.add_parser(
        "submit",
        allow_abbrev=False,
        help="run a command on a SLURM cluster",
        usage="%(prog)s (CONFIG [KEY=VALUE ...] | evaluate ... | predict ... | relax ...) --cluster PROFILE [options]",
        description="Submit a training run, or an evaluation, prediction or relaxation with its own options "
        "(submit evaluate runs/demo --data PATH --cluster PROFILE). Everything is checked before it is queued; the "
        "configuration is frozen below the run directory.",
    )
    submit.add_argument("request", nargs="+", metavar="CONFIG", help="configuration to train, or a command")
    submit.add_argument(
        "--cluster", type=Path, required=True, metavar="PROFILE", help="YAML file as slurm/example.yaml"
    )
    numbers = ("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task")
    for name, text in _OPTIONS.items():
        option = "mem" if name == "memory" else name.replace("_", "-")  # relax has a --memory of its own
        submit.add_argument(
            f"--{option}", dest=name, type=positive if name in numbers else str, help=text or None
        )
    submit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another setting of the profile; may be repeated",
    )
    submit.add_argument("--run-dir", type=Path, help="where the run goes (default: runs/<name of CONFIG>)")
    submit.add_argument("--name", help="name of the job (default: that of the run directory)")
    submit.add_argument("--sweep", type=Path, metavar="FILE", help="settings of many runs, for a job array")
    submit.add_argument(
        "--snapshot-code",
        action="store_true",
        help="copy the code, so that later changes do not reach the job",
    )
    submit.add_argument("--dry-run", action="store_true", help="show the script and the ranks; queue nothing")
    submit.set_defaults(command=_submit, rest=[])


def _submit(args: argparse.Namespace) -> int:
    from ocpgem.launch.plans import check_cluster
    from ocpgem.launch.preflight import Findings, checked
    from ocpgem.launch.profile import load_profile
    from ocpgem.launch.submission import next_folder, script_of, submit, test_with_slurm

    # As JSON, so that text stays text: an account may be a number.
    given = [
        f"{name}={json.dumps(getattr(args, name))}" for name in _OPTIONS if getattr(args, name) is not None
    ]
    profile = load_profile(args.cluster, [*args.set, *given])
    found = Findings()
    plan = _plan(args, profile, found)
    script = script_of(plan, next_folder(plan))
    if args.dry_run:
        _show(plan, script)
    answered = check_cluster(profile, found, needed=not args.dry_run)
    if answered and not found.mistakes:
        checked(lambda: print(test_with_slurm(script)), found)
    for note in found.notes:
        print(f"note: {note}")
    found.raise_if_wrong()
    if args.dry_run:
        print("dry run: nothing was queued and nothing was written")
        return 0
    submission = submit(plan)
    shape = f"{profile.nodes} x {profile.ranks_per_node} ranks"
    what = f"{len(plan.elements)} runs of {shape}" if len(plan.elements) > 1 else shape
    print(
        f"submitted job {submission.job_id}: {what}, at most {profile.time} each; frozen in {submission.folder}"
    )
    run = _shown(plan.home)
    print(f"look at it with: python main.py jobs; python main.py logs {run}; python main.py cancel {run}")
    return 0


def _plan(args: argparse.Namespace, profile: "ClusterProfile", found: "Findings") -> "Plan":
    from ocpgem.launch.plans import CommandRequest, TrainRequest, plan_command, plan_training
    from ocpgem.launch.sweep import load_sweep

    words = [*args.request, *args.rest]
    if words[0] in _COMMANDS:
        if args.sweep is not None:
            raise RequestError(f"--sweep is for training, not for {words[0]}")
        command = CommandRequest(
            _parse_command(words), words, profile, args.run_dir, args.name, args.snapshot_code
        )
        return plan_command(command, found)
    near = difflib.get_close_matches(words[0], ["train", *_COMMANDS], n=1, cutoff=0.75)
    if words[0] == "train":
        del words[0]
    elif near and not Path(words[0]).exists():
        raise RequestError(f"there is no command {words[0]} to submit; did you mean {near[0]}?")
    wrong = [word for word in words[1:] if word.startswith("-") or "=" not in word]
    if wrong or not words:
        raise RequestError(
            f"submit does not know {' '.join(wrong) or 'what to train'}; see python main.py submit --help"
        )
    request = TrainRequest(
        config=Path(words[0]),
        overrides=words[1:],
        profile=profile,
        run_dir=args.run_dir,
        name=args.name,
        sweep=load_sweep(args.sweep) if args.sweep is not None else None,
        snapshot=args.snapshot_code,
    )
    return plan_training(request, found)


class _CommandParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see python main.py {self.prog.split()[-1]} --help")


def _parse_command(words: list[str]) -> argparse.Namespace:
    """The arguments of the command that a job is to run."""
    parser = _CommandParser(prog="submit")
    commands: Any = parser.add_subparsers(required=True, metavar="COMMAND")
    evaluation.add_commands(commands)
    relaxation.add_commands(commands)
    if words[0] not in commands.choices:
        raise RequestError(
            f"there is no command {words[0]} to submit; there are {', '.join(commands.choices)}"
        )
    return parser.parse_args(words)


def _show(plan: "Plan", script: str) -> None:
    from rich.table import Table

    print(script)
    profile = plan.profile
    per_node, gpus = profile.ranks_per_node, profile.gpus_per_node
    table = Table(title="ranks", title_justify="left")
    for column in ("node", "ranks", "GPUs", "cores"):
        table.add_column(column)
    shown = range(profile.nodes) if profile.nodes <= 8 else (0, 1, profile.nodes - 1)
    for node in shown:
        first = node * per_node
        devices = _span(0, min(gpus, per_node) - 1) if gpus else "-"
        table.add_row(
            str(node),
            _span(first, first + per_node - 1),
            devices,
            str(per_node * (profile.cpus_per_task or 1)),
        )
        if profile.nodes > 8 and node == 1:
            table.add_row("...", "...", "...", "...")
    make_console().print(table)
    print("rank 0 is on the first node; the ranks meet there (MASTER_ADDR, MASTER_PORT)")
    for index, element in enumerate(plan.elements[:20]):
        number = f"[{index}] " if len(plan.elements) > 1 else ""
        print(f"{number}each rank: python main.py {' '.join(element.argv)}")
    if len(plan.elements) > 20:
        print(f"... and {len(plan.elements) - 20} more")


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _jobs(args: argparse.Namespace) -> int:
    from rich.table import Table

    from ocpgem.launch.job_states import states_of

    table = Table()
    for column in _COLUMNS:
        right = column in ("step", "loss", "systems/s", "run left", "limit in")
        table.add_column(
            column, justify="right" if right else "left", no_wrap=column == "job", overflow="fold"
        )
    hidden = 0
    yesterday = time.time() - 86_400
    jobs = _known_jobs(args.runs)
    for job, state in zip(jobs, states_of(jobs), strict=True):
        if state.active or args.all or args.runs or job.submission.submitted > yesterday:
            table.add_row(*_row(job, state))
        else:
            hidden += 1
    if table.row_count:
        console = make_console()
        console.width = console.width if console.is_terminal else 160
        console.print(table)
    else:
        print("no jobs of this project" + ("" if args.runs else "; submit notes them in runs/jobs.jsonl"))
    if hidden:
        print(f"{hidden} that ended more than a day ago are not shown; --all shows them")
    return 0


def _row(job: "Job", state: "State") -> list[str]:
    """What the table of jobs says of one."""
    from ocpgem.launch.job_states import Progress, last_error, progress_of

    lasting = job.submission.kind == "train"  # its numbers stay true when it has ended
    now = progress_of(job) if lasting or state.name == "RUNNING" else Progress()
    step = "" if now.step is None else str(now.step)
    ended_badly = not state.active and state.name != "FINISHED"
    return [
        job.number,
        job.submission.kind,
        _shown(job.run_dir),
        state.name + (f" (restart {state.restarts})" if state.restarts else ""),
        f"{step}/{now.total}" if step and now.total else step,
        _number(now.loss, ".4g"),
        _number(now.systems_per_second, ".1f"),
        _duration(now.seconds_left if state.name == "RUNNING" else None),
        _duration(state.seconds_left),
        state.detail or (last_error(job) if ended_badly else ""),
    ]


def _known_jobs(runs: list[Path]) -> "list[Job]":
    from ocpgem.launch.job_states import jobs_of_folder, jobs_of_run
    from ocpgem.launch.records import project_folders

    if runs:
        return [job for run in runs for job in jobs_of_run(run)]
    return [job for folder in project_folders() for job in jobs_of_folder(folder)]


def _logs(args: argparse.Namespace) -> int:
    from ocpgem.launch.job_states import jobs_of_run, state_of

    jobs = jobs_of_run(args.run)
    shown = False
    for position, job in enumerate(jobs):
        files = [file for file in job.submission.log_files(job.index, args.rank) if file.is_file()]
        last = position == len(jobs) - 1
        if not files and not (last and args.follow):
            continue
        print(
            f"==> job {job.number}, {job.submission.kind}: {', '.join(map(str, files)) or 'waiting'} <==",
            flush=True,
        )
        shown = True
        places = {file: _copy(file, 0) for file in files}
        while args.follow and last:
            ended = state_of(job).ended
            for file in job.submission.log_files(job.index, args.rank):
                places[file] = _copy(file, places.get(file, 0))
            if ended:
                break
            time.sleep(2)
    if not shown:
        states = ", ".join(f"job {job.number} is {state_of(job).name}" for job in jobs)
        raise RequestError(f"rank {args.rank} of {args.run} has printed nothing yet; {states}")
    return 0


def _copy(file: Path, place: int) -> int:
    """Print a file from `place` on; returns its end."""
    try:
        with file.open("rb") as opened:
            opened.seek(place)
            text = opened.read()
    except FileNotFoundError:
        return place
    print(text.decode(errors="replace"), end="", flush=True)
    return place + len(text)


def _cancel(args: argparse.Namespace) -> int:
    from ocpgem.launch.job_states import jobs_of_run, state_of, states_of
    from ocpgem.launch.records import saved_step
    from ocpgem.launch.slurm import ask

    jobs = jobs_of_run(args.run)
    states = states_of(jobs)
    silent = next((state for state in states if not state.answered), None)
    if silent is not None:
        raise OcpgemError(f"nothing was cancelled: {silent.detail}")
    active = [job for job, state in zip(jobs, states, strict=True) if state.active]
    if not active:
        print(f"{args.run} has no active jobs")
        return 0
    for job in active:
        # Not --full: training is told to stop and saves, the batch script notes the end afterwards.
        ask("scancel", job.number)
    limit = time.monotonic() + _WAIT_SECONDS
    waiting = list(active)
    while waiting and time.monotonic() < limit:
        waiting = [job for job, state in zip(waiting, states_of(waiting), strict=True) if not state.ended]
        time.sleep(0.5 if waiting else 0)
    for job in active:
        if job in waiting:
            print(f"job {job.number} was told to end and is still {state_of(job).name}")
        else:
            step = saved_step(job.run_dir)
            kept = (
                f"; its last checkpoint is of step {step}" if step and job.submission.kind == "train" else ""
            )
            print(f"cancelled job {job.number}{kept}")
    if waiting:
        raise OcpgemError(
            f"{len(waiting)} jobs have not ended within {_WAIT_SECONDS:g} s; look again with jobs"
        )
    return 0


def _shown(path: Path) -> str:
    """A path as short as it can be said."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
