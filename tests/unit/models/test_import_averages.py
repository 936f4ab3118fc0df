"""Of a training checkpoint the moving averages are taken, each for the parameter that it belongs to."""

from pathlib import Path

import pytest
import torch

from ocpgem.errors import CheckpointError, RequestError
from ocpgem.models.import_weights.export import export_released
from ocpgem.models.import_weights.released import import_released
from tests.unit.models.released_files import container, equal_weights, trained
from tests.unit.models.test_import_containers import read


def test_moving_averages_are_taken_unless_the_raw_weights_are_wanted(tmp_path: Path) -> None:
    potential, content = container(tmp_path)
    trained(content, potential)
    averaged, raw = read(content, tmp_path), read(content, tmp_path, weights="raw")
    assert any("moving averages (ema)" in note for note in averaged.notes)
    assert any("(raw)" in note for note in raw.notes)
    assert equal_weights(raw.potential, potential)
    for (name, ours), theirs in zip(
        averaged.potential.named_parameters(), potential.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs + 0.5), name
    assert equal_weights(read(content, tmp_path, weights="ema").potential, averaged.potential)


@pytest.mark.parametrize("name", ["dT", "OC"])
def test_force_heads_that_nothing_reads_are_left_out_though_they_have_averages(
    name: str, tmp_path: Path
) -> None:
    potential, content = container(tmp_path, name)
    averages = trained(content, potential)
    with_heads = read(content, tmp_path).potential.state_dict()
    content["config"]["model"]["regress_forces"] = False
    imported = read(content, tmp_path).potential
    assert imported.config.forces == "none"
    assert all(value.equal(with_heads[key]) for key, value in imported.state_dict().items())
    export_released(imported, tmp_path / "back.pt")
    written = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert "out_blocks.0.dense_rbf_F.linear.weight" in averages.keys() - written.keys()
    assert equal_weights(import_released(tmp_path / "back.pt").potential, imported)


def test_moving_averages_that_do_not_fit_or_are_not_there(tmp_path: Path) -> None:
    potential, content = container(tmp_path)
    with pytest.raises(RequestError, match="--weights ema"):
        read(content, tmp_path, weights="ema")
    trained(content, potential)
    shadow = content["ema"]["shadow_params"]
    with pytest.raises(CheckpointError, match="its ema holds"):
        read(content | {"ema": {"shadow_params": shadow[1:]}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"moving average of .* is .* take --weights raw"):
        read(content | {"ema": {"shadow_params": [*shadow[1:], shadow[0]]}}, tmp_path)
    with pytest.raises(CheckpointError, match="shadow_params"):
        read(content | {"ema": {"decay": 0.9}}, tmp_path)
