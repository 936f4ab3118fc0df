"""Checkpoints of a run: complete or absent, the newest ones kept, damage noticed."""

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.checkpoint import load_potential
from ocpgem.errors import CheckpointError
from ocpgem.train.checkpoint_files import Retention
from ocpgem.train.random_state import random_state, set_random_state
from ocpgem.train.state import STATE_FILE, Checkpoints, TrainState
from tests.unit.train.engine_run import Run, same

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def run() -> Run:
    run = Run()
    run.train(0, 2)
    return run


def checkpoints_in(folder: Path, newest: int = 2, **rules: Any) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", Retention(newest, **rules))


def write(checkpoints: Checkpoints, run: Run, state: TrainState) -> Path:
    checkpoints.save(state, run.engine, run.ema)
    checkpoints.finish()
    assert checkpoints.problem() is None
    assert checkpoints.last_good is not None
    return checkpoints.last_good


def kept(checkpoints: Checkpoints) -> set[str]:
    return {path.name for path in checkpoints.folder.iterdir()}


@pytest.mark.parametrize(("stage", "other_stage"), [(1, 1), (0, 0), (0, 1), (1, 2), (2, 0)])
def test_a_restored_run_takes_the_same_steps_to_the_last_bit(
    tmp_path: Path, stage: int, other_stage: int
) -> None:
    run, checkpoints = Run(stage=stage), checkpoints_in(tmp_path)
    run.train(0, 3)
    saved = TrainState(3, 9, seconds=1.5, best_metric=0.25, best_step=2, n_steps=9, skipped=1)
    folder = write(checkpoints, run, saved)
    random_numbers = random_state()
    expected = (random.random(), torch.rand(3).tolist())
    run.train(3, 6)
    other = Run(seed=1, stage=other_stage)
    assert not same(run.weights(), other.weights())
    assert checkpoints.load(folder, other.engine, other.ema) == saved
    assert (random.random(), torch.rand(3).tolist()) == expected
    set_random_state(random_numbers)
    assert (random.random(), torch.rand(3).tolist()) == expected
    other.train(3, 6)
    if stage == other_stage:
        assert same(run.weights(), other.weights())
        assert same(run.ema.state_dict(), other.ema.state_dict())
        assert same(
            run.engine.state().optimizer.moments["exp_avg_sq"],
            other.engine.state().optimizer.moments["exp_avg_sq"],
        )
        assert run.engine.state().optimizer.numbers == other.engine.state().optimizer.numbers == {"step": 6}
    for name, value in run.weights().items():
        assert torch.allclose(value, other.weights()[name], rtol=1e-5, atol=1e-7), name


def test_a_state_from_before_the_first_step_can_be_restored(tmp_path: Path) -> None:
    run, checkpoints = Run(), checkpoints_in(tmp_path)
    folder = write(checkpoints, run, TrainState(0))
    run.train(0, 2)
    other = Run(seed=1)
    checkpoints.load(folder, other.engine, other.ema)
    other.train(0, 2)
    assert same(run.weights(), other.weights())


