"""Which ends of a job lead to another start."""

from typing import Any

import pytest

from ocpgem.errors import REQUEUE
from ocpgem.launch.restarts import Bounds, decide, find_dead_nodes, restarts_used, starts_at, why_it_failed
from ocpgem.launch.slurm import JobFacts

NOW = 1_000_000.0


def facts(**changes: Any) -> JobFacts:
    values = {
        "state": "RUNNING",
        "end_time": NOW + 5000,
        "preempted": False,
        "nodes": "n[1-2]",
        "output": "log",
        "name": "run",
        "submitted": NOW - 100,
    }
    return JobFacts(**(values | changes))


@pytest.mark.parametrize(
    ("code", "changes", "dead", "reason", "requeued"),
    [
        (0, {}, [], "finished", False),
        (REQUEUE, {"end_time": NOW + 100}, [], "time limit", True),
        (REQUEUE, {}, [], "signal", True),
        (140, {}, [], "signal", True),  # USR2 before Python could listen
        (REQUEUE, {"preempted": True}, [], "preemption", True),
        (
            REQUEUE,
            {"preempted": True, "end_time": NOW + 20},
            [],
            "preemption",
            True,
        ),  # its grace is no time limit
        (143, {"preempted": True}, [], "preemption", True),
        (REQUEUE, {"state": "COMPLETING"}, [], "cancelled", False),
        (143, {"state": "CANCELLED"}, [], "cancelled", False),
        (1, {}, ["n2"], "node failure", True),
        (143, {}, ["n2"], "node failure", True),
        (1, {}, [], "crash", False),
        (137, {}, [], "crash", False),
        (1, {"end_time": NOW + 100}, [], "crash", False),
    ],
)
def test_an_end_is_told_by_what_slurm_says(
    code: int, changes: dict[str, Any], dead: list[str], reason: str, requeued: bool
) -> None:
    ending = decide(code, facts(**changes), NOW, dead, Bounds(3, 0, True))
    assert (ending.reason, ending.requeue) == (reason, requeued)


def test_restarts_are_bounded_but_preemptions_are_not() -> None:
    used_up = Bounds(3, 3, True)
    ending = decide(REQUEUE, facts(end_time=NOW + 100), NOW, [], used_up)
    assert not ending.requeue
    assert "as many as restarts.max allows" in ending.text
    assert decide(REQUEUE, facts(preempted=True), NOW, [], used_up).requeue


def test_what_cannot_resume_is_not_started_over_and_over() -> None:
    ending = decide(140, facts(end_time=NOW + 100), NOW, [], Bounds(3, 0, False))
    assert not ending.requeue
    assert "raise time" in ending.text


def test_only_time_limits_and_signals_count() -> None:
    reasons = ("time limit", "preemption", "node failure", "signal")
    assert restarts_used([{"event": "end", "reason": each, "requeued": True} for each in reasons]) == 2
    assert restarts_used([{"event": "end", "reason": "signal", "requeued": False}]) == 0


def test_starts_without_progress_are_counted_back_to_the_last_progress() -> None:
    records = [{"event": "start", "step": step} for step in (0, 12, 0, 12, 12)]
    assert starts_at(records, 12) == 2
    assert starts_at(records, 13) == 0
    assert starts_at([], 0) == 0


def test_a_crash_names_the_rank_and_its_own_error_before_those_of_its_peers() -> None:
    log = (
        "RuntimeError: Connection closed by peer [127.0.1.3]\n"
        "srun: error: n2: task 3: Exited with exit code 1\n"
        "srun: error: n1: tasks 0-1: Exited with exit code 1\n"
    )
    said = {
        3: "Traceback ...\nDistBackendError: Connection reset\nerror: data/train, record 6: forces is not finite\n"
    }
    text = why_it_failed(log, lambda rank: said.get(rank, ""))
    assert text == "rank 3 on n2: Exited with exit code 1; data/train, record 6: forces is not finite"
    assert why_it_failed("srun: error: n2: task 1: Killed\n", lambda rank: "") == "rank 1 on n2: Killed"
    assert why_it_failed("", lambda rank: "") == "its log does not say why"


def test_one_node_alone_is_never_called_dead() -> None:
    assert find_dead_nodes("n1") == []
    assert find_dead_nodes("") == []
