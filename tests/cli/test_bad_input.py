"""Bad input: one sentence that names the file, record or key, exit code 1 or 2, nothing half-written left behind."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import yaml

from ocpgem.checkpoint import save_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.system import System
from ocpgem.models.potential import Normalization, Potential
from tests.tiny_runs import (
    ROOT,
    clean_environment,
    listing,
    random_system,
    random_systems,
    run_main,
    tiny_config,
    tiny_settings,
    write_settings,
    write_tiny_data,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good data, a good configuration and a model; the programs run in it."""
    folder = tmp_path_factory.mktemp("bad-input")
    write_tiny_data(folder)
    write_settings(folder / "good.yml", tiny_settings("train", "val", steps=2))
    save_potential(Potential(tiny_config().model, Normalization()), folder / "model.pt")
    return folder


Case = tuple[list[object], int, tuple[str, ...]]


def case(words: list[object], code: int, *message: str) -> Case:
    """A command, its exit code, and what its one sentence must contain."""
    return words, code, message


def check(place: Path, folder: Path, cases: list[Case], **options: Any) -> None:
    """Run each command in its own process (forked from one that has done the imports) and hold it to the promise."""
    before = listing(place)
    (folder / "commands.json").write_text(
        json.dumps([[str(word) for word in words] for words, _, _ in cases])
    )
    driver = [sys.executable, str(Path(__file__).with_name("many_commands.py")), str(folder)]
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    subprocess.run(driver, cwd=place, env=environment, check=True, timeout=120, **options)
    codes = json.loads((folder / "codes.json").read_text())
    for number, (words, code, message) in enumerate(cases):
        error = (folder / f"{number}.err").read_text()
        shown = f"{words}\n{(folder / f'{number}.out').read_text()}\n{error}"
        assert codes[number] == code, shown
        assert error.startswith("error: "), shown
        assert error.count("\n") == 1, shown
        assert "Traceback" not in shown
        for part in message:
            assert part in error, shown
    assert listing(place) == before


def train(*overrides: str) -> list[object]:
    return ["train", "good.yml", *overrides, "--run-dir", "new"]


