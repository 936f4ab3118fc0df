"""How a run bears what it cannot prevent: disks that do not take a file, ranks that are gone, errors nobody foresaw."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ocpgem.errors import OcpgemError, TrainingError, one_line
from ocpgem.parallel import group
from ocpgem.parallel.watchdog import is_lost_peer
from ocpgem.train.faults import FaultFile, Trouble, report_of
from ocpgem.train.parts import RunParts

ADVICE = "start the same command again to go on from the last checkpoint"


class DiskGuard:
    """Says once for each kind of file that it could not be written, and lets the run go on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told: set[str] = set()

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Within the context, a file of this kind that cannot be written is told."""
        try:
            yield
        except OSError as error:
            self._tell(what, error)

    @contextmanager
    def writer_threads(self) -> Iterator[None]:
        """Within the context, so is what TensorBoard's own thread cannot write."""
        previous = threading.excepthook

        def hook(args: threading.ExceptHookArgs) -> None:
            if isinstance(args.exc_value, OSError) and "tensorboard" in type(args.thread).__module__:
                self._tell("the metrics", args.exc_value)
            else:
                previous(args)

        threading.excepthook = hook
        try:
            yield
        finally:
            threading.excepthook = previous

    def _tell(self, what: str, error: OSError) -> None:
        if what not in self._told:
            self._told.add(what)
            self._say(f"warning: {what} could not be written ({error.strerror or error}); the run goes on")


def explained(error: Exception, parts: RunParts, step: int) -> OcpgemError:
    """An error of the loop as a sentence, which the other ranks learn as well."""
    if isinstance(error, OcpgemError):
        return error
    if is_lost_peer(error):
        sentence = parts.watchdog.lost(step)
        parts.watchdog.post(sentence)  # this rank falls silent as well, and must not be taken for the cause
        return TrainingError(f"{sentence}; {ADVICE}")
    report = report_of(group.rank(), error, "")
    if report.trouble is Trouble.OUT_OF_MEMORY:
        report.text = one_line(error)
    where = FaultFile(parts.run.path).add(step, "stop", [report])
    sentence = f"rank {group.rank()} failed after step {step}: {one_line(error)} ({where})"
    parts.watchdog.post(sentence)
    return TrainingError(f"{sentence}; {ADVICE}")
