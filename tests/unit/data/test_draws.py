"""Several data sets drawn by weight: exact shares in every epoch, every system as often as the others of its set."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpgem.data.cost import systems_per_batch
from ocpgem.data.dataset import InMemoryDataset, Subset
from ocpgem.data.draws import Draws, all_once
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.data.mixture import Mixture
from ocpgem.data.plan import TrainPlan
from ocpgem.data.sizes import SIZES
from ocpgem.errors import DataError, RequestError
from ocpgem.graph.topology import GraphSpec
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet
from tests.tiny_runs import TINY_MODEL, random_systems

SETS = st.lists(st.tuples(st.integers(1, 30), st.floats(0.02, 4)), min_size=1, max_size=4)


def spec() -> GraphSpec:
    return GemNet(GemNetConfig.model_validate(TINY_MODEL)).graph_spec


@settings(max_examples=50, deadline=None)
@given(SETS, st.integers(0, 5), st.integers(1, 6))
def test_every_set_has_its_exact_share_and_every_system_of_a_set_the_same_number_of_draws(sets, seed, epochs):
    counts, weights = zip(*sets, strict=True)
    draws = Draws(counts, weights, seed)
    ends = np.cumsum(counts)
    seen: Counter[int] = Counter(dict.fromkeys(range(ends[-1]), 0))
    for epoch in range(epochs):
        order = draws.order(epoch)
        of_set = np.bincount(np.searchsorted(ends, order, side="right"), minlength=len(counts))
        assert of_set.tolist() == list(draws.of_sets), "an epoch departs from the shares"
        seen.update(order.tolist())
    for count, end, n_draws in zip(counts, ends, draws.of_sets, strict=True):
        of_systems = [seen[index] for index in range(end - count, end)]
        assert max(of_systems) - min(of_systems) <= 1
        assert sum(of_systems) == epochs * n_draws


def test_shares_by_hand() -> None:
    draws = Draws((10, 4, 100), (1.0, 2.5, 0.05), seed=0)
    assert draws.of_sets == (10, 10, 5)
    assert draws.per_epoch == 25
    counted = Counter(draws.order(0).tolist())
    assert [counted[index] for index in range(10)] == [1] * 10
    assert sorted(counted[index] for index in range(10, 14)) == [2, 2, 3, 3]
    tenths = [set(draws.order(epoch)[draws.order(epoch) >= 14].tolist()) for epoch in range(20)]
    assert set.union(*tenths) == set(range(14, 114)), "twenty epochs of a twentieth are one pass"


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    draws = Draws((10, 4), (1.0, 2.5), seed=0)
    assert draws.order(3).tolist() == Draws((10, 4), (1.0, 2.5), seed=0).order(3).tolist()
    assert draws.order(3).tolist() != draws.order(2).tolist()
    assert draws.order(3).tolist() != Draws((10, 4), (1.0, 2.5), seed=1).order(3).tolist()
    assert draws.order(0).tolist() != sorted(draws.order(0).tolist()), "sets would not be mixed"


def test_sets_of_weight_one_are_drawn_as_one_set_is() -> None:
    assert Draws((3, 7), (1.0, 1.0), seed=2).order(1).tolist() == all_once(10, 2).order(1).tolist()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(RequestError, match="each must be above 0"):
        Draws((3, 7), (1.0, weight), seed=2)


def test_the_steps_of_a_plan_follow_the_draws_on_any_number_of_ranks() -> None:
    draws = Draws((10, 4), (1.0, 2.5), seed=0)
    rows = np.zeros(14, dtype=SIZES)
    rows["n_edges"] = np.arange(1, 15)
    plan = TrainPlan(draws, rows.__getitem__, systems_per_batch(6))
    for ranks in (1, 2, 3):
        seen: list[int] = []
        for step in islice(plan.steps(), 4):
            for rank in range(ranks):
                share = plan.share(step, rank, ranks)
                real = share.micro_batches[: len(share.micro_batches) - share.n_padding]
                seen += np.concatenate(real).tolist() if real else []
        assert sorted(seen) == sorted(draws.order(0).tolist())


def test_a_mixture_numbers_its_systems_through() -> None:
    one, two = list(random_systems(5, 0)), list(random_systems(3, 1))
    joined = Mixture([InMemoryDataset(one, "one"), Subset(InMemoryDataset(two, "two"), np.array([2, 0]))])
    assert len(joined) == 7
    assert [joined[index] for index in range(7)] == [*one, two[2], two[0]]
    assert joined[-1] is two[0]
    assert joined.origin(4) == "one, record 4"
    assert joined.origin(5) == "two, record 2"
    assert joined.n_atoms.tolist() == [system.n_atoms for system in (*one, two[2], two[0])]
    assert joined.sizes["sid"].tolist() == joined.sids.tolist() == [0, 1, 2, 3, 4, 2, 0]
    assert joined.rows(np.array([6, 0, 5])).tolist() == joined.sizes[[6, 0, 5]].tolist()
    with pytest.raises(IndexError, match="no system 7"):
        joined[7]


def test_a_loader_draws_from_a_mixture_and_goes_on_where_another_stopped() -> None:
    one, two = list(random_systems(5, 0)), list(random_systems(4, 1))
    for number, system in enumerate(two):
        system.sid = 100 + number
    joined = Mixture([InMemoryDataset(one), InMemoryDataset(two)], [1.0, 2.0])
    loader = TrainLoader(Recipe(joined, spec()), 4, seed=1)
    steps = loader.steps()
    found = [next(steps) for _ in range(6)]
    sids = [[sid for batch, _ in step.micro_batches for sid in batch.sid.tolist()] for step in found]
    counted = Counter(sid for step in sids[:4] for sid in step)
    assert counted == Counter(dict.fromkeys(range(5), 1) | {100 + number: 2 for number in range(4)})
    resumed = next(TrainLoader(Recipe(joined, spec()), 4, seed=1).steps(5))
    assert resumed.epoch == found[5].epoch == 21 / 13
    assert [s for batch, _ in resumed.micro_batches for s in batch.sid.tolist()] == sids[5]


def test_sets_with_different_labels_are_joined_if_only_shared_ones_are_needed() -> None:
    one, two = list(random_systems(4, 0)), list(random_systems(4, 1))
    for system in one:
        system.forces, system.energy_relaxed = None, -1.0
    joined = Mixture([InMemoryDataset(one), InMemoryDataset(two)])
    indices = np.arange(8)
    with pytest.raises(DataError, match="a batch needs all or none"):
        Recipe(joined, spec()).prepare(indices)
    with pytest.raises(DataError, match="has no forces but"):
        Recipe(joined, spec(), labels=("energy", "forces")).prepare(indices)
    batch, _ = Recipe(joined, spec(), labels=("energy",)).prepare(indices)
    assert batch.energy.tolist() == [system.energy for system in (*one, *two)]
    assert "forces" not in batch
    assert "energy_relaxed" not in batch
    assert two[0].forces is not None, "the records themselves must stay as they are"
