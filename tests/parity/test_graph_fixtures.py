"""Our edges are the released GemNet-T's on the reference slabs, before and after symmetrisation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ocpgem.graph.edges import nearest_k
from ocpgem.graph.neighbors import neighbor_search
from ocpgem.graph.topology import GraphSpec, build_topology

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
CUTOFF, MAX_NEIGHBORS = 6.0, 20  # kwargs.json of both cases


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
