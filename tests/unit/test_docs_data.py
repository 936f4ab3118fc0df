"""What docs/data.md shows can be written in a configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ocpgem.train.config import TrainConfig
from tests.tiny_runs import ROOT, tiny_settings

TEXT = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("normalization:")]
SECTIONS = [block for block in BLOCKS if not block.startswith("normalization:")]


@pytest.mark.parametrize("text", [*LINES, *SECTIONS])
def test_a_shown_section_is_valid(text: str) -> None:
    shown: dict[str, Any] = yaml.safe_load(text)
    settings = tiny_settings("train")
    settings |= {key: value for key, value in shown.items() if key != "data"}
    settings["data"] |= shown.get("data", {})
    assert TrainConfig.model_validate(settings).data.train_sets


def test_every_block_is_looked_at() -> None:
    assert (len(LINES), len(SECTIONS)) == (6, 2)
    assert Path("docs/data.md").name in (ROOT / "README.md").read_text()
