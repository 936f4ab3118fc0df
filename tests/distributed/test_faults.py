"""What may go wrong on one rank: nothing is lost, nothing hangs, and a sentence says what it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.errors import REQUEUE
from tests.distributed.fault_scenarios import BAD_SID, HANG_SECONDS, KINDS, N_STEPS
from tests.distributed.moments import MOMENTS
from tests.distributed.states import final_state, same_state, train_records
from tests.tiny_runs import ROOT, clean_environment

ADVICE = "start the same command again to go on from the last checkpoint"

pytestmark = [
    pytest.mark.slow,  # twenty runs on two ranks
    pytest.mark.timeout(1500),  # all of them happen in the set-up of the first test
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `fault_scenarios`."""
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.fault_scenarios", str(folder)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "told.json").read_text())


def faults(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]


def assert_ended(told: dict[str, Any], code: int, *sentences: str) -> None:
    """A run ended with an exit code and these lines of standard error, and left no process."""
    assert told["code"] == code, told
    assert told["err"].splitlines() == list(sentences)
    assert told["left"] == []


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Two runs have the same losses, weights, averages and moments but for rounding."""
    losses, other_losses = train_records(one), train_records(other)
    assert [step for step, _ in other_losses] == [step for step, _ in losses]
    assert [loss for _, loss in other_losses] == pytest.approx([loss for _, loss in losses], rel=1e-5)
    expected, found = final_state(one, N_STEPS), final_state(other, N_STEPS)
    for key, value in expected.items():
        if key.startswith(("/weights", "/ema", "/optimizer")):
            assert torch.allclose(value.double(), found[key].double(), 10 * tolerance, tolerance), key


def test_without_faults_a_run_ends_well(told: dict[str, Any]) -> None:
    assert_ended(told["whole"], 0)


def test_kills_at_every_kind_of_moment_change_nothing(folder: Path, told: dict[str, Any]) -> None:
    for moment in MOMENTS:
        killed = told[f"kill in {moment}"]
        assert killed["code"] == 137, (moment, killed)
        lines = killed["err"].splitlines()
        assert lines[-1].endswith(
            "was ended by SIGKILL (often because memory ran out); the other ranks were ended as well"
        )
        assert all(line.startswith("error: rank ") and ADVICE in line for line in lines[:-1]), lines
        assert killed["left"] == [], moment
    assert_ended(told["after the kills"], 0)
    assert same_state(folder / "whole", folder / "killed", N_STEPS)
    assert train_records(folder / "whole") == train_records(folder / "killed")


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_killed_run_is_bit_for_bit_the_whole_one_under_zero_3_and_with_the_plateau_schedule(
    folder: Path, told: dict[str, Any], kind: str
) -> None:
    for moment in ("optimiser step", "validation"):
        killed = told[f"{kind} killed in {moment}"]
        assert killed["code"] == 137, killed
        assert killed["left"] == []
    assert "resuming from" in told[f"{kind} killed in validation"]["out"]
    assert_ended(told[f"{kind} after the kills"], 0)
    assert "resuming from" in told[f"{kind} after the kills"]["out"]
    whole, killed_run = folder / f"{kind} whole", folder / f"{kind} killed"
    assert same_state(whole, killed_run, N_STEPS)
    assert train_records(whole) == train_records(killed_run)
    assert (whole / "best" / "metrics.json").read_text() == (killed_run / "best" / "metrics.json").read_text()
    if kind == "plateau":
        rates = [
            [record["lr"] for record in map(json.loads, lines) if record["kind"] == "train"]
            for lines in ((run / "metrics.jsonl").read_text().splitlines() for run in (whole, killed_run))
        ]
        assert rates[0] == rates[1]
        assert rates[0][-1] == pytest.approx(5e-3 / 2**4), "it fell at four validations"


def test_a_run_goes_on_under_zero_3_and_on_more_ranks(folder: Path, told: dict[str, Any]) -> None:
    name = "whole, then zero 3"
    assert_ended(told[name], 0)
    assert "(step 9)" in told[name]["out"]
    assert_close(folder / "whole", folder / name, 1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cannot read", "state.pt is cut short"),
        ("cannot restore", "its optimiser state could not be restored (AssertionError: sizes differ)"),
    ],
)
def test_a_rank_that_cannot_resume_ends_all_with_its_reason(
    folder: Path, told: dict[str, Any], name: str, reason: str
) -> None:
    checkpoint = folder / "whole, then zero 3" / "checkpoints" / "9"
    assert_ended(told[name], 1, f"error: {checkpoint} cannot be resumed from: {reason}")


def test_zero_3_trains_beside_frozen_parameters_as_zero_1_does(folder: Path, told: dict[str, Any]) -> None:
    for name in ("frozen", "zero 3 whole"):
        assert_ended(told[name], 0)
    assert_close(folder / "frozen", folder / "zero 3 whole", 1e-6)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_out_of_memory_on_one_rank_makes_all_split_the_batch_and_go_on(
    folder: Path, told: dict[str, Any], phase: str
) -> None:
    name = f"memory in {phase}"
    assert_ended(told[name], 0)
    assert "ran out of memory with a micro-batch of 2 systems" in told[name]["out"]
    assert "all ranks split the step into 2 times as many micro-batches and go on" in told[name]["out"]
    (fault,) = faults(folder / name)
    assert (fault["trouble"], fault["rank"]) == ("out_of_memory", int(phase == "forward"))
    assert_close(folder / "whole", folder / name, 1e-4)


def test_a_rank_that_raises_ends_all_with_its_sentence_and_keeps_the_traceback(
    folder: Path, told: dict[str, Any]
) -> None:
    for name, when in (("raises in forward", "in step 3"), ("raises in validation", "after step 5")):
        file = folder / name / "faults.jsonl"
        assert_ended(
            told[name],
            1,
            f"error: rank 1 failed {when}: ValueError: something nobody foresaw (details in {file}); {ADVICE}",
        )
        (fault,) = faults(folder / name)
        assert "raise_error" in fault["trace"]
        assert fault["rank"] == 1


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(
    folder: Path, told: dict[str, Any]
) -> None:
    name = "raises in save"
    assert_ended(told[name], 0)
    checkpoints = folder / name / "checkpoints"
    assert (
        f"warning: the checkpoint of step 3 could not be written to {checkpoints} "
        "(ValueError: something nobody foresaw); there is none before it; the run goes on"
    ) in told[name]["out"]
    assert same_state(folder / "whole", folder / name, N_STEPS)


def test_a_loss_that_is_not_finite_names_its_system_and_ends_the_run(
    folder: Path, told: dict[str, Any]
) -> None:
    said = told["not finite"]
    assert said["code"] == 1
    assert said["err"].startswith("error: the loss is not finite at step ")
    assert f"record {BAD_SID} (sid {BAD_SID}, frame {BAD_SID % 3})" in said["err"]
    assert said["err"].count("\n") == 1
    fault = faults(folder / "not finite")[0]
    assert [system["sid"] for system in fault["systems"]] == [BAD_SID]
    assert (fault["trouble"], fault["done"]) == ("not_finite", "stop")


def test_a_loss_that_is_not_finite_ends_the_run_before_overlapping_gradients_are_sent(
    told: dict[str, Any],
) -> None:
    said = told["not finite, overlap"]
    assert said["code"] == 1
    assert said["err"].startswith("error: the loss is not finite at step ")
    assert f"record {BAD_SID} (sid {BAD_SID}, frame {BAD_SID % 3})" in said["err"]
    assert "faults.non_finite=skip to leave such steps out (which needs parallel.overlap=false" in said["err"]
    assert said["left"] == []


def test_steps_that_are_not_finite_are_left_out_up_to_the_limit(folder: Path, told: dict[str, Any]) -> None:
    said = told["skip"]
    assert_ended(said, 0)
    skipped = [line for line in faults(folder / "not finite") if line["done"] == "skipped"]
    assert len(skipped) == 4  # once an epoch of three steps
    assert "the step is left out (4 of at most 4)" in said["out"]
    steps = [step for step, _ in train_records(folder / "not finite")]
    assert steps == [step for step in range(1, N_STEPS + 1) if step not in {line["step"] for line in skipped}]
    often = told["skip too often"]
    assert often["code"] == 1
    assert "2 steps have been left out, the limit" in often["err"]


def test_a_rank_that_hangs_is_named_with_the_place_where_it_is(folder: Path, told: dict[str, Any]) -> None:
    said = told["hang"]
    assert said["code"] in (1, 137)
    assert "error: rank 1 (" in said["err"]
    assert "hangs: nothing has happened for" in said["err"]
    assert said["err"].count("error: ") == 1
    assert said["left"] == []
    assert said["seconds"] > HANG_SECONDS
    stack = (folder / "hang" / "hang-rank1.txt").read_text()
    assert "moments.py" in stack


def test_a_rank_that_is_stopped_from_outside_is_named_by_the_others(told: dict[str, Any]) -> None:
    said = told["stopped"]
    assert said["code"] in (1, 137)
    assert "error: rank 1 is silent for more than" in said["err"]
    assert said["left"] == []


def test_a_signal_ends_a_validation_which_comes_first_when_the_run_goes_on(
    folder: Path, told: dict[str, Any]
) -> None:
    name = "signal in validation"
    assert_ended(told[name], REQUEUE)
    assert told[name]["out"].splitlines()[-1].startswith(f"stopped after step 10 of {N_STEPS} by SIGTERM; ")
    assert_ended(told["after the signal"], 0)
    assert same_state(folder / "whole", folder / name, N_STEPS)
    assert validations(folder / "whole") == validations(folder / name)


def validations(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["forces_mae"]) for record in records if record["kind"] == "val"]


def test_a_full_disk_is_told_and_the_run_goes_on_from_the_last_good_checkpoint_once_there_is_room(
    folder: Path, told: dict[str, Any]
) -> None:
    if "full disk" not in told:
        pytest.skip("only root may mount a small disk")
    said, checkpoints = told["full disk"], folder / "disk" / "run" / "checkpoints"
    problem = f"could not be written to {checkpoints} (No space left on device); the last good one is {checkpoints}/3"
    assert_ended(
        said,
        1,
        f"error: the checkpoint of step {N_STEPS} {problem}; make room there, then start the same command again",
    )
    assert f"warning: the checkpoint of step 6 {problem}; the run goes on" in said["out"]
    assert f"step {N_STEPS}/{N_STEPS}" in said["out"]
    assert "warning: the metrics could not be written (No space left on device)" in said["out"]
    assert_ended(told["disk with room"], 0)
    assert same_state(folder / "whole", folder / "disk with room", N_STEPS)
    assert train_records(folder / "whole") == train_records(folder / "disk with room")
