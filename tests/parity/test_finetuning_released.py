"""A release is fine-tuned: imported from what the released trainer wrote, then trained on twenty frames."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.checkpoint import load_potential, save_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.evaluate.predict import Effort, evaluate
from ocpgem.models.import_weights.released import import_released
from ocpgem.train.run import train
from tests.parity.reference_cases import REFERENCE, needs_reference
from tests.tiny_runs import ROOT, clean_environment, random_systems, tiny_config

FILES = {"gemnet_t": "legacy_checkpoint.pt", "gemnet_oc": "best_checkpoint.pt"}

pytestmark = needs_reference


def fine_tune(name: str, tmp_path: Path) -> None:
    """As it is, and with new heads, references and elements."""
    source = import_released(REFERENCE / "checkpoints" / name / FILES[name]).potential
    save_potential(source, tmp_path / "release.pt")
    write_dataset(tmp_path / "frames", random_systems(20, seed=7))
    write_dataset(tmp_path / "val", random_systems(5, seed=8))
    start: dict[str, Any] = {"checkpoint": str(tmp_path / "release.pt")}
    n_elements = source.config.n_elements
    model = source.config.model_dump(mode="json")

    def run(name: str, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
        config = tiny_config(tmp_path / "frames", tmp_path / "val", log_every_steps=1, **changes)
        replaced = config.model_copy(
            update={"model": type(config.model).model_validate(model | changes.get("model", {}))}
        )
        train(replaced, tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return tmp_path / name, [json.loads(line) for line in lines]

    # A first step that is next to nothing: what validation sees is the release, in eV.
    kept, records = run("kept", steps=1, optim={"lr": 1e-9}, start_from=start)
    released = evaluate(source, open_dataset(tmp_path / "val"), Effort(progress=False))
    (found,) = [record for record in records if record["kind"] == "val"]
    assert {key: found[key] for key in released} == pytest.approx(released, rel=1e-4, abs=1e-6)
    assert load_potential(kept / "checkpoints" / "1").normalization == source.normalization

    tuned, records = run(
        "tuned",
        steps=12,
        optim={"lr": 2e-3, "ema_decay": 0.5, "schedule": {"name": "constant"}},
        start_from=start | {"new_heads": True, "elements": {n_elements + 2: 29}},
        normalization={"fit": True, "element_references": {"fit": "least_squares"}},
        model={"n_elements": n_elements + 3},
    )
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert sum(losses[-5:]) < sum(losses[:5]), "it learns from the first steps on"
    new = load_potential(tuned / "checkpoints" / "12")
    assert set(new.normalization.element_energies) == {1, 8, 29, 78}
    weight, old = new.model.atom_embedding.weight, source.model.atom_embedding.weight
    assert weight.shape[0] == n_elements + 3
    assert torch.allclose(weight[n_elements + 1], old[28], atol=1e-6), (
        "no frame has it: it stays as copper was"
    )


@pytest.mark.slow  # four runs of released models
def test_releases_are_fine_tuned_as_they_are_and_with_new_heads_references_and_elements(
    tmp_path: Path,
) -> None:
    """In a process of its own: DeepSpeed forms one group in the life of a process."""
    program = [sys.executable, "-m", "tests.parity.test_finetuning_released", str(tmp_path)]
    done = subprocess.run(
        program, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in FILES:
        assert (tmp_path / name / "tuned" / "summary.txt").read_text().count(
            "finished after step 12 of 12"
        ) == 1


if __name__ == "__main__":
    for each in FILES:
        folder = Path(sys.argv[1]) / each
        folder.mkdir()
        fine_tune(each, folder)
    os._exit(0)  # as ocpgem.cli.run: the interpreter's own shutdown may abort after communication
