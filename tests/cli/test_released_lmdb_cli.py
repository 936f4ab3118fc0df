"""The commands take released LMDBs as they are."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch_geometric.data import Data

from ocpgem.data.lmdb_store import LmdbDataset
from tests.released_records import GENERATIONS, is2re_fields, record_of, s2ef_fields, write_lmdb
from tests.tiny_runs import random_systems, run_main

SYSTEMS = list(random_systems(9))


class Hostile:
    """Pickles as a command that makes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.witness}",)


@pytest.fixture(params=GENERATIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An S2EF folder of two shards, with what the released converter puts beside them."""
    records = [record_of(s2ef_fields(system), request.param) for system in SYSTEMS]
    write_lmdb(tmp_path / "s2ef/data.0000.lmdb", records[:5], 5)
    write_lmdb(tmp_path / "s2ef/data.0001.lmdb", records[5:], 4)
    (tmp_path / "s2ef/data_log.0000.txt").write_text("5\n")
    np.savez(tmp_path / "s2ef/metadata.npz", natoms=[system.n_atoms for system in SYSTEMS])
    return tmp_path / "s2ef"


def test_inspect_describes_a_released_folder_and_a_single_file(folder: Path) -> None:
    done = run_main("data", "inspect", folder)
    assert done.returncode == 0, done.stderr
    assert "9 of 9 systems" in done.stdout
    assert "free atoms: mean |component|" in done.stdout
    done = run_main("data", "inspect", folder / "data.0001.lmdb")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 systems" in done.stdout


def test_inspect_with_check_asks_for_a_conversion(folder: Path) -> None:
    done = run_main("data", "inspect", folder, "--check")
    assert done.returncode == 1
    assert "data.0000.lmdb is an LMDB of another kind than ocpgem's own; convert it first" in done.stderr


def test_a_released_folder_converts_and_the_result_checks_out(folder: Path, tmp_path: Path) -> None:
    done = run_main("data", "convert", folder, "--out", tmp_path / "own", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "9 frames of 9 systems" in done.stdout
    assert "energies in eV" in done.stdout
    checked = run_main("data", "inspect", tmp_path / "own", "--check", "--workers", "1")
    assert checked.returncode == 0, checked.stderr
    assert "every checksum is right" in checked.stdout
    converted = LmdbDataset(tmp_path / "own")
    for index, system in enumerate(SYSTEMS):
        found = converted[index]
        assert (found.energy, found.sid, found.fid) == (system.energy, system.sid, system.fid)
        assert np.array_equal(found.pos, system.pos)
        assert np.array_equal(found.forces, system.forces)


def test_a_conversion_that_was_done_is_not_done_again(folder: Path, tmp_path: Path) -> None:
    words = ("data", "convert", folder, "--out", tmp_path / "own", "--workers", "1")
    assert run_main(*words).returncode == 0
    before = (tmp_path / "own/data.0000.lmdb").stat().st_mtime_ns
    assert run_main(*words).returncode == 0
    assert (tmp_path / "own/data.0000.lmdb").stat().st_mtime_ns == before


def test_is2re_files_need_to_be_asked_for_without_forces(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "is2re.lmdb", [record_of(is2re_fields(system)) for system in SYSTEMS])
    done = run_main("data", "convert", path, "--out", tmp_path / "own", "--workers", "1")
    assert done.returncode == 1
    assert "no forces" in done.stderr
    done = run_main(
        "data", "convert", path, "--out", tmp_path / "own", "--workers", "1", "--require", "energy"
    )
    assert done.returncode == 0, done.stderr
    metadata = json.loads((tmp_path / "own/metadata.json").read_text())
    assert metadata["count"] == 9
    assert LmdbDataset(tmp_path / "own")[4].energy_relaxed == SYSTEMS[4].energy - 1.5


def test_a_pickled_list_is_inspected_and_converted(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([Data(**s2ef_fields(system)) for system in SYSTEMS]))
    done = run_main("data", "inspect", tmp_path / "x.pkl")
    assert done.returncode == 0, done.stderr
    assert "9 of 9 systems" in done.stdout
    done = run_main("data", "convert", tmp_path / "x.pkl", "--out", tmp_path / "own", "--workers", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("action", ["inspect", "convert"])
def test_a_hostile_record_is_one_line_that_names_it(folder: Path, tmp_path: Path, action: str) -> None:
    witness = tmp_path / "witness"
    fields = s2ef_fields(SYSTEMS[0]) | {"note": Hostile(witness)}
    write_lmdb(folder / "data.0002.lmdb", [record_of(s2ef_fields(SYSTEMS[1])), record_of(fields)], 2)
    words = ["data", action, folder]
    done = run_main(*words, *(["--out", tmp_path / "own", "--workers", "1"] if action == "convert" else []))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "data.0002.lmdb, record 1 is refused and nothing in it was run: it asks for posix.system" in line
    assert not witness.exists()
    assert not (tmp_path / "own/metadata.json").exists()


def test_what_is_ours_already_is_not_converted(folder: Path, tmp_path: Path) -> None:
    assert run_main("data", "convert", folder, "--out", tmp_path / "own", "--workers", "1").returncode == 0
    shutil.copy(tmp_path / "own/data.0000.lmdb", tmp_path / "alone.lmdb")
    done = run_main("data", "convert", tmp_path / "alone.lmdb", "--out", tmp_path / "twice")
    assert done.returncode == 2
    assert "alone.lmdb is ocpgem's own already; data merge writes it in other shards" in done.stderr
