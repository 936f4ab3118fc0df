"""Released LMDBs and pickled lists become our own; what is hostile or damaged is named, and left out if asked to."""

import pickle

import pytest
from torch_geometric.data import Data

from ocpgem.data.convert import Options, convert_files
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.open import open_dataset
from ocpgem.data.screening import Limits
from ocpgem.errors import DataError
from tests.released_records import (
    assert_same,
    is2re_fields,
    record_of,
    s2ef_fields,
    sids,
    write_lmdb,
)
from tests.tiny_runs import random_systems
from tests.unit.data.test_safe_pickle import hostile


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("length", [0, None])
def test_shards_without_records_are_none_of_a_folder(tmp_path, released_systems, workers, length):
    """The released converter leaves such a shard where one of its processes had nothing to do."""
    records = [record_of(s2ef_fields(system)) for system in released_systems]
    for number, held in enumerate(([], records[:3], [], records[3:], [])):
        write_lmdb(tmp_path / f"s2ef/data.{number:04}.lmdb", held, len(held) or length)
    dataset = open_dataset(tmp_path / "s2ef")
    assert sids(dataset) == [system.sid for system in released_systems]
    assert len(dataset.sizes) == 7
    assert dataset.origin(3) == f"{tmp_path / 's2ef'}, record 3 (record 0 of data.0003.lmdb)"
    done = convert_files([tmp_path / "s2ef"], tmp_path / "own", workers=workers)
    assert sids(LmdbDataset(tmp_path / "own")) == sids(dataset)
    assert done.report.files.total == 3


def test_a_folder_of_shards_without_records_is_refused(tmp_path):
    for number in range(2):
        write_lmdb(tmp_path / f"s2ef/data.{number:04}.lmdb", [], 0)
    with pytest.raises(DataError, match="s2ef holds no records"):
        open_dataset(tmp_path / "s2ef")
    with pytest.raises(DataError, match=r"nothing can be converted; .*2: hold no records"):
        convert_files([tmp_path / "s2ef"], tmp_path / "own", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_converts_to_ours(released_folder, released_systems, tmp_path, workers):
    (released_folder / "data_log.0000.txt").touch()
    (released_folder / "metadata.npz").touch()
    said: list[str] = []
    done = convert_files([released_folder], tmp_path / "own", workers=workers, say=said.append)
    converted = LmdbDataset(tmp_path / "own")
    assert done.numbering == "numbered as in the files"
    assert len(converted) == 7
    for index, expected in enumerate(released_systems):
        assert_same(converted[index], expected)
    assert any("energies in eV" in sentence for sentence in said)
    assert any("2 other files" in sentence for sentence in said)


def test_is2re_converts_with_its_relaxed_labels(tmp_path, released_systems):
    path = write_lmdb(tmp_path / "x.lmdb", [record_of(is2re_fields(system)) for system in released_systems])
    options = Options(limits=Limits(require="energy"))
    convert_files([path], tmp_path / "own", options, workers=1)
    converted = LmdbDataset(tmp_path / "own")
    assert [converted[i].energy_relaxed for i in range(7)] == [
        system.energy - 1.5 for system in released_systems
    ]
    assert [(converted[i].sid, converted[i].fid) for i in range(7)] == [
        (system.sid, 0) for system in released_systems
    ]


def test_a_pickled_list_converts(tmp_path, released_systems):
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps([Data(**s2ef_fields(system)) for system in released_systems])
    )
    convert_files([tmp_path / "x.pkl"], tmp_path / "own", workers=1)
    assert sids(LmdbDataset(tmp_path / "own")) == [system.sid for system in released_systems]


def test_a_hostile_record_stops_the_conversion_and_leaves_nothing(released_folder, tmp_path):
    witness = tmp_path / "witness"
    fields = s2ef_fields(next(iter(random_systems(1)))) | {"x": hostile(witness)["os.system"]}
    write_lmdb(released_folder / "data.0002.lmdb", [record_of(fields)], 1)
    with pytest.raises(DataError, match=r"data.0002.lmdb, record 0 is refused and nothing in it was run"):
        convert_files([released_folder], tmp_path / "own", workers=1)
    assert not witness.exists()
    assert not list((tmp_path / "own").glob("*.lmdb"))


def test_a_refused_record_can_be_skipped_and_those_after_it_are_kept(tmp_path, released_systems):
    witness = tmp_path / "witness"
    records = [record_of(s2ef_fields(system)) for system in released_systems]
    records[1] = record_of(s2ef_fields(released_systems[1]) | {"note": hostile(witness)["os.system"]})
    records[4] = records[4][:-30]
    source = write_lmdb(tmp_path / "x.lmdb", records)
    with pytest.raises(DataError, match=r"record 1 is refused.*; --skip-unreadable leaves out"):
        convert_files([source], tmp_path / "own", workers=1)
    done = convert_files([source], tmp_path / "own", Options(skip_unreadable=True), workers=1)
    assert sids(LmdbDataset(tmp_path / "own")) == [
        system.sid for i, system in enumerate(released_systems) if i not in (1, 4)
    ]
    assert done.report.left_out.entries["damaged or refused"][0] == 2
    assert "x.lmdb, record 1 is refused" in str(done)
    assert not witness.exists()


def test_a_conversion_without_labels_says_which_option_keeps_them(tmp_path, released_systems):
    is2re = write_lmdb(
        tmp_path / "is2re.lmdb", [record_of(is2re_fields(system)) for system in released_systems]
    )
    with pytest.raises(
        DataError, match=r"nothing can be converted;.*--require energy keeps records without forces"
    ):
        convert_files([is2re], tmp_path / "own", workers=1)
    fields = s2ef_fields(released_systems[0])
    bare = write_lmdb(
        tmp_path / "test.lmdb", [record_of({k: v for k, v in fields.items() if k not in ("y", "force")})]
    )
    with pytest.raises(DataError, match=r"--require nothing keeps records without labels"):
        convert_files([bare], tmp_path / "own", workers=1)


def test_a_record_without_positions_is_left_out_and_counted(tmp_path, released_systems):
    records = [
        record_of(s2ef_fields(system) | ({"pos": None} if system.sid == 2 else {}))
        for system in released_systems
    ]
    done = convert_files([write_lmdb(tmp_path / "x.lmdb", records)], tmp_path / "own", workers=1)
    assert (done.report.n_read, done.report.left_out.total) == (7, 1)
    assert "x.lmdb, record 2" in str(done)
