"""SLURM's lists, numbers and facts, as its commands print them."""

import pytest

from ocpgem.errors import RequestError
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
