"""Signals that ask a run to stop: remembered when they arrive, agreed on between steps. Imports nothing heavy."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ocpgem.errors import INTERRUPTED, REQUEUE, OcpgemError

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""The later one counts where ranks received different ones: what the user presses outranks the scheduler."""


class StoppedEarlyError(OcpgemError):
    """A signal arrived before the first step; there was nothing to save."""

    exit_code = REQUEUE


class StoppedInValidationError(OcpgemError):
    """A signal arrived in a validation; the step before it is done."""

    exit_code = REQUEUE


def exit_code_of(number: signal.Signals) -> int:
    """How a command ends that stopped in good order on this signal."""
    return INTERRUPTED if number is signal.SIGINT else REQUEUE


class StopRequest:
    """Remembers which stop signal arrived; the loop asks at step boundaries, where all ranks can agree.

    Until `wait_for_steps` is called there is nothing to save, and a signal ends the work at once.
    """

    def __init__(self) -> None:
        self._arrived: signal.Signals | None = None
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

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # loader workers inherit the handler; the main process decides
            return
        first, self._arrived = self._arrived is None, signal.Signals(number)
        if not self._saves:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            if first:
                raise StoppedEarlyError(
                    f"{self._arrived.name} arrived before the first step, so there is nothing to save; "
                    "start the same command again"
                )
        elif first and self._speaks:
            os.write(sys.stderr.fileno(), b"\nstopping after this step; a checkpoint will be written\n")
