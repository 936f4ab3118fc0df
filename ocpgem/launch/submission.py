"""Submission through submitit: the batch script, the folder of a job, and the job itself."""

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.core import utils
from submitit.slurm.slurm import SlurmExecutor

from ocpgem.errors import OcpgemError, RequestError, one_line
from ocpgem.files import write_text
from ocpgem.launch.code_version import ROOT, code_version, copy_code, uncommitted_changes
from ocpgem.launch.profile import ClusterProfile
from ocpgem.launch.rank import start_rank
from ocpgem.launch.records import JOBS, LINK_FILE, Element, Submission, add_to_project, new_folder
from ocpgem.launch.slurm import SlurmError, ask

FROZEN_CONFIG = "<frozen configuration>"
"""Stands in a command for the file that is written at submission."""
_NOT_IN_NAMES = r"[^\w.+-]"


@dataclass(frozen=True)
class Plan:
    """What is to be submitted, checked but not yet written anywhere."""

    kind: str
    name: str
    home: Path
    """Run directory whose `jobs/` holds the submission: the run's own, or that of the whole sweep."""
    elements: list[Element]
    configs: list[str]
    """Frozen configurations, one for each element; none for commands that need none."""
    profile: ClusterProfile
    parallel: int | None = None
    """Elements of an array that may run at the same time."""
    snapshot: bool = False
    resumes: bool = True
    """Whether the command goes on where it was stopped."""


class _Executor(SlurmExecutor):
    """submitit's executor, also where there is no SLURM: a script can be looked at anywhere."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def script_of(plan: Plan, folder: Path) -> str:
    """The batch script, exactly as it is handed to sbatch."""
    executor = _executor(plan, folder)
    if len(plan.elements) > 1:
        executor.parameters["map_count"] = len(plan.elements)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "script"))


def next_folder(plan: Plan) -> Path:
    """Where `submit` would put the job next."""
    jobs = plan.home.resolve() / JOBS
    taken = [int(each.name) for each in jobs.iterdir() if each.name.isdecimal()] if jobs.is_dir() else []
    return jobs / f"{max(taken, default=0) + 1:03d}"


def located(plan: Plan, folder: Path) -> list[Element]:
    """The elements with the paths of their frozen configurations in their commands."""
    found = []
    for index, element in enumerate(plan.elements):
        file = str(config_file(folder, index, len(plan.elements)))
        argv = [file if word == FROZEN_CONFIG else word for word in element.argv]
        found.append(replace(element, argv=argv))
    return found


def test_with_slurm(script: str) -> str:
    """What SLURM says of the script without queueing it: when and where it would start.

    Raises RequestError with SLURM's own words where it would refuse the job.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False, timeout=60
        )
    except subprocess.TimeoutExpired:
        raise SlurmError("sbatch did not answer within 60 s; SLURM's controller may be down") from None
    said = " ".join(line.removeprefix("sbatch: ") for line in done.stderr.split("\n") if line).strip()
    if done.returncode != 0:
        raise RequestError(f"SLURM would refuse this job: {said.removeprefix('error: ')}")
    return said


def submit(plan: Plan) -> Submission:
    """Freeze everything below `jobs/` of the run and queue the job.

    Nothing is left behind where SLURM refuses it. Raises RequestError with what sbatch says.
    """
    folder = new_folder(plan.home.resolve())
    submission = Submission(
        folder=str(folder),
        kind=plan.kind,
        name=plan.name,
        elements=located(plan, folder),
        max_restarts=plan.profile.restarts.max,
        resumes=plan.resumes,
        submitted=time.time(),
        facts={
            "profile": plan.profile.model_dump(mode="json"),
            "code": code_version(),
            "user": getpass.getuser(),
            "directory": str(Path.cwd()),
            "command": sys.argv,
        },
    )
    try:
        _freeze(plan, folder)
        submission.cluster = _cluster_name()
        submission.write()
        main_program = str((folder / "code" if plan.snapshot else ROOT) / "main.py")
        submission.job_id = _queue(_executor(plan, folder), submission.elements, main_program)
    except BaseException:
        _discard(plan, folder)
        raise
    submission.write()
    add_to_project(submission)
    return submission


def check_job_name(name: str | None) -> None:
    """Raise RequestError for a name that SLURM's tables or a line of the job's script cannot hold."""
    if name is not None and (not name or re.search(_NOT_IN_NAMES, name)):
        raise RequestError(f"--name {name!r}: the name of a job consists of letters, digits and . _ + -")


