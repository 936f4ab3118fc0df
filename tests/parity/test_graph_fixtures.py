"""Our graphs are the released models': GemNet-T's and -OC's on the reference slabs, GemNet-Q's on molecules."""

import numpy as np
import pytest
import torch

from ocpgem.graph.edges import nearest_k
from ocpgem.graph.neighbors import neighbor_search
from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.topology import EdgeSet, Topology, build_topology
from tests.edge_lists import edge_rows, quadruplet_members, unique_rows
from tests.parity.reference_cases import REFERENCE, ReferenceCase, needs_reference

CUTOFF, MAX_NEIGHBORS = 6.0, 20  # kwargs.json of both cases of GemNet-T
OC = GraphSpec(  # kwargs.json of fc_gemnet_oc
    cutoff=8.0,
    max_neighbors=12,
    self_images="positive",
    quadruplet=Limit(6.0, 5),
    quadruplet_tags=(1, 2),
    atom_edge=Limit(8.0, 8),
    atom_atom=Limit(8.0, 1000),
)
OC_GRAPHS = {"main": "main", "a2a": "atom_atom", "a2ee2a": "atom_edge", "qint": "quadruplet"}
MOLECULES = GraphSpec(5.0, 0, quadruplet=Limit(10.0, 0))  # kwargs.json of tum_Q and tum_dQ


@pytest.fixture(scope="module", params=["fc_gemnet_T", "fc_gemnet_dT"])
def case(request) -> tuple[dict, dict]:
    folder = REFERENCE / request.param
    if not folder.is_dir():
        pytest.skip(f"the reference case {folder} is not on this machine")
    return dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "graph.npz"))


def test_truncated_neighbours_are_the_released_ones(case):
    inputs, graph = case
    rows, distances, first = [], [], 0
    for system, count in enumerate(inputs["natoms"]):
        pos = inputs["positions"][first : first + count]
        found = neighbor_search(pos, inputs["cell"][system], inputs["pbc"][system], CUTOFF)
        keep = nearest_k(found.target, found.distance, int(count), MAX_NEIGHBORS)
        rows.append(np.column_stack((found.source + first, found.target + first, found.offset))[keep])
        distances.append(found.distance[keep])
        first += count
    ours = dict(zip(map(tuple, np.concatenate(rows).tolist()), np.concatenate(distances), strict=True))
    table = np.column_stack((*graph["raw_edge_index"].astype(int), graph["raw_cell_offsets"].astype(int)))
    theirs = dict(zip(map(tuple, table.tolist()), graph["raw_distance"], strict=True))
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[edge] for edge in theirs], list(theirs.values()), atol=1e-12)


