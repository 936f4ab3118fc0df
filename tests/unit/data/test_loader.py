import dataclasses
import itertools
import os
import signal
import time
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from ocpgem.data.cost import STORED_EDGES, SYSTEMS, Batching, Budget
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.loader import EvalLoader, Recipe, TrainLoader, WorkerSettings
from ocpgem.errors import DataError, RequestError
from ocpgem.graph.topology import GraphSpec

GRAPH = GraphSpec(cutoff=4.0, max_neighbors=20)


@pytest.fixture
def recipe(tmp_path, make_system):
    write_dataset(
        tmp_path / "train", [make_system(4 + seed % 6, seed) for seed in range(21)], systems_per_shard=8
    )
    return Recipe(LmdbDataset(tmp_path / "train"), GRAPH)


def sids(step):
    return [batch.sid.tolist() for batch, _ in step.micro_batches]


def take(loader, count, start=0):
    return list(itertools.islice(loader.steps(start), count))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(recipe, workers):
    alone = TrainLoader(recipe, 6, seed=1)
    helped = TrainLoader(recipe, 6, seed=1, settings=WorkerSettings(workers=workers))
    for left, right in zip(take(alone, 9), take(helped, 9), strict=True):
        assert (left.step, left.epoch, sids(left)) == (right.step, right.epoch, sids(right))
        (batch, topology), (other, other_topology) = left.micro_batches[0], right.micro_batches[0]
        assert torch.equal(batch.forces, other.forces)
        assert torch.equal(batch.to_data_list()[1].pos, other.to_data_list()[1].pos)
        assert torch.equal(topology.main.edge_index, other_topology.main.edge_index)
        assert topology.main.max_degree == other_topology.main.max_degree


@pytest.mark.parametrize("start", [1, 4, 11])
def test_a_run_resumes_at_any_step(recipe, start):
    loader = TrainLoader(recipe, Batching(Budget(SYSTEMS, 6), Budget(STORED_EDGES, 2000)), seed=1)
    whole, rest = take(loader, 14), take(loader, 14 - start, start)
    assert [(s.step, sids(s)) for s in whole[start:]] == [(s.step, sids(s)) for s in rest]


def test_processes_share_a_step(recipe):
    whole = take(TrainLoader(recipe, 6, seed=1), 5)
    shares = [take(TrainLoader(recipe, 6, seed=1, rank=rank, world_size=2), 5) for rank in range(2)]
    for step, (one, two) in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(sids(one)[0] + sids(two)[0]) == sorted(sids(step)[0])
        assert one.n_free_atoms_global == int((~step.micro_batches[0][0].fixed).sum())


def test_evaluation_says_which_records_a_batch_has(recipe):
    seen = []
    for item in EvalLoader(recipe, 4, settings=WorkerSettings(workers=2)):
        assert item.batch.sid.tolist() == recipe.dataset.sids[item.indices].tolist()
        assert item.topology.n_systems == len(item.indices)
        seen += item.indices.tolist()
    assert sorted(seen) == list(range(21))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_is_named_in_one_sentence(make_system, workers):
    lonely = make_system(1, sid=5, fid=2, cell=np.eye(3, dtype="f4") * 30, source="x.lmdb, record 3")
    recipe = Recipe(InMemoryDataset([lonely]), GRAPH)
    with pytest.raises(DataError, match=r"^sid 5, frame 2 \(x.lmdb, record 3\): no two of .*") as caught:
        take(TrainLoader(recipe, 1, seed=0, settings=WorkerSettings(workers=workers)), 1)
    assert "\n" not in str(caught.value)


def test_an_element_beyond_the_models_table_is_named(recipe):
    strict = Recipe(recipe.dataset, GRAPH, max_atomic_number=2)
    with pytest.raises(DataError, match=r"sid 10\d\d, frame \d .*outside 1 to 2"):
        take(TrainLoader(strict, 4, seed=0), 1)


def test_a_system_that_never_fits_is_named_before_training(recipe):
    limited = Batching(Budget(SYSTEMS, 4), Budget(STORED_EDGES, 10))
    with pytest.raises(
        RequestError,
        match=r"train, record \d+ \(record \d of data\.000\d\.lmdb\) \(sid \d+, frame \d\) has \d+ edges, more",
    ):
        TrainLoader(recipe, limited, seed=0)
    with pytest.raises(RequestError, match="more than max_edges 10"):
        EvalLoader(recipe, limited)


class DiesAt13(LmdbDataset):
    """Kills the process that reads record 13."""

    def __getitem__(self, index):
        if index == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


WHAT_DIED = (
    r"^a data worker was killed while it worked on \S*train, record 13 \(record 5 of data\.0001\.lmdb\), most"
)


