"""The folder of a run: its configuration, environment, log and metrics."""

import errno
import fcntl
import json
import logging
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ocpgem import __version__
from ocpgem.config import dump_config, parse_config
from ocpgem.errors import RequestError
from ocpgem.files import write_text
from ocpgem.train.checkpoint_files import CheckpointFolder
from ocpgem.train.config import TrainConfig

LOCK_FILE = ".lock"
_BEFORE_A_RUN = {LOCK_FILE, "jobs"}
"""What a folder may hold that is given to a new run: the lock, and the jobs that were submitted for it."""
CHANGEABLE = {
    "steps",
    "optim.lr",
    "activation_checkpointing",
    "log_every_steps",
    "histograms_every_steps",
    "validation.every_steps",
    "validation.parity_systems",
    "loggers.tensorboard",
    "loggers.wandb",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.keep_every_steps",
    "checkpoint.keep_hours",
    "checkpoint.keep_best",
    "data.max_edges",
    "data.workers",
    "data.worker_start",
    "faults.non_finite",
    "faults.max_skipped",
    "faults.hang_seconds",
    "data.eval_batch_size",
    "parallel.zero_stage",
    "parallel.graph",
    "parallel.reduce_bucket",
    "parallel.overlap",
}
"""What may differ when a run is resumed: what nothing computed so far depends on, and what holds from the next step on.

With another number of `steps`, a schedule that depends on it (cosine) is that of the new number from the next step on,
as if the run had been planned so from its beginning, and so is the learning rate with another `optim.lr`; the run says
how it changes.
"""
_FOR_STEPS_LEFT = {"optim.lr"}
"""What may not change where no step is left that it could hold for: `config.yaml` would tell of a run never done."""
_CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems say that know no locks, as Lustre without `-o flock`."""
_PACKAGES = ("torch", "torch-geometric", "torch-scatter", "deepspeed", "lmdb", "numpy")

log = logging.getLogger("ocpgem")


class _LogFile(logging.FileHandler):
    """log.txt; a line that the disk does not take is left out, since the run goes on and the terminal shows it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class RunDirectory:
    """Paths and files of one run. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.metrics_file = path / "metrics.jsonl"
        self._is_new = False
        self._lock: IO[str] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a checkpoint is there: then a run goes on, and needs its data but nothing else that it began with."""
        files = CheckpointFolder(self.checkpoints)
        return (self.path / "preparation.json").is_file() and bool(files.candidates())

    def prepare(self, config: TrainConfig, facts: dict[str, Any]) -> None:
        """Create the folder, or check that it belongs to a run with the same configuration.

        A run that failed before its first result may be begun anew with another configuration. Raises RequestError
        naming the keys that differ.
        """
        self._is_new = not self.path.exists()
        config_file = self.path / "config.yaml"
        if config_file.is_file():
            self._take_lock()
        if self.check(config):
            self._begin_anew()
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        write_text(config_file, dump_config(config))
        write_text(self.path / "environment.json", json.dumps(environment() | facts, indent=2) + "\n")

    def check(self, config: TrainConfig) -> bool:
        """Raise RequestError where `prepare` would refuse the folder; nothing is changed.

        Returns whether it holds what a run with another configuration left that failed before its first result.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"{self.path} is a file; choose another --run-dir")
        config_file = self.path / "config.yaml"
        if not config_file.is_file():
            if self.path.exists() and any(file.name not in _BEFORE_A_RUN for file in self.path.iterdir()):
                raise RequestError(f"{self.path} is not empty and holds no run; choose another --run-dir")
            return False
        previous = parse_config(config_file.read_text(), TrainConfig, str(config_file))
        changeable = CHANGEABLE if self._has_steps_left(config.steps) else CHANGEABLE - _FOR_STEPS_LEFT
        differing = _differing_keys(previous.model_dump(), config.model_dump(), changeable)
        if differing and self._has_results():
            raise RequestError(
                f"{self.path} holds a run with another configuration ({', '.join(differing)} differ); "
                "choose another --run-dir or remove it"
            )
        return bool(differing)

    def _take_lock(self) -> None:
        """Let no second process train here until this one ends, however it ends."""
        if self._lock is not None:
            return
        lock = (self.path / LOCK_FILE).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RequestError(
                f"another process is training in {self.path}; choose another --run-dir"
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                lock.close()
                raise
            log.warning(
                "the file system of %s has no locks (%s): start no second run there, it could not be refused",
                self.path,
                error.strerror,
            )
        self._lock = lock

    @contextmanager
    def discarded_on_failure(self) -> Iterator[None]:
        """Remove the folder again if `prepare` made it and the work within the context fails."""
        try:
            yield
        except BaseException:
            if self._is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _has_results(self) -> bool:
        files = CheckpointFolder(self.checkpoints)
        return bool(files.candidates() or files.named()) or self.best.exists()

    def _has_steps_left(self, n_steps: int) -> bool:
        newest = CheckpointFolder(self.checkpoints).named()
        return not newest.isdecimal() or int(newest) < n_steps

    def _begin_anew(self) -> None:
        for name in ("preparation.json", "checked.json", "skipped.jsonl", "costs.json"):
            (self.path / name).unlink(missing_ok=True)
        self.metrics_file.unlink(missing_ok=True)
        for name in ("tensorboard", self.checkpoints.name):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def open_log(self) -> None:
        """Write everything that is logged to log.txt as well."""
        handler = _LogFile(self.path / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)

    def forget_metrics_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will do again."""
        self._keep_metrics(lambda record: record["step"] <= step)

    def forget_validation_of(self, step: int) -> None:
        """Drop what a validation that a resumed run will do again has recorded."""
        self._keep_metrics(lambda record: record["kind"] != "val" or record["step"] != step)

    def _keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leave only records that are wanted and complete."""
        if not self.metrics_file.is_file():
            return
        lines = self.metrics_file.read_text().splitlines()
        kept = [line for line in lines if line.endswith("}") and wanted(json.loads(line))]
        write_text(self.metrics_file, "".join(line + "\n" for line in kept))


def environment() -> dict[str, Any]:
    """Versions, machine and git commit."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "ocpgem": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": versions,
        "machine": platform.platform(),
        "host": platform.node(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _differing_keys(previous: dict[str, Any], current: dict[str, Any], changeable: set[str]) -> list[str]:
    found = []
    for key, value in current.items():
        if previous.get(key) == value:
            continue
        if isinstance(value, dict) and isinstance(previous.get(key), dict):
            found += [f"{key}.{name}" for name in value if previous[key].get(name) != value[name]]
        else:
            found.append(key)
    return [name for name in found if name not in changeable]