def test_symmetrised_edges_have_the_released_vectors_and_reverses(case):
    inputs, graph = case
    pos, cell = torch.tensor(inputs["positions"]), torch.tensor(inputs["cell"])
    spec = GraphSpec(CUTOFF, MAX_NEIGHBORS)
    topology = build_topology(pos, cell, torch.tensor(inputs["pbc"]), torch.tensor(inputs["natoms"]), spec)
    edges = topology.main
    source, target = edges.edge_index
    shift = torch.einsum("ei,eij->ej", edges.cell_offsets.double(), cell[topology.batch[target]])
    vector = (pos[target] - (pos[source] + shift)).numpy()
    assert edges.n_edges_per_system.tolist() == graph["neighbors"].tolist()

    # Two edges of one pair of atoms differ in direction, so rounded vectors order both lists alike.
    def order(index: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.lexsort((*np.round(v, 5).T, *index))

    distance = np.linalg.norm(vector, axis=1)
    here = order(edges.edge_index.numpy(), vector / distance[:, None])
    there = order(graph["edge_index"], graph["vector"])
    np.testing.assert_array_equal(edges.edge_index.numpy()[:, here], graph["edge_index"][:, there])
    np.testing.assert_allclose(distance[here], graph["distance"][there], atol=1e-12)
    np.testing.assert_allclose((vector / distance[:, None])[here], graph["vector"][there], atol=1e-12)

    rank_here, rank_there = np.argsort(here), np.argsort(there)
    np.testing.assert_array_equal(
        rank_here[edges.reverse_edge.numpy()][here], rank_there[graph["id_swap"]][there]
    )


def test_every_edge_meets_as_many_others_as_released_triplets(case):
    inputs, graph = case
    spec = GraphSpec(CUTOFF, MAX_NEIGHBORS)
    tensors = (torch.tensor(inputs[name]) for name in ("positions", "cell", "pbc", "natoms"))
    degree = build_topology(*tensors, spec).main.edge_ptr.diff()
    assert int((degree * (degree - 1)).sum()) == int(graph["n_triplets"])


class ReleasedOC:
    """The recorded graphs of GemNet-OC beside ours."""

    def __init__(self) -> None:
        self.case = ReferenceCase.load("fc_gemnet_oc")
        self.graph = dict(np.load(self.case.folder / "graph.npz"))
        self.topology = self.case.topology(OC)

    def rows(self, name: str) -> np.ndarray:
        """[E, 5] source, target, offset of the source (recorded with the opposite sign)."""
        offset = -self.graph[f"{name}_cell_offset"].astype(int)
        return np.column_stack((*self.graph[f"{name}_edge_index"].astype(int), offset))

    def ours(self, name: str) -> EdgeSet:
        edges = getattr(self.topology, OC_GRAPHS[name])
        assert edges is not None
        return edges

    def place(self, name: str) -> np.ndarray:
        """Our position of each recorded edge."""
        position = {tuple(row): i for i, row in enumerate(edge_rows(self.ours(name)).tolist())}
        return np.array([position[tuple(row)] for row in self.rows(name).tolist()])


@pytest.fixture(scope="module")
def released() -> ReleasedOC:
    if not REFERENCE.is_dir():
        pytest.skip("the recorded outputs of the released models (../shared/reference) are not here")
    return ReleasedOC()


def count(numbers: torch.Tensor, n: int) -> torch.Tensor:
    return torch.bincount(numbers, minlength=n)


@pytest.mark.parametrize("name", OC_GRAPHS)
def test_every_graph_of_gemnet_oc_has_the_released_edges_and_vectors(released: ReleasedOC, name: str):
    assert unique_rows(edge_rows(released.ours(name))) == unique_rows(released.rows(name))
    source, target, *offset = edge_rows(released.ours(name))[released.place(name)].T
    batch = released.case.batch(torch.float64)
    pos, cell = batch.pos.numpy(), batch.cell.numpy()[released.topology.batch[target]]
    vector = pos[target] - (pos[source] + np.einsum("ie,eij->ej", offset, cell))
    distance = np.linalg.norm(vector, axis=1)
    np.testing.assert_allclose(distance, released.graph[f"{name}_distance"], atol=1e-12)
    np.testing.assert_allclose(vector / distance[:, None], released.graph[f"{name}_vector"], atol=1e-12)


def test_main_edges_of_gemnet_oc_have_the_released_reverses(released: ReleasedOC):
    place = released.place("main")
    reverse = released.topology.main.reverse_edge.numpy()
    np.testing.assert_array_equal(reverse[place], place[released.graph["main_id_swap"]])
    assert released.topology.main.n_edges_per_system.tolist() == released.graph["main_num_neighbors"].tolist()


def test_every_edge_of_gemnet_oc_meets_as_many_others_as_released_triplets(released: ReleasedOC):
    topology, graph = released.topology, released.graph
    main, other, common = topology.main, topology.atom_edge, topology.common
    assert other is not None
    assert common is not None
    main_target, other_target = main.edge_index[1], other.edge_index[1]
    e2e = main.edge_ptr.diff()[main_target] - 1
    a2e = other.edge_ptr.diff()[main_target] - count(common.main, main.n_edges)
    e2a = main.edge_ptr.diff()[other_target] - count(common.atom_edge, other.n_edges)
    in_main, in_other = released.place("main"), released.place("a2ee2a")
    np.testing.assert_array_equal(e2e.numpy()[in_main], graph["trip_e2e_per_out_edge"])
    np.testing.assert_array_equal(a2e.numpy()[in_main], graph["trip_a2e_per_out_edge"])
    np.testing.assert_array_equal(e2a.numpy()[in_other], graph["trip_e2a_per_out_edge"])


def quadruplets_per_main_edge(topology: Topology) -> torch.Tensor:
    """Counted from the tables: rows of `inner` that each row of `outer` meets, less the excluded ones."""
    quadruplets, middle = topology.quadruplets, topology.quadruplet
    assert quadruplets is not None
    assert middle is not None
    inner, outer = quadruplets.inner, quadruplets.outer
    met = count(inner.middle_edge, middle.n_edges)[outer.middle_edge]
    met -= count(quadruplets.excluded_outer, len(met))
    return torch.zeros(topology.main.n_edges, dtype=torch.int64).index_add(0, outer.main_edge, met)


def test_quadruplet_tables_of_gemnet_oc_have_the_released_numbers(released: ReleasedOC):
    graph, quadruplets = released.graph, released.topology.quadruplets
    assert quadruplets is not None
    assert len(quadruplets.inner.slot) == int(graph["n_quad_triplet_in"])
    assert len(quadruplets.outer.slot) == int(graph["n_quad_triplet_out"])
    per_edge = quadruplets_per_main_edge(released.topology).numpy()
    np.testing.assert_array_equal(per_edge[released.place("main")], graph["quad_per_out_edge"])
    assert per_edge.sum() == int(graph["n_quad"]) == len(quadruplet_members(released.topology))


@needs_reference
@pytest.mark.parametrize("name", ["tum_Q", "tum_dQ"])
def test_graphs_and_quadruplets_of_molecules_are_the_released_ones(name: str):
    case = ReferenceCase.load(name)
    graph = {key: value.astype(int) for key, value in np.load(case.folder / "graph.npz").items()}
    topology = case.topology(MOLECULES)
    main, middle = topology.main, topology.quadruplet
    assert middle is not None
    released = np.column_stack((graph["id_c"], graph["id_a"]))
    assert unique_rows(main.edge_index.T.numpy()) == unique_rows(released)
    around = np.column_stack((graph["id4_int_b"], graph["id4_int_a"]))
    assert unique_rows(middle.edge_index.T.numpy()) == unique_rows(around)
    assert not main.cell_offsets.any()
    degree = main.edge_ptr.diff()
    assert int((degree * (degree - 1)).sum()) == len(graph["id3_reduce_ca"])

    to_a, to_b = graph["id4_reduce_ca"], graph["id4_expand_db"]
    expected = np.column_stack((released[to_a], released[to_b][:, ::-1]))  # c, a, b, d
    main_edge, middle_edge, last_edge = quadruplet_members(topology).T
    source, target = main.edge_index.numpy()
    found = np.column_stack((source[main_edge], target[main_edge], target[last_edge], source[last_edge]))
    assert unique_rows(found) == unique_rows(expected)
    np.testing.assert_array_equal(middle.edge_index.numpy()[:, middle_edge], found[:, [2, 1]].T)
    assert int(quadruplets_per_main_edge(topology).sum()) == len(expected)
