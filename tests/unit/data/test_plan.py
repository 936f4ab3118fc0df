from itertools import islice

import numpy as np
import pytest

from benchmarks.balance import oc20_sizes
from ocpgem.data.balance import balance
from ocpgem.data.cost import ATOMS, STORED_EDGES, SYSTEMS, Batching, Budget
from ocpgem.data.draws import all_once
from ocpgem.data.plan import TrainPlan, plan_evaluation, split_batch
from ocpgem.data.sizes import SIZES
from ocpgem.errors import RequestError


def side_table(n_edges, n_atoms=None):
    rows = np.zeros(len(n_edges), dtype=SIZES)
    rows["n_edges"] = n_edges
    rows["n_atoms"] = np.asarray(n_edges) // 10 if n_atoms is None else n_atoms
    rows["n_free"] = rows["n_atoms"] // 2
    return rows


def plan(rows, size, limit=None, seed=3):
    return TrainPlan(all_once(len(rows), seed), rows.__getitem__, Batching(size, limit))


def first_steps(run, count):
    return list(islice(run.steps(), count))


def test_the_last_step_of_an_epoch_has_the_rest():
    run = plan(side_table(np.arange(100, 123)), Budget(SYSTEMS, 5))
    steps = first_steps(run, 6)
    assert [len(step.systems) for step in steps] == [5, 5, 5, 5, 3, 5]
    assert [step.drawn for step in steps] == [5, 10, 15, 20, 23, 28]
    assert run.share(steps[4], 0, 1).epoch == 1.0


def test_steps_are_filled_up_to_the_budget():
    rows = side_table(np.random.default_rng(0).integers(100, 900, 50))
    for cost, amount in ((STORED_EDGES, 2000), (ATOMS, 300)):
        steps = first_steps(plan(rows, Budget(cost, amount)), 12)
        order = np.concatenate([step.systems for step in steps])
        start = 0
        for step in steps:
            stop = start + len(step.systems)
            assert cost.of(rows[step.systems]).sum() <= amount
            if step.drawn % 50 and stop < len(order):
                assert cost.of(rows[order[start : stop + 1]]).sum() > amount, "the next one would have fitted"
            start = stop


def test_a_system_beyond_the_budget_is_a_step_of_its_own():
    rows = side_table([10, 10, 500, 10, 10, 10])
    steps = [step for step in first_steps(plan(rows, Budget(STORED_EDGES, 100)), 3) if step.drawn <= 6]
    assert [step.systems.tolist() for step in steps if 2 in step.systems] == [[2]]
    assert sorted(np.concatenate([step.systems for step in steps]).tolist()) == list(range(6))


def test_counts_are_those_of_all_ranks():
    rows = side_table(np.arange(100, 123))
    run = plan(rows, Budget(SYSTEMS, 5))
    (step,) = first_steps(run, 1)
    share = run.share(step, rank=1, world_size=2)
    assert share.n_systems_global == 5
    assert share.n_free_atoms_global == rows["n_free"][run.draws.order(0)[:5]].sum()


def test_large_systems_are_spread_over_ranks():
    edges = np.array([1000, 10, 10, 990, 20, 20])
    shares = [split_batch(edges, rank, 2)[0] for rank in range(2)]
    assert sorted(int(edges[micro].sum()) for (micro,) in shares) == [1020, 1030]


def test_more_ranks_than_systems_are_padded_with_the_smallest():
    edges = np.array([30, 10, 20])
    shares = [split_batch(edges, rank, 5) for rank in range(5)]
    real = [micro.tolist() for micro, padding in shares if padding == 0 for micro in micro]
    assert sorted(real) == [[0], [1], [2]]
    assert [micro[0].tolist() for micro, padding in shares if padding == 1] == [[1], [1]]


def test_systems_without_edges_still_fill_every_bin():
    bins = balance(np.zeros(4, dtype=int), 4)
    assert all(len(items) == 1 for items in bins)


def test_the_limit_may_be_of_another_cost_than_the_work():
    work, memory = np.array([10, 10, 10, 10]), np.array([7, 1, 1, 7])
    micro_batches, padding = split_batch(work, 0, 1, (memory, 8))
    assert padding == 0
    assert all(memory[micro].sum() <= 8 for micro in micro_batches)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(SYSTEMS, 0), "batch size is 0 systems"),
        (lambda: all_once(5, -1), "seed is -1"),
        (lambda: all_once(0, 0), "no systems"),
    ],
)
def test_values_that_cannot_work_are_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()


def test_evaluation_gives_every_rank_work_where_it_can():
    ones = np.ones(8, dtype=int)
    shares = [plan_evaluation(np.full(8, 10), rank, 4, [(ones, 32)]) for rank in range(4)]
    assert [len(batches) for batches in shares] == [1, 1, 1, 1]


def test_evaluation_of_nothing_is_no_batches():
    assert plan_evaluation(np.array([], dtype=int), 0, 2, [(np.array([], dtype=int), 8)]) == []


@pytest.mark.parametrize("n_ranks", [8, 64, 512])
@pytest.mark.parametrize("systems_a_rank", [4, 8])
def test_the_slowest_ranks_edges_are_within_5_per_cent_of_the_mean(n_ranks, systems_a_rank):
    """On the sizes of OC20, with a budget of edges (benchmarks/balance.py), unless one system alone is more."""
    rows = oc20_sizes(20_000)
    run = plan(rows, Budget(STORED_EDGES, int(n_ranks * systems_a_rank * rows["n_edges"].mean())))
    for step in first_steps(run, 3):
        micro_batches = [run.share(step, rank, n_ranks).micro_batches for rank in (0, n_ranks - 1)]
        assert all(len(micros) == 1 for micros in micro_batches)
        edges = [rows["n_edges"][micro].sum() for (micro,) in micro_batches]
        everyone = [
            rows["n_edges"][step.systems[items]].sum() for items in balance(step.rows["n_edges"], n_ranks)
        ]
        largest = step.rows["n_edges"].max()
        assert max(everyone) <= max(largest, 1.05 * np.mean(everyone))
        assert set(edges) <= set(everyone)


def test_few_items_are_divided_as_evenly_as_can_be():
    """A swap of two items cannot; giving two for one can."""
    cost = np.array([6, 19, 7, 9, 7, 10])
    bins = balance(cost, 2)
    assert sorted(int(cost[items].sum()) for items in bins) == [29, 29]
    assert sorted(item for items in bins for item in items) == list(range(6))


def test_a_system_that_is_nearly_a_ranks_share_may_be_alone():
    """Together with the smallest of the others it would be 30 % more than the mean."""
    cost = np.array([100, *[35] * 9])
    assert [0] in balance(cost, 4)
