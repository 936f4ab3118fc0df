"""Where a data set may be written: into a folder of its own, or where the same was begun."""

import lzma

import pytest
from ase.io import write

from ocpgem.data.convert import convert_files
from ocpgem.data.folder import agree_on_plan, only_writer
from ocpgem.data.lmdb_store import PLAN_FILE, LmdbDataset, write_dataset
from ocpgem.data.merge import merge_datasets
from ocpgem.data.raw_oc20 import convert_raw_oc20
from ocpgem.data.split import parse_parts, split_dataset
from ocpgem.errors import RequestError

LINES = 'Lattice="8 0 0 0 8 0 0 0 20" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=-9.5'


def convert(source, folder):
    write(source / "set.extxyz", [system.to_atoms() for system in LmdbDataset(source / "lmdb")])
    convert_files([source / "set.extxyz"], folder, workers=1)


def convert_raw(source, folder):
    raw = source / "raw"
    raw.mkdir()
    (raw / "0.extxyz.xz").write_bytes(lzma.compress(f"1\n{LINES}\nCu 0 0 0 F 0 0 0 0\n".encode()))
    (raw / "0.txt.xz").write_bytes(lzma.compress(b"random0,frame0,-8.0\n"))
    convert_raw_oc20(raw, folder, 1)


def merge(source, folder):
    merge_datasets([source / "lmdb"], folder, workers=1)


def split(source, folder):
    """`folder` becomes the last of three parts."""
    parts = parse_parts(["a=1", "b=1", f"{folder.name}=2"])
    split_dataset(source / "lmdb", folder.parent, parts, workers=1)


WRITERS = pytest.mark.parametrize("make", [convert, convert_raw, merge, split])


@pytest.fixture
def source(tmp_path, make_system):
    """A folder with a data set of four systems."""
    write_dataset(tmp_path / "source/lmdb", [make_system(seed=i, sid=i) for i in range(4)])
    return tmp_path / "source"


@WRITERS
def test_a_folder_that_holds_anything_else_gets_no_data_set(source, tmp_path, make):
    folder = tmp_path / "out/taken"
    (folder / "models").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"taken is not empty \(models is there\); choose another folder"):
        make(source, folder)
    assert list((tmp_path / "out").rglob("*")) == [folder, folder / "models"]


@WRITERS
def test_a_file_is_no_folder_for_a_data_set(source, tmp_path, make):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("mine")
    with pytest.raises(RequestError, match="file is a file; choose another folder"):
        make(source, tmp_path / "out/file")
    assert [path.read_text() for path in (tmp_path / "out").rglob("*")] == ["mine"]


@WRITERS
def test_what_a_kill_before_the_plan_was_written_leaves_is_no_hindrance(source, tmp_path, make):
    folder = tmp_path / "out/begun"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / f".{PLAN_FILE}.partial").write_text("{")
    make(source, folder)
    assert len(LmdbDataset(folder)) > 0
    assert not (folder / f".{PLAN_FILE}.partial").exists()


def test_what_was_begun_goes_on_whatever_it_has_left(tmp_path):
    with only_writer(tmp_path / "out"):
        agree_on_plan(tmp_path / "out", {"kind": "test"})
        (tmp_path / "out/data.0000.lmdb").touch()
        (tmp_path / "out/.parts").mkdir()
        agree_on_plan(tmp_path / "out", {"kind": "test"})
        with pytest.raises(RequestError, match="unfinished conversion of something else"):
            agree_on_plan(tmp_path / "out", {"kind": "another"})
