"""The neighbour search and topologies must not come to allocate or hold more: counted, so no clock is involved."""

import json

import numpy as np
import pytest

from benchmarks import graph_costs
from ocpgem.graph.neighbors import NeighborList, neighbor_search

RECORD = "`python benchmarks/graph_costs.py --record` records a change that is meant"
PEAK_MAY_GROW = 1.02
"""Other versions of Python and numpy may allocate a little differently; everything else must be equal."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, int]]:
    costs: dict[str, dict[str, int]] = json.loads(graph_costs.RECORDED.read_text())
    return costs


def check(found: dict[str, int], recorded: dict[str, int]) -> None:
    exact = {key: value for key, value in found.items() if key != "peak_bytes"}
    assert exact == {key: value for key, value in recorded.items() if key != "peak_bytes"}, RECORD
    assert found["peak_bytes"] <= PEAK_MAY_GROW * recorded["peak_bytes"], f"the peak grew; {RECORD}"


@pytest.mark.parametrize("cutoff", graph_costs.SEARCHES)
def test_a_search_allocates_no_more_than_recorded(cutoff: float, recorded: dict[str, dict[str, int]]) -> None:
    check(graph_costs.search_costs(cutoff), recorded[f"search {cutoff:g} A"])


@pytest.mark.parametrize("variant", graph_costs.VARIANTS)
def test_a_topology_holds_and_allocates_no_more_than_recorded(
    variant: str, recorded: dict[str, dict[str, int]]
) -> None:
    check(graph_costs.topology_costs(variant), recorded[f"topology {variant}"])


def test_the_guard_notices_one_wasteful_array(
    monkeypatch: pytest.MonkeyPatch, recorded: dict[str, dict[str, int]]
) -> None:
    kept: list[np.ndarray] = []

    def wasteful(*arguments: object) -> NeighborList:
        found = neighbor_search(*arguments)  # type: ignore[arg-type]
        kept[:] = [np.zeros((3, len(found.source), 3))]  # as if vectors were made three times over
        return found

    monkeypatch.setattr(graph_costs, "neighbor_search", wasteful)
    with pytest.raises(AssertionError, match="the peak grew"):
        check(graph_costs.search_costs(6.0), recorded["search 6 A"])
