"""SLURM's lists, numbers and facts, as its commands print them."""

from pathlib import Path

import pytest

from ocpgem.errors import RequestError
from ocpgem.launch.job_states import Job, _is_about, progress_of
from ocpgem.launch.records import Element, Submission
from ocpgem.launch.slurm import SlurmError, ask, expand_nodes, parse_time, per_node, read_facts


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("rack[1-2]node[09-10]", ["rack1node09", "rack1node10", "rack2node09", "rack2node10"]),
        ("a-b-c[3]x,d", ["a-b-c3x", "d"]),
    ],
)
def test_a_list_of_nodes_is_expanded(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "n[1", "n]", "n[a-b]", ",", "a,,b", "n[]"])
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not a list of nodes"):
        expand_nodes(text)


def test_numbers_per_node_are_expanded() -> None:
    assert per_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(RequestError, match="numbers per node"):
        per_node("2(x")


def test_facts_may_hold_spaces_and_equal_signs() -> None:
    facts = read_facts("JobId=7 JobName=a b TRES=cpu=4,mem=400M CPUs/Task=1 Power= End=x ")
    assert facts == {
        "JobId": "7",
        "JobName": "a b",
        "TRES": "cpu=4,mem=400M",
        "CPUs/Task": "1",
        "Power": "",
        "End": "x",
    }


def test_times_that_are_none_stay_none() -> None:
    assert parse_time("None") is None
    assert parse_time("N/A") is None
    assert parse_time("2026-11-22T21:42:55") is not None


def test_a_command_that_hangs_or_fails_says_so() -> None:
    with pytest.raises(SlurmError, match="did not answer within"):
        ask("sleep", "10", seconds=0.1)
    with pytest.raises(SlurmError, match="No such file"):
        ask("ls", "/nowhere/at/all")
    with pytest.raises(RequestError, match="there is no no-such-command here"):
        ask("no-such-command")


@pytest.mark.parametrize(
    ("tasks", "indices"), [("3", [3]), ("1-3%1", [1, 2, 3]), ("0,2-3,6-10:2%4", [0, 2, 3, 6, 8, 10])]
)
def test_which_elements_of_an_array_facts_are_about(tasks: str, indices: list[int]) -> None:
    facts = read_facts(f"JobId=7 ArrayTaskId={tasks} JobState=PENDING")
    assert [index for index in range(12) if _is_about(facts, index)] == indices
    assert _is_about(read_facts("JobId=7 JobState=PENDING"), 0), "no array"


def test_the_progress_of_a_prediction_is_in_its_log(tmp_path: Path) -> None:
    submission = Submission(str(tmp_path), "predict", "run", [Element(str(tmp_path), [])], 1, True, "7")
    assert progress_of(Job(submission, 0)).step is None
    (tmp_path / "7_0_log.out").write_text(
        "ocpgem: job 7 begins\npredict: 20 of 400 systems, 9.5 systems/s\npredict: 40 of 400 systems, 10.0 systems/s\n"
    )
    now = progress_of(Job(submission, 0))
    assert (now.step, now.total, now.systems_per_second, now.seconds_left) == (40, 400, 10.0, 36.0)
