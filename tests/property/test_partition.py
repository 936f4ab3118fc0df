"""Dividing a batch over a graph group loses no atom or edge, sends what is needed and nothing else, and is balanced."""

from itertools import pairwise

import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from ocpgem.errors import DataError
from ocpgem.graph.exchange import Exchange
from ocpgem.graph.topology import EdgeSet, SymmetricEdgeSet, Topology
from ocpgem.parallel.graph import GraphGroup
from ocpgem.parallel.partition import _SMALL_EDGE, cut_atoms, partition
from tests.structures import case_config, molecule, random_slabs, topology_of

SIZES = st.sampled_from([2, 3, 4])
GRAPHS = ("main", "atom_edge", "quadruplet", "atom_atom")


@st.composite
def batches(draw) -> Topology:  # type: ignore[no-untyped-def]
    """Slabs of several sizes, or a molecule with fewer atoms than some groups have ranks."""
    case = draw(st.sampled_from(["gemnet_T", "gemnet_Q", "gemnet_OC"]))
    spec = case_config(case).graph_spec
    if draw(st.booleans()):
        return topology_of(molecule([[0, 0, 0], [0, 0, 1.5], [0, 1.4, 0.2]][: draw(st.integers(2, 3))]), spec)
    n_atoms = draw(st.lists(st.integers(2, 12), min_size=1, max_size=3))
    try:
        return topology_of(random_slabs(tuple(n_atoms), seed=draw(st.integers(0, 1000))), spec)
    except DataError:  # few atoms in a large cell may all be isolated, which no data set may be
        reject()


def parts_of(topology: Topology, size: int) -> list[Topology]:
    return [partition(topology, GraphGroup(rank, size, None)) for rank in range(size)]


def edges_of(topology: Topology, name: str) -> EdgeSet | None:
    found: EdgeSet | None = getattr(topology, name)
    return found


def received(rows: list[Tensor], exchanges: list[Exchange], rank: int) -> Tensor:
    """What `gather` gives a rank, if every rank sends what its own exchange says."""
    pieces = []
    for sender, exchange in enumerate(exchanges):
        sent = rows[sender][exchange.send].split(exchange.send_counts)[rank]
        assert len(sent) == exchanges[rank].receive_counts[sender]
        pieces.append(sent)
    return torch.cat(pieces)


@settings(max_examples=40, deadline=None)
@given(batches(), SIZES)
def test_every_atom_and_every_edge_is_on_exactly_one_rank(topology: Topology, size: int) -> None:
    parts = parts_of(topology, size)
    atoms = [atom for p in parts if p.part for atom in range(p.part.first, p.part.first + p.part.n_atoms)]
    assert atoms == list(range(len(topology.batch)))
    for name in GRAPHS:
        whole = edges_of(topology, name)
        if whole is None:
            continue
        found = []
        for part in parts:
            own = edges_of(part, name)
            assert own is not None
            assert own.ends is not None
            source = own.ends.sources.rows[own.edge_index[0]]
            target = own.edge_index[1] + own.ends.part.first
            found.append(torch.cat([torch.stack([source, target]), own.cell_offsets.T]))
        assert torch.equal(torch.cat(found, 1), torch.cat([whole.edge_index, whole.cell_offsets.T])), name


@settings(max_examples=40, deadline=None)
@given(batches(), SIZES)
def test_ranks_receive_the_rows_they_need_and_no_others(topology: Topology, size: int) -> None:
    parts = parts_of(topology, size)
    atoms = [torch.arange(p.part.first, p.part.first + p.part.n_atoms) for p in parts if p.part]
    edges, begin = [], 0
    for part in parts:
        edges.append(torch.arange(begin, begin + part.main.n_edges))
        begin += part.main.n_edges
    sources = [part.main.ends.sources for part in parts if part.main.ends]
    backs = [part.main.back for part in parts if isinstance(part.main, SymmetricEdgeSet) and part.main.back]
    assert len(sources) == len(backs) == size
    for rank, part in enumerate(parts):
        assert torch.equal(received(atoms, sources, rank), sources[rank].rows)
        assert torch.equal(sources[rank].rows, sources[rank].rows[part.main.edge_index[0]].unique())
        mine = topology.main.reverse_edge[edges[rank]]
        assert torch.equal(received(edges, backs, rank)[part.main.reverse_edge], mine)
        assert len(backs[rank].rows) == len(mine)


@settings(max_examples=60, deadline=None)
@given(batches(), SIZES)
def test_no_rank_has_more_than_its_share_and_the_cost_of_one_atom(topology: Topology, size: int) -> None:
    cost = topology.main.edge_ptr.diff().double()
    for name in GRAPHS[1:]:
        edges = edges_of(topology, name)
        if edges is not None:
            cost = cost + _SMALL_EDGE * edges.edge_ptr.diff()
    cuts = cut_atoms(topology, size).tolist()
    for first, stop in pairwise(cuts):
        assert cost[first:stop].sum() <= cost.sum() / size + cost.max() + 1e-9


def test_a_rank_without_atoms_has_a_part_that_is_empty_and_whole() -> None:
    topology = topology_of(molecule([[0, 0, 0], [0, 0, 1.5]]), case_config("gemnet_OC").graph_spec)
    sizes = [part.main.n_edges for part in parts_of(topology, 4)]
    assert sum(sizes) == topology.main.n_edges == 2
    assert sizes.count(0) == 2
