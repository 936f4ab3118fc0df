"""Submissions: built from four files in both dialects, every kind of fault found, scored, and where they come from."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ocpgem.cli import main
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.data.system import System
from ocpgem.errors import DataError
from ocpgem.evaluate.leaderboard.build import build_submission, write_submission
from ocpgem.evaluate.leaderboard.check import check_submission, read_submission
from ocpgem.evaluate.leaderboard.format import SPLITS, Format
from ocpgem.evaluate.leaderboard.manifest import read_manifest
from ocpgem.evaluate.prediction_set import PredictionSet, write_predictions
from tests.tiny_runs import random_system

Columns = dict[str, np.ndarray]


def systems_of(split: str, frames: int) -> list[System]:
    """Seven systems of a split, each with its own numbers; several frames of one system share its sid."""
    rng = np.random.default_rng(SPLITS.index(split))
    first = 100 * (1 + SPLITS.index(split))
    found = []
    for number in range(7):
        pos_relaxed = {"energy_relaxed": float(rng.normal())}
        system = random_system(rng, first + number // frames, fid=number % frames, **pos_relaxed)
        system.pos_relaxed = system.pos + rng.normal(size=system.pos.shape).astype(np.float32) * 0.05
        found.append(system)
    return found


def predicted(systems: list[System], task: str) -> PredictionSet:
    """Predictions that are wrong by 0.01 eV, 0.02 eV/A in x and 0.1005 A in z."""
    total = sum(system.n_atoms for system in systems)
    columns = {
        "sid": np.array([system.sid for system in systems]),
        "fid": np.array([system.fid for system in systems]),
        "natoms": np.array([system.n_atoms for system in systems]),
        "fixed": np.concatenate([system.fixed for system in systems]),
        "atomic_numbers": np.concatenate([system.atomic_numbers for system in systems]),
    }
    label = "energy" if task == "s2ef" else "energy_relaxed"
    columns["energy"] = np.array([getattr(system, label) for system in systems]) + 0.01
    if task == "s2ef":
        columns["forces"] = np.concatenate([system.forces for system in systems]) + np.array([0.02, 0, 0])
    if task == "is2rs":
        columns["pos"] = np.concatenate([s.pos_relaxed for s in systems]) + np.array([0, 0, 0.1005])
    assert len(columns["fixed"]) == total
    return PredictionSet(**columns)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The test data of every split, with labels, three frames of a system."""
    folder = tmp_path_factory.mktemp("sets")
    for split in SPLITS:
        write_dataset(folder / split, systems_of(split, 3))
        write_dataset(folder / f"is2re_{split}", systems_of(split, 1))
    return {split: folder / split for split in SPLITS} | {
        f"is2re_{split}": folder / f"is2re_{split}" for split in SPLITS
    }


def named(sets: dict[str, Path], task: str) -> dict[str, Path]:
    return {split: sets[split if task == "s2ef" else f"is2re_{split}"] for split in SPLITS}


def write_files(folder: Path, task: str) -> dict[str, Path]:
    for split in SPLITS:
        each = predicted(systems_of(split, 3 if task == "s2ef" else 1), task)
        write_predictions(each, folder / f"{split}.npz", "raw", {"who": "a test"})
    return {split: folder / f"{split}.npz" for split in SPLITS}


def manifest_of(sets: dict[str, Path], form: Format) -> dict:
    return read_manifest({split: open_dataset(path) for split, path in named(sets, form.task).items()}, form)


@pytest.mark.parametrize("task", ["s2ef", "is2re", "is2rs"])
@pytest.mark.parametrize("dialect", ["ocp", "hub"])
@pytest.mark.parametrize("benchmark", ["oc20", "oc22"])
def test_what_is_built_passes_its_check(
    sets: dict[str, Path], tmp_path: Path, task: str, dialect: str, benchmark: str
) -> None:
    form = Format(task, dialect, benchmark)
    content, _ = build_submission(write_files(tmp_path, task), form)
    write_submission(content, tmp_path / "submission.npz")
    found = check_submission(read_submission(tmp_path / "submission.npz"), form, manifest_of(sets, form))
    assert found.faults == []
    assert set(content) == {f"{split}_{key}" for split in SPLITS for key in form.keys}