def test_the_state_of_another_model_is_refused(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    folder = write(checkpoints, run, TrainState(2))
    other = Run(atom_dim=16)
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        checkpoints.load(folder, other.engine, other.ema)


def test_the_model_in_a_checkpoint_is_the_average_with_its_scale_factors(tmp_path: Path, run: Run) -> None:
    weights = run.weights()
    folder = write(checkpoints_in(tmp_path), run, TrainState(2))
    assert same(run.weights(), weights)
    loaded = load_potential(folder).state_dict()
    for name, value in run.ema.average.items():
        assert torch.equal(loaded[name], value)
        assert not torch.equal(loaded[name], weights[name])
    factors = [name for name in loaded if name.endswith(".factor")]
    assert len(factors) > 3
    assert all(torch.equal(loaded[name], weights[name]) for name in factors)


def test_the_newest_are_kept_and_nothing_half_written(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    assert checkpoints.find() == (None, [])
    for step in (8, 9, 10):  # by number, not by name
        newest = write(checkpoints, run, TrainState(step))
    assert kept(checkpoints) == {"9", "10", "latest"}
    assert {file.name for file in newest.iterdir()} == {"manifest.json", "model.pt", "state.pt"}
    assert checkpoints.find() == (newest, [])
    write(checkpoints, run, TrainState(10))  # writing it again replaces it
    assert checkpoints.find() == (newest, [])


def test_checkpoints_are_also_kept_by_step_by_age_and_for_the_best_validation(
    tmp_path: Path, run: Run
) -> None:
    by_step = checkpoints_in(tmp_path / "a", 1, every_steps=4, best=False)
    by_age = checkpoints_in(tmp_path / "b", 1, younger_than=1.0, best=False)
    by_best = checkpoints_in(tmp_path / "c", 1)
    without_best = checkpoints_in(tmp_path / "d", 1, best=False)
    for step in (2, 4, 6, 8, 9):
        for checkpoints in (by_step, by_age, by_best, without_best):
            checkpoints.folder.parent.mkdir(exist_ok=True)
            folder = write(checkpoints, run, TrainState(step, best_step=min(step, 6)))
            if step == 4:
                os.utime(folder, (time.time() - 3700,) * 2)
    assert kept(by_step) == {"4", "8", "9", "latest"}
    assert kept(by_age) == {"2", "6", "8", "9", "latest"}
    assert kept(by_best) == {"6", "9", "latest"}
    assert kept(without_best) == {"9", "latest"}


def test_what_a_kill_left_half_written_is_ignored_and_overwritten(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    first = write(checkpoints, run, TrainState(2))
    shutil.copytree(first, checkpoints.folder / "4.partial")
    (checkpoints.folder / "4.partial" / STATE_FILE).unlink()
    (checkpoints.folder / "4.partial" / "rubbish").touch()
    assert checkpoints.find() == (first, [])
    second = write(checkpoints, run, TrainState(4))
    assert checkpoints.find() == (second, [])
    assert kept(checkpoints) == {"2", "4", "latest"}
    assert not (second / "rubbish").exists()


class Killed(BaseException):
    """What a kill would be, if a process could look at what it leaves."""


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one_to_go_on_from(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = checkpoints_in(tmp_path)
    write(checkpoints, run, TrainState(4, pending_validation=0.5))
    replace = Path.replace

    def replace_or_die(source: Path, target: Path) -> Path:
        if target.name == "4":
            raise Killed
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_die)
        with pytest.raises(Killed):
            checkpoints._files.write(4, {STATE_FILE: lambda file: file.write(b"new")})
    assert not (checkpoints.folder / "4").exists()
    found, complaints = checkpoints.find()
    assert complaints == []
    assert found is not None
    found = checkpoints.take(found)
    assert found == checkpoints.last_good == checkpoints.folder / "4"
    assert checkpoints.find() == (found, [])
    assert Run().restored_step(checkpoints, found) == 4
    again = write(checkpoints, run, TrainState(4))
    assert checkpoints.find() == (again, [])
    assert kept(checkpoints) == {"4", "latest"}


def test_a_missing_newest_checkpoint_is_told(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    first, second = (write(checkpoints, run, TrainState(step)) for step in (2, 4))
    shutil.rmtree(second)
    assert checkpoints.find() == (first, [f"{second}, the newest checkpoint, is missing"])
    shutil.rmtree(first)
    with pytest.raises(CheckpointError, match="can be used"):
        checkpoints.find()


def test_waiting_for_a_slow_disk_is_a_sign_of_life(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, ticks = checkpoints_in(tmp_path), []
    monkeypatch.setattr(checkpoints, "_write", lambda *_: time.sleep(1.5))
    checkpoints.save(TrainState(2), run.engine, run.ema)
    checkpoints.save(TrainState(4), run.engine, run.ema, lambda: ticks.append(1))
    checkpoints.finish()
    assert ticks


def test_a_complete_checkpoint_is_found_although_the_pointer_did_not_move(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    write(checkpoints, run, TrainState(2))
    newest = write(checkpoints, run, TrainState(4))
    (checkpoints.folder / "latest").unlink()
    assert checkpoints.find() == (newest, [])
    (checkpoints.folder / "latest").write_text("2\n")  # what the pointer names comes first
    assert checkpoints.find() == (newest.with_name("2"), [])


def damages(folder: Path) -> Iterator[str]:
    """Every file of a checkpoint cut short, empty, with one bit turned, and missing; each restored afterwards."""
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        turned = bytearray(whole)
        turned[len(whole) // 3] ^= 1
        for content in (whole[: len(whole) // 2], b"", bytes(turned), None):
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            yield file.name
            file.write_bytes(whole)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_in_one_sentence(
    tmp_path: Path, run: Run
) -> None:
    checkpoints = checkpoints_in(tmp_path)
    good, bad = write(checkpoints, run, TrainState(2)), write(checkpoints, run, TrainState(4))
    n_damages = 0
    for name in damages(bad):
        found, complaints = checkpoints.find()
        assert found == good, name
        assert len(complaints) == 1
        assert complaints[0].startswith(f"{bad} is damaged: ")
        if name != "manifest.json":  # whose damage may look as if it were that of the file it speaks of
            assert f" {name} " in complaints[0]
        assert "\n" not in complaints[0]
        n_damages += 1
    assert n_damages == 12
    assert checkpoints.find() == (bad, [])


def test_where_every_checkpoint_is_damaged_the_error_names_each(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    folders = [write(checkpoints, run, TrainState(step)) for step in (2, 4)]
    for folder in folders:
        (folder / STATE_FILE).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used") as caught:
        checkpoints.find()
    assert all(str(folder) in str(caught.value) for folder in folders)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    write(checkpoints, run, TrainState(2))
    bad = write(checkpoints, run, TrainState(4))
    (bad / STATE_FILE).write_bytes(b"")
    assert checkpoints.find()[0] == checkpoints.folder / "2"
    write(checkpoints, run, TrainState(6))
    assert kept(checkpoints) == {"2", "6", "latest"}


def test_a_resume_file_can_run_nothing(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    folder = write(checkpoints, run, TrainState(2))
    torch.save({"format": "ocpgem-state", "version": 1, "ema": Path("/")}, folder / STATE_FILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / STATE_FILE).read_bytes()
    manifest["files"][STATE_FILE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"state.pt is refused and nothing in it was run"):
        checkpoints.find()


def test_what_is_unfinished_or_of_a_later_step_goes_and_the_newest_stays(run: Run, tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path, 1)
    for name in ("900", "3.partial"):
        (checkpoints.folder / name).mkdir(parents=True)
    newest = write(checkpoints, run, TrainState(step=6))
    assert checkpoints.find() == (newest, [])
    assert kept(checkpoints) == {"6", "latest"}


def test_a_run_whose_folder_has_gone_does_not_begin_another(run: Run, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "gone" / "checkpoints", Retention(2))
    checkpoints.save(TrainState(2), run.engine, run.ema)
    checkpoints.finish()
    assert str(checkpoints.problem()) == (
        f"the checkpoint of step 2 could not be written to {tmp_path}/gone/checkpoints (No such file or directory); "
        "there is none before it"
    )
    assert not (tmp_path / "gone").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that holds one checkpoint, but not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("only root may mount; the same with a limited file size is tested everywhere")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def change_disk(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize(
    ("failing", "mending", "reason"),
    [
        ("size=600k", "size=8m", "No space left on device"),
        ("ro", "rw,size=8m", "Read-only file system"),
    ],
)
def test_a_disk_that_takes_nothing_leaves_the_last_good_checkpoint(
    disk: Path, run: Run, failing: str, mending: str, reason: str
) -> None:
    checkpoints = checkpoints_in(disk)
    good = write(checkpoints, run, TrainState(2))
    change_disk(disk, failing)
    if "ro" not in failing:
        (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
    for _ in range(2):  # again and again
        checkpoints.save(TrainState(4), run.engine, run.ema)
        checkpoints.finish()
        assert str(checkpoints.problem()) == (
            f"the checkpoint of step 4 could not be written to {checkpoints.folder} ({reason}); "
            f"the last good one is {good}"
        )
        assert checkpoints.find() == (good, [])
        assert kept(checkpoints) == {"2", "latest"}
    change_disk(disk, mending)
    assert write(checkpoints, run, TrainState(4)).name == "4"


def test_a_lost_file_system_is_told_and_nothing_is_written_where_it_was(disk: Path, run: Run) -> None:
    (disk / "run").mkdir()
    checkpoints = Checkpoints(disk / "run" / "checkpoints", Retention(2))
    write(checkpoints, run, TrainState(2))
    subprocess.run(["umount", "-l", str(disk)], check=True)
    checkpoints.save(TrainState(4), run.engine, run.ema)
    checkpoints.finish()
    assert "could not be written" in str(checkpoints.problem())
    assert list(disk.iterdir()) == []


def test_a_file_cut_short_by_a_limit_is_no_checkpoint(tmp_path: Path, run: Run) -> None:
    checkpoints = checkpoints_in(tmp_path)
    good = write(checkpoints, run, TrainState(2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (20_000, 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            checkpoints.save(TrainState(4), run.engine, run.ema)
            checkpoints.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "(File too large); the last good one is" in str(checkpoints.problem())
        assert checkpoints.find() == (good, [])
        assert kept(checkpoints) == {"2", "latest"}
