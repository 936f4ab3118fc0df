"""The fit of the targets does not depend on how many ranks read the records, and one bad record ends all of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ocpgem.checkpoint import load_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.launch.local import run_local
from ocpgem.models.potential import Normalization
from ocpgem.train.target_section import NormalizationSection
from ocpgem.train.targets import fit_targets
from tests.tiny_runs import ROOT, random_systems, run_main, tiny_settings, write_settings

OC22 = ROOT / "../shared/data/oc22/oc22_pickle16_train.pkl"
FIT = {"fit": True, "element_references": {"fit": "least_squares"}}

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from datetime import timedelta
from ocpgem.config import load_config
from ocpgem.parallel import group
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import open_training_set
from ocpgem.train.targets import fit_targets
group.init_from_environment("cpu", timedelta(seconds=60))
found = {}
for file in sys.argv[3:]:
    config = load_config(file, [], TrainConfig)
    targets = fit_targets(config.normalization, open_training_set(config.data), True, "test")
    found[file] = group.gather_objects(targets.normalization.model_dump(mode="json"))
if group.is_main():
    json.dump(found, open(sys.argv[2], "w"))
group.shutdown()
"""


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["element_energies"] == pytest.approx(other["element_energies"], rel=1e-8)
    for name in ("energy_std", "forces_std"):
        assert one[name] == pytest.approx(other[name], rel=1e-10)
    assert one["energy_mean"] == pytest.approx(other["energy_mean"], abs=1e-9)


def test_one_two_and_three_ranks_fit_the_same(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", random_systems(37, 0))
    write_dataset(tmp_path / "b", random_systems(11, 1))
    data = {"train": [str(tmp_path / "a"), {"path": str(tmp_path / "b"), "weight": 2.5}]}
    settings = tiny_settings("unused", normalization=FIT)
    files = [write_settings(tmp_path / "mixture.yml", settings | {"data": data})]
    if OC22.exists():  # 16 records of 28 elements, which do not determine the energies
        files.append(write_settings(tmp_path / "oc22.yml", tiny_settings(OC22, normalization=FIT)))
    found = []
    for nproc in (1, 2, 3):
        out = tmp_path / f"{nproc}.json"
        program = [sys.executable, "-c", PROGRAM]
        assert run_local([str(ROOT), str(out), *map(str, files)], nproc, program=program) == 0
        found.append(json.loads(out.read_text()))
    for file, n_elements in zip(files, (4, 28), strict=False):
        alone = found[0][str(file)][0]
        assert len(alone["element_energies"]) == n_elements
        for several in found[1:]:
            of_ranks = several[str(file)]
            assert all(each == of_ranks[0] for each in of_ranks), "ranks differ"
            assert_close(of_ranks[0], alone)


def test_a_bad_record_ends_all_ranks_with_one_sentence(tmp_path: Path) -> None:
    systems = list(random_systems(9))
    systems[8].energy = None
    write_dataset(tmp_path / "a", systems)
    config = write_settings(tmp_path / "c.yml", tiny_settings(tmp_path / "a", normalization=FIT))
    done = run_main("fit-targets", config, "--out", tmp_path / "targets.json", "--nproc", 2)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: sid 8, frame 2 (")
    assert "has no energy to train on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "targets.json").exists()


@pytest.mark.slow  # two runs of two ranks
def test_a_run_keeps_what_it_fitted(tmp_path: Path) -> None:
    """Fitted on two ranks, in the model file, and still used when the data have changed."""
    for name, seed in (("a", 0), ("b", 5)):
        write_dataset(tmp_path / name, random_systems(20, seed))
    config = write_settings(
        tmp_path / "c.yml", tiny_settings(tmp_path / "a", tmp_path / "a", normalization=FIT, steps=3)
    )
    words = ("train", config, "--run-dir", tmp_path / "run", "--nproc", 2)
    done = run_main(*words)
    assert done.returncode == 0, done.stderr
    assert "normalisation fitted: energy" in done.stdout
    assert "energies of 4 elements" in done.stdout
    stored = json.loads((tmp_path / "run" / "preparation.json").read_text())["normalization"]
    expected = fit_targets(
        NormalizationSection.model_validate(FIT), open_dataset(tmp_path / "a"), True, "test"
    )
    assert_close(stored, expected.normalization.model_dump(mode="json"))
    assert load_potential(tmp_path / "run").normalization == Normalization.model_validate(stored)
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "b").rename(tmp_path / "a")
    done = run_main(*words, "steps=4")
    assert done.returncode == 0, done.stderr
    assert "normalisation fitted" not in done.stdout
    resumed = load_potential(tmp_path / "run" / "checkpoints" / "4")
    assert resumed.normalization == Normalization.model_validate(stored)
