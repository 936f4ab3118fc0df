"""The index of many records takes no memory that grows with their number (134 million: benchmarks/index_134m.py)."""

import json
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest

from ocpgem.data.cost import ATOMS, STORED_EDGES, Batching, Budget
from ocpgem.data.lmdb_store import LmdbDataset, shard_name, write_dataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.data.sizes import SIZES
from ocpgem.errors import DataError
from ocpgem.graph.topology import GraphSpec

N_SHARDS, PER_SHARD = 20, 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A data set whose description speaks of two million records, in shards that hold a few."""
    from tests.tiny_runs import random_systems

    folder = tmp_path_factory.mktemp("data") / "large"
    write_dataset(folder, random_systems(5))
    metadata = json.loads((folder / "metadata.json").read_text())
    shard = metadata["shards"][0]
    for number in range(1, N_SHARDS):
        shutil.copy(folder / shard_name(0), folder / shard_name(number))
    metadata["shards"] = [shard | {"file": shard_name(n), "count": PER_SHARD} for n in range(N_SHARDS)]
    (folder / "metadata.json").write_text(json.dumps(metadata | {"count": N_SHARDS * PER_SHARD}))
    rows = np.zeros(N_SHARDS * PER_SHARD, dtype=SIZES)
    rows["n_atoms"] = np.random.default_rng(0).integers(20, 226, len(rows))
    rows["n_edges"] = rows["n_atoms"] * 35
    rows["sid"] = np.arange(len(rows))
    np.save(folder / "sizes.npy", rows)
    return folder


def test_planning_steps_needs_no_memory_of_the_size_of_the_index(large):
    tracemalloc.start()
    try:
        dataset = LmdbDataset(large)
        batching = Batching(Budget(STORED_EDGES, 40_000), limit=Budget(ATOMS, 1000))
        loader = TrainLoader(Recipe(dataset, GraphSpec(6.0, 50)), batching, 0)
        peak_of_check = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        steps = loader.plan.steps(50_000, drawn=5 * len(dataset) // 2)
        for _ in range(200):
            loader.plan.share(next(steps), 0, 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3e6, "a list of the order would take 16 MB, the side table 56 MB"
    assert peak_of_check < 60e6, "the search for what never fits reads 262,144 rows at a time"


def test_rows_are_read_as_they_stand_in_the_table(large):
    dataset = LmdbDataset(large)
    chosen = np.array([0, 1_999_999, 7, 7, 123_456])
    for indices in (chosen, np.arange(500, 900), np.zeros(0, dtype=int), np.array([3])):
        assert dataset.rows(indices).tolist() == dataset.sizes[indices].tolist()
    assert pickle.loads(pickle.dumps(dataset)).rows(chosen)["sid"].tolist() == chosen.tolist()
    parts = list(dataset.rows_in_order(at_once=700_000))
    assert [first for first, _ in parts] == [0, 700_000, 1_400_000]
    assert np.array_equal(np.concatenate([rows for _, rows in parts]), dataset.sizes)


def test_a_table_that_shrinks_while_it_is_read_is_an_error(large, tmp_path):
    folder = shutil.copytree(large, tmp_path / "copy")
    dataset = LmdbDataset(folder)
    assert dataset.rows(np.array([1_999_999]))["sid"] == [1_999_999]
    with (folder / "sizes.npy").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(DataError, match=r"sizes\.npy ends before row 2000000; it was changed"):
        dataset.rows(np.array([1_999_999]))
    with pytest.raises(DataError, match=r"sizes\.npy: the table of sizes cannot be read"):
        LmdbDataset(folder).rows(np.array([0]))
