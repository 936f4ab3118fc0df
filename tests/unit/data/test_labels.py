"""Energies of records replaced: relaxed ones, and total energies from references of systems."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.labels import Relabelled, read_system_references
from ocpgem.errors import DataError, RequestError
from tests.tiny_runs import random_systems

REFERENCES = {"random2": -300.25, "random0": -100.5, "random11": -1.0, "random1": np.float64(-200.75)}


def written(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_the_reference_of_a_system_makes_its_energies_total_energies(tmp_path: Path) -> None:
    systems = list(random_systems(3))
    systems[1].energy_relaxed = -7.0
    references = read_system_references(written(tmp_path / "oc20_ref.pkl", REFERENCES))
    found = Relabelled(InMemoryDataset(systems), references=references)
    energies = [system.energy for system in systems]
    assert [found[index].energy for index in range(3)] == [
        energy + reference for energy, reference in zip(energies, (-100.5, -200.75, -300.25), strict=True)
    ]
    assert found[1].energy_relaxed == -207.75
    assert found[0].energy_relaxed is None
    assert found[0].forces is systems[0].forces, "a constant per system does not change forces"
    assert [system.energy for system in systems] == energies, "the records themselves must stay as they are"
    assert found[0].energy == found[0].energy, "a second reading must not add the reference again"
    assert found.sizes.tolist() == InMemoryDataset(systems).sizes.tolist()


def test_the_relaxed_energy_takes_the_place_of_the_energy_and_of_forces(tmp_path: Path) -> None:
    systems = list(random_systems(2))
    systems[0].energy_relaxed = -7.0
    references = read_system_references(written(tmp_path / "oc20_ref.pkl", REFERENCES))
    found = Relabelled(InMemoryDataset(systems), relaxed=True, references=references)
    assert (found[0].energy, found[0].forces) == (-107.5, None)
    with pytest.raises(DataError, match="sid 1, frame 1 has no energy_relaxed"):
        found[1]
    lenient = Relabelled(InMemoryDataset(systems), relaxed=True, required=False)
    assert (lenient[0].energy, lenient[1].energy, lenient[1].forces) == (-7.0, None, None)


def test_a_system_without_a_reference_is_named(tmp_path: Path) -> None:
    references = read_system_references(written(tmp_path / "ref.pkl", {"random0": 1.0, "random2": 1.0}))
    found = Relabelled(InMemoryDataset(list(random_systems(4))), references=references)
    for sid in (1, 3):
        with pytest.raises(DataError, match=f"ref.pkl has no reference energy for sid {sid}"):
            found[sid]


def test_json_is_read_as_well(tmp_path: Path) -> None:
    file = tmp_path / "ref.json"
    file.write_text(json.dumps({"12": -1.5, "random3": 2}))
    references = read_system_references(file)
    assert references.sids.tolist() == [3, 12]
    assert references.energies.tolist() == [2.0, -1.5]


class Attack:
    """Makes a folder where the reader runs what the pickle says."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1.0], "does not hold a map"),
        ({}, "does not hold a map"),
        ({"bulk": 1.0}, "'bulk' is not the number of a system"),
        ({"random1": "x"}, "energy of 'random1' is not a finite number"),
        ({"random1": float("nan")}, "is not a finite number"),
        ({"random1": 1.0, "1": 2.0}, "two energies for sid 1"),
        ({"random1": Attack()}, "refused and nothing in it was run"),
    ],
)
def test_anything_else_is_refused(content: object, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        read_system_references(written(tmp_path / "ref.pkl", content))
    assert not Path("attacked").exists()


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.pkl .* does not exist"):
        read_system_references(tmp_path / "none.pkl")
    (tmp_path / "ref.json").write_text("{")
    with pytest.raises(DataError, match=r"ref\.json is not JSON"):
        read_system_references(tmp_path / "ref.json")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(REFERENCES)[:-20])
    with pytest.raises(DataError, match=r"cut\.pkl cannot be read"):
        read_system_references(tmp_path / "cut.pkl")
