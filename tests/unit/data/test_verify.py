import json

import numpy as np
import pytest

from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.verify import verify
from ocpgem.errors import DataError, RequestError


@pytest.fixture
def folder(tmp_path, make_system):
    write_dataset(tmp_path / "x", [make_system(4 + i % 3, seed=i) for i in range(12)], systems_per_shard=5)
    return tmp_path / "x"


def damage(folder, record):
    dataset = LmdbDataset(folder)
    shard, forces = folder / f"data.000{record // 5}.lmdb", dataset[record].forces.tobytes()
    shard.write_bytes(shard.read_bytes().replace(forces, bytes([forces[0] ^ 4]) + forces[1:]))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_data_set_passes(folder, workers):
    assert verify(folder, workers) == "12 records in 3 shards: every checksum is right"


def test_a_shard_can_be_checked_alone(folder):
    assert verify(folder / "data.0001.lmdb", 1) == "5 records in 1 shards: every checksum is right"


def test_all_damaged_records_are_counted(folder):
    damage(folder, 3)
    damage(folder, 11)
    with pytest.raises(DataError, match=r"has 2 faults, the first: .*data.0000.lmdb, record 3: the checksum"):
        verify(folder, 1)


def test_a_table_of_another_data_set_is_found(folder):
    table = np.load(folder / "sizes.npy")
    table["n_edges"][7] += 1
    np.save(folder / "sizes.npy", table)
    with pytest.raises(DataError, match=r"1 faults, .*data.0001.lmdb: its rows of sizes.npy"):
        verify(folder, 1)


def test_a_description_that_counts_wrong_is_found(folder):
    file = folder / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["shards"][0]["count"], metadata["shards"][2]["count"] = 4, 3
    file.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"data.0000.lmdb has 5 records; the description says 4"):
        verify(folder, 1)


def test_other_files_have_no_checksums(tmp_path):
    (tmp_path / "x.traj").touch()
    with pytest.raises(RequestError, match="not a data set of ocpgem"):
        verify(tmp_path / "x.traj")