def job_name(kind: str, home: Path) -> str:
    """A name that SLURM's tables can show."""
    plain = re.sub(_NOT_IN_NAMES, "_", home.name) or "run"
    return plain if kind == "train" else f"{kind}-{plain}"


def _queue(executor: SlurmExecutor, elements: list[Element], main_program: str) -> str:
    try:
        with executor.batch():
            jobs = [executor.submit(start_rank, main_program, element.argv) for element in elements]
    except (utils.FailedJobError, utils.FailedSubmissionError) as error:
        said = [line for line in str(error).splitlines() if "sbatch:" in line]
        reason = " ".join(line.split("sbatch:", 1)[1].strip() for line in said) or one_line(error)
        raise RequestError(f"sbatch refused the job: {reason.removeprefix('error: ')}") from None
    return str(jobs[0].job_id).partition("_")[0]


def _freeze(plan: Plan, folder: Path) -> None:
    for index, config in enumerate(plan.configs):
        write_text(config_file(folder, index, len(plan.elements)), config)
    patch = uncommitted_changes()
    if patch:
        write_text(folder / "uncommitted.patch", patch)
    if plan.snapshot:
        copy_code(folder / "code")
    if len(plan.elements) == 1:
        return
    for index, element in enumerate(plan.elements):
        link = new_folder(Path(element.run_dir)) / LINK_FILE
        write_text(link, f'{{"folder": "{folder}", "index": {index}}}\n')


def config_file(folder: Path, index: int, n_elements: int) -> Path:
    """Where the frozen configuration of an element is."""
    return folder / ("config.yaml" if n_elements == 1 else f"config_{index:03d}.yaml")


def _discard(plan: Plan, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    places = {plan.home.resolve(), *(Path(element.run_dir) for element in plan.elements)}
    for place in sorted(places, key=lambda path: -len(path.parts)):
        if place != plan.home.resolve():
            for link in place.glob(f"{JOBS}/*/{LINK_FILE}"):
                if str(folder) in link.read_text():
                    shutil.rmtree(link.parent)
        for empty in (place / JOBS, place):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


def _executor(plan: Plan, folder: Path) -> SlurmExecutor:
    profile = plan.profile
    python = profile.python or shlex.quote(sys.executable)
    executor = _Executor(folder=folder, python=python)
    values: dict[str, Any] = {
        "job_name": plan.name,
        "time": profile.minutes,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.ranks_per_node,
        "cpus_per_task": profile.cpus_per_task,
        "gpus_per_node": profile.gpus_per_node or None,
        "mem": profile.memory,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": profile.exclude,
        "mail_user": profile.mail.address if profile.mail else None,
        "mail_type": ",".join(profile.mail.when).upper() if profile.mail else None,
        "signal_delay_s": profile.signal_seconds,
        "stderr_to_stdout": True,  # one file for each rank, in the order in which things happened
        "wckey": None,
        "additional_parameters": {"requeue": True, **profile.directives},
        # A rank that fails ends its peers, which would wait for it until the time limit.
        "srun_args": ["--kill-on-bad-exit=1", "--open-mode=append", *profile.srun_args],
        "setup": _setup(plan, folder, python),
        "teardown": [
            f"{python} -m ocpgem.launch.batch end $? --job {shlex.quote(str(folder))} {_signal(profile)}"
        ],
        "array_parallelism": plan.parallel or len(plan.elements),
    }
    executor.update_parameters(**{key: value for key, value in values.items() if value is not None})
    executor.parameters["wckey"] = None
    return executor


def _setup(plan: Plan, folder: Path, python: str) -> list[str]:
    code = shlex.quote(str(folder / "code" if plan.snapshot else ROOT))
    begin = f"{python} -m ocpgem.launch.batch begin --job {shlex.quote(str(folder))}"
    return [
        *plan.profile.setup,
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
        "trap : TERM  # the end is noted, also of a cancelled job",
        f"meeting_point=$({begin}) || exit $?",
        'eval "$meeting_point"',
    ]


def _signal(profile: ClusterProfile) -> str:
    return f"--signal-seconds {profile.signal_seconds}"


def _cluster_name() -> str:
    try:
        for line in ask("scontrol", "show", "config").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "ClusterName":
                return value.strip()
    except OcpgemError:
        pass
    return os.environ.get("SLURM_CLUSTER_NAME", "")
