"""Plans lose nothing, repeat nothing, and do not depend on how many ranks share the work."""

from itertools import islice, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpgem.data import plan as plan_module
from ocpgem.data.cost import ATOMS, STORED_EDGES, SYSTEMS, Batching, Budget, Cost
from ocpgem.data.draws import Draws
from ocpgem.data.permutation import permuted
from ocpgem.data.plan import TrainPlan, plan_evaluation, split_batch
from ocpgem.data.sizes import SIZES

EDGES = st.lists(st.integers(0, 1000), min_size=1, max_size=60).map(np.array)
RANKS = st.integers(1, 9)
MEMORY = Cost("memory", per_system=3, per_atom=1.5, per_edge=0.1, error=0.2)


@st.composite
def plans(draw):
    """A plan over one to three data sets, weighted or not, with any kind of budget."""
    counts = draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))
    weights = [draw(st.sampled_from([1.0, 1.0, 0.3, 2.5])) for _ in counts]
    n = sum(counts)
    rows = np.zeros(n, dtype=SIZES)
    rows["n_edges"] = draw(st.lists(st.integers(0, 1000), min_size=n, max_size=n))
    rows["n_atoms"] = rows["n_edges"] // 13 + 1
    rows["n_free"] = rows["n_atoms"] // 2
    size = draw(
        st.one_of(
            st.builds(Budget, st.just(SYSTEMS), st.integers(1, 20)),
            st.builds(Budget, st.sampled_from([STORED_EDGES, ATOMS, MEMORY]), st.integers(1, 3000)),
        )
    )
    limited = draw(st.sampled_from([None, STORED_EDGES, MEMORY]))
    limit = None if limited is None else Budget(limited, int(limited.at_most(rows).max()) + 1)
    draws = Draws(tuple(counts), tuple(weights), draw(st.integers(0, 5)))
    return TrainPlan(draws, rows.__getitem__, Batching(size, limit)), rows


def real(share):
    return share.micro_batches[: len(share.micro_batches) - share.n_padding]


@settings(deadline=None)
@given(EDGES, RANKS, st.none() | st.integers(1000, 3000))
def test_a_step_is_divided_without_loss_or_repetition(edges, world_size, max_edges):
    limit = None if max_edges is None else (edges, max_edges)
    shares = [split_batch(edges, rank, world_size, limit) for rank in range(world_size)]
    found = [micro for micros, padding in shares for micro in micros[: len(micros) - padding]]
    assert sorted(np.concatenate(found).tolist()) == list(range(len(edges)))
    assert len({len(micros) for micros, _ in shares}) == 1, "ranks would wait for each other forever"
    assert all(len(micro) > 0 for micros, _ in shares for micro in micros)
    if max_edges is not None:
        assert all(edges[micro].sum() <= max_edges for micro in found)
    if len(edges) >= world_size and max_edges is None:
        assert all(padding == 0 for _, padding in shares)


@settings(deadline=None)
@given(EDGES, RANKS)
def test_no_rank_has_more_than_its_share_and_one_system(edges, world_size):
    shares = [split_batch(edges, rank, world_size) for rank in range(world_size)]
    loads = [edges[micros[0]].sum() for micros, padding in shares if padding == 0]
    assert max(loads) <= edges.sum() / world_size + edges.max()


@settings(deadline=None)
@given(plans(), RANKS)
def test_steps_hold_the_same_systems_on_any_number_of_ranks_and_ranks_run_equally_many_micro_batches(
    case, world_size
):
    plan, rows = case
    for step in islice(plan.steps(), 8):
        shares = [plan.share(step, rank, world_size) for rank in range(world_size)]
        together = np.concatenate([micro for share in shares for micro in real(share)])
        assert sorted(together.tolist()) == sorted(step.systems.tolist())
        assert len({len(share.micro_batches) for share in shares}) == 1
        assert {(share.n_systems_global, share.n_free_atoms_global) for share in shares} == {
            (len(step.systems), int(rows["n_free"][step.systems].sum()))
        }
        if (limit := plan.batching.limit) is not None:
            for micro in (micro for share in shares for micro in real(share)):
                assert limit.cost.at_most(rows[micro]).sum() <= limit.amount


@settings(deadline=None)
@given(plans(), st.integers(0, 2))
def test_an_epoch_draws_what_it_should_and_no_step_exceeds_its_budget_but_with_one_system(case, epoch):
    plan, rows = case
    size, length = plan.batching.size, plan.draws.per_epoch
    steps = []
    for step in plan.steps(0, epoch * length):
        steps.append(step)
        if step.drawn == (epoch + 1) * length:
            break
    found = np.concatenate([step.systems for step in steps])
    assert found.tolist() == plan.draws.order(epoch).tolist()
    if set(plan.draws.weights) == {1.0}:
        assert sorted(found.tolist()) == list(range(len(rows)))
    costs = [size.cost.of(rows[step.systems]) for step in steps]
    assert all(cost.sum() <= size.amount or len(cost) == 1 for cost in costs)
    assert all(here.sum() + after[0] > size.amount for here, after in pairwise(costs)), "room was left"


@settings(deadline=None)
@given(plans(), st.integers(0, 12), st.integers(1, 50))
def test_a_run_resumes_at_any_step_whether_it_remembers_what_was_drawn_or_not(case, start, look_ahead):
    plan, _ = case
    whole = list(islice(plan.steps(), start + 5))
    before = plan_module.LOOK_AHEAD
    plan_module.LOOK_AHEAD = look_ahead  # how far is looked ahead must not matter
    try:
        for drawn in (None, whole[start - 1].drawn if start else 0):
            resumed = list(islice(plan.steps(start, drawn), 5))
            assert [(s.step, s.drawn, s.systems.tolist()) for s in resumed] == [
                (s.step, s.drawn, s.systems.tolist()) for s in whole[start:]
            ]
    finally:
        plan_module.LOOK_AHEAD = before


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 1000), st.data())
def test_an_order_is_a_permutation_that_can_be_asked_for_in_parts(n, seed, epoch, data):
    whole = permuted(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(whole), np.arange(n))
    start = data.draw(st.integers(0, n))
    assert permuted(np.arange(start, n), n, seed, epoch).tolist() == whole[start:].tolist()


@settings(deadline=None)
@given(EDGES, RANKS, st.integers(1, 20), st.none() | st.integers(100, 3000))
def test_evaluation_visits_every_system_once_within_the_limits(edges, world_size, max_systems, max_edges):
    caps = [(np.ones_like(edges), max_systems)]
    if max_edges is not None:
        caps.append((edges, max_edges))
    shares = [plan_evaluation(edges, rank, world_size, caps) for rank in range(world_size)]
    batches = [batch for share in shares for batch in share]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(edges)))
    assert max(len(batch) for batch in batches) <= max_systems
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    if max_edges is not None:
        assert all(edges[batch].sum() <= max_edges or len(batch) == 1 for batch in batches)
