"""The demo data set means what its card says."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT

from ocpgem.data.open import open_dataset

SCRIPT = Path(__file__).resolve().parents[3] / "datasets" / "demo.py"
FRAMES, SEED = 40, 3


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory):
    """A very small data set and the plans it was made from."""
    out = tmp_path_factory.mktemp("demo") / "data"
    demo.make(out, SEED, FRAMES, workers=1)
    return out, demo.plan_systems(FRAMES, SEED)


def test_the_number_of_workers_does_not_change_a_byte(made, tmp_path):
    out, _ = made
    command = [
        sys.executable,
        SCRIPT,
        "--out",
        tmp_path / "again",
        "--seed",
        SEED,
        "--frames",
        FRAMES,
        "--workers",
        2,
    ]
    subprocess.run([str(word) for word in command], check=True)
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert len(files) > 15
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_another_seed_makes_other_systems(demo):
    assert demo.plan_systems(200, 0) == demo.plan_systems(200, 0)
    assert demo.plan_systems(200, 0) != demo.plan_systems(200, 1)


def test_splits_share_neither_what_they_must_not_nor_systems(demo):
    plans = demo.plan_systems(4000, 0)
    train = [plan for plan in plans if plan.split == "train"]
    seen_ads, seen_cats = {plan.adsorbate for plan in train}, {plan.catalyst for plan in train}
    expected = {"val_id": (True, True), "val_ood_ads": (False, True), "val_ood_cat": (True, False)}
    expected["val_ood_both"] = (False, False)
    for plan in plans:
        if plan.split != "train":
            assert (plan.adsorbate in seen_ads, plan.catalyst in seen_cats) == expected[plan.split]
    assert len({plan.sid for plan in plans}) == len(plans)


def test_unseen_catalysts_and_adsorbates_have_no_unseen_elements(demo):
    def elements(names):
        return {element for name in names for element in demo.Formula(name).count()}

    assert elements(demo.OOD_CATALYSTS) <= elements(demo.TRAIN_CATALYSTS)
    assert elements(demo.OOD_ADSORBATES) <= elements(demo.TRAIN_ADSORBATES)


def test_every_system_is_in_its_split_only(made):
    out, plans = made
    for split in {plan.split for plan in plans}:
        expected = {plan.sid for plan in plans if plan.split == split}
        assert set(open_dataset(out / "s2ef" / split).sids.tolist()) == expected


@pytest.mark.parametrize("name", ["CO", "H2O"])
def test_a_reference_molecule_far_above_its_slab_has_no_adsorption_energy(demo, name):
    slab = demo.clean_slab("Cu3Au", "111", seed=0)
    far = molecule(name)
    far.calc = EMT()
    demo.FIRE(far, logfile=None).run(fmax=0.001, steps=2000)
    far.positions += slab.atoms.positions.mean(0) + np.array([0, 0, 12])
    both = slab.atoms + far
    both.calc = EMT()
    energy = demo.adsorption_energy(both.get_potential_energy(), slab, name, demo.gas_references())
    assert energy == pytest.approx(0, abs=1e-3)


def test_labels_are_emt_energies_and_forces_of_the_stored_positions(demo, made):
    out, plans = made
    references = demo.gas_references()
    for split in ("train", "val_ood_both"):
        dataset = open_dataset(out / "s2ef" / split)
        system = dataset[len(dataset) // 2]
        plan = plans[system.sid]
        atoms = Atoms(
            system.atomic_numbers.astype(int), system.pos, cell=system.cell, pbc=True, calculator=EMT()
        )
        slab = demo.clean_slab(plan.catalyst, plan.surface, SEED)
        energy = demo.adsorption_energy(atoms.get_potential_energy(), slab, plan.adsorbate, references)
        assert system.energy == pytest.approx(energy, abs=1e-4)
        assert np.allclose(system.forces, atoms.get_forces(), atol=1e-3)
        assert np.abs(system.forces).max() <= demo.LARGEST_FORCE


def test_fixed_atoms_are_the_deep_ones_and_never_move(made):
    out, _ = made
    train = open_dataset(out / "s2ef/train")
    first = {}
    for system in train:
        start = first.setdefault(system.sid, system)
        metal = system.tags < 2
        assert np.array_equal(system.fixed, system.tags == 0)
        assert np.array_equal(system.pos[system.fixed], start.pos[system.fixed])
        assert start.pos[system.fixed, 2].max() < start.pos[metal & ~system.fixed, 2].min()
        assert set(system.atomic_numbers[~metal]) <= {1, 6, 7, 8}
        assert set(system.atomic_numbers[metal]) <= {13, 28, 29, 46, 47, 78, 79}


def test_pairs_lead_from_the_first_frame_to_a_lower_energy(made):
    out, _ = made
    pairs = [system for folder in (out / "is2re").iterdir() for system in open_dataset(folder)]
    assert len(pairs) >= 2
    for pair in pairs:
        assert pair.energy_relaxed < pair.energy
        assert pair.forces is None
        assert np.array_equal(pair.pos[pair.fixed], pair.pos_relaxed[pair.fixed])


def test_it_is_made_once_and_never_over_something_else(demo, made, capsys):
    out, _ = made
    before = (out / "demo.json").stat().st_mtime_ns
    demo.make(out, SEED, FRAMES)
    assert (out / "demo.json").stat().st_mtime_ns == before
    assert demo.main(["--out", str(out), "--seed", "5"]) == 2
    assert "exists already; remove it or choose another folder" in capsys.readouterr().err
