import numpy as np
import pytest

from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.merge import merge_datasets
from ocpgem.data.selection import Selection, write_selection
from ocpgem.errors import DataError, RequestError


@pytest.fixture
def sets(tmp_path, make_system):
    """Two data sets: sids 0-9 in shards of 4, sids 10-14 in one."""
    first = [make_system(4 + i, seed=i, sid=i) for i in range(10)]
    second = [make_system(4 + i, seed=i, sid=i) for i in range(10, 15)]
    write_dataset(tmp_path / "a", first, systems_per_shard=4)
    write_dataset(tmp_path / "b", second)
    return tmp_path / "a", tmp_path / "b"


def test_records_follow_each_other_in_order(sets, tmp_path):
    made = merge_datasets(sets, tmp_path / "c", workers=1)
    merged = LmdbDataset(tmp_path / "c")
    assert merged.sids.tolist() == list(range(15))
    assert merged.n_atoms.tolist() == [4 + i for i in range(15)]
    assert made.counts == {str(sets[0]): 10, str(sets[1]): 5}
    assert "10 (" in str(made)
    assert "= 15" in str(made)
    parts = [system for path in sets for system in LmdbDataset(path)]
    for system, original in zip(merged, parts, strict=True):
        assert system.energy == original.energy
        assert np.array_equal(system.pos, original.pos)


@pytest.mark.parametrize("n_shards", [1, 4, 10])
def test_a_data_set_can_get_other_shards(sets, tmp_path, n_shards):
    merge_datasets([sets[0]], tmp_path / "c", n_shards=n_shards, workers=1)
    resharded = LmdbDataset(tmp_path / "c")
    counts = [shard["count"] for shard in resharded.metadata["shards"]]
    assert len(counts) == n_shards
    assert sum(counts) == 10
    assert max(counts) - min(counts) <= 1
    assert resharded.sids.tolist() == list(range(10))


def test_workers_change_nothing(sets, tmp_path):
    for name, workers in (("alone", 1), ("together", 2)):
        merge_datasets(sets, tmp_path / name, n_shards=3, workers=workers)
    for file in (tmp_path / "alone").iterdir():
        assert file.read_bytes() == (tmp_path / "together" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("n_shards", [0, 16])
def test_more_shards_than_records_are_a_wrong_request(sets, tmp_path, n_shards):
    with pytest.raises(RequestError, match=f"{n_shards} shards cannot be made of 15 records"):
        merge_datasets(sets, tmp_path / "c", n_shards=n_shards, workers=1)
    assert not (tmp_path / "c").exists()


def test_the_same_record_twice_is_a_wrong_request_unless_renumbered(sets, tmp_path, make_system):
    write_dataset(tmp_path / "other", [make_system(seed=3, sid=3), make_system(seed=4, sid=7)])
    with pytest.raises(RequestError, match=r"a and .*other both hold sid 3, frame 3; .*--renumber"):
        merge_datasets([sets[0], tmp_path / "other"], tmp_path / "c", workers=1)
    merge_datasets([sets[0], tmp_path / "other"], tmp_path / "c", renumber=True, workers=1)
    assert LmdbDataset(tmp_path / "c").sids.tolist() == [*range(10), 10, 14]


def test_a_system_in_two_sets_is_told(sets, tmp_path, make_system):
    write_dataset(tmp_path / "other", [make_system(seed=3, sid=3, fid=99)])
    made = merge_datasets([sets[0], tmp_path / "other"], tmp_path / "c", workers=1)
    assert made.n_common == 1
    assert "sids that occur in several of the sources, as one system each: 1" in str(made)


def test_the_same_set_twice_is_a_wrong_request(sets, tmp_path):
    with pytest.raises(RequestError, match="named twice"):
        merge_datasets([sets[0], sets[0]], tmp_path / "c", workers=1)


def test_a_damaged_record_stops_a_merge_by_name(sets, tmp_path):
    shard = sets[0] / "data.0001.lmdb"
    forces = LmdbDataset(sets[0])[5].forces.tobytes()
    shard.write_bytes(shard.read_bytes().replace(forces, bytes([forces[0] ^ 4]) + forces[1:]))
    with pytest.raises(DataError, match=r"data.0001.lmdb, record 1: the checksum does not match"):
        merge_datasets(sets, tmp_path / "c", workers=1)
    with pytest.raises(DataError, match="interrupted"):
        LmdbDataset(tmp_path / "c")


def test_shards_that_are_there_are_kept(sets, tmp_path):
    out = tmp_path / "c"
    out.mkdir()
    dataset = LmdbDataset(sets[0])
    selection = Selection((sets[0],), np.arange(10), dataset.sids, dataset.fids)
    assert write_selection(out, selection, {}, 1, n_shards=3) == 0
    (out / "data.0001.lmdb").unlink()
    assert write_selection(out, selection, {}, 1, n_shards=3) == 2
    other = Selection((sets[0],), np.arange(10)[::-1], dataset.sids, dataset.fids)
    assert write_selection(out, other, {}, 1, n_shards=3) == 0
