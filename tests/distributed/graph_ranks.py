"""Run by test_graph_parallel.py as one of four ranks: batches divided over groups of 2, 3 and 4 against whole ones.

Writes, for every case, the largest difference of outputs and of parameter gradients between a divided batch and the
whole one, relative to the largest value. All ranks draw the same examples, since hypothesis does not draw at random.
"""

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Potential
from ocpgem.parallel import group
from ocpgem.parallel.graph import GraphGroup
from ocpgem.parallel.partition import partition
from tests.structures import CASES, case_potential, molecule, random_slabs, topology_of

TRIED = [case for case in CASES if case not in ("gemnet_XL", "gemnet_OC_large")]
"""Those two are gemnet_dT and gemnet_OC in other sizes."""


def graph_groups() -> dict[int, GraphGroup]:
    """The groups of ranks 0 to n - 1 that this rank is in."""
    handles = {size: dist.new_group(list(range(size))) for size in (2, 3, 4)}
    return {
        size: GraphGroup(group.rank(), size, handle)
        for size, handle in handles.items()
        if group.rank() < size
    }


def outputs_and_gradients(
    potential: Potential, batch: SimpleNamespace, topology: Topology, graph: GraphGroup | None
) -> list[torch.Tensor]:
    """Energies, forces, and the gradient of a function of both by every parameter, summed over ranks."""
    predicted = potential(batch, topology)
    assert predicted.forces is not None
    weights = torch.linspace(0.5, 1.5, predicted.forces.numel(), dtype=torch.float64)
    loss = (predicted.energy**2).sum() + (predicted.forces.flatten() * weights).sin().sum()
    trained = list(potential.parameters())
    share = loss if graph is None else loss / graph.size
    found = torch.autograd.grad(share, trained, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]
    if graph is not None:
        for gradient in gradients:
            dist.all_reduce(gradient, group=graph.handle)
    return [predicted.energy.detach(), predicted.forces.detach(), *gradients]


def difference(potential: Potential, batch: SimpleNamespace, graph: GraphGroup) -> float:
    """The largest on any rank of the group, so that all of them go on alike."""
    whole = topology_of(batch, potential.graph_spec)
    expected = outputs_and_gradients(potential, batch, whole, None)
    found = outputs_and_gradients(potential, batch, partition(whole, graph), graph)
    largest = [
        float((one - other).abs().max() / one.abs().max().clamp(min=1e-3))
        for one, other in zip(expected, found, strict=True)
    ]
    worst = torch.tensor(max(largest), dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=graph.handle)
    return float(worst)


def cases(groups: dict[int, GraphGroup]) -> Iterator[tuple[str, float]]:
    slabs, pair = random_slabs((7, 4)), molecule([[0, 0, 0], [0, 0, 1.5], [0, 1.4, 0.2]])
    for case in TRIED:
        potential = case_potential(case)
        for size, graph in groups.items():
            yield f"{case}, {size} ranks", difference(potential, slabs, graph)
        if 4 in groups:  # of which one gets no atom
            yield f"{case}, 3 atoms", difference(potential, pair, groups[4])
        if 2 in groups and potential.graph_spec.may_be_empty:
            yield f"{case}, no edges", difference(potential, without_edges(slabs), groups[2])


def without_edges(batch: SimpleNamespace) -> SimpleNamespace:
    """The same systems with their atoms too far from one another for any edge."""
    far = torch.arange(len(batch.pos), dtype=batch.pos.dtype).unsqueeze(1) * 100.0
    return SimpleNamespace(**vars(batch) | {"pos": batch.pos + far, "pbc": torch.zeros_like(batch.pbc)})


def random_cases(groups: dict[int, GraphGroup]) -> Iterator[tuple[str, float]]:
    worst = [0.0]

    @settings(
        max_examples=8,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(["gemnet_T", "gemnet_dQ", "gemnet_OC gradient"]),
        st.lists(st.integers(2, 7), min_size=1, max_size=3),
        st.integers(0, 1000),
        st.sampled_from([2, 3, 4]),
    )
    def try_one(case: str, n_atoms: list[int], seed: int, size: int) -> None:
        batch = random_slabs(tuple(n_atoms), seed=seed)
        if size in groups:
            worst[0] = max(worst[0], difference(case_potential(case), batch, groups[size]))

    try_one()
    yield "random", worst[0]


def main() -> None:
    group.init_from_environment("cpu", timedelta(seconds=300))
    groups = graph_groups()
    found = dict(cases(groups)) | dict(random_cases(groups))
    gathered = group.gather_objects(found)
    if gathered is not None:
        merged = {name: max(each.get(name, 0.0) for each in gathered) for each in gathered for name in each}
        Path(sys.argv[1]).write_text(json.dumps(merged))
    group.shutdown()


if __name__ == "__main__":
    main()
