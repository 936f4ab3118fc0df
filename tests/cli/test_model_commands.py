"""`main.py models`, `config import` and the figure of `fit-scales`, as a user meets them."""

import json
from pathlib import Path

import pytest
import yaml

from ocpgem.cli import main
from ocpgem.config import load_config
from ocpgem.train.config import TrainConfig
from tests.tiny_runs import tiny_settings, write_settings, write_tiny_data
from tests.v1_configs import OLD

PNG = b"\x89PNG\r\n"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_models_lists_every_variant_with_its_size_and_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    variants = {entry["variant"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert variants["gemnet_dT"]["n_parameters"] == 31_671_808
    assert variants["gemnet_OC_large"]["n_parameters"] == 216_408_064
    assert variants["gemnet_T"]["forces"] == "gradient"
    paths = {path["name"]: path for path in variants["gemnet_OC"]["paths"]}
    assert list(paths) == ["triplets", "quadruplets", "atom to edge", "edge to atom", "atom to atom"]
    assert paths["quadruplets"] == {"name": "quadruplets", "cutoff": 12.0, "max_neighbors": 8}
    assert run("models") == 0
    table = capsys.readouterr().out
    assert all(variant in table for variant in variants)
    assert "292,939,520" in table


def test_an_imported_configuration_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yml").write_text(yaml.safe_dump(OLD))
    assert run("config", "import", tmp_path / "old.yml", "--out", tmp_path / "new.yml", "--gpus", 8) == 0
    assert "notes at its top" in capsys.readouterr().out
    assert load_config(tmp_path / "new.yml", [], TrainConfig).data.batch_size == 256
    assert run("config", "import", tmp_path / "old.yml", "--gpus", 8) == 0
    assert capsys.readouterr().out == (tmp_path / "new.yml").read_text()


def test_what_an_imported_configuration_lacks_is_said_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.yml").write_text(yaml.safe_dump({"model": OLD["model"], "optim": OLD["optim"]}))
    assert run("config", "import", tmp_path / "old.yml", "--out", tmp_path / "new.yml") == 2
    error = capsys.readouterr().err
    assert "has to be completed" in error
    assert "data.train" in error
    assert "variant: gemnet_dT" in (tmp_path / "new.yml").read_text()


@pytest.mark.parametrize("variant", ["gemnet_dT", "gemnet_OC"])
def test_fit_scales_draws_the_variances_beside_its_factors(tmp_path: Path, variant: str) -> None:
    train, val = write_tiny_data(tmp_path)
    narrow: dict[str, object] = {"variant": variant}
    if variant == "gemnet_OC":
        narrow |= {
            path: {"cutoff": 4.0, "in_dim": 4, "out_dim": 4}
            for path in ("atom_edge", "atom_atom", "quadruplets")
        }
    config = write_settings(tmp_path / "run.yml", tiny_settings(train, val, model=narrow))
    assert run("fit-scales", config, "--out", tmp_path / "scales.json", "scale_factors.batches=1") == 0
    assert (tmp_path / "scales.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "scales.json").read_text())


def test_the_factors_cannot_take_the_place_of_their_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_settings(tmp_path / "run.yml", tiny_settings(*write_tiny_data(tmp_path)))
    assert run("fit-scales", config, "--out", tmp_path / "scales.png") == 2
    assert "is for the factors, as JSON" in capsys.readouterr().err
