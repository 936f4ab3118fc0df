"""The exceptions a user may meet, each with the exit code its kind implies.

Every message is one sentence that says what is wrong, where, and what to do; the command line prints it without
a traceback.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

REQUEUE = 75
"""Exit code: the work stopped in good order before its end because the system asked for it (time limit, preemption);
the same command goes on from there (EX_TEMPFAIL of sysexits.h)."""

INTERRUPTED = 130
"""Exit code: the user pressed Ctrl-C, as shells count it."""


class OcpgemError(Exception):
    """The work failed for a reason outside the program (exit code 1)."""

    exit_code = 1


class RequestError(OcpgemError):
    """What was asked for is wrong: a path, an option, a value (exit code 2)."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration file or an override is wrong; the message lists every mistake."""


class DataError(OcpgemError):
    """Data turned out to be unusable; the message names the file and the record."""


class CheckpointError(OcpgemError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class DownloadError(OcpgemError):
    """A file cannot be fetched, or what arrived is not what was published."""


class TrainingError(OcpgemError):
    """Training cannot go on; the message names the step and the systems involved."""


def one_line(error: BaseException) -> str:
    """The kind of a foreign error and the first line of what it says, to quote inside a sentence."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def attempt(call: Callable[[], T], mistakes: list[OcpgemError]) -> T | None:
    """What a call returns; None where it raises an OcpgemError, which is added to the mistakes."""
    try:
        return call()
    except OcpgemError as error:
        mistakes.append(error)
        return None


def raise_all(mistakes: Sequence[OcpgemError]) -> None:
    """Raise the mistake if there is one, an error that names all if there are several."""
    if not mistakes:
        return
    if len(mistakes) == 1:
        raise mistakes[0]
    kind = RequestError if any(isinstance(each, RequestError) for each in mistakes) else OcpgemError
    lines = "\n".join(f"  {each}" for each in mistakes)
    raise kind(f"{len(mistakes)} mistakes:\n{lines}")
