"""Memory and work of a training step grow linearly with the number of neighbours, where triplets grow quadratically."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ocpgem.graph.topology import GraphSpec, Topology
from ocpgem.models.gemnet.geometry import edge_geometry
from tests.explicit_sums import sum_over_triplets
from tests.structures import case_config, random_potential, topology_of

CUTOFFS = (2.9, 4.95, 6.4, 7.5)
"""A, in a cubic close-packed lattice: 12, 42, 78 and 134 neighbours an atom, the same for all, so that no table is
padded.
"""
MOST_MIDDLE_EDGES = 4
CASES = ("gemnet_T", "gemnet_dT", "gemnet_OC", "gemnet_OC gradient")
LARGEST_EXPONENT = 1.15


def crystal() -> SimpleNamespace:
    """Four atoms, cubic close-packed."""
    corners = torch.tensor([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0]], dtype=torch.float64)
    return SimpleNamespace(
        pos=corners,
        cell=4.0 * torch.eye(3, dtype=torch.float64)[None],
        pbc=torch.ones(1, 3, dtype=torch.bool),
        atomic_numbers=torch.tensor([29, 30, 46, 47]),
        natoms=torch.tensor([4]),
        tags=torch.ones(4, dtype=torch.int64),
    )


class Recorder(TorchDispatchMode):
    """Notes the shape of every tensor that an operation makes, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.n_written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.shapes.add(tuple(tensor.shape))
                self.n_written += 0 if func.is_view else tensor.numel()
        return result


@dataclass
class Step:
    """What one training step needs, counted, not timed."""

    n_edges: int
    n_triplets: int
    n_quadruplets: int
    flops: int = 0
    n_written: int = 0
    """Elements of all results of operations."""
    n_largest: int = 0
    """Elements of the largest tensor."""
    saved_bytes: int = 0
    """Kept for the backward pass."""
    shapes: set[tuple[int, ...]] = field(default_factory=set)


def n_quadruplets(topology: Topology) -> int:
    tables = topology.quadruplets
    if tables is None:
        return 0
    per_middle = [side.middle_edge.bincount() for side in (tables.inner, tables.outer)]
    return int((per_middle[0] * per_middle[1]).sum()) - len(tables.excluded_outer)


def training_step(case: str, cutoff: float) -> Step:
    graph = {"cutoff": cutoff, "max_neighbors": 0}
    changes: dict[str, Any] = {"neighbors": graph}
    if case.startswith("gemnet_OC"):
        changes |= {"atom_edge": graph, "atom_atom": graph}
        changes["quadruplets"] = {"cutoff": 2.9, "max_neighbors": MOST_MIDDLE_EDGES}
    potential, batch = random_potential(case_config(case, **changes)), crystal()
    topology = topology_of(batch, potential.graph_spec)
    degree = topology.main.edge_ptr.diff()
    assert degree.unique().numel() == 1
    step = Step(topology.main.n_edges, int((degree * (degree - 1)).sum()), n_quadruplets(topology))
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    flops, recorder = FlopCounterMode(display=False), Recorder()
    with flops, recorder:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            predicted = potential(batch, topology)
            loss = predicted.energy.sum() + predicted.forces.square().sum()
        loss.backward()
    step.flops, step.n_written, step.shapes = flops.get_total_flops(), recorder.n_written, recorder.shapes
    step.n_largest, step.saved_bytes = max(map(math.prod, recorder.shapes)), sum(saved.values())
    return step


@functools.cache
def steps(case: str) -> list[Step]:
    return [training_step(case, cutoff) for cutoff in CUTOFFS]


def exponent(of: Callable[[Step], int], case: str) -> float:
    """b of the fit a * n_edges^b, by least squares of the logarithms."""
    x = torch.tensor([math.log(step.n_edges) for step in steps(case)])
    y = torch.tensor([math.log(of(step)) for step in steps(case)])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


MEASURES: dict[str, Callable[[Step], int]] = {
    "floating-point operations": lambda step: step.flops,
    "elements written": lambda step: step.n_written,
    "elements of the largest tensor": lambda step: step.n_largest,
    "bytes kept for the backward pass": lambda step: step.saved_bytes,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("measure", MEASURES)
def test_a_training_step_grows_linearly_with_the_neighbours(case: str, measure: str) -> None:
    assert exponent(lambda step: step.n_triplets, case) > 1.95
    assert 0.3 < exponent(MEASURES[measure], case) < LARGEST_EXPONENT


@pytest.mark.parametrize("case", CASES)
def test_no_tensor_has_a_row_for_every_triplet_or_quadruplet(case: str) -> None:
    step = steps(case)[-1]
    numbers = {size for shape in step.shapes for size in shape}
    assert not numbers & {step.n_triplets, step.n_quadruplets} - {0}
    # Not one number for each of them has room in the largest tensor.
    assert step.n_largest < (step.n_quadruplets or step.n_triplets)


def test_the_count_notices_a_sum_over_listed_triplets() -> None:
    written = []
    for cutoff in (CUTOFFS[0], CUTOFFS[-1]):
        batch = crystal()
        topology = topology_of(batch, GraphSpec(cutoff, 0))
        direction = edge_geometry(batch.pos, batch.cell, topology.batch, topology.main).direction
        target = topology.main.edge_index[1]
        out_edge, in_edge = torch.nonzero(target[:, None] == target[None, :], as_tuple=True)
        with Recorder() as recorder:
            sum_over_triplets(direction, direction, direction, out_edge, in_edge, n_spherical=5)
        written.append((topology.main.n_edges, recorder.n_written))
    (few_edges, few), (many_edges, many) = written
    assert math.log(many / few) / math.log(many_edges / few_edges) > 1.8
