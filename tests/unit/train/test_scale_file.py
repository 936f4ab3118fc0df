"""Scale factors are read from files of fit-scales and from released ones, by whatever names."""

import json
from pathlib import Path

import pytest
import torch

from ocpgem.errors import ConfigError
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.scale_file import apply_factors, read_scale_factors
from ocpgem.train.scale_fitting import scale_factors
from tests.structures import case_config

XL = case_config("gemnet_XL")


def released_names(sum_of_atoms: str) -> dict[str, str]:
    """Name in a released file -> ours, for three blocks; `sum_of_atoms` differs in GemNet-XL's file."""
    names = {}
    for block in range(3):
        ours = f"model.blocks.{block}"
        names |= {
            f"TripInteraction_{block + 1}_had_rbf": f"{ours}.triplets.messages.scale_radial",
            f"TripInteraction_{block + 1}_sum_cbf": f"{ours}.triplets.bilinear.scale_sum",
            f"{sum_of_atoms}_{block + 1}_sum": f"{ours}.to_atoms.scale_sum",
        }
    for output in range(4):
        names[f"OutBlock_{output}_sum"] = f"model.energy_branches.{output}.to_atoms.scale_sum"
        names[f"OutBlock_{output}_had"] = f"model.force_branches.{output}.scale_radial"
    return names


@pytest.mark.parametrize("sum_of_atoms", ["IntBlock", "AtomUpdate"])
def test_released_names_of_gemnet_xl_and_t_reach_their_factors(tmp_path: Path, sum_of_atoms: str) -> None:
    names = released_names(sum_of_atoms)
    values = {name: 0.5 + 0.01 * number for number, name in enumerate(names)}
    (tmp_path / "xl.json").write_text(json.dumps({"comment": "fitted by somebody"} | values))
    found, said = read_scale_factors(tmp_path / "xl.json", XL)
    assert found == pytest.approx({ours: values[name] for name, ours in names.items()}, rel=1e-6)
    assert "17 scale factors read" in said[0]
    potential = Potential(XL, Normalization())
    apply_factors(potential, found, "xl.json")
    assert all(bool(scale.fitted) for scale in scale_factors(potential).values())


def test_torch_files_and_files_of_fit_scales_with_any_ending_are_read(tmp_path: Path) -> None:
    potential = Potential(case_config("gemnet_OC"), Normalization())
    ours = dict.fromkeys(scale_factors(potential), 0.7)
    (tmp_path / "fitted.txt").write_text(json.dumps(ours))
    assert read_scale_factors(tmp_path / "fitted.txt", potential.config) == (ours, [])
    torch.save({"out_blocks.0.scale_sum": torch.tensor(1.25)}, tmp_path / "part.pt")
    found, _ = read_scale_factors(tmp_path / "part.pt", potential.config)
    assert found == {"model.energy_branches.0.to_atoms.scale_sum": 1.25}
    with pytest.raises(ConfigError, match="factors missing"):
        apply_factors(potential, found, "part.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"IntBlock_1_sum": 0}', "IntBlock_1_sum is 0|to_atoms.scale_sum is 0"),
        ('{"IntBlock_1_sum": NaN}', "must be a positive number"),
        ('{"IntBlock_1_sum": "big"}', "is a str, not a number"),
        ('{"AtomUpdate_1_sum": 1, "IntBlock_1_sum": 2}', "two values"),
        ('{"learning_rate": 1}', "holds none of the model's scale factors but learning_rate"),
        ('{"model.blocks.0.to_atoms.scale_sum": -1}', "is -1; it must be a positive number"),
        ("[1]", "should hold scale factors as a dictionary"),
    ],
)
def test_what_is_no_scale_factor_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_scale_factors(tmp_path / "bad.json", XL)
