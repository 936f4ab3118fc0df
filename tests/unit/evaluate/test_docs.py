"""The Python examples of docs/python.md run as they stand, in order."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ocpgem.checkpoint import save_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from tests.tiny_runs import ROOT, TINY_MODEL, random_systems

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_examples_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with two tiny runs and a data set in the places that the text names."""
    for number, name in enumerate(("demo", "other")):
        torch.manual_seed(number)
        (tmp_path / "runs" / name / "best").mkdir(parents=True)
        model = Potential(GemNetConfig.model_validate(TINY_MODEL), Normalization())
        save_potential(model, tmp_path / "runs" / name / "best" / "model.pt")
    write_dataset(tmp_path / "data" / "demo" / "s2ef" / "val_id", random_systems(5))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(EXAMPLES) >= 4
    for example in EXAMPLES:
        exec(compile(example, "docs/python.md", "exec"), names)
    assert np.isfinite(names["metrics"]["forces_mae"])
