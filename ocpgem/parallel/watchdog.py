"""Notices that a rank hangs or is gone, and says which.

Every rank has a thread that tells the others, through the store by which they met, that it lives and what its main
thread is doing. Where the main thread of a rank does nothing for long, the thread looks at what the others last said:
who waits for the others in a collective is not to blame, who is elsewhere or says nothing any more is.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from ocpgem.parallel import group

_PACKAGE = str(Path(__file__).parents[1])
_COMMUNICATION = ("/torch/distributed/", "/deepspeed/comm/")
_WAITS = 2
"""Silences that a rank leaves to the one that tells what hangs before it ends too."""
_LISTENS = 6
"""Periods without a sign of life after which a rank counts as gone; less than a launcher waits for the other ranks."""


@dataclass
class Sign:
    """A sign of life of a rank."""

    tick: int
    beats: int
    """How often its main thread has said what it does."""
    idle: float
    """Seconds since it last did."""
    doing: str
    where: str
    """The line of this package that its main thread is in."""
    waiting: bool
    """Whether that thread is in a collective."""
    host: str


class Watchdog:
    """Watches the ranks of a run while `watching`.

    seconds: how long the main thread of a rank may do nothing; folder: where stacks are written when one hangs;
    period: seconds between signs of life.
    """

    def __init__(self, seconds: float, folder: Path, advice: str, period: float = 1.0) -> None:
        self._seconds, self._folder, self._advice = seconds, folder, advice
        self._period = min(period, seconds / 4)
        self._silence = max(3 * self._period, seconds / 20)
        self._beats = 0
        self._doing = "starting"
        self._main = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._store = group.connect_to_store()
        self._sign = Sign(0, 0, 0.0, self._doing, "", False, socket.gethostname())

    def start(self) -> None:
        """Begin to watch."""
        self._publish()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def beat(self, doing: str) -> None:
        """Say that the main thread goes on, and with what."""
        self._doing = doing
        self._beats += 1

    def post(self, sentence: str) -> None:
        """Tell the other ranks why this one ends."""
        if self._store is not None:
            try:
                if not self._store.check(["ocpgem/last words"]):
                    self._store.set("ocpgem/last words", sentence)
            except (RuntimeError, dist.DistError):
                return  # the rank that holds the store has ended already

    def lost(self, step: int) -> str:
        """Why a collective failed after `step`: what a rank has posted, or who gives no sign of life any more."""
        if self._store is None:
            return f"the communication with the other ranks failed after step {step}"
        try:
            before = self._signs()
            for _ in range(_LISTENS):
                time.sleep(self._period)
                if self._store.check(["ocpgem/last words"]):
                    return str(self._store.get("ocpgem/last words").decode())
            silent = _silent(before, self._signs())
        except (RuntimeError, dist.DistError):
            silent = [0]  # it holds the store
        if not silent:
            return f"the communication between the ranks failed after step {step} although all of them run"
        return f"{_ranks(silent)} gone after step {step} (killed, or the machine failed)"

    def _watch(self) -> None:
        beats, idle, last = self._beats, 0.0, time.monotonic()
        while not self._stop.wait(self._period):
            now = time.monotonic()
            # A process that was suspended has not hung: its own pauses do not count.
            idle = idle + min(now - last, 2 * self._period) if beats == self._beats else 0.0
            beats, last = self._beats, now
            self._sign.tick += 1
            self._sign.beats, self._sign.idle, self._sign.doing = beats, idle, self._doing
            self._sign.where, self._sign.waiting = self._place()
            try:
                self._publish()
                if idle > self._seconds and self._ends(self._blame()):
                    return
            except (RuntimeError, dist.DistError):
                if idle > self._seconds:
                    self._ends("rank 0 does not answer any more")

    def _ends(self, sentence: str) -> bool:
        """End this process if there is something to blame, its stack written."""
        if not sentence or self._stop.is_set():
            return False
        file = self._folder / f"hang-rank{group.rank()}.txt"
        try:
            with file.open("w") as opened:
                opened.write(f"{sentence}\n")
                faulthandler.dump_traceback(opened)
        except OSError:
            file = Path("nowhere: the folder cannot be written")
        text = (
            f"error: {sentence}; the stack of every rank is in {file.parent}/hang-rank*.txt; {self._advice}\n"
        )
        if self._first_to_tell():
            os.write(sys.stderr.fileno(), text.encode())
        else:
            time.sleep(_WAITS * self._silence)  # a launcher shows what the first rank to fail has said
        os._exit(1)

    def _first_to_tell(self) -> bool:
        """Whether no other rank has told what hangs; a rank that has told it is gone, and seems silent to the rest."""
        if self._store is None:
            return True
        try:
            return bool(self._store.add("ocpgem/hang told", 1) == 1)
        except (RuntimeError, dist.DistError):
            return True

    def _blame(self) -> str:
        """Who hangs; empty where all is well after all, because a rank that others wait for makes progress."""
        before = self._signs()
        time.sleep(self._silence)
        now = self._signs()
        silent = _silent(before, now)
        if silent:
            return f"{_ranks(silent)} silent for more than {self._silence:g} s, as if stopped or cut off"
        if any(sign.idle <= self._seconds / 2 for sign in now.values()):
            return ""
        hung = [rank for rank, sign in now.items() if not sign.waiting]
        if not hung:
            least = min(sign.beats for sign in now.values())
            hung = [rank for rank, sign in now.items() if sign.beats == least]
        first = now[hung[0]]
        what = f"{first.doing}, at {first.where}" if first.where else first.doing
        others = "the others wait for it" if len(hung) < len(now) else "no rank goes on"
        verb = "hangs" if len(hung) == 1 else "hang"
        names = ", ".join(map(str, hung))
        return f"rank {names} ({first.host}) {verb}: nothing has happened for {first.idle:.0f} s in {what}; {others}"

    def _publish(self) -> None:
        if self._store is not None:
            self._store.set(_key(group.rank()), json.dumps(asdict(self._sign)))

    def _signs(self) -> dict[int, Sign]:
        """The latest sign of life of every rank."""
        if self._store is None:
            return {0: self._sign}
        return {rank: Sign(**json.loads(self._store.get(_key(rank)))) for rank in range(group.world_size())}

    def _place(self) -> tuple[str, bool]:
        """The innermost line of this package in the main thread, and whether any thread is in a collective."""
        frames = sys._current_frames()
        waiting = any(
            _in_communication(frame) for thread, frame in frames.items() if thread != threading.get_ident()
        )
        frame = frames.get(self._main)
        while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        if frame is None:
            return "", waiting
        file = Path(frame.f_code.co_filename).relative_to(Path(_PACKAGE).parent)
        return f"{file}:{frame.f_lineno}", waiting


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone or did not come."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in text for word in ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe"))
    )


def _key(rank: int) -> str:
    return f"ocpgem/sign of life/{rank}"


def _silent(before: dict[int, Sign], now: dict[int, Sign]) -> list[int]:
    return [rank for rank, sign in now.items() if sign.tick == before[rank].tick and rank != group.rank()]


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]} is" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))} are"


def _in_communication(frame: FrameType | None) -> bool:
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _COMMUNICATION):
            return True
        frame = frame.f_back
    return False
