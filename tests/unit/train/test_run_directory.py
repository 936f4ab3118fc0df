"""The folder of a run."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocpgem.config import load_config
from ocpgem.errors import DataError, RequestError
from ocpgem.train.config import TrainConfig
from ocpgem.train.run_directory import RunDirectory
from tests.tiny_runs import listing, tiny_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has a checkpoint."""
    run = RunDirectory(tmp_path / "run")
    run.prepare(tiny_config(), {"ranks": 1})
    run.checkpoints.mkdir()
    (run.checkpoints / "latest").write_text("4")
    return run


def test_it_holds_a_configuration_that_gives_the_run_again_and_what_it_ran_on(run: RunDirectory) -> None:
    assert load_config(run.path / "config.yaml", [], TrainConfig) == tiny_config()
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["ranks"] == 1
    assert facts["packages"]["torch"]
    assert {"ocpgem", "git_commit", "python", "machine", "command", "started"} <= set(facts)


def test_another_configuration_is_refused_with_the_keys_that_differ(run: RunDirectory) -> None:
    other = tiny_config(
        seed=3,
        data={"batch_size": 5},
        model={"n_blocks": 2},
        optim={"clip_norm": 1e-3, "schedule": {"name": "constant"}},
    )
    before = (run.path / "config.yaml").read_text()
    with pytest.raises(RequestError) as caught:
        run.prepare(other, {})
    message = str(caught.value)
    for key in ("seed", "data.batch_size", "model.n_blocks", "optim.clip_norm", "optim.schedule"):
        assert key in message
    assert "model.atom_dim" not in message
    assert (run.path / "config.yaml").read_text() == before


def test_what_nothing_computed_depends_on_may_change(run: RunDirectory) -> None:
    longer = tiny_config(
        steps=60,
        log_every_steps=1,
        activation_checkpointing=True,
        data={"max_edges": 500},
        optim={"lr": 1e-5},
        validation={"every_steps": 9},
        checkpoint={"every_steps": 2, "keep": 5},
    )
    run.prepare(longer, {})
    assert load_config(run.path / "config.yaml", [], TrainConfig) == longer


def test_a_run_that_has_no_step_left_takes_no_other_learning_rate(run: RunDirectory) -> None:
    (run.checkpoints / "latest").write_text("6")
    with pytest.raises(RequestError, match=r"\(optim\.lr differ\)"):
        run.prepare(tiny_config(optim={"lr": 1e-5}), {})
    run.prepare(tiny_config(steps=7, optim={"lr": 1e-5}), {})


def test_a_run_without_any_result_begins_anew_with_another_configuration(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.prepare(tiny_config(), {})
    (run.path / "preparation.json").write_text("{}")
    run.metrics_file.write_text("{}")
    run.prepare(tiny_config(seed=5), {})
    assert listing(run.path) == {".lock", "config.yaml", "environment.json"}
    assert load_config(run.path / "config.yaml", [], TrainConfig).seed == 5


def test_a_checkpoint_is_a_result_although_its_pointer_was_not_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.prepare(tiny_config(), {})
    (run.checkpoints / "4.partial").mkdir(parents=True)
    run.prepare(tiny_config(seed=5), {})  # what was not finished is no result, and goes
    assert not run.checkpoints.exists()
    (run.checkpoints / "4").mkdir(parents=True)
    with pytest.raises(RequestError, match="seed differ"):
        run.prepare(tiny_config(seed=6), {})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, logger="ocpgem"):
        RunDirectory(tmp_path / "run").prepare(tiny_config(), {})
    (record,) = caplog.records
    assert "has no locks" in record.getMessage()
    assert str(tmp_path / "run") in record.getMessage()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match="is not empty and holds no run"):
        RunDirectory(tmp_path).prepare(tiny_config(), {})
    assert listing(tmp_path) == {"thesis.tex"}
    with pytest.raises(RequestError, match=r"thesis\.tex is a file"):
        RunDirectory(tmp_path / "thesis.tex").prepare(tiny_config(), {})


def test_a_second_process_may_not_train_in_the_same_folder(run: RunDirectory) -> None:
    with pytest.raises(RequestError, match="another process is training"):
        RunDirectory(run.path).prepare(tiny_config(), {})


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    RunDirectory(tmp_path).prepare(tiny_config(), {})
    assert (tmp_path / "config.yaml").is_file()


def test_a_failure_removes_a_folder_made_for_it_and_no_other(tmp_path: Path, run: RunDirectory) -> None:
    new = RunDirectory(tmp_path / "new")
    for each in (new, run):
        each.prepare(tiny_config(), {})
        with pytest.raises(DataError), each.discarded_on_failure():
            raise DataError("record 3 is damaged")
    assert not new.path.exists()
    assert (run.checkpoints / "latest").exists()


def test_metrics_of_steps_that_are_done_again_are_forgotten(run: RunDirectory) -> None:
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.0}) for step in (2, 4, 6, 4)]
    run.metrics_file.write_text("\n".join(lines) + '\n{"kind": "train", "st')
    run.forget_metrics_after(4)
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [2, 4, 4]
    run.forget_metrics_after(0)
    assert run.metrics_file.read_text() == ""
    assert "metrics.jsonl.partial" not in listing(run.path)


def test_only_the_records_of_a_validation_that_is_done_again_are_forgotten(run: RunDirectory) -> None:
    kept = [{"kind": kind, "step": step} for kind, step in (("train", 2), ("val", 2), ("train", 4))]
    records = [*kept, {"kind": "val", "step": 4, "split": "a"}, {"kind": "val", "step": 4, "split": "b"}]
    run.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    run.forget_validation_of(4)
    assert [json.loads(line) for line in run.metrics_file.read_text().splitlines()] == kept


@pytest.fixture
def _handlers_restored() -> Iterator[None]:
    log = logging.getLogger("ocpgem")
    before, level = list(log.handlers), log.level
    yield
    for handler in set(log.handlers) - set(before):
        handler.close()
        log.removeHandler(handler)
    log.setLevel(level)


@pytest.mark.usefixtures("_handlers_restored")
def test_the_log_goes_on_where_it_ended(run: RunDirectory) -> None:
    (run.path / "log.txt").write_text("earlier\n")
    run.open_log()
    logging.getLogger("ocpgem").info("step %d", 4)
    text = (run.path / "log.txt").read_text()
    assert text.startswith("earlier\n")
    assert text.endswith("INFO step 4\n")