def test_a_path_that_is_not_there(place: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    cases = [
        case(train("data.train=nowhere"), 2, "nowhere does not exist"),
        case(train(f"data.train={nothing}"), 2, f"{nothing} holds no data set"),
        case(["evaluate", "model.pt", "--data", nothing], 2, f"{nothing} holds no data set"),
        case(["train", "nowhere.yml", "--run-dir", "new"], 2, "nowhere.yml: there is no such file"),
        case(["evaluate", "nowhere", "--data", "val"], 2, "nowhere does not exist"),
        case(["predict", "model.pt", "--data", "nowhere", "--out", "new.npz"], 2, "nowhere does not exist"),
        case(["report", "nowhere"], 2, "nowhere does not exist"),
        case(
            ["config", "check", "good.yml", "data.val.val=gone"], 2, "good.yml", "do not exist: gone (data)"
        ),
        case(
            ["config", "check", "good.yml", "start_from.checkpoint=gone"], 2, "gone (start_from.checkpoint)"
        ),
        case(["fit-scales", "good.yml", "--out", "no/where.json"], 2, "no is not a folder"),
        case(["train", "good.yml", "--run-dir", "good.yml"], 2, "good.yml is a file"),
        case(["train", "good.yml", "--run-dir", "good.yml/run"], 1, "good.yml", "ot a directory"),
        case(["train", "good.yml", "--run-dir", "train"], 2, "train is not empty and holds no run"),
    ]
    check(place, tmp_path, cases)


def test_a_configuration_is_checked_with_the_files_that_it_names(place: Path, tmp_path: Path) -> None:
    empty, zero, text = tmp_path / "empty", tmp_path / "zero.lmdb", tmp_path / "zero.json"
    empty.mkdir()
    for file in (zero, text):
        file.touch()
    wrong = {
        f"data.train={empty}": str(empty),
        f"data.train={zero}": str(zero),
        f"scale_factors.file={text}": "scale_factors.file: ",
        f"normalization={{file: {text}}}": str(text),
        f"start_from.checkpoint={empty}": "start_from.checkpoint: ",
        "optim.groups=[{parameters: [nothing]}]": "optim.groups.0.parameters names 'nothing'",
        "optim.no_decay=[xyz]": "optim.no_decay names 'xyz'",
    }
    cases: list[Case] = []
    for override, message in wrong.items():
        code = 1 if str(zero) in override else 2  # a damaged file, and else a wrong request
        cases.append(case(["config", "check", "good.yml", override], code, message))
    cases.append(case(["train", "good.yml", "optim.no_decay=[xyz]", "--dry-run"], 2, "names 'xyz'"))
    check(place, tmp_path, cases)


def _give_up_reading_everything() -> None:
    """Drop root's right to use files without permission, so that modes count for it as well."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_path_that_may_not_be_read_or_written(place: Path, tmp_path: Path) -> None:
    secret, locked, model = tmp_path / "secret.yml", tmp_path / "locked", tmp_path / "model.pt"
    shutil.copy(place / "good.yml", secret)
    shutil.copy(place / "model.pt", model)
    shutil.copytree(place / "train", locked)
    cases = [
        case(["train", secret, "--run-dir", "new"], 2, "secret.yml"),
        case(train(f"data.train={locked}"), 1, "locked", "ermission"),
        case(["evaluate", model, "--data", "val"], 1, "model.pt", "ermission"),
        case(["train", "good.yml", "--run-dir", locked / "run"], 1, "locked", "ermission"),
    ]
    for path in (secret, locked, model):
        path.chmod(0)
    try:
        check(place, tmp_path, cases, preexec_fn=_give_up_reading_everything)
    finally:
        locked.chmod(0o755)


def test_a_data_set_that_is_foreign_or_damaged(place: Path, tmp_path: Path) -> None:
    foreign, text, empty = (tmp_path / f"{name}.lmdb" for name in ("foreign", "text", "empty"))
    empty.touch()
    with (
        lmdb.open(str(foreign), subdir=False, lock=False) as environment,
        environment.begin(write=True) as put,
    ):
        put.put(b"0", b"pickled")
    text.write_text("not an LMDB at all\n" * 1000)

    truncated, damaged = tmp_path / "truncated", tmp_path / "damaged"
    shutil.copytree(place / "train", truncated)
    cut = truncated / "data.0000.lmdb"
    cut.write_bytes(cut.read_bytes()[:-5000])
    shutil.copytree(place / "val", damaged)
    flipped = damaged / "data.0000.lmdb"
    content = bytearray(flipped.read_bytes())
    for found in re.finditer(b"OGEM", bytes(content)):
        content[found.start() + 60] ^= 1
    flipped.write_bytes(content)

    cases = [
        case(train(f"data.train={foreign}"), 1, f"{foreign} is an LMDB of another kind"),
        case(train(f"data.train={text}"), 1, f"{text} cannot be opened as an LMDB"),
        case(train(f"data.train={empty}"), 1, f"{empty} is empty (0 bytes)"),
        case(train(f"data.train={truncated}"), 1, f"{cut} has", "copy or make it anew"),
        case(["evaluate", "model.pt", "--data", cut], 1, f"{cut} is truncated"),
        case(["evaluate", "model.pt", "--data", damaged], 1, f"{flipped}, record", "checksum does not match"),
        case(train(f"data.train={damaged}"), 1, f"{flipped}, record", "checksum does not match"),
    ]
    check(place, tmp_path, cases)


def test_a_system_that_no_model_can_use(place: Path, tmp_path: Path) -> None:
    from ase.io import write

    atoms = [system.to_atoms() for system in random_systems(5)]
    atoms[3].calc.results["energy"] = float("nan")
    write(tmp_path / "nan.extxyz", atoms)
    rng = np.random.default_rng(0)
    heavy = random_system(rng, 8)
    heavy.atomic_numbers[1] = 92
    lonely = System(
        pos=np.zeros((1, 3), dtype=np.float32),
        cell=np.eye(3, dtype=np.float32) * 30,
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=np.array([29], dtype=np.uint8),
        tags=np.ones(1, dtype=np.uint8),
        fixed=np.zeros(1, dtype=bool),
        energy=1.0,
        forces=np.ones((1, 3), dtype=np.float32),
        sid=9,
    )
    for name, system in (("heavy", heavy), ("lonely", lonely)):
        write_dataset(tmp_path / name, [*random_systems(3), system])
    nan = f"data.train={tmp_path / 'nan.extxyz'}"
    too_heavy = ("sid 8, frame 2", "heavy", "record 3", "atomic number 92 is outside 1 to 83")
    alone = ("sid 9, frame 0", "lonely", "record 3", "no two of its 1 atoms are within 4.0 A")
    cases = [
        case(train(nan), 1, "sid 3, frame 0", "nan.extxyz, record 3", "energy", "not finite"),
        case(["evaluate", "model.pt", "--data", tmp_path / "heavy"], 1, *too_heavy),
        case(train(f"data.train={tmp_path / 'heavy'}"), 1, *too_heavy),
        case(train(f"data.train={tmp_path / 'lonely'}"), 1, *alone),
        case(["predict", "model.pt", "--data", tmp_path / "lonely", "--out", "new.npz"], 1, *alone),
        case(train("data.max_edges=5"), 2, "train, record", "sid", "edges, more than max_edges 5"),
        case(["evaluate", "model.pt", "--data", "val", "--max-edges", "5"], 2, "val, record", "max_edges 5"),
    ]
    check(place, tmp_path, cases)


def test_every_mistake_of_a_configuration_is_told_at_once(place: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((place / "good.yml").read_text())
    settings["optim"] = {"learning_rate": 1e-3, "lr": "fast", "weight_decay": -1}
    settings["stepps"] = 5
    file = write_settings(tmp_path / "bad.yml", settings)
    before = listing(place)
    done = run_main("train", file, "data.batch_size=0", "--run-dir", "new", cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    for key in ("optim.learning_rate", "optim.lr", "optim.weight_decay", "stepps", "data.batch_size"):
        assert any(key in line for line in lines), (key, done.stderr)
    assert listing(place) == before


def test_a_folder_without_a_model_and_a_file_that_is_none(place: Path, tmp_path: Path) -> None:
    surplus, broken, damaged = (tmp_path / name for name in ("surplus.json", "broken.json", "damaged.pt"))
    damaged.write_bytes(b"\0" + (place / "model.pt").read_bytes()[1:])
    surplus.write_text(json.dumps({"model.surplus": 1.0}))
    broken.write_text("[")
    cases = [
        case(["evaluate", "train", "--data", "val"], 2, "train holds no model"),
        case(["evaluate", "model.pt"], 2, "say with --data what to score it on"),
        case(["evaluate", "good.yml", "--data", "val"], 2, "good.yml is text, not a checkpoint"),
        case(train("start_from.checkpoint=good.yml"), 2, "good.yml is text, not a checkpoint"),
        case(["evaluate", damaged, "--data", "val"], 1, f"{damaged} cannot be read as a model file"),
        case(train(f"scale_factors.file={surplus}"), 2, "does not fit the model", "model.surplus"),
        case(train(f"scale_factors.file={broken}"), 2, "broken.json"),
    ]
    check(place, tmp_path, cases)