def test_a_killed_worker_is_reported_with_what_it_was_reading(recipe):
    deadly = dataclasses.replace(recipe, dataset=DiesAt13(recipe.dataset.path))
    loader = TrainLoader(deadly, 1, seed=0, settings=WorkerSettings(workers=2))
    with pytest.raises(DataError, match=WHAT_DIED):
        take(loader, 21)


def test_a_worker_that_dies_during_a_step_does_not_interrupt_it(recipe):
    """Torch would raise its death in the middle of whatever the main process does."""
    before = set(active_children())
    steps = TrainLoader(recipe, 3, seed=0, settings=WorkerSettings(workers=1, prefetch=1)).steps()
    next(steps)
    (worker,) = set(active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    assert not worker.is_alive()
    time.sleep(0.1)  # a step; a signal handler would raise here
    with pytest.raises(DataError, match="a data worker was killed"):
        list(itertools.islice(steps, 5))


@pytest.mark.slow
def test_spawned_workers_change_nothing_and_are_reported_as_well(recipe):
    """Slow because a new process imports torch."""
    deadly = dataclasses.replace(recipe, dataset=DiesAt13(recipe.dataset.path))
    alone = TrainLoader(recipe, 1, seed=1).steps()
    helped = TrainLoader(deadly, 1, seed=1, settings=WorkerSettings(workers=1, start="spawn")).steps()
    seen = []
    with pytest.raises(DataError, match=WHAT_DIED):
        seen.extend(map(sids, helped))
    expected = list(itertools.takewhile(lambda sids: sids != [[recipe.dataset[13].sid]], map(sids, alone)))
    assert seen == expected[: len(seen)]
    assert len(seen) >= len(expected) - 4, "what the worker had prepared ahead may be gone with it"


def test_loading_draws_nothing_from_the_global_random_state(recipe):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(TrainLoader(recipe, 4, seed=0, settings=WorkerSettings(workers=1)), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_a_worker_sends_do_not_overlap(recipe):
    (step,) = take(TrainLoader(recipe, 6, seed=0, settings=WorkerSettings(workers=1)), 1)
    batch, topology = step.micro_batches[0]
    forces = batch.forces.clone()
    batch.pos.zero_()
    topology.main.edge_index.zero_()
    assert torch.equal(batch.forces, forces)


def elements_of(step):
    """By record: its atomic numbers and which of its atoms are hidden."""
    return {
        (int(data.sid), int(data.fid)): torch.stack([data.atomic_numbers, data.hidden.long()])
        for batch, _ in step.micro_batches
        for data in batch.to_data_list()
    }


def test_all_atoms_of_a_hidden_element_are_hidden(recipe):
    hiding = dataclasses.replace(recipe, hide_elements=0.4)
    fates = []
    for step in take(TrainLoader(hiding, 6, seed=1), 8):
        for numbers, hidden in elements_of(step).values():
            for element in numbers.unique():
                (fate,) = hidden[numbers == element].unique().tolist()
                fates.append(fate)
    assert 0.3 < np.mean(fates) < 0.5


def test_what_is_hidden_depends_on_step_and_record_only(recipe):
    hiding = dataclasses.replace(recipe, hide_elements=0.4)
    whole = take(TrainLoader(hiding, 6, seed=1), 9)
    resumed = take(TrainLoader(hiding, 6, seed=1), 5, start=4)
    ranks = [take(TrainLoader(hiding, 6, seed=1, rank=rank, world_size=2), 9) for rank in range(2)]
    for index, step in enumerate(whole):
        expected = elements_of(step)
        copies = [elements_of(ranks[0][index]) | elements_of(ranks[1][index])]
        if index >= 4:
            copies.append(elements_of(resumed[index - 4]))
        for copy in copies:
            assert copy.keys() == expected.keys()
            assert all(torch.equal(copy[key], expected[key]) for key in expected)


def test_nothing_is_hidden_in_evaluation(recipe):
    hiding = dataclasses.replace(recipe, hide_elements=1.0)
    assert all("hidden" not in item.batch for item in EvalLoader(hiding, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_wait_in_page_locked_memory_and_are_copied_without_blocking(recipe, workers):
    settings = WorkerSettings(workers=workers, pin_memory=True)
    plain = take(TrainLoader(recipe, 6, seed=1), 4)
    for step, expected in zip(take(TrainLoader(recipe, 6, seed=1, settings=settings), 4), plain, strict=True):
        for (batch, topology), (other, other_topology) in zip(
            step.micro_batches, expected.micro_batches, strict=True
        ):
            assert batch.pos.is_pinned()
            assert topology.main.edge_index.is_pinned()
            pos = batch.pos.to("cuda", non_blocking=True)
            moved = topology.to("cuda", non_blocking=True)
            torch.cuda.synchronize()
            assert torch.equal(pos.cpu(), other.pos)
            assert torch.equal(moved.main.edge_index.cpu(), other_topology.main.edge_index)
