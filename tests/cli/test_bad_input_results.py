"""Bad input to the commands that read results, runs and jobs: one sentence, exit code 1 or 2, nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ocpgem.checkpoint import save_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.evaluate.leaderboard.format import SPLITS
from ocpgem.evaluate.prediction_set import PredictionSet, write_predictions
from ocpgem.models.potential import Normalization, Potential
from tests.cli.test_bad_input import Case, case, check
from tests.tiny_runs import random_systems, tiny_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, predictions of four splits, a run, and wrong things of every kind."""
    folder = tmp_path_factory.mktemp("bad-results")
    save_potential(Potential(tiny_config().model, Normalization()), folder / "model.pt")
    for number, split in enumerate(SPLITS):
        systems = list(random_systems(5, number))
        for system in systems:
            system.sid += 100 * number
        write_dataset(folder / f"data_{split}", systems)
        predictions = PredictionSet(
            sid=np.array([each.sid for each in systems]),
            fid=np.array([each.fid for each in systems]),
            natoms=np.array([each.n_atoms for each in systems]),
            energy=np.zeros(5),
            fixed=np.concatenate([each.fixed for each in systems]),
            atomic_numbers=np.concatenate([each.atomic_numbers for each in systems]),
            forces=np.concatenate([each.forces for each in systems]),
        )
        write_predictions(predictions, folder / f"{split}.npz", "raw")
    (folder / "empty.npz").touch()
    (folder / "text.npz").write_text("energies, forces\n" * 100)
    whole = (folder / "id.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(folder / "single.npy", np.zeros(3))
    (folder / "single.npy").rename(folder / "single.npz")
    np.savez(folder / "other.npz", surprise=np.zeros(3))
    np.savez(folder / "scalar.npz", **dict(np.load(folder / "id.npz")) | {"energy": np.array(1.0)})
    (folder / "folder.npz").mkdir()
    (folder / "folder").mkdir()
    for name in ("good_run", "empty_run", "broken_run"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("seed: 0\n")
    record = {"kind": "train", "step": 1, "loss": 1.0}
    (folder / "good_run" / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "empty_run" / "metrics.jsonl").touch()
    (folder / "broken_run" / "metrics.jsonl").write_text("no record\n" + json.dumps(record) + "\n")
    shutil.copytree(folder / "good_run", folder / "unset_run")
    (folder / "unset_run" / "config.yaml").write_text("[")
    for name, text in (("broken_job", "{"), ("foreign_job", '{"elements": 3}'), ("empty_job", "")):
        (folder / name / "jobs" / "001").mkdir(parents=True)
        (folder / name / "jobs" / "001" / "request.json").write_text(text)
    for name, text in (("broken_link", "{"), ("dangling_link", '{"folder": "gone", "index": 0}')):
        (folder / name / "jobs" / "001").mkdir(parents=True)
        (folder / name / "jobs" / "001" / "element.json").write_text(text)
    return folder


def test_jobs_logs_and_cancel(place: Path, tmp_path: Path) -> None:
    told = {
        "gone": "gone does not exist",
        "model.pt": "model.pt",
        "folder": "nothing was submitted for it",
        "broken_job": "broken_job/jobs/001/request.json is not what submit writes",
        "foreign_job": "foreign_job/jobs/001/request.json is not what submit writes",
        "empty_job": "empty_job/jobs/001/request.json is not what submit writes",
        "broken_link": "broken_link/jobs/001/element.json is not what submit writes",
        "dangling_link": "gone holds no request.json",
    }
    check(
        place,
        tmp_path,
        [
            case([command, run], 2, text)
            for command in ("jobs", "logs", "cancel")
            for run, text in told.items()
        ],
    )


def test_compare_and_report(place: Path, tmp_path: Path) -> None:
    cases = [
        case(["compare", "good_run", "gone"], 2, "gone"),
        case(["compare", "good_run", "model.pt"], 2, "model.pt"),
        case(["compare", "good_run"], 2, "at least two"),
        case(["compare", "good_run", "folder"], 2, "folder has no config.yaml"),
        case(["compare", "good_run", "empty_run"], 1, "empty_run/metrics.jsonl holds no records"),
        case(["compare", "good_run", "broken_run"], 1, "broken_run/metrics.jsonl, line 1 is not a record"),
        case(["compare", "good_run", "unset_run"], 2, "unset_run/config.yaml"),
        case(["compare", "good_run", "broken_run", "--out", "c.pdf"], 2, "must end in .png"),
        case(["compare", "good_run", "broken_run", "--out", "gone/c.png"], 2, "gone is not a folder"),
        case(["report", "folder"], 2, "folder has no metrics.jsonl"),
        case(["report", "model.pt"], 2, "model.pt"),
        case(["report", "empty_run"], 1, "holds no records"),
        case(["report", "broken_run"], 1, "line 1 is not a record"),
    ]
    check(place, tmp_path, cases)


def build(**files: str) -> list[object]:
    pairs = {split: f"{split}.npz" for split in SPLITS} | files
    return ["leaderboard", "build", *(f"{split}={path}" for split, path in pairs.items()), "--out", "new.npz"]


WRONG_FILES = {"gone.npz": 2, "folder.npz": 2} | dict.fromkeys(
    ("empty.npz", "text.npz", "cut.npz", "single.npz", "other.npz"), 1
)
"""With the exit code: 2 where no file is named, 1 where its content is wrong."""


@pytest.mark.parametrize("split", ["id", "ood_both"])
def test_leaderboard_build_of_a_wrong_file(place: Path, tmp_path: Path, split: str) -> None:
    codes = WRONG_FILES | {"scalar.npz": 1}
    cases = [case(build(**{split: name}), code, name) for name, code in codes.items()]
    check(place, tmp_path, cases)


def test_leaderboard_check_and_score_of_a_wrong_file(place: Path, tmp_path: Path) -> None:
    data = ["--data", "id=data_id"]
    cases: list[Case] = []
    for name, code in WRONG_FILES.items():
        cases.append(case(["leaderboard", "check", name, *data], code, name))
        cases.append(case(["leaderboard", "score", name, *data, "--json", "new.json"], code, name))
    check(place, tmp_path, cases)


def test_leaderboard_of_data_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    cases = [
        case([*build(), "--data", "id=gone"], 2, "gone does not exist"),
        case([*build(), "--data", "id=folder"], 2, "folder holds no data set"),
        case([*build(), "--data", "test=data_id"], 2, "there is no split test"),
        case([*build(), "--data", "id=data_ood_cat"], 1, "nothing is written: id: 5 of 5 ids are missing"),
        case([*build(id="ood_cat.npz"), "--data", "id=data_id"], 1, "5 of 5 ids are missing"),
        case(
            ["leaderboard", "build", "id=id.npz", "--out", "new.npz"], 2, "ood_ads, ood_cat, ood_both missing"
        ),
        case([*build()[:-1], "gone/new.npz"], 2, "gone is not a folder"),
        case([*build()[:-1], "folder.npz"], 2, "folder.npz is a folder"),
        case(["leaderboard", "score", "id.npz", "--data", "id=data_id"], 1, "id.npz cannot be scored"),
        case(["leaderboard", "score", "id.npz", "--data", "data_id"], 2, "names no split"),
    ]
    check(place, tmp_path, cases)


def test_predict_evaluate_and_relax(place: Path, tmp_path: Path) -> None:
    cases: list[Case] = []
    for command, out in (("predict", "new.npz"), ("relax", "new")):
        words = [command, "model.pt", "--data", "data_id", "--out"]
        cases += [
            case([command, "gone.pt", "--data", "data_id", "--out", out], 2, "gone.pt"),
            case([command, "folder", "--data", "data_id", "--out", out], 2, "folder holds no model"),
            case([command, "empty.npz", "--data", "data_id", "--out", out], 1, "empty.npz cannot be read"),
            case([command, "model.pt", "--data", "gone", "--out", out], 2, "gone does not exist"),
            case([command, "model.pt", "--data", "folder", "--out", out], 2, "folder holds no data set"),
            case([command, "model.pt", "--data", "text.npz", "--out", out], 2, "text.npz is an archive"),
            case([*words, out, "--ensemble", "gone.pt"], 2, "gone.pt"),
            case([*words, out, "--forces-from", "text.npz"], 2, "text.npz is text, not a checkpoint"),
            case([*words, "model.pt/new.npz"], 2 if command == "predict" else 1, "model.pt"),
        ]
    evaluate = ["evaluate", "model.pt", "--data", "data_id"]
    cases += [
        case(
            ["predict", "model.pt", "--data", "data_id", "--out", "folder.npz"], 2, "folder.npz is a folder"
        ),
        case(["predict", "model.pt", "--data", "data_id", "--out", "new.txt"], 2, "ending in .npz"),
        case(["relax", "model.pt", "--data", "data_id", "--out", "model.pt"], 2, "model.pt"),
        case(["evaluate", "model.pt", "--data", "data_id", "--json", "folder"], 2, "folder is a folder"),
        case(["evaluate", "model.pt", "--data", "empty.npz"], 2, "empty.npz is an archive"),
        case([*evaluate, "--json", "new", "--csv", "./new"], 2, "new is named for two outputs"),
        case([*evaluate, "--markdown", "new", "--json", "folder/../new"], 2, "new is named for two outputs"),
    ]
    check(place, tmp_path, cases)
