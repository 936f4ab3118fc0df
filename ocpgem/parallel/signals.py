"""Signals that ask the work to stop: remembered when they arrive, agreed on between steps. Imports nothing heavy."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ocpgem.errors import INTERRUPTED, REQUEUE, OcpgemError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""The later one counts where ranks received different ones: what the user presses outranks the scheduler."""

_STORE_KEY = "ocpgem/stop signal"


class StoppedEarlyError(OcpgemError):
    """A signal arrived before the first step; there was nothing to save."""

    exit_code = REQUEUE


class StoppedInValidationError(OcpgemError):
    """A signal arrived in a validation; the step before it is done."""

    exit_code = REQUEUE


class StoppedError(OcpgemError):
    """A signal ended the work in good order; what was finished is kept."""

    def __init__(self, number: signal.Signals, what_is_kept: str) -> None:
        super().__init__(number, what_is_kept)  # both, so that it can travel to the other ranks
        self.exit_code = exit_code_of(number)

    def __str__(self) -> str:
        number, what_is_kept = self.args
        return f"{number.name} arrived; {what_is_kept}"


def exit_code_of(number: signal.Signals) -> int:
    """How a command ends that stopped in good order on this signal."""
    return INTERRUPTED if number is signal.SIGINT else REQUEUE


class StopRequest:
    """Remembers which stop signal arrived; the loop asks at step boundaries, where all ranks can agree.

    Until `wait_for_steps` is called there is nothing to save, and a signal ends the work at once.

    too_early: what is said of a signal then; in_order: what is said of one that comes later.
    """

    def __init__(
        self,
        too_early: str = "arrived before the first step, so there is nothing to save; start the same command again",
        in_order: str = "stopping after this step; a checkpoint will be written",
    ) -> None:
        self._too_early, self._in_order = too_early, in_order
        self._arrived: signal.Signals | None = None
        self._store: TCPStore | None = None
        self._told = False
        self._saves = False
        self._speaks = os.environ.get("RANK", "0") == "0"
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals within the context; one that had arrived stays ignored afterwards."""
        previous = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                # The same request may arrive twice, from the terminal and from the launcher; the second must not break
                # what is left to do after the first.
                signal.signal(number, signal.SIG_IGN if self._arrived is not None else handler)

    def wait_for_steps(self) -> None:
        """From now on signals are only remembered."""
        self._saves = True

    def fall_silent(self) -> None:
        """The run is ending for another reason: a signal no longer promises a checkpoint."""
        self._speaks = False

    def number(self) -> int:
        """0 where nothing arrived, else a number whose maximum over ranks `agreed` understands."""
        return 0 if self._arrived is None else STOP_SIGNALS.index(self._arrived) + 1

    def agreed(self, largest: int) -> signal.Signals | None:
        """The signal that the largest `number` of all ranks stands for."""
        return STOP_SIGNALS[largest - 1] if largest else None

    def between_steps(self) -> signal.Signals | None:
        """The signal that arrived at any rank, for ranks that walk through their work without waiting for each other.

        Who got one tells the others through the store by which they met.
        """
        from ocpgem.parallel import group

        if group.world_size() == 1:
            return self._arrived
        if self._store is None:
            self._store = group.connect_to_store()
            assert self._store is not None, "there are several ranks"
        if self._arrived is not None and not self._told:
            self._store.set(_STORE_KEY, str(int(self._arrived)))
            self._told = True
        if self._arrived is None and self._store.check([_STORE_KEY]):
            self._arrived, self._told = signal.Signals(int(self._store.get(_STORE_KEY))), True
        return self._arrived

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # loader workers inherit the handler; the main process decides
            return
        first, self._arrived = self._arrived is None, signal.Signals(number)
        if not self._saves:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            if first:
                raise StoppedEarlyError(f"{self._arrived.name} {self._too_early}")
        elif first and self._speaks:
            os.write(2, f"\n{self._in_order}\n".encode())


def stop_with_parts_kept(too_early: str | None = None) -> StopRequest:
    """For work on a data set whose finished part is kept; `too_early` as in StopRequest."""
    return StopRequest(
        too_early or "arrived before anything was computed; start the same command again",
        "stopping after this batch; what is done will be kept",
    )
