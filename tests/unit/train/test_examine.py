"""Every mistake that shows without computing is found before anything is computed, and all are told at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocpgem.checkpoint import save_potential
from ocpgem.errors import RequestError
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel import group
from ocpgem.train import loggers, run
from ocpgem.train.config import TrainConfig
from ocpgem.train.examine import examine
from tests.tiny_runs import tiny_config, write_tiny_data


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, a model, and what is neither."""
    write_tiny_data(tmp_path)
    save_potential(Potential(tiny_config().model, Normalization()), tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.lmdb").touch()
    (tmp_path / "zero.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(n_ranks: int | None = 1, begun: bool = False, **changes: Any) -> list[str]:
    return [str(each) for each in examine(config(**changes), n_ranks, begun).mistakes]


def config(**changes: Any) -> TrainConfig:
    return tiny_config("train", "val", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": "empty"}}, "empty"),
        ({"data": {"train": "zero.lmdb"}}, "zero.lmdb"),
        ({"data": {"val": {"v": "nowhere"}}}, "data: nowhere does not exist"),
        ({"data": {"stored_edges": True, "val": {}}}, "train has no stored edges for the model's graph"),
        ({"parallel": {"graph": 3}}, "parallel.graph is 3, but there are 4 ranks"),
        ({"data": {"batch_size": 3}}, "data.batch_size is 3 systems over all ranks, fewer than the 4 ranks"),
        ({"optim": {"groups": [{"parameters": ["nothing"]}]}}, "optim.groups.0.parameters names 'nothing'"),
        ({"optim": {"no_decay": ["xyz"]}}, "optim.no_decay names 'xyz'"),
        ({"start_from": {"checkpoint": "empty"}}, "start_from.checkpoint: empty holds no model"),
        ({"start_from": {"checkpoint": "zero.json"}}, "start_from.checkpoint: zero.json"),
        (
            {"start_from": {"checkpoint": "model.pt"}, "model": {"atom_dim": 12}},
            "start_from.checkpoint: model.",
        ),
        ({"start_from": {"checkpoint": "model.pt"}, "model": {"n_blocks": 2}}, "is missing in model.pt"),
        ({"normalization": {"file": "zero.json"}}, "zero.json"),
        ({"normalization": {"energy_file": "zero.json", "fit": True}}, "zero.json"),
        ({"scale_factors": {"file": "zero.json"}}, "scale_factors.file: zero.json"),
        ({"loggers": {"wandb": {"project": "x"}}}, "the package wandb is not installed"),
    ],
)
def test_a_mistake_is_found_without_computing(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    (found,) = told(4, **changes)
    assert message in found


def test_what_is_right_has_no_mistakes(place: Path) -> None:
    found = examine(config(start_from={"checkpoint": "model.pt"}), 4)
    assert found.mistakes == []
    data = found.require()
    assert (len(data.training_set), list(data.val)) == (11, ["val"])
    assert told(None, data={"batch_size": 1}, parallel={"graph": 3}) == [], "only with a number of ranks"


def test_packages_of_another_python_are_not_looked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    wandb = config(loggers={"wandb": {"project": "x"}})
    assert len(examine(wandb, 4).mistakes) == 1
    assert examine(wandb, 4, other_python=True).mistakes == []


def test_groups_that_share_edges_need_a_system_each_and_not_every_rank(place: Path) -> None:
    assert told(8, data={"batch_size": 4}, parallel={"graph": 2}) == []


def test_a_schedule_that_a_run_does_not_reach_is_told(place: Path) -> None:
    def notes(**schedule: Any) -> list[str]:
        return examine(config(optim={"lr": 1e-3, "schedule": schedule}, steps=4), 1).notes

    assert notes(name="cosine", warmup_steps=1000) == [
        "optim.schedule.warmup_steps is 1,000 and the run has 4 steps: it ends in the warm-up, at a learning rate of "
        "4e-06 instead of 0.001"
    ]
    assert notes(name="step", milestones=[3, 4, 2000]) == [
        "optim.schedule.milestones: the run has 4 steps, so the learning rate does not fall at 4, 2,000"
    ]
    assert notes(name="cosine", warmup_steps=3) == notes(name="step", milestones=[3]) == []


def test_every_mistake_is_told_at_once(place: Path) -> None:
    wrong = config(
        data={"train": ["empty", "zero.lmdb"]},
        optim={"no_decay": ["xyz"]},
        start_from={"checkpoint": "nowhere"},
        scale_factors={"file": "zero.json"},
    )
    with pytest.raises(RequestError) as caught:
        examine(wrong, 5).require()
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 mistakes:"
    for part in (
        "empty holds no data set",
        "zero.lmdb",
        "xyz",
        "nowhere does not exist",
        "zero.json",
        "than the 5 ranks",
    ):
        assert sum(part in line for line in lines) == 1, (part, lines)


def test_a_run_that_goes_on_does_not_need_what_it_began_with(place: Path) -> None:
    gone = {"start_from": {"checkpoint": "nowhere"}, "scale_factors": {"file": "gone.json"}}
    assert len(told(**gone)) == 2
    assert told(begun=True, **gone) == []
    assert told(begun=True, data={"train": "nowhere"}) == ["data: nowhere does not exist"]


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one sets the variables of a rank."""
    for name in group.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    group.shutdown()


@pytest.mark.usefixtures("_alone")
def test_training_is_refused_before_anything_is_fitted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: object) -> None:
        raise AssertionError("something is computed")

    monkeypatch.setattr(run, "fit_targets", fit)
    other = {"start_from": {"checkpoint": "model.pt"}, "normalization": {"fit": True}}
    with pytest.raises(RequestError, match="2 mistakes") as caught:
        run.train(config(**other, model={"atom_dim": 12}, optim={"no_decay": ["xyz"]}), place / "run")
    assert "in model.pt" in str(caught.value)
    assert not (place / "run").exists()
