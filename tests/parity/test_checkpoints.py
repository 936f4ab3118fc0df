"""Containers written by the released trainer give the numbers that the released code gave, and go back whole."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ocpgem.checkpoint import load_potential, save_potential
from ocpgem.errors import CheckpointError, RequestError
from ocpgem.models.import_weights.export import export_released
from ocpgem.models.import_weights.released import import_released
from ocpgem.models.potential import Potential
from tests.parity.reference_cases import REFERENCE, ReferenceCase, needs_reference
from tests.structures import topology_of
from tests.unit.models.released_files import equal_weights, same

pytestmark = needs_reference
OLD = REFERENCE / "checkpoints" / "gemnet_t" / "legacy_checkpoint.pt"
NEW = REFERENCE / "checkpoints" / "gemnet_oc" / "best_checkpoint.pt"
CASES = ["fc_gemnet_T", "fc_gemnet_dT", "fc_gemnet_oc", "tum_T", "tum_Q", "tum_dQ"]


def expected(file: Path) -> dict[str, NDArray[Any]]:
    return dict(np.load(file.parent / "expected.npz"))


def predict(potential: Potential, file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    inputs = np.load(file.parent / "inputs.npz")
    batch = SimpleNamespace(
        **{
            ours: torch.tensor(inputs[theirs])
            for ours, theirs in (
                ("pos", "positions"),
                *((name, name) for name in ("cell", "pbc", "atomic_numbers", "natoms", "tags")),
            )
        }
    )
    with torch.no_grad():
        predicted = potential(batch, topology_of(batch, potential.graph_spec))
    assert predicted.forces is not None
    return predicted.energy.numpy(), predicted.forces.numpy()


def deviation(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    ("file", "weights", "stored"),
    [(OLD, None, "ema"), (OLD, "ema", "ema"), (OLD, "raw", "raw"), (NEW, None, "best"), (NEW, "raw", "best")],
    ids=["old by default", "old ema", "old raw", "new by default", "new raw"],
)
def test_energies_and_forces_are_those_of_the_released_code(
    file: Path, weights: Any, stored: str, tmp_path: Path
) -> None:
    """In eV and eV/A, to the rounding of float32, in which they were recorded."""
    save_potential(import_released(file, weights=weights).potential, tmp_path / "model.pt")
    energy, forces = predict(load_potential(tmp_path / "model.pt"), file)
    recorded = expected(file)
    assert deviation(energy, recorded[f"energy_{stored}"]) < 5e-6
    assert deviation(forces, recorded[f"forces_{stored}"]) < 5e-6
    other = "raw" if stored != "raw" else "ema"
    assert deviation(energy, recorded[f"energy_{other}"]) > 1e-3  # the test would notice the wrong weights


def test_a_final_container_has_no_averages_apart_from_its_weights() -> None:
    with pytest.raises(RequestError, match="keeps no moving averages"):
        import_released(NEW, weights="ema")


@pytest.mark.parametrize("file", [OLD, NEW], ids=["old", "new"])
def test_the_published_scale_file_agrees_with_the_container_and_can_replace_its_factors(
    file: Path, tmp_path: Path
) -> None:
    scale_file = file.parent / "scale_factors.pt"
    whole = import_released(file, scale_file=str(scale_file)).potential
    content = torch.load(file, weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {key: value for key, value in state.items() if not key.endswith(".scale_factor")}
    torch.save(content, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match=r"has none of its .* scale factors"):
        import_released(tmp_path / "bare.pt")
    assert equal_weights(import_released(tmp_path / "bare.pt", scale_file=str(scale_file)).potential, whole)
    content["scale_dict"] = torch.load(scale_file, weights_only=True)
    torch.save(content, tmp_path / "packed.pt")
    assert equal_weights(import_released(tmp_path / "packed.pt").potential, whole)


@pytest.mark.parametrize("file", [OLD, NEW], ids=["old", "new"])
def test_a_container_goes_back_whole(file: Path, tmp_path: Path) -> None:
    imported = import_released(file, weights="raw").potential
    export_released(imported, tmp_path / "file.pt")
    released, written = (torch.load(path, weights_only=True) for path in (file, tmp_path / "file.pt"))
    state = {key.removeprefix("module.module."): value for key, value in released["state_dict"].items()}
    assert written["state_dict"].keys() == state.keys()
    assert all(same(written["state_dict"][key], value) for key, value in state.items())
    for ours, theirs in (("energy", "target"), ("forces", "grad_target")):
        stored = released["normalizers"].get(ours) or released["normalizers"][theirs]
        assert same(written["normalizers"][ours]["mean"], stored["mean"])
        assert same(written["normalizers"][ours]["rmsd"], stored.get("rmsd", stored.get("std")))
    again = import_released(tmp_path / "file.pt").potential
    assert equal_weights(again, imported)
    assert again.normalization == imported.normalization


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_with_its_arguments_goes_back_whole(name: str, tmp_path: Path) -> None:
    case = ReferenceCase.load(name)
    imported = import_released(case.folder).potential
    export_released(imported, tmp_path / "file.pt")
    written = torch.load(tmp_path / "file.pt", weights_only=True)
    if name.startswith("tum"):
        state, kwargs = written, json.loads((tmp_path / "file_kwargs.json").read_text())
    else:
        state, kwargs = written["state_dict"], written["config"]["model"]
    assert state.keys() == case.state_dict.keys()
    assert all(same(state[key], value) for key, value in case.state_dict.items())
    without_use = ("emb_size_quad", "emb_size_bil_quad", "emb_size_sbf") if name == "tum_T" else ()
    for key, value in case.kwargs.items():
        assert kwargs[key] == value or key in without_use, key
    again = import_released(tmp_path / "file.pt").potential
    assert equal_weights(again, imported)
    assert again.config == imported.config


@pytest.mark.parametrize("name", CASES)
def test_a_key_that_is_renamed_is_told_as_left_over_and_as_missing(name: str, tmp_path: Path) -> None:
    case = ReferenceCase.load(name)
    renamed = "int_blocks.1.residual_m.0.dense_mlp.0.linear.weight"
    state = {key: value for key, value in case.state_dict.items() if not key.startswith(renamed[:-13])}
    torch.save(state | {"int_blocks.1.other.weight": torch.zeros(2)}, tmp_path / "state_dict.pt")
    (tmp_path / "kwargs.json").write_text((case.folder / "kwargs.json").read_text())
    with pytest.raises(
        CheckpointError, match=r"unused keys \['int_blocks.1.other.weight'\]; missing \["
    ) as caught:
        import_released(tmp_path)
    assert renamed in str(caught.value)


class Hostile:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("part", ["config", "optimizer", "scheduler", "ema"])
def test_a_released_container_with_a_hostile_object_inside_is_refused_and_not_run(
    part: str, tmp_path: Path
) -> None:
    content = torch.load(OLD, weights_only=True)
    witness = tmp_path / "witness"
    content[part]["a"] = {"b": [Hostile(witness)]}
    torch.save(content, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="refused and nothing in it was run"):
        import_released(tmp_path / "hostile.pt")
    assert not witness.exists()
