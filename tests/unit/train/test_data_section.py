"""The section `data` of a configuration: names of validation sets, and taking them back."""

from pathlib import Path

import pytest
import yaml

from ocpgem.config import load_config
from ocpgem.errors import ConfigError
from ocpgem.train.config import TrainConfig
from tests.tiny_runs import tiny_settings


def val_sets(folder: Path, *overrides: str) -> list[str]:
    (folder / "base.yml").write_text(yaml.safe_dump(tiny_settings("train", "val")))
    (folder / "c.yml").write_text("includes: base.yml\n")
    return list(load_config(folder / "c.yml", overrides, TrainConfig).data.val)


@pytest.mark.parametrize("name", ["val_id", "v1.0", "0", "Val-2", "a" * 100])
def test_a_validation_set_is_called_by_letters_digits_and_a_few_signs(name: str, tmp_path: Path) -> None:
    assert val_sets(tmp_path, f"data.val={{{name!r}: x}}") == ["val", name]


@pytest.mark.parametrize(
    "name",
    ["../../../esc", "..", ".", "", "a/b", "/tmp/x", ".hidden", "-x", "_x", "a b", "ä", "a\n", "a" * 101],
)
def test_a_validation_set_cannot_be_called_by_what_is_no_name_of_a_file(name: str, tmp_path: Path) -> None:
    override = f"data.val={yaml.safe_dump({name: 'x'}, default_flow_style=True, width=1000).strip()}"
    with pytest.raises(ConfigError) as caught:
        val_sets(tmp_path, override)
    assert "is not possible as a key of data.val: a name begins with a letter" in str(caught.value)
    assert "mistakes" not in str(caught.value)


def test_a_validation_set_of_an_included_file_is_dropped_by_null(tmp_path: Path) -> None:
    assert val_sets(tmp_path, "data.val.val=null") == []
    assert val_sets(tmp_path, "data.val.val=null", "data.val.other=x") == ["other"]
    assert val_sets(tmp_path, "data.val=null", "data.val.other=x") == ["other"]
