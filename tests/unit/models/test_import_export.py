"""Models written for the released code and read again are the same; what that code lacks is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.errors import CheckpointError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.export import export_released, family_of
from ocpgem.models.import_weights.released import import_released
from ocpgem.models.potential import Normalization
from tests.tiny_runs import listing
from tests.unit.models.released_files import MODELS, OC20, equal_weights, random_potential

REFERENCES = Normalization(
    energy_mean=1 / 3, energy_std=1.7, forces_std=1.7, element_energies={1: -3.25, 78: -0.1, 118: 2.0}
)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_changes_nothing(name: str, tmp_path: Path) -> None:
    normalization = Normalization() if name.startswith("original") else REFERENCES
    potential = random_potential(MODELS[name], normalization)
    export_released(potential, tmp_path / "file.pt")
    imported = import_released(tmp_path / "file.pt").potential
    assert equal_weights(imported, potential)
    assert imported.config.model_copy(update={"variant": potential.config.variant}) == potential.config
    if potential.config.forces == "none":
        normalization = normalization.model_copy(update={"forces_std": 1.0})
    assert imported.normalization == normalization


def test_what_is_written_is_plain_and_complete(tmp_path: Path) -> None:
    export_released(random_potential(MODELS["OC"], REFERENCES), tmp_path / "file.pt")
    assert listing(tmp_path) == {"file.pt"}
    content = torch.load(tmp_path / "file.pt", weights_only=True)
    assert content["config"]["model"]["name"] == "gemnet_oc"
    assert content["normalizers"]["energy"]["mean"].dtype == torch.float64  # float32 would change it
    layers, second = (f"out_blocks.0.{name}.0.linear.weight" for name in ("layers", "seq_energy_pre"))
    assert content["state_dict"][layers].data_ptr() == content["state_dict"][second].data_ptr()


def test_values_that_float32_holds_exactly_are_written_as_such(tmp_path: Path) -> None:
    exact = Normalization(energy_mean=-0.5, energy_std=2.5, forces_std=2.5, element_energies={1: 0.25})
    export_released(random_potential(MODELS["dT"], exact), tmp_path / "file.pt")
    content = torch.load(tmp_path / "file.pt", weights_only=True)
    assert content["normalizers"]["energy"]["mean"].dtype == torch.float32
    references = content["elementrefs"]["energy"]["element_references"]
    assert references.dtype == torch.float32
    assert references.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"neighbors": {"truncation": "symmetric"}}, "neighbors.truncation = symmetric"),
        ({"shared_embedding": True}, "shared_embedding = True"),
        ({"unseen_pairs": "damp"}, "unseen_pairs = damp"),
        ({"forces": "direct_coupled"}, "forces = direct_coupled"),
        ({"layers": {"atom_embedding": 1}}, "layers.atom_embedding = 1"),
    ],
)
def test_a_setting_that_the_released_code_lacks_is_refused(
    changes: dict[str, object], named: str, tmp_path: Path
) -> None:
    potential = random_potential({"variant": "gemnet_dT", **changes})
    with pytest.raises(CheckpointError, match=named):
        export_released(potential, tmp_path / "file.pt")
    assert listing(tmp_path) == set()


def test_a_model_of_the_original_code_with_normalised_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not normalise"):
        export_released(random_potential(MODELS["original Q"], OC20), tmp_path / "file.pt")
    assert listing(tmp_path) == set()


def test_a_model_of_the_original_code_has_its_arguments_beside_it(tmp_path: Path) -> None:
    export_released(random_potential(MODELS["original Q"]), tmp_path / "model.pth")
    assert listing(tmp_path) == {"model.pth", "model_kwargs.json"}
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    names = [
        f"out_blocks.1.{part}.0.{end}"
        for part in ("layers", "seq_energy")
        for end in ("weight", "linear.weight")
    ]
    assert len({state[name].data_ptr() for name in names}) == 1


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.pt").mkdir()
    with pytest.raises(OSError, match="file"):
        export_released(random_potential(MODELS["dT"]), tmp_path / "file.pt")
    assert not (tmp_path / "file.pt.partial").exists()


@pytest.mark.parametrize(
    "changes", [{"variant": "gemnet_XL", "global_head": {}}, {"variant": "gemnet_OC", "global_head": None}]
)
def test_a_head_that_belongs_to_another_variant_is_not_exported_as_that_variant(
    changes: dict[str, Any],
) -> None:
    """The released classes differ in their graph and grid as well, so the numbers would change without a word."""
    with pytest.raises(CheckpointError, match="global_head, so it cannot be exported"):
        family_of(GemNetConfig.model_validate(changes))