def test_the_first_host_gets_free_atoms_in_float16_sorted_by_id(tmp_path: Path) -> None:
    content, _ = build_submission(write_files(tmp_path, "s2ef"), Format("s2ef", "ocp"))
    systems = {f"{s.sid}_{s.fid}": s for s in systems_of("ood_ads", 3)}
    assert content["ood_ads_ids"].tolist() == sorted(systems)
    assert content["ood_ads_energy"].dtype == content["ood_ads_forces"].dtype == np.float16
    for name, forces in zip(
        content["ood_ads_ids"], np.split(content["ood_ads_forces"], content["ood_ads_chunk_idx"]), strict=True
    ):
        expected = systems[name].forces[~systems[name].fixed] + np.array([0.02, 0, 0])
        np.testing.assert_array_equal(forces, expected.astype(np.float16))


def test_the_present_host_gets_all_atoms_uncast(tmp_path: Path) -> None:
    content, warnings = build_submission(write_files(tmp_path, "s2ef"), Format("s2ef", "hub"))
    systems = systems_of("id", 3)
    assert content["id_ids"].tolist() == [f"{s.sid}_{s.fid}" for s in systems]
    assert len(content["id_forces"]) == sum(s.n_atoms for s in systems)
    np.testing.assert_array_equal(content["id_energy"], [s.energy + 0.01 for s in systems])
    assert warnings == []


@pytest.mark.parametrize("task", ["s2ef", "is2re"])
def test_what_was_cast_for_the_first_host_is_not_sound_for_the_present_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    content, _ = build_submission(write_files(tmp_path, task), Format(task, "ocp"))
    write_submission(content, tmp_path / "submission.npz")
    words = ["leaderboard", "check", str(tmp_path / "submission.npz"), "--task", task]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--dialect", "hub"]) == 1
    said = capsys.readouterr()
    for name in ("energy", "forces") if task == "s2ef" else ("energy",):
        assert f"fault: id: {name} has been cast to float16; build with --dialect hub" in said.out
    assert f"has {8 if task == 's2ef' else 4} faults" in said.err


def test_is2re_ids_are_systems(tmp_path: Path) -> None:
    content, _ = build_submission(write_files(tmp_path, "is2re"), Format("is2re", "hub"))
    assert content["ood_cat_ids"].tolist() == [str(300 + n) for n in range(7)]


def change(key: str, work: Callable[[np.ndarray], np.ndarray]) -> Callable[[Columns], None]:
    def apply(columns: Columns) -> None:
        columns[key] = work(columns[key].copy())

    return apply


