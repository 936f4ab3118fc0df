"""Plans lose nothing, repeat nothing, and do not depend on how many processes share the work."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ocpgem.data.plan import TrainPlan, plan_evaluation, split_batch

SIZES = st.lists(st.integers(0, 1000), min_size=1, max_size=60).map(np.array)
RANKS = st.integers(1, 9)


@given(SIZES, RANKS, st.none() | st.integers(1000, 3000))
def test_a_step_is_divided_without_loss_or_repetition(edges, world_size, max_edges):
    systems = np.arange(len(edges)) + 100
    shares = [split_batch(systems, edges, rank, world_size, max_edges) for rank in range(world_size)]
    real = [micro for micros, padding in shares for micro in micros[: len(micros) - padding]]
    assert sorted(np.concatenate(real).tolist()) == systems.tolist()
    assert len({len(micros) for micros, _ in shares}) == 1, "processes would wait for each other forever"
    assert all(len(micro) > 0 for micros, _ in shares for micro in micros)
    if max_edges is not None:
        assert all(edges[micro - 100].sum() <= max_edges for micro in real)
    if len(edges) >= world_size and max_edges is None:
        assert all(padding == 0 for _, padding in shares)


@given(SIZES, RANKS)
def test_no_process_has_more_than_its_share_and_one_system(edges, world_size):
    shares = [split_batch(np.arange(len(edges)), edges, rank, world_size, None) for rank in range(world_size)]
    loads = [edges[micros[0]].sum() for micros, padding in shares if padding == 0]
    assert max(loads) <= edges.sum() / world_size + edges.max()


@given(SIZES, RANKS, st.integers(1, 20), st.integers(0, 5), st.data())
def test_the_systems_of_a_step_do_not_depend_on_the_number_of_processes(edges, world_size, batch, seed, data):
    plan = TrainPlan(edges, edges // 10, batch, seed)
    step = data.draw(st.integers(0, 3 * plan.steps_per_epoch))
    order = plan.epoch_order(step // plan.steps_per_epoch)
    alone = plan.step(step, order, 0, 1).micro_batches[0]
    shares = [plan.step(step, order, rank, world_size) for rank in range(world_size)]
    together = [
        micro
        for share in shares
        for micro in share.micro_batches[: len(share.micro_batches) - share.n_padding]
    ]
    assert sorted(np.concatenate(together).tolist()) == sorted(alone.tolist())
    assert {(share.n_systems_global, share.n_free_atoms_global) for share in shares} == {
        (len(alone), int((edges // 10)[alone].sum()))
    }


@given(SIZES, st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_system_once(edges, batch, seed, epoch):
    plan = TrainPlan(edges, edges, batch, seed)
    order = plan.epoch_order(epoch)
    first = epoch * plan.steps_per_epoch
    seen = [
        plan.step(step, order, 0, 1).micro_batches[0] for step in range(first, first + plan.steps_per_epoch)
    ]
    assert sorted(np.concatenate(seen).tolist()) == list(range(len(edges)))


@given(SIZES, RANKS, st.integers(1, 20), st.none() | st.integers(1000, 3000))
def test_evaluation_visits_every_system_once_within_the_limits(edges, world_size, max_systems, max_edges):
    shares = [plan_evaluation(edges, rank, world_size, max_systems, max_edges) for rank in range(world_size)]
    batches = [batch for share in shares for batch in share]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(edges)))
    assert max(len(batch) for batch in batches) <= max_systems
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    if max_edges is not None:
        assert all(edges[batch].sum() <= max_edges for batch in batches)
