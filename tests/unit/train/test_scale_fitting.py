"""Scale factors: each restores the variance of its reference, with all earlier ones active."""

import dataclasses
from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.errors import TrainingError
from ocpgem.graph.topology import EdgeSet, Topology
from ocpgem.models.gemnet.config import DEFAULTS, Variant
from ocpgem.models.gemnet.layers import Observer, ScaleFactor
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.scale_fitting import fit_scale_factors, scale_factors
from tests.edge_lists import edge_rows, quadruplet_members
from tests.structures import case_config, random_potential, random_slabs, small_config, topology_of
from tests.tiny_runs import random_system, random_systems

VARIANTS = get_args(Variant)
NARROW: dict[str, dict[str, Any]] = {
    "quadruplets": {"cutoff": 4.0, "max_neighbors": 4, "in_dim": 4, "out_dim": 5, "spherical_dim": 6},
    "atom_edge": {"cutoff": 4.0, "max_neighbors": 6, "in_dim": 4, "out_dim": 5, "circular_dim": 3},
    "atom_atom": {"cutoff": 5.0, "in_dim": 4, "out_dim": 5},
}


def make_potential(variant: str) -> Potential:
    torch.manual_seed(0)
    paths = {path: NARROW[path] for path in NARROW if path in DEFAULTS[variant]}
    return Potential(small_config(variant, **paths), Normalization())


