"""Run jobs in worker processes under a progress bar; the first failure ends them all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING, Any, TypeVar

from ocpgem.errors import DataError, RequestError

if TYPE_CHECKING:
    from rich.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")

STOPPED = -1


class Stopped(Exception):  # noqa: N818  (a request, not an error)
    """Raised inside a job when another has failed."""


class Counter:
    """What all workers have done so far; counting is also where a job learns that it should stop."""

    def __init__(self, shared: Synchronized[int], tick: Callable[[], None] | None = None) -> None:
        self._shared = shared
        self._tick = tick

    def add(self, amount: int) -> None:
        """Count some work; raises Stopped once another job has failed."""
        with self._shared.get_lock():
            if self._shared.value == STOPPED:
                raise Stopped
            self._shared.value += amount
        if self._tick is not None:
            self._tick()

    def stop(self) -> None:
        """Make every job raise Stopped when it counts next."""
        with self._shared.get_lock():
            self._shared.value = STOPPED


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def check_workers(workers: int) -> None:
    """Raise RequestError unless there is at least one worker."""
    if workers < 1:
        raise RequestError(f"the number of workers is {workers}; it must be at least 1")


def run_jobs(
    work: Callable[[Job, Counter], Result], jobs: Sequence[Job], workers: int, total: int | None, label: str
) -> list[Result]:
    """Results of `work(job, counter)` for every job, in order; `total` is what the counter will reach, if known.

    With one worker everything happens in this process. Raises what the first failing job raised, and
    DataError where a worker was killed.
    """
    check_workers(workers)
    context = multiprocessing.get_context("spawn")
    shared = context.Value("q", 0)
    workers = min(workers, len(jobs))
    with _progress_bar() as bar:
        task = bar.add_task(label, total=total)

        def tick() -> None:
            bar.update(task, completed=max(shared.value, 0))

        if workers <= 1:
            counter = Counter(shared, tick)
            return [work(job, counter) for job in jobs]
        with ProcessPoolExecutor(workers, context, _start_worker, (work, shared)) as pool:
            try:
                with _interrupts_held_back():
                    futures = [pool.submit(_run_in_worker, job) for job in jobs]
                _wait_for_all(futures, tick)
            except BaseException:
                Counter(shared).stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            return [future.result() for future in futures]


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back here, and for good in the processes that are started meanwhile.

    A worker that is still importing when Ctrl-C reaches the whole terminal group would end with a traceback, and so
    would one that is started halfway. The mask is for the workers, which inherit it; here another thread may take the
    signal, so that its handler waits, too.
    """
    came = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda *_: came.set()) if in_main_thread else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
    if came.is_set():
        signal.raise_signal(signal.SIGINT)


def _wait_for_all(futures: list[Future[Any]], tick: Callable[[], None]) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        tick()
        for future in done:
            try:
                future.result()
            except BrokenProcessPool:
                raise DataError(
                    "a worker process was killed, most often because memory ran out; use fewer workers"
                ) from None


_WORK: list[tuple[Callable[[Any, Counter], Any], Counter]] = []  # filled once in every worker process


def _start_worker(work: Callable[[Any, Counter], Any], shared: Synchronized[int]) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the main process stops us, after finishing its own cleaning
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _WORK.append((work, Counter(shared)))


def _run_in_worker(job: Any) -> Any:
    work, counter = _WORK[0]
    return work(job, counter)


def _die_with_parent() -> None:
    """End this worker when the main process is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _progress_bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
