import re
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
from ocpgem.train.batching import unbalanced


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


@pytest.fixture(scope="module")
def oc20():
    return oc20_sizes(600_000)


def slowest_over_mean(step, n_ranks):
    edges = step.rows["n_edges"].astype(np.int64)
    return max(edges[items].sum() for items in balance(edges, n_ranks)) / (edges.sum() / n_ranks)


@pytest.mark.parametrize("n_ranks", [8, 64, 512])
@pytest.mark.parametrize("unit", [STORED_EDGES, ATOMS, SYSTEMS])
def test_the_slowest_ranks_edges_are_within_5_per_cent_of_the_mean_in_every_step(oc20, n_ranks, unit):
    """On the sizes of OC20 (benchmarks/balance.py), with 5 systems a rank; 200 steps and more of an epoch."""
    run = plan(oc20, Budget(unit, int(n_ranks * 5 * unit.of(oc20[:10_000]).mean())))
    assert unbalanced(run.batching, _Table(oc20), n_ranks) is None
    assert max(slowest_over_mean(step, n_ranks) for step in first_steps(run, 210)) <= 1.05


@pytest.mark.parametrize("n_ranks", [8, 512])
def test_where_one_system_is_more_than_a_share_no_rank_has_more_than_that(oc20, n_ranks):
    run = plan(oc20, Budget(STORED_EDGES, int(n_ranks * 4 * oc20["n_edges"].mean())))
    for step in first_steps(run, 30):
        edges = step.rows["n_edges"]
        assert slowest_over_mean(step, n_ranks) <= max(1.02, edges.max() / (edges.sum() / n_ranks))


def test_a_budget_too_small_to_be_balanced_is_told_with_one_that_is_not(oc20):
    table = _Table(oc20)
    small = Budget(STORED_EDGES, int(512 * 4 * oc20["n_edges"].mean()))
    remark = unbalanced(Batching(small), table, 512)
    found = re.search(
        r"has ([\d,]+) edges, (\d+)% more .*batch_size of ([\d,]+) edges, or on (\d+) rank", remark
    )
    assert int(found[1].replace(",", "")) == oc20["n_edges"].max()
    enough = Budget(STORED_EDGES, int(found[3].replace(",", "")))
    assert unbalanced(Batching(enough), table, 512) is None
    assert unbalanced(Batching(small), table, int(found[4])) is None
    steps = first_steps(plan(oc20, enough), 60)
    assert max(slowest_over_mean(step, 512) for step in steps) <= 1.05, "the advice must hold"
    assert unbalanced(Batching(small), table, 1) is None


class _Table:
    """As much of a data set as the look at its sizes needs."""

    def __init__(self, rows):
        self.rows, self._count = rows.__getitem__, len(rows)

    def __len__(self):
        return self._count


@pytest.mark.parametrize("n_ranks", [8, 64])
def test_ranks_are_balanced_whatever_their_shares_are_divided_into(oc20, n_ranks):
    run = plan(
        oc20, Budget(STORED_EDGES, int(n_ranks * 8 * oc20["n_edges"].mean())), Budget(STORED_EDGES, 12_000)
    )
    for step in first_steps(run, 2):
        shares = [run.share(step, rank, n_ranks) for rank in range(n_ranks)]
        assert len(shares[0].micro_batches) == 2
        real = [share.micro_batches[: len(share.micro_batches) - share.n_padding] for share in shares]
        edges = [sum(oc20["n_edges"][micro].sum() for micro in micros) for micros in real]
        assert max(edges) <= 1.05 * np.mean(edges)
        assert all(oc20["n_edges"][micro].sum() <= 12_000 for micros in real for micro in micros)
        assert edges[0] == max(edges), "the dry run looks at rank 0"


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