def make_batches(potential: Potential, n: int = 9, batch_size: int = 3) -> list[tuple[Any, Any]]:
    recipe = Recipe(InMemoryDataset(list(random_systems(n))), potential.graph_spec)
    steps = TrainLoader(recipe, batch_size, seed=0).steps()
    return [next(steps).micro_batches[0] for _ in range(n // batch_size)]


def mean_variance(x: Tensor, times: Tensor | None = None) -> float:
    """The variance over rows, each of which stands there as often as `times` says."""
    rows = x if times is None else x.repeat_interleave(times, dim=0)
    return float(rows.detach().double().var(dim=0, correction=1).mean())


def measured_ratios(potential: Potential, batches: list[tuple[Any, Any]]) -> dict[str, tuple[float, float]]:
    """For every factor, in order of execution: variance of its activation as it now is, and of its reference."""
    totals: dict[str, Tensor] = {}

    for name, scale in scale_factors(potential).items():

        def record(
            _: ScaleFactor, x: Tensor, reference: Tensor | None, times: Tensor | None, name: str = name
        ) -> None:
            wanted = 1.0 if reference is None else mean_variance(reference, times)
            weighted = torch.tensor([mean_variance(x), wanted], dtype=torch.float64) * x.shape[0]
            totals[name] = totals.get(name, torch.zeros(2, dtype=torch.float64)) + weighted

        scale.observer = record
    with torch.no_grad():
        for batch, topology in batches:
            potential(batch, topology)
    for scale in scale_factors(potential).values():
        scale.observer = None
    return {name: (float(total[0]), float(total[1])) for name, total in totals.items()}


def rows_seen(potential: Potential, batches: list[tuple[Any, Any]]) -> dict[str, list[int]]:
    """For every factor, how many rows its activation has in each batch."""
    rows: dict[str, list[int]] = {name: [] for name in scale_factors(potential)}
    for name, scale in scale_factors(potential).items():
        scale.observer = lambda _, x, reference, times, name=name: rows[name].append(x.shape[0])
    with torch.no_grad():
        for batch, topology in batches:
            potential(batch, topology)
    for scale in scale_factors(potential).values():
        scale.observer = None
    return rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_fitted_factor_gives_its_activation_the_variance_of_its_reference(variant: str) -> None:
    potential = make_potential(variant)
    batches = make_batches(potential)
    assert not any(scale.fitted for scale in scale_factors(potential).values())
    reported = []
    fitted = fit_scale_factors(
        potential, batches, lambda scale, number, total: reported.append((number, total))
    )
    assert all(scale.fitted for scale in scale_factors(potential).values())
    measured = measured_ratios(potential, batches)
    assert [scale.name for scale in fitted] == list(measured)
    assert set(measured) == set(scale_factors(potential))
    assert reported == [(i + 1, len(fitted)) for i in range(len(fitted))]
    for scale in fitted:
        # `observe` sees what the scaled weight produced: with the factor active the variances agree.
        after, reference = measured[scale.name]
        assert after == pytest.approx(reference, rel=1e-4), scale.name
        assert scale.variance_before * scale.factor**2 == pytest.approx(scale.variance_reference, rel=1e-6)
        assert float(scale_factors(potential)[scale.name].factor) == pytest.approx(scale.factor, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variances_without_factors_are_those_of_a_model_whose_factors_are_all_one(variant: str) -> None:
    potential = make_potential(variant)
    batches = make_batches(potential)
    fitted = fit_scale_factors(potential, batches)
    for scale in scale_factors(potential).values():
        scale.set(1.0)
    measured = measured_ratios(potential, batches)
    rows = {name: sum(counts) for name, counts in rows_seen(potential, batches).items()}
    for scale in fitted:
        assert scale.variance_unscaled == pytest.approx(measured[scale.name][0] / rows[scale.name], rel=1e-4)
        assert scale.variance_scaled == pytest.approx(scale.variance_reference, rel=1e-6)
    assert fitted[0].variance_before == pytest.approx(fitted[0].variance_unscaled, rel=1e-6)


def test_fitting_again_gives_the_same_factors_whatever_they_were() -> None:
    potential = make_potential("gemnet_dT")
    batches = make_batches(potential)
    first = [scale.factor for scale in fit_scale_factors(potential, batches)]
    for scale in scale_factors(potential).values():
        scale.set(7.0)
    assert [scale.factor for scale in fit_scale_factors(potential, batches)] == first


def test_the_mode_of_the_model_and_its_weights_stay() -> None:
    potential = make_potential("gemnet_dT").train()
    before = [parameter.detach().clone() for parameter in potential.parameters()]
    fit_scale_factors(potential, make_batches(potential))
    assert potential.training
    assert all(torch.equal(a, b) for a, b in zip(before, potential.parameters(), strict=True))
    assert all(scale.observer is None for scale in scale_factors(potential).values())


def test_an_activation_that_does_not_vary_is_refused_by_name() -> None:
    potential = make_potential("gemnet_dT")
    with torch.no_grad():
        potential.model.atom_embedding.weight.zero_()
        for parameter in potential.parameters():
            parameter.zero_()
    with pytest.raises(TrainingError, match=r"Scale factor model\.\S+ cannot be fitted"):
        fit_scale_factors(potential, make_batches(potential))
    assert all(scale.observer is None for scale in scale_factors(potential).values())


def test_data_without_any_quadruplet_is_refused_with_a_word_on_tags() -> None:
    potential = make_potential("gemnet_OC")
    untagged = [dataclasses.replace(s, tags=np.zeros(s.n_atoms, dtype=np.uint8)) for s in random_systems(3)]
    recipe = Recipe(InMemoryDataset(untagged), potential.graph_spec)
    batch = next(TrainLoader(recipe, 3, seed=0).steps()).micro_batches[0]
    with pytest.raises(
        TrainingError, match=r"quadruplets\.scale_circular.*model.quadruplets.tags must occur"
    ):
        fit_scale_factors(potential, [batch])


def test_one_atom_of_one_element_in_a_perfect_crystal_is_refused() -> None:
    pos = np.zeros((1, 3), dtype=np.float32)
    numbers, one = np.array([29], dtype=np.uint8), np.ones(1, dtype=np.uint8)
    rng = np.random.default_rng(0)
    cell = np.eye(3, dtype=np.float32) * 2.5
    system = random_system(
        rng, 0, pos=pos, cell=cell, atomic_numbers=numbers, tags=one, fixed=one == 0, forces=pos
    )
    potential = make_potential("gemnet_dT")
    recipe = Recipe(InMemoryDataset([system]), potential.graph_spec)
    batch = next(TrainLoader(recipe, 1, seed=0).steps()).micro_batches[0]
    with pytest.raises(TrainingError, match="fit on more or larger systems"):
        fit_scale_factors(potential, [batch])


def readers(incoming: EdgeSet, outgoing: EdgeSet) -> Tensor:
    """How many other edges of `outgoing` end where each edge of `incoming` does, counted one by one."""
    rows, others = edge_rows(incoming).tolist(), edge_rows(outgoing).tolist()
    return torch.tensor([sum(row[1] == other[1] and row != other for other in others) for row in rows])


def quadruplets_of_rows(topology: Topology) -> Tensor:
    """How many quadruplets each row of the inner table is in."""
    assert topology.quadruplets is not None
    inner = topology.quadruplets.inner
    met = Counter((middle, to_b) for _, middle, to_b in quadruplet_members(topology).tolist())
    pairs = zip(inner.middle_edge.tolist(), inner.main_edge.tolist(), strict=True)
    return torch.tensor([met[pair] for pair in pairs])


@pytest.mark.parametrize("case", ["gemnet_T", "gemnet_Q", "gemnet_OC"])
def test_the_references_of_sums_have_a_row_for_every_triplet_and_quadruplet(case: str) -> None:
    potential, batch = random_potential(case_config(case), torch.float32), random_slabs(dtype=torch.float32)
    topology = topology_of(batch, potential.graph_spec)
    main, around, block = topology.main, topology.atom_edge, potential.model.blocks[0]
    expected = {"triplets": readers(main, main)}
    if block.quadruplets is not None:
        expected["quadruplets"] = quadruplets_of_rows(topology)
    if around is not None:
        expected |= {"atom_to_edge": readers(around, main), "edge_to_atom": readers(main, around)}
    references: dict[str, Tensor] = {}

    def record(path: str) -> Observer:
        return lambda _, x, reference, times: references.update({path: reference})  # type: ignore[dict-item]

    fitted = {scale.name: scale for scale in fit_scale_factors(potential, [(batch, topology)])}
    for path in expected:
        getattr(block, path).bilinear.scale_sum.observer = record(path)
    with torch.no_grad():
        potential(batch, topology)
    for path, times in expected.items():
        assert times.min() < times.max()  # else they would not count
        wanted = mean_variance(references[path], times)
        found = fitted[f"model.blocks.0.{path}.bilinear.scale_sum"].variance_reference
        assert found == pytest.approx(wanted, rel=1e-5), path
        assert found != pytest.approx(mean_variance(references[path]), rel=1e-3), path
