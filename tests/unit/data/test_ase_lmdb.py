"""ase-lmdb files open and convert without the package that writes them, and nothing in them is run."""

import json
import multiprocessing
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocpgem.data import ase_lmdb
from ocpgem.data.ase_lmdb import AseLmdb
from ocpgem.data.convert import Options, convert_files
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.open import open_dataset
from ocpgem.data.screening import Limits
from ocpgem.data.sources import BOXED, SPECIAL_CONSTRAINT
from ocpgem.errors import DataError
from tests.ase_rows import FIXTURE, row_of, stored, structures, write_rows

KEPT = [structures()[number] for number in (0, 2, 3)]


def check(system: Any, number: int) -> None:
    """Compare with what was written as structure `number` of those that were kept."""
    atoms = KEPT[number]
    assert np.array_equal(system.atomic_numbers, atoms.numbers)
    assert np.array_equal(system.pos, atoms.positions.astype("f4"))
    assert np.array_equal(system.tags, atoms.get_tags())
    assert np.array_equal(system.pbc, atoms.pbc)
    assert system.fixed.tolist() == [[True, False, False], [False] * 3, [False] * 2][number]
    assert (system.sid, system.fid) == [(100, 0), (102, 2), (103, 3)][number]
    if atoms.calc is None:
        assert system.energy is system.forces is None
    else:
        assert system.energy == atoms.calc.results["energy"]
        assert np.array_equal(system.forces, atoms.calc.results["forces"].astype("f4"))


def test_a_file_of_ase_db_backends_reads_as_it_was_written() -> None:
    dataset = open_dataset(FIXTURE)
    assert isinstance(dataset, AseLmdb)
    assert len(dataset) == 3  # row 2 was deleted
    for number in range(3):
        check(dataset[number], number)
    assert np.array_equal(dataset[0].cell, KEPT[0].cell.array.astype("f4"))
    assert dataset[1].where == f"sid 102, frame 2 ({FIXTURE}, row 3)"


def test_a_file_of_ase_db_backends_converts(tmp_path: Path) -> None:
    made = convert_files([FIXTURE], tmp_path / "own", Options(limits=Limits("nothing")), workers=1)
    own = LmdbDataset(tmp_path / "own")
    for number in range(3):
        check(own[number], number)
    assert np.allclose(np.diag(own[1].cell), [12, 13.52, 12.59])  # a box around the molecule
    assert made.report.remarks.entries[BOXED][0] == 1
    assert made.report.remarks.entries[SPECIAL_CONSTRAINT][0] == 1
    assert "energies in eV" in own.metadata["provenance"]["decisions"][0]


def test_a_folder_reads_in_order_and_in_workers(tmp_path: Path) -> None:
    for number in (10, 2):
        rows = [row_of(KEPT[0], data={"sid": number, "fid": fid}) for fid in range(3)]
        write_rows(tmp_path / f"data{number}.aselmdb", rows)
    (tmp_path / "metadata.npz").write_bytes(b"beside it")
    dataset = open_dataset(tmp_path)
    numbers = [(2, 0), (2, 1), (2, 2), (10, 0), (10, 1), (10, 2)]
    assert [(system.sid, system.fid) for system in dataset] == numbers
    assert dataset.sizes["n_atoms"].tolist() == [3] * 6
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(dataset.__getitem__, range(6))[4].fid == 1
    convert_files([tmp_path], tmp_path / "own", workers=2)
    assert np.array_equal(LmdbDataset(tmp_path / "own").sizes, dataset.sizes)


def test_a_file_without_rows_is_none_of_a_folder(tmp_path: Path) -> None:
    for number, n_rows in enumerate((0, 2, 0, 1)):
        rows = [row_of(KEPT[0], data={"sid": number, "fid": fid}) for fid in range(n_rows)]
        write_rows(tmp_path / f"data{number}.aselmdb", rows)
    dataset = open_dataset(tmp_path)
    assert [(system.sid, system.fid) for system in dataset] == [(1, 0), (1, 1), (3, 0)]
    convert_files([tmp_path], tmp_path / "own", workers=1)
    assert len(LmdbDataset(tmp_path / "own")) == 3


