"""Model files: complete, exact, and unable to run code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.checkpoint import MODEL_FILE, find_model_file, load_potential, read_model_file, save_potential
from ocpgem.errors import CheckpointError, RequestError
from tests.structures import energy_and_forces, random_slabs, small_potential
from tests.tiny_runs import listing


@pytest.mark.parametrize("variant", ["gemnet_T", "gemnet_dT"])
def test_a_model_comes_back_bit_for_bit(variant: str, tmp_path: Path) -> None:
    potential = small_potential(variant, torch.float32).train()
    save_potential(potential, tmp_path / "model.pt", {"step": 7, "forces_mae": 0.5})
    assert listing(tmp_path) == {"model.pt"}
    loaded = load_potential(tmp_path / "model.pt")
    assert not loaded.training
    assert loaded.config == potential.config
    assert loaded.normalization == potential.normalization
    state, expected = loaded.state_dict(), potential.state_dict()
    assert list(state) == list(expected)
    assert any(key.endswith(".factor") for key in state)  # scale factors travel with the model
    assert all(torch.equal(state[key], expected[key]) for key in state)
    slabs = random_slabs(dtype=torch.float32)
    for ours, theirs in zip(
        energy_and_forces(loaded, slabs), energy_and_forces(potential.eval(), slabs), strict=True
    ):
        assert torch.equal(ours.detach(), theirs.detach())
    assert read_model_file(tmp_path / "model.pt")["extra"] == {"step": 7, "forces_mae": 0.5}


class Hostile:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(how: str, tmp_path: Path) -> None:
    witness, file = tmp_path / "witness", tmp_path / "model.pt"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Hostile(witness)))
    elif how == "torch":
        torch.save(Hostile(witness), file)
    else:
        save_potential(small_potential("gemnet_dT"), file)
        torch.save(read_model_file(file) | {"extra": {"note": Hostile(witness)}}, file)
    reason = "cannot be read as a model file" if how == "pickle" else "is refused and nothing in it was run"
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_potential(file)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice would run it"
    assert not witness.exists()


def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    save_potential(small_potential("gemnet_dT"), good)
    content = read_model_file(good)
    other_state = {**content["state_dict"], "model.surplus": torch.zeros(1)}
    cases: list[tuple[object, str]] = [
        (b"", "cannot be read as a model file"),
        (b"energy\0forces\n1,2\n", "cannot be read as a model file"),
        (good.read_bytes()[:-200], "cannot be read as a model file"),
        ({"state_dict": {}}, "is not a model file of ocpgem"),
        ([1, 2], "is not a model file of ocpgem"),
        (content | {"version": 99}, "has version 99"),
        ({"format": content["format"]}, "has version None"),
        ({key: content[key] for key in ("format", "version", "model")}, "lacks normalization, state_dict"),
        (content | {"state_dict": other_state}, r"1 tensors are unknown to the model \(model\.surplus\)$"),
        (
            content | {"state_dict": {}},
            rf"{len(content['state_dict'])} tensors are missing \((\S+, ){{3}}\.\.\.\)$",
        ),
    ]
    for case, message in cases:
        if isinstance(case, bytes):
            bad.write_bytes(case)
        else:
            torch.save(case, bad)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_potential(bad)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)


def test_a_run_directory_means_its_best_else_its_latest_model(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no model"):
        find_model_file(tmp_path)
    with pytest.raises(RequestError, match="does not exist"):
        find_model_file(tmp_path / "nowhere")
    latest = tmp_path / "checkpoints" / "8"
    latest.mkdir(parents=True)
    (latest / MODEL_FILE).touch()
    (tmp_path / "checkpoints" / "latest").write_text("8")
    assert find_model_file(tmp_path) == latest / MODEL_FILE
    assert find_model_file(latest) == latest / MODEL_FILE
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / MODEL_FILE).touch()
    assert find_model_file(tmp_path) == tmp_path / "best" / MODEL_FILE
    assert find_model_file(tmp_path / "best" / MODEL_FILE) == tmp_path / "best" / MODEL_FILE


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    potential = small_potential("gemnet_dT")
    save_potential(potential, tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_potential(potential, tmp_path / "model.pt", {"lambda": lambda: None})
    assert (tmp_path / "model.pt").read_bytes() == before
    assert listing(tmp_path) == {"model.pt"}
