"""Released LMDBs of both generations open as they are, and hostile ones are refused by the name of the record."""

import multiprocessing
import operator
import pickle

import lmdb
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.data.released_lmdb import ReleasedLmdb
from ocpgem.errors import DataError, RequestError
from tests.released_records import (
    GENERATIONS,
    assert_same,
    is2re_fields,
    record_of,
    s2ef_fields,
    sids,
    write_lmdb,
)
from tests.tiny_runs import random_systems
from tests.unit.data.test_safe_pickle import KINDS, hostile


def one(path, fields, **others):
    """A data set of one record."""
    return ReleasedLmdb(write_lmdb(path / "x.lmdb", [record_of(fields)], 1, **others))


# Reading


def test_a_folder_of_shards_reads_in_order(released_folder, released_systems):
    dataset = open_dataset(released_folder)
    assert isinstance(dataset, ReleasedLmdb)
    assert len(dataset) == 7
    for number, expected in enumerate(released_systems):
        found = dataset[number]
        found.validate()
        assert_same(found, expected)
    assert dataset[-1].source == f"{released_folder / 'data.0001.lmdb'}, record 2"
    assert dataset[0].energy_relaxed is None
    assert dataset[0].pos_relaxed is None
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_is2re_file_without_a_length_key_reads(tmp_path, released_systems, generation):
    fields = [is2re_fields(system) for system in released_systems]
    dataset = open_dataset(write_lmdb(tmp_path / "x.lmdb", [record_of(f, generation) for f in fields]))
    assert len(dataset) == 7
    for found, expected in zip((dataset[i] for i in range(7)), released_systems, strict=True):
        assert found.energy == expected.energy
        assert found.energy_relaxed == expected.energy - 1.5
        assert np.array_equal(found.pos_relaxed, expected.pos + np.float32(0.1))
        assert (found.forces, found.sid, found.fid) == (None, expected.sid, 0)


def test_the_side_table_is_that_of_the_converted_records(released_folder, released_systems, tmp_path):
    write_dataset(tmp_path / "own", released_systems)
    dataset = ReleasedLmdb(released_folder)
    assert np.array_equal(dataset.sizes, LmdbDataset(tmp_path / "own").sizes)
    assert dataset.sizes is dataset.sizes


def test_a_large_file_says_that_it_counts_edges(released_folder, monkeypatch, capsys, caplog):
    monkeypatch.setattr("ocpgem.data.released_lmdb.SIZED_SILENTLY", 3)
    assert len(ReleasedLmdb(released_folder).sizes) == 7
    assert "counting edges of s2ef" in capsys.readouterr().out
    assert "the edges of all its 7 records are counted now" in caplog.text
    assert "data convert stores them once" in caplog.text


def test_a_limit_takes_the_first_records(released_folder, released_systems):
    limited = open_dataset(released_folder, limit=2)
    assert [limited[i].sid for i in range(len(limited))] == [system.sid for system in released_systems[:2]]


def test_shards_are_ordered_by_their_numbers(tmp_path, released_systems):
    for number in (10, 2, 1):
        record = record_of(s2ef_fields(released_systems[0]) | {"sid": number})
        write_lmdb(tmp_path / f"data.{number}.lmdb", [record], 1)
    write_lmdb(tmp_path / "data.lmdb", [record_of(s2ef_fields(released_systems[0]) | {"sid": 0})], 1)
    dataset = ReleasedLmdb(tmp_path)
    assert [dataset[i].sid for i in range(4)] == [0, 1, 2, 10]


