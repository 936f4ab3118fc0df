import numpy as np
import pytest

from ocpgem.data.plan import TrainPlan, balance, epoch_order, plan_evaluation, split_batch
from ocpgem.errors import RequestError


def plan(n=23, **fields):
    sizes = np.arange(100, 100 + n)
    return TrainPlan(**({"n_edges": sizes, "n_free": sizes // 10, "batch_size": 5, "seed": 3} | fields))


def test_the_order_of_an_epoch_never_changes():
    assert epoch_order(10, seed=0, epoch=0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert epoch_order(10, seed=0, epoch=1).tolist() != epoch_order(10, seed=0, epoch=0).tolist()
    assert epoch_order(10, seed=1, epoch=0).tolist() != epoch_order(10, seed=0, epoch=0).tolist()


def test_the_last_step_of_an_epoch_has_the_rest():
    run = plan(23)
    assert run.steps_per_epoch == 5
    last = run.step(4, run.epoch_order(0), rank=0, world_size=1)
    assert last.n_systems_global == 3
    assert last.epoch == 1.0


def test_counts_are_those_of_all_processes():
    run = plan()
    step = run.step(0, run.epoch_order(0), rank=1, world_size=2)
    systems = run.epoch_order(0)[:5]
    assert step.n_systems_global == 5
    assert step.n_free_atoms_global == run.n_free[systems].sum()


def test_large_systems_are_spread_over_processes():
    edges = np.array([1000, 10, 10, 990, 20, 20])
    shares = [split_batch(np.arange(6), edges, rank, 2, None)[0] for rank in range(2)]
    assert sorted(int(edges[micro].sum()) for (micro,) in shares) == [1020, 1030]


def test_more_processes_than_systems_are_padded_with_the_smallest():
    edges = np.array([30, 10, 20])
    shares = [split_batch(np.array([7, 8, 9]), edges, rank, 5, None) for rank in range(5)]
    real = [micro.tolist() for micro, padding in shares if padding == 0 for micro in micro]
    assert sorted(real) == [[7], [8], [9]]
    assert [micro[0].tolist() for micro, padding in shares if padding == 1] == [[8], [8]]


def test_systems_without_edges_still_fill_every_bin():
    bins, _ = balance(np.zeros(4, dtype=int), 4)
    assert all(len(items) == 1 for items in bins)


def test_a_system_beyond_the_limit_is_named():
    with pytest.raises(
        RequestError, match="system 22 has 122 edges, more than max_edges 121; raise max_edges"
    ):
        plan(max_edges=121)
    with pytest.raises(RequestError, match="system 2 has 30 edges"):
        plan_evaluation(np.array([10, 20, 30]), 0, 1, 8, max_edges=29)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"n_edges": np.array([], dtype=int)}, "no systems"),
    ],
)
def test_values_that_cannot_work_are_refused(fields, message):
    with pytest.raises(RequestError, match=message):
        plan(**fields)


def test_evaluation_gives_every_process_work_where_it_can():
    shares = [plan_evaluation(np.full(8, 10), rank, 4, max_systems=32) for rank in range(4)]
    assert [len(batches) for batches in shares] == [1, 1, 1, 1]


def test_evaluation_of_nothing_is_no_batches():
    assert plan_evaluation(np.array([], dtype=int), 0, 2, 8) == []