def test_what_may_be_absent_is_absent(tmp_path: Path) -> None:
    row = row_of(KEPT[0])
    plain = write_rows(tmp_path / "x.aselmdb", [row, row | {"key_value_pairs": {"sid": 7}, "data": None}])
    system = open_dataset(plain)[0]
    assert system.tags.tolist() == [0, 0, 0]
    assert not system.fixed.any()
    assert (system.sid, system.fid) == (0, 0)
    assert open_dataset(plain)[1].sid == 7
    named = write_rows(tmp_path / "y.aselmdb", [row | {"data": {"sid": "agm0123-slab"}}] * 3)
    convert_files([named], tmp_path / "own", workers=1)  # a name is no number: counted, all of one structure
    assert [(s.sid, s.fid) for s in LmdbDataset(tmp_path / "own")] == [(0, 0), (0, 1), (0, 2)]


BOMB = zlib.compress(b" " * 10**6)
GOOD = row_of(KEPT[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"no zlib", "row 2 cannot be read .*; the file is damaged"),
        (zlib.compress(json.dumps(GOOD).encode())[:-20], "row 2 cannot be read .*it is cut off"),
        (BOMB, "row 2 cannot be read .*unpacks to more than"),
        (zlib.compress(b"{" * 100_000), "row 2 cannot be read"),
        (zlib.compress(b"[" * 100_000), "row 2 cannot be read"),
        (zlib.compress(b"\xff\xfe"), "row 2 cannot be read"),
        ([1, 2], "row 2 is not a row of an ASE database"),
        (GOOD | {"positions": "x"}, "row 2 holds something else than numbers"),
        (GOOD | {"positions": {"__ndarray__": [[3, 3], "object", [0] * 9]}}, "something else than numbers"),
        (GOOD | {"positions": {"__ndarray__": [[3, 3], "float64", [0] * 8]}}, "something else than numbers"),
        (GOOD | {"positions": {"__ndarray__": [[3, -3], "float64", [0] * 9]}}, "something else than numbers"),
        (GOOD | {"positions": [[0, 0, 0], [1, 1]]}, "something else than numbers"),
        (GOOD | {"positions": stored(np.zeros((2, 3)))}, r"row 2: pos has shape \[2, 3\]"),
        (GOOD | {"numbers": stored(np.array([1, 300, 1]))}, "row 2.*atomic number"),
        (GOOD | {"forces": [["a"] * 3] * 3}, "something else than numbers"),
        (GOOD | {"energy": {"__complex__": [1, 2]}}, "something else than numbers"),
        (
            GOOD | {"constraints": [{"name": "FixAtoms", "kwargs": {"indices": [3]}}]},
            "beyond the 3 of the row",
        ),
        (GOOD | {"constraints": [{"name": "FixAtoms", "kwargs": None}]}, "FixAtoms fixes cannot be read"),
        ({"numbers": GOOD["numbers"]}, "row 2 has no field pos"),
    ],
)
def test_a_hostile_or_damaged_row_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Any, message: str
) -> None:
    monkeypatch.setattr(ase_lmdb, "LARGEST_ROW", 10**5)
    dataset = open_dataset(write_rows(tmp_path / "x.aselmdb", [GOOD, row, GOOD]))
    with pytest.raises(DataError, match=message):
        dataset[1].validate()
    assert dataset[2].energy == KEPT[0].calc.results["energy"]
    made = convert_files([tmp_path / "x.aselmdb"], tmp_path / "own", Options(skip_unreadable=True), workers=1)
    assert (made.summary.n_frames, made.report.left_out.total) == (2, 1)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"nextid": b"x"}, "key nextid cannot be read"),
        ({"nextid": "many"}, "does not say how many rows"),
        ({"nextid": None}, "holds no rows"),
        ({"nextid": 9}, "says that it has 8 rows, but row 8 is missing"),
        ({"nextid": 2**31}, "does not say how many rows"),
        ({"deleted_ids": [1]}, "holds no rows"),
        ({"deleted_ids": 1}, "does not say how many rows"),
    ],
)
def test_a_file_that_is_no_ase_lmdb_is_told(tmp_path: Path, others: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "x.aselmdb", [GOOD], **others)
    with pytest.raises(DataError, match=f"x.aselmdb.*{message}"):
        open_dataset(path)