FIELDS = {
    "energy": ({"y": None, "energy": 1.25}, "energy", 1.25),
    "an energy as a tensor": ({"y": torch.tensor([1.25])}, "energy", 1.25),
    "an energy as a number of numpy": ({"y": np.float32(1.25)}, "energy", 1.25),
    "forces": ({"forces": torch.ones(4, 3).double(), "force": None}, "forces", np.ones((4, 3), np.float32)),
    "species as bytes": ({"atomic_numbers": torch.tensor([1, 6, 8, 78]).byte()}, "atomic_numbers", [1, 6, 8, 78]),
    "species as floats": ({"atomic_numbers": torch.tensor([1.0, 6, 8, 78])}, "atomic_numbers", [1, 6, 8, 78]),
    "a sid as a tensor": ({"sid": torch.tensor([12])}, "sid", 12),
    "a sid as a float tensor": ({"sid": torch.tensor(12.0)}, "sid", 12),
    "a sid as text": ({"sid": "random12"}, "sid", 12),
    "a sid in a list": ({"sid": [12]}, "sid", 12),
    "a sid as text in a list": ({"sid": ["random12"]}, "sid", 12),
    "a fid as a tensor": ({"fid": torch.tensor([3])}, "fid", 3),
    "no sid": ({"sid": None}, "sid", 0),
    "no fid": ({"fid": None}, "fid", 0),
    "no tags": ({"tags": None}, "tags", [0, 0, 0, 0]),
    "tags as floats": ({"tags": torch.tensor([0.0, 1, 2, 2])}, "tags", [0, 1, 2, 2]),
    "tags as a list": ({"tags": [0, 1, 2, 2]}, "tags", [0, 1, 2, 2]),
    "no fixed atoms": ({"fixed": None}, "fixed", [False] * 4),
    "fixed as integers": ({"fixed": torch.tensor([0, 1, 1, 0])}, "fixed", [False, True, True, False]),
    "a plain cell": ({"cell": torch.eye(3) * 9}, "cell", np.eye(3) * 9),
    "a cell of numpy": ({"cell": np.eye(3)[None] * 9}, "cell", np.eye(3) * 9),
    "periodic axes": ({"pbc": torch.tensor([[True, True, False]])}, "pbc", [True, True, False]),
    "neither edges nor natoms": (dict.fromkeys(("edge_index", "cell_offsets", "distances", "natoms")), "sid", 5),
    "what OC22 adds": ({"nads": 1, "oc22": 1, "id": "0_0"}, "sid", 5),
    "natoms as a tensor": ({"natoms": torch.tensor([4])}, "sid", 5),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_are_taken_as_released_and_third_party_files_have_them(kind, tmp_path):
    system = next(system for system in random_systems(50) if system.n_atoms == 4)
    system.sid, system.fid = 5, 2
    changes, key, expected = FIELDS[kind]
    found = getattr(one(tmp_path, s2ef_fields(system) | changes)[0], key)
    assert np.array_equal(found, expected)


def test_labels_that_are_absent_are_none(tmp_path, released_systems):
    fields = {
        key: value for key, value in s2ef_fields(released_systems[0]).items() if key not in ("y", "force")
    }
    system = one(tmp_path, fields)[0]
    assert (system.energy, system.forces, system.energy_relaxed) == (None, None, None)


def test_the_arrays_of_a_system_do_not_keep_the_record(released_folder):
    system = ReleasedLmdb(released_folder)[0]
    for array in (system.pos, system.cell, system.forces, system.tags, system.fixed, system.atomic_numbers):
        assert array.base is None or array.base.nbytes == array.nbytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos": None}, "has no field pos; it has .*atomic_numbers, cell"),
        ({"atomic_numbers": None}, "has no field atomic_numbers"),
        ({"cell": None}, "has no field cell"),
        ({"pos": torch.zeros(4, 2)}, r"pos has shape \[4, 2\]; it should be \[\d, 3\]"),
        ({"force": torch.zeros(1, 3)}, "force has shape"),
        ({"cell": torch.zeros(3)}, "cell has shape"),
        ({"tags": torch.zeros(99)}, "tags has shape"),
        ({"tags": torch.full((4,), -1)}, r"tag -1(\.0)? is not a whole number from 0 to 255|tags has shape"),
        ({"natoms": 99}, r"natoms is 99 but there are \d atomic numbers"),
        ({"pos": "far"}, "pos is of type str; it should be numbers"),
        ({"y": "low"}, "y should be a single number"),
        ({"y": torch.zeros(2)}, "y should be a single number"),
        ({"sid": "adsorbate"}, "sid should be a whole number"),
        ({"sid": [1, 2]}, "sid should be a whole number"),
        ({"sid": 1.5}, "sid should be a whole number"),
        ({"fid": 2**70}, "fid should be a whole number"),
        ({"atomic_numbers": torch.zeros(0), "natoms": 0}, "has no atoms"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_record(tmp_path, released_systems, changes, message):
    dataset = one(tmp_path, s2ef_fields(released_systems[0]) | changes)
    with pytest.raises(DataError, match=rf"x\.lmdb, record 0\W.*{message}|x\.lmdb, record 0 {message}"):
        dataset[0]


def test_a_record_without_neighbours_in_reach_is_named_by_the_side_table(tmp_path, released_systems):
    dataset = one(tmp_path, s2ef_fields(released_systems[0]) | {"cell": torch.zeros(1, 3, 3)})
    with pytest.raises(DataError, match=r"x\.lmdb, record 0\): the cell has no volume"):
        _ = dataset.sizes
    far = one(
        tmp_path / "far",
        s2ef_fields(released_systems[0]) | {"pos": torch.full((released_systems[0].n_atoms, 3), 1e30)},
    )
    with pytest.raises(DataError, match=r"x\.lmdb, record 0"):
        _ = far.sizes


# What is not a released LMDB, or not a whole one


def test_ours_and_released_ones_are_told_apart(released_folder, released_systems, tmp_path):
    write_dataset(tmp_path / "own", released_systems)
    assert isinstance(open_dataset(tmp_path / "own"), LmdbDataset)
    assert isinstance(open_dataset(tmp_path / "own/data.0000.lmdb"), LmdbDataset)
    assert isinstance(open_dataset(released_folder / "data.0000.lmdb"), ReleasedLmdb)
    (tmp_path / "own/metadata.json").unlink()
    with pytest.raises(DataError, match=r"metadata.json is missing: .* not finished"):
        open_dataset(tmp_path / "own")
    with pytest.raises(RequestError, match="holds no data set"):
        open_dataset(tmp_path)
    with pytest.raises(RequestError, match=r"holds no \.lmdb file"):
        ReleasedLmdb(tmp_path)
    with pytest.raises(RequestError, match="does not exist"):
        ReleasedLmdb(tmp_path / "nowhere")


@pytest.mark.parametrize("record", [b"pickled", b"(dp0\n.", b""])
def test_an_lmdb_of_something_else_is_told(tmp_path, record):
    path = write_lmdb(tmp_path / "x.lmdb", [record])
    with pytest.raises(DataError, match=r"x.lmdb is an LMDB of another kind: its record 0 is not a pickle"):
        open_dataset(path)


def test_an_lmdb_without_records_is_told(tmp_path):
    for name, length in (("a.lmdb", 0), ("b.lmdb", None)):
        with pytest.raises(DataError, match=f"{name} holds no records"):
            open_dataset(write_lmdb(tmp_path / name, [], length, other=b"x"))


def test_a_length_that_does_not_fit_is_told(tmp_path, released_systems):
    records = [record_of(s2ef_fields(system)) for system in released_systems[:3]]
    with pytest.raises(DataError, match=r"says that it has 2 records but also holds record 2"):
        open_dataset(write_lmdb(tmp_path / "few.lmdb", records, 2))
    many = open_dataset(write_lmdb(tmp_path / "many.lmdb", records, 5))
    with pytest.raises(DataError, match=r"many.lmdb, record 3 is missing although the file counts 5"):
        many[3]
    for name, length in (("a", "3"), ("b", -1), ("c", 2.0), ("d", 2**40)):
        with pytest.raises(DataError, match="key length does not hold a number of records"):
            open_dataset(write_lmdb(tmp_path / f"{name}.lmdb", records, length))


def test_gaps_in_the_keys_of_a_file_without_a_length_are_passed_over(tmp_path, released_systems):
    path = write_lmdb(
        tmp_path / "x.lmdb", [record_of(s2ef_fields(system)) for system in released_systems[:4]]
    )
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as edit:
        edit.delete(b"0")
        edit.delete(b"2")
        edit.put(b"02", b"not a record")
    dataset = open_dataset(path)
    assert [dataset[i].sid for i in range(len(dataset))] == [released_systems[1].sid, released_systems[3].sid]
    assert dataset[1].source.endswith("record 3")


def test_a_record_that_is_no_object_of_pyg_is_named(tmp_path):
    for value in ({"pos": 1}, [1], 5, "text", Data):
        path = write_lmdb(tmp_path / f"{type(value).__name__}.lmdb", [pickle.dumps(value)])
        with pytest.raises(DataError, match=r"record 0 is not an object of PyG"):
            open_dataset(path)[0]


def test_a_truncated_file_is_named_before_it_is_read(released_folder):
    shard = released_folder / "data.0001.lmdb"
    shard.write_bytes(shard.read_bytes()[:8192])
    with pytest.raises(DataError, match=r"data.0001.lmdb is truncated"):
        open_dataset(released_folder)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_record_is_refused_by_its_name_and_the_others_are_read(
    kind, generation, tmp_path, released_systems
):
    witness = tmp_path / "witness"
    fields = [s2ef_fields(system) for system in released_systems[:3]]
    fields[1]["note"] = hostile(witness)[kind]
    path = write_lmdb(tmp_path / "x.lmdb", [record_of(f, generation) for f in fields], 3)
    dataset = open_dataset(path)
    with pytest.raises(
        DataError, match=r"x\.lmdb, record 1 (is refused and nothing in it was run|cannot be read)"
    ):
        dataset[1]
    assert [dataset[i].sid for i in (0, 2)] == [released_systems[0].sid, released_systems[2].sid]
    assert not witness.exists()


def test_a_hostile_length_is_refused(tmp_path, released_systems):
    path = write_lmdb(
        tmp_path / "x.lmdb",
        [record_of(s2ef_fields(released_systems[0]))],
        length=hostile(tmp_path / "witness")["eval"],
    )
    with pytest.raises(DataError, match=r"x.lmdb, key length is refused .* builtins.eval|__builtin__.eval"):
        open_dataset(path)
    assert not (tmp_path / "witness").exists()


# Several readers


def _sid(system):
    return system.sid


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_main_process_has_open(released_folder, method, released_systems):
    dataset = ReleasedLmdb(released_folder)
    assert sids(dataset) == [system.sid for system in released_systems]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map(operator.itemgetter(5), [dataset] * 3):
            assert_same(found, released_systems[5])
    assert sids(dataset) == [system.sid for system in released_systems]


@pytest.mark.usefixtures("sigchld_as_before")
def test_forked_torch_workers_read_an_open_file(released_folder, released_systems):
    dataset = ReleasedLmdb(released_folder)
    first = dataset[0].sid
    loader = DataLoader(
        dataset, batch_size=None, collate_fn=_sid, num_workers=2, multiprocessing_context="fork"
    )
    assert list(loader) == [system.sid for system in released_systems]
    assert dataset[0].sid == first


def test_two_data_sets_and_a_refusal_share_one_file(released_folder):
    first, second = open_dataset(released_folder), open_dataset(released_folder)
    with pytest.raises(DataError, match="another kind"):
        LmdbDataset(released_folder)
    assert sids(first) == sids(second) == sids(open_dataset(released_folder))


def test_a_pickled_data_set_carries_no_records(released_folder):
    dataset = ReleasedLmdb(released_folder)
    dataset[0], dataset.n_atoms
    assert len(pickle.dumps(dataset)) < 2000


# Lists of objects


@pytest.mark.parametrize("name", ["x.pkl", "x.pt"])
def test_a_pickled_list_opens_in_memory(tmp_path, released_systems, name):
    objects = [Data(**s2ef_fields(system)) for system in released_systems]
    if name == "x.pt":
        torch.save(objects, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(objects))
    dataset = open_dataset(tmp_path / name)
    assert isinstance(dataset, InMemoryDataset)
    for number, expected in enumerate(released_systems):
        assert_same(dataset[number], expected)
    assert dataset[3].source == f"{tmp_path / name}, record 3"
    assert len(open_dataset(tmp_path / name, limit=2)) == 2


def test_a_long_list_of_the_smallest_systems_opens(tmp_path):
    objects = [
        Data(pos=torch.rand(1, 3), cell=torch.eye(3), atomic_numbers=torch.ones(1)) for _ in range(500)
    ]
    for protocol in (2, 4, 5):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(objects, protocol))
        assert len(open_dataset(tmp_path / "x.pkl")) == 500
    torch.save(objects, tmp_path / "x.pt")
    assert len(open_dataset(tmp_path / "x.pt")) == 500


def test_a_single_pickled_object_opens(tmp_path, released_systems):
    (tmp_path / "x.pkl").write_bytes(record_of(s2ef_fields(released_systems[0])))
    assert_same(open_dataset(tmp_path / "x.pkl")[0], released_systems[0])


def test_a_list_that_repeats_its_positions_is_refused(tmp_path):
    positions = torch.zeros(20_000, 3)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([Data(pos=positions) for _ in range(1000)]))
    with pytest.raises(DataError, match=r"x.pkl is refused: it claims \d+ atoms in \d+ bytes"):
        open_dataset(tmp_path / "x.pkl")


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04]."])
def test_a_pickle_of_nothing_is_told(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pkl"):
        open_dataset(tmp_path / "x.pkl")


# The files that released and other tools wrote


def test_the_released_s2ef_files_hold_what_was_put_in(shared):
    dataset = open_dataset(shared / "reference/lmdb/lmdb_s2ef")
    expected = np.load(shared / "reference/lmdb/lmdb_expected.npz")
    assert len(dataset) == 21
    for index in range(21):
        found = dataset[index]
        found.validate()
        name, frame = str(found.sid), found.fid
        reference = expected[f"{name}_refenergy"]
        assert found.energy == pytest.approx(expected[f"{name}_energy"][frame] - reference, abs=1e-9)
        assert np.allclose(found.forces, expected[f"{name}_forces"][frame], rtol=1e-6, atol=1e-6)
        check_structure(found, expected, frame)


@pytest.mark.parametrize("file", ["lmdb_is2re.lmdb", "lmdb_legacy_is2re.lmdb"])
def test_the_released_is2re_files_hold_what_was_put_in(shared, file):
    dataset = open_dataset(shared / "reference/lmdb" / file)
    expected = np.load(shared / "reference/lmdb/lmdb_expected.npz")
    assert len(dataset) == 3
    for index in range(3):
        found = dataset[index]
        found.validate()
        name = str(found.sid)
        energies = expected[f"{name}_energy"] - expected[f"{name}_refenergy"]
        assert found.energy == pytest.approx(energies[0], abs=1e-9)
        assert found.energy_relaxed == pytest.approx(energies[-1], abs=1e-9)
        last = expected[f"{name}_positions"][-1]
        assert modulo_lattice(found.pos_relaxed, last, expected[f"{name}_cell"]) < 1e-4
        check_structure(found, expected, 0)


def check_structure(found, expected, frame):
    name = str(found.sid)
    assert found.atomic_numbers.tolist() == expected[f"{name}_numbers"].tolist()
    assert found.tags.tolist() == expected[f"{name}_tags"].tolist()
    assert found.fixed.tolist() == expected[f"{name}_fixed"].astype(bool).tolist()
    assert np.allclose(found.cell, expected[f"{name}_cell"], atol=1e-5)
    assert modulo_lattice(found.pos, expected[f"{name}_positions"][frame], expected[f"{name}_cell"]) < 1e-4


def modulo_lattice(found, expected, cell):
    """The largest difference; the released converter wraps positions into the cell."""
    fractional = (found - expected) @ np.linalg.inv(cell)
    return np.abs((fractional - np.round(fractional)) @ cell).max()


FILES = (
    "reference/lmdb/lmdb_s2ef/data.0000.lmdb",
    "reference/lmdb/lmdb_s2ef/data.0001.lmdb",
    "reference/lmdb/lmdb_is2re.lmdb",
    "data/lmdb_third_party/is2re_train.lmdb",
    "data/lmdb_third_party/is2re_val_id.lmdb",
    "data/oc22/oc22_pickle16_train.pkl",
)


@pytest.mark.parametrize("file", FILES)
def test_every_file_reads_as_torch_and_pyg_read_it(shared, file):
    """The files are ours to trust here; `pickle` runs what they say."""
    path = shared / file
    if path.suffix == ".pkl":
        objects = pickle.loads(path.read_bytes())
    else:
        with (
            lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            records = {key: value for key, value in transaction.cursor() if key.isdigit()}
        objects = [pickle.loads(records[key]) for key in sorted(records, key=int)]
    dataset = open_dataset(path)
    assert len(dataset) == len(objects)
    for index, data in enumerate(objects):
        found = dataset[index]
        assert np.array_equal(found.pos, data.pos.numpy())
        assert np.array_equal(found.cell, data.cell[0].numpy())
        assert np.array_equal(found.atomic_numbers, data.atomic_numbers.numpy())
        assert np.array_equal(found.tags, data.tags.numpy())
        assert np.array_equal(found.fixed, data.fixed.numpy())
        assert (found.sid, found.fid) == (data.sid, data.get("fid", 0))
        assert found.energy == data.get("energy", data.get("y", data.get("y_init")))
        assert found.energy_relaxed == data.get("y_relaxed")
        forces = data.get("forces", data.get("force"))
        assert (found.forces is None) == (forces is None)
        assert forces is None or np.array_equal(found.forces, forces.numpy())
    assert (dataset.n_edges > 0).all()


def test_third_party_files_have_neither_a_length_nor_tags(shared):
    dataset = open_dataset(shared / "data/lmdb_third_party/is2re_train.lmdb")
    assert len(dataset) == 53
    assert not dataset[0].tags.any()
    assert dataset[0].pos_relaxed is None