def put(key: str, place: object, value: object) -> Callable[[Columns], None]:
    def work(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change(key, work)


def drop_system(columns: Columns) -> None:
    """The first system of `id` is gone, consistently."""
    rows = int(columns["id_chunk_idx"][0])
    columns["id_ids"], columns["id_energy"] = columns["id_ids"][1:], columns["id_energy"][1:]
    columns["id_forces"], columns["id_chunk_idx"] = (
        columns["id_forces"][rows:],
        columns["id_chunk_idx"][1:] - rows,
    )


def swap_splits(columns: Columns) -> None:
    for key in ("ids", "energy", "forces", "chunk_idx"):
        columns[f"id_{key}"], columns[f"ood_cat_{key}"] = columns[f"ood_cat_{key}"], columns[f"id_{key}"]


FAULTS: dict[str, tuple[Callable[[Columns], object], str]] = {
    "missing id": (drop_system, r"id: 1 of 7 ids are missing, such as 100_0"),
    "duplicate id": (put("id_ids", 1, "100_0"), r"id: 1 ids occur more than once, such as 100_0 \(2 times\)"),
    "unknown id": (put("id_ids", 6, "999_0"), r"id: 1 ids are unknown to the test set, such as 999_0"),
    "ids without frames": (change("id_ids", lambda v: np.char.partition(v, "_")[:, 0]), "unknown .* such as 100 "),
    "wrong split": (swap_splits, r"id: 7 ids belong to the split ood_cat, such as 300_0"),
    "unsorted": (change("id_ids", lambda v: v[::-1]), "ids are not sorted"),
    "ids are numbers": (change("id_ids", lambda v: np.arange(7)), r"ids should be text of shape \[n\]; they are int64"),
    "energies too few": (change("id_energy", lambda v: v[1:]), r"id: energy has shape \[6\]; it should be \[7\]"),
    "energy of two axes": (change("id_energy", lambda v: v[:, None]), r"energy has shape \[7, 1\]"),
    "forces too few": (change("id_forces", lambda v: v[:-1]), r"forces has \d+ rows, but these .* free atoms"),
    "all atoms": (change("id_forces", lambda v: np.concatenate([v, v])), "forces has .* free atoms"),
    "forces of two axes": (change("id_forces", lambda v: v[:, :2]), r"forces has shape \[\d+, 2\]; it should"),
    "chunks shifted": (change("id_chunk_idx", lambda v: v + (np.arange(6) == 2)), "chunk_idx gives 2 systems another"),
    "chunks too many": (change("id_chunk_idx", lambda v: np.append(v, v[-1])), "chunk_idx should be 6 whole numbers"),
    "chunks beyond": (put("id_chunk_idx", -1, 10_000), "decrease or lie beyond"),
    "chunks of floats": (change("id_chunk_idx", lambda v: v.astype(float)), "chunk_idx should be 6 whole numbers"),
    "NaN energy": (put("id_energy", 3, np.nan), "energy holds 1 values that are NaN or infinite"),
    "infinite force": (put("id_forces", (2, 1), np.inf), "forces holds 1 values that are NaN or infinite"),
    "dtype of energies": (change("id_energy", lambda v: v.astype(np.float64)), "energy is float64; .* asks for"),
    "dtype of forces": (change("id_forces", lambda v: v.astype(int)), "forces is int64; .* asks for float16"),
    "a key too few": (lambda c: c.pop("ood_both_forces"), "ood_both: ood_both_forces missing"),
    "a key too many": (lambda c: c.update(id_stress=np.zeros(3)), "id_stress does not belong"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found(sets: dict[str, Path], tmp_path: Path, name: str) -> None:
    form = Format("s2ef", "ocp")
    content, _ = build_submission(write_files(tmp_path, "s2ef"), form)
    damage, message = FAULTS[name]
    damage(content)
    faults = check_submission(content, form, manifest_of(sets, form)).faults
    assert any(re.search(message, fault) for fault in faults), faults


def test_a_truncated_file_and_one_with_objects_are_named(tmp_path: Path) -> None:
    content, _ = build_submission(write_files(tmp_path, "s2ef"), Format("s2ef"))
    path = tmp_path / "submission.npz"
    write_submission(content, path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"submission\.npz cannot be read"):
            read_submission(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(DataError, match=r"submission\.npz cannot be read"):
        read_submission(path)
    np.savez(path, id_ids=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"submission\.npz cannot be read"):
        read_submission(path)


def test_float16_that_spoils_energies_is_warned_of(sets: dict[str, Path], tmp_path: Path) -> None:
    files = write_files(tmp_path, "s2ef")
    large = predicted(systems_of("id", 3), "s2ef").columns()
    large["energy"] = large["energy"] - 10.0
    write_predictions(PredictionSet(**large), files["id"], "raw")
    content, warnings = build_submission(files, Format("s2ef"))
    assert any("float16 moves" in warning and warning.startswith("id:") for warning in warnings)
    found = check_submission(content, Format("s2ef"), manifest_of(sets, Format("s2ef")))
    assert found.faults == []
    assert any(
        re.search(r"id: float16 rounds 7 of 7 energies by up to 0\.0039 eV", each) for each in found.warnings
    )
    assert build_submission(files, Format("s2ef", "hub"))[1] == []


def words(pairs: dict[str, Path]) -> list[str]:
    return [f"{split}={path}" for split, path in pairs.items()]


def data_options(pairs: dict[str, Path]) -> list[str]:
    return [word for pair in words(pairs) for word in ("--data", pair)]


@pytest.mark.parametrize(
    ("task", "metric", "value"),
    [
        ("s2ef", "forces_mae", 0.02 / 3),
        ("is2re", "energy_mae", 0.01),
        ("is2rs", "average_distance_within_threshold", 399 / 490),
    ],
)
def test_a_submission_is_built_checked_and_scored_from_the_command_line(
    sets: dict[str, Path],
    tmp_path: Path,
    task: str,
    metric: str,
    value: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = data_options(named(sets, task)), tmp_path / "submission.npz"
    form = ["--task", task, "--dialect", "hub"]
    files = words(write_files(tmp_path, task))
    assert main(["leaderboard", "build", *files, "--out", str(out), *data, *form]) == 0
    assert main(["leaderboard", "check", str(out), *data, *form]) == 0
    assert "is a sound" in capsys.readouterr().out
    assert (
        main(["leaderboard", "score", str(out), *data[:4], *form, "--json", str(tmp_path / "score.json")])
        == 0
    )
    found = json.loads((tmp_path / "score.json").read_text())["splits"]
    assert set(found) == {"id", "ood_ads"}
    for split in found:
        assert found[split][metric] == pytest.approx(value, rel=1e-3)
    record = json.loads((tmp_path / "submission.provenance.json").read_text())
    assert record["splits"]["ood_cat"]["made_by"] == {"who": "a test"}
    assert len(record["submission"]["sha256"]) == 64
    assert record["versions"]["ocpgem"]


def test_scores_of_the_first_host_include_its_rounding(sets: dict[str, Path], tmp_path: Path) -> None:
    files, out = words(write_files(tmp_path, "s2ef")), tmp_path / "s.npz"
    assert main(["leaderboard", "build", *files, "--out", str(out)]) == 0
    data = data_options(named(sets, "s2ef"))
    assert main(["leaderboard", "score", str(out), *data, "--json", str(tmp_path / "score.json")]) == 0
    found = json.loads((tmp_path / "score.json").read_text())["splits"]["id"]
    assert found["forces_mae"] == pytest.approx(0.02 / 3, rel=0.05)
    assert found["energy_mae"] == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "id=id.npz", "--out", "s.npz"], 2, "ood_ads, ood_cat, ood_both missing"),
        (["build", "id.npz", "--out", "s.npz"], 2, "names no split"),
        (["build", "id=id.npz", "id=id.npz", "--out", "s.npz"], 2, "named twice"),
        (["build", "id=id.npz", "--out", "s.txt"], 2, "ending in .npz"),
        (["check", "nowhere.npz"], 2, "nowhere.npz does not exist"),
        (["check", "id.npz", "--data", "test=."], 2, "there is no split test"),
        (["score", "id.npz"], 2, "say with --data"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    sets: dict[str, Path], tmp_path: Path, arguments: list[str], code: int, message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_files(tmp_path, "s2ef")
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("test=.", f"test={sets['id']}") for word in arguments]
    assert main(["leaderboard", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("s.*"))


def test_faults_stop_a_build_and_are_printed_by_a_check(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files(tmp_path, "s2ef")
    files["id"], files["ood_cat"] = files["ood_cat"], files["id"]
    out = tmp_path / "s.npz"
    data = data_options(named(sets, "s2ef"))
    assert main(["leaderboard", "build", *words(files), "--out", str(out), *data]) == 1
    assert "nothing is written: id: 7 of 7 ids are missing" in capsys.readouterr().err
    assert not out.exists()
    assert main(["leaderboard", "build", *words(files), "--out", str(out)]) == 0
    assert main(["leaderboard", "check", str(out), *data]) == 1
    shown = capsys.readouterr()
    assert "fault: id: 7 ids belong to the split ood_cat" in shown.out
    assert "has 4 faults" in shown.err


def test_a_damaged_record_of_where_predictions_come_from_stops_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, out = write_files(tmp_path, "s2ef"), tmp_path / "s.npz"
    with np.load(files["ood_both"]) as file:
        content = dict(file)
    np.savez(files["ood_both"], **(content | {"provenance": np.array("{")}))
    assert main(["leaderboard", "build", *words(files), "--out", str(out)]) == 1
    assert f"{files['ood_both']} cannot be read as a prediction file" in capsys.readouterr().err
    assert not list(tmp_path.glob("s.*"))


def test_a_file_without_forces_is_no_s2ef_prediction(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no forces, which s2ef needs"):
        build_submission(write_files(tmp_path, "is2re"), Format("s2ef"))
    with pytest.raises(DataError, match="has no pos, which is2rs needs; make it with relax"):
        build_submission(write_files(tmp_path, "is2re"), Format("is2rs"))


def test_a_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    files = write_files(tmp_path, "s2ef")
    broken = predicted(systems_of("id", 3), "s2ef").columns()
    broken["energy"][2] = np.nan
    write_predictions(PredictionSet(**broken), files["id"], "raw")
    with pytest.raises(DataError, match="energy holds 1 values that are NaN"):
        build_submission(files, Format("s2ef"))
