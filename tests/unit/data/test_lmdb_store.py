import json
import multiprocessing
import pickle

import lmdb
import numpy as np
import pytest
from torch.utils.data import DataLoader

from ocpgem.data.lmdb_store import LmdbDataset, ShardWriter, write_dataset
from ocpgem.errors import DataError, RequestError


@pytest.fixture
def systems(make_system):
    return [make_system(4 + seed % 5, seed) for seed in range(25)]


@pytest.fixture
def folder(tmp_path, systems):
    write_dataset(tmp_path / "train", systems, {"by": "a test"}, systems_per_shard=10)
    return tmp_path / "train"


def ids(dataset):
    return [dataset[i].sid for i in range(len(dataset))]


def test_systems_come_back_in_order_across_shards(folder, systems):
    dataset = LmdbDataset(folder)
    assert len(dataset) == 25
    assert ids(dataset) == [system.sid for system in systems]
    assert np.array_equal(dataset[-1].forces, systems[-1].forces)
    assert dataset[12].source == f"{folder / 'data.0001.lmdb'}, record 2"
    with pytest.raises(IndexError):
        dataset[25]


def test_the_side_table_describes_every_record(folder, systems):
    dataset = LmdbDataset(folder)
    assert dataset.n_atoms.tolist() == [system.n_atoms for system in systems]
    assert dataset.n_free.tolist() == [int((~system.fixed).sum()) for system in systems]
    assert dataset.sids.tolist() == [system.sid for system in systems]
    assert (dataset.n_edges > 0).all()


def test_a_shard_opens_alone(folder, systems):
    shard = LmdbDataset(folder / "data.0002.lmdb")
    assert ids(shard) == [system.sid for system in systems[20:]]
    assert shard.n_atoms.tolist() == [system.n_atoms for system in systems[20:]]


def test_the_same_systems_make_the_same_bytes(tmp_path, systems):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, systems, systems_per_shard=20)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_two_data_sets_on_one_folder_share_its_files(folder):
    first, second = LmdbDataset(folder), LmdbDataset(folder)
    assert ids(first) == ids(second)


def test_a_folder_written_anew_is_read_anew(tmp_path, make_system):
    path = tmp_path / "x.lmdb"
    for sid in (1, 2):
        with ShardWriter(path) as writer:
            writer.add(make_system(sid=sid))
        assert ids(LmdbDataset(path)) == [sid]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_main_process_has_open(folder, systems, method):
    dataset = LmdbDataset(folder)
    expected = ids(dataset)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for sids in pool.map(ids, [dataset] * 4):
            assert sids == expected
    assert ids(dataset) == expected


@pytest.mark.usefixtures("sigchld_as_before")
def test_forked_torch_workers_read_an_open_data_set(folder, systems):
    dataset = LmdbDataset(folder)
    first = dataset[0].sid
    loader = DataLoader(
        dataset, batch_size=None, collate_fn=_sid, num_workers=2, multiprocessing_context="fork"
    )
    assert list(loader) == [system.sid for system in systems]
    assert dataset[0].sid == first


def test_a_pickled_data_set_carries_no_records(folder):
    dataset = LmdbDataset(folder)
    dataset[0], dataset.n_atoms
    assert len(pickle.dumps(dataset)) < 2000


def _sid(system):
    return system.sid


def test_a_truncated_shard_is_named_before_it_is_read(folder):
    shard = folder / "data.0001.lmdb"
    shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"data.0001.lmdb has 20000 bytes where \d+ were written"):
        LmdbDataset(folder)
    with pytest.raises(DataError, match=r"data.0001.lmdb is truncated: it has 20000 of \d+ bytes"):
        LmdbDataset(shard)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, r"data.0000.lmdb is empty \(0 bytes\)"),
        (10, "cannot be opened as an LMDB"),
        (4096, "cannot be opened as an LMDB"),
    ],
)
def test_a_file_that_is_hardly_there_is_refused(folder, size, message):
    shard = folder / "data.0000.lmdb"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(DataError, match=message):
        LmdbDataset(shard)


def test_a_flipped_bit_is_named_with_its_record(folder, systems):
    shard = folder / "data.0000.lmdb"
    forces = systems[3].forces.tobytes()
    shard.write_bytes(shard.read_bytes().replace(forces, bytes([forces[0] ^ 4]) + forces[1:]))
    dataset = LmdbDataset(folder)
    assert dataset[2].sid == systems[2].sid
    with pytest.raises(DataError, match=r"data.0000.lmdb, record 3: the checksum does not match"):
        dataset[3]


def test_a_missing_shard_is_named(folder):
    (folder / "data.0001.lmdb").unlink()
    with pytest.raises(DataError, match=r"data.0001.lmdb is missing"):
        LmdbDataset(folder)


def test_a_missing_description_means_unfinished(folder):
    (folder / "metadata.json").unlink()
    with pytest.raises(DataError, match=r"metadata.json is missing: .* not finished"):
        LmdbDataset(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "version": 1}', "\x00"])
def test_a_damaged_description_is_named(folder, text):
    (folder / "metadata.json").write_text(text)
    with pytest.raises(DataError, match=r"metadata.json"):
        LmdbDataset(folder)


def test_a_newer_description_is_refused(folder):
    file = folder / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2}))
    with pytest.raises(DataError, match="version 2; this program reads version 1"):
        LmdbDataset(folder)


def test_a_damaged_side_table_is_named(folder):
    (folder / "sizes.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"sizes.npy: the table of sizes cannot be read"):
        _ = LmdbDataset(folder).n_atoms


def test_an_lmdb_of_pickles_is_refused_without_loading_them(tmp_path):
    path, trace = tmp_path / "data.0000.lmdb", tmp_path / "executed"
    hostile = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()
    pickle.loads(hostile)  # it does what it threatens, or the test would show nothing
    assert trace.exists()
    trace.unlink()
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as txn:
        txn.put(b"0", hostile)
        txn.put(b"length", pickle.dumps(1))
    for target in (path, tmp_path):
        with pytest.raises(DataError, match=r"data.0000.lmdb is an LMDB of another kind"):
            LmdbDataset(target)
    assert not trace.exists()


def test_released_lmdbs_are_told_apart(shared):
    with pytest.raises(DataError, match="another kind"):
        LmdbDataset(shared / "reference/lmdb/lmdb_s2ef")
    with pytest.raises(DataError, match="another kind"):
        LmdbDataset(shared / "data/lmdb_third_party/is2re_train.lmdb")


def test_a_missing_path_and_an_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(RequestError, match="nowhere does not exist"):
        LmdbDataset(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="holds no data set"):
        LmdbDataset(tmp_path)


def test_a_failed_writer_leaves_nothing(tmp_path, make_system):
    bad = make_system(seed=3, energy=float("nan"))
    with pytest.raises(DataError, match="energy"):
        write_dataset(tmp_path, [*(make_system(seed=seed) for seed in range(3)), bad], systems_per_shard=2)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_data_set_is_not_overwritten(folder, make_system):
    with pytest.raises(RequestError, match="already holds a data set"):
        write_dataset(folder, [make_system()])


def test_a_shard_outgrows_its_first_map(tmp_path, make_system):
    system = make_system(200)
    with ShardWriter(tmp_path / "big.lmdb") as writer:
        for _ in range(1500):
            writer.add(system, n_edges=1)
    assert len(LmdbDataset(tmp_path / "big.lmdb")) == 1500
