"""The Python interface: loading from anywhere, predicting for `ase.Atoms`, several models as one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

import ocpgem
from ocpgem.checkpoint import save_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.system import System
from ocpgem.errors import CheckpointError, DataError, OcpgemError, RequestError
from ocpgem.evaluate import open_model
from ocpgem.models.combined import Combined
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from tests.tiny_runs import ROOT, TINY_MODEL, random_systems
from tests.unit.models.released_files import container


def released_file(folder: Path) -> Path:
    _, content = container(folder)
    torch.save(content, folder / "released.pt")
    return folder / "released.pt"


def tiny(seed: int, **changes: object) -> Potential:
    torch.manual_seed(seed)
    return Potential(
        GemNetConfig.model_validate(TINY_MODEL | changes), Normalization(energy_mean=-2.0)
    ).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three model files: two that differ in their weights, one that needs another graph."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "a": tiny(0),
        "b": tiny(1),
        "wide": tiny(2, neighbors={"cutoff": 4.5, "max_neighbors": 30}),
        "energy": tiny(3, forces="none", variant="gemnet_T"),
    }
    for name, model in models.items():
        save_potential(model, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in models}


def as_atoms(systems: list[System]) -> list[Atoms]:
    return [system.to_atoms() for system in systems]


def test_structures_with_and_without_labels_are_predicted_together(files: dict[str, Path]) -> None:
    model, atoms = ocpgem.load(files["a"]), as_atoms(list(random_systems(3)))
    expected = [each.energy for each in ocpgem.predict(model, atoms)]
    atoms[0].calc = None
    atoms[1].calc.results["energy"] = float("nan")
    assert [each.energy for each in ocpgem.predict(model, atoms)] == expected


def test_one_structure_gives_one_prediction_and_a_list_gives_a_list(files: dict[str, Path]) -> None:
    model = ocpgem.load(files["a"])
    atoms = as_atoms(list(random_systems(5)))
    several = ocpgem.predict(model, atoms)
    for one, each in zip(atoms, several, strict=True):
        alone = ocpgem.predict(model, one)
        assert alone.energy == pytest.approx(each.energy, rel=1e-5)
        assert alone.forces.shape == (len(one), 3)
        np.testing.assert_allclose(alone.forces, each.forces, rtol=1e-4, atol=1e-6)
        assert alone.energy_spread is None
        assert alone.forces_spread is None


def test_a_data_set_may_be_named_by_its_path(files: dict[str, Path], tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", random_systems(5))
    model = ocpgem.load(str(files["a"]))
    from_path, from_atoms = (
        ocpgem.predict(model, tmp_path / "set"),
        ocpgem.predict(model, list(as_atoms(list(random_systems(5))))),
    )
    for one, other in zip(from_path, from_atoms, strict=True):
        assert one.energy == pytest.approx(other.energy, rel=1e-5)


def test_scores_are_those_of_the_labels(files: dict[str, Path]) -> None:
    model = ocpgem.load(files["a"])
    atoms = as_atoms(list(random_systems(6)))
    found = ocpgem.score(model, atoms)
    errors = [
        abs(p.energy - a.calc.results["energy"])
        for p, a in zip(ocpgem.predict(model, atoms), atoms, strict=True)
    ]
    assert found["energy_mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert "forces_mae" in found
    for each in atoms:
        each.calc = None
    with pytest.raises(DataError, match="no energy labels"):
        ocpgem.score(model, atoms)


def test_labels_of_a_calculator_are_read(files: dict[str, Path]) -> None:
    model = ocpgem.load(files["a"])
    atoms = as_atoms(list(random_systems(1)))[0]
    predicted = ocpgem.predict(model, atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=predicted.energy + 0.5, forces=predicted.forces)
    found = ocpgem.score(model, [atoms])
    assert found["energy_mae"] == pytest.approx(0.5, rel=1e-5)
    assert found["forces_mae"] == pytest.approx(0, abs=1e-6)


def test_an_ensemble_is_the_mean_and_spread_of_its_members(files: dict[str, Path]) -> None:
    atoms = as_atoms(list(random_systems(3)))
    singles = [ocpgem.predict(ocpgem.load(files[name]), atoms) for name in ("a", "b", "wide")]
    together = ocpgem.predict(ocpgem.load([files["a"], files["b"], files["wide"]]), atoms)
    for number, found in enumerate(together):
        energies = np.array([single[number].energy for single in singles])
        forces = np.array([single[number].forces for single in singles])
        assert found.energy == pytest.approx(energies.mean(), rel=1e-5)
        assert found.energy_spread == pytest.approx(energies.std(ddof=1), rel=1e-3)
        np.testing.assert_allclose(found.forces, forces.mean(axis=0), rtol=1e-4, atol=1e-6)
        expected = np.sqrt(forces.astype(float).var(axis=0, ddof=1).sum(axis=-1))
        np.testing.assert_allclose(found.forces_spread, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("forces", ["b", "wide"])
def test_a_hybrid_takes_the_energy_of_one_model_and_the_forces_of_another(
    files: dict[str, Path], forces: str
) -> None:
    atoms = as_atoms(list(random_systems(3)))
    hybrid = ocpgem.predict(ocpgem.load(files["energy"], forces_from=files[forces]), atoms)
    energy, other = (ocpgem.predict(ocpgem.load(files[name]), atoms) for name in ("energy", forces))
    for found, one, two in zip(hybrid, energy, other, strict=True):
        assert found.energy == pytest.approx(one.energy, rel=1e-5)
        np.testing.assert_allclose(found.forces, two.forces, rtol=1e-4, atol=1e-6)
        assert one.forces is None


def test_a_hybrid_without_forces_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="predicts none"):
        ocpgem.load(files["a"], forces_from=files["energy"])


def test_members_with_one_graph_share_it_and_others_say_so(files: dict[str, Path]) -> None:
    same, mixed = ocpgem.load([files["a"], files["b"]]), ocpgem.load([files["a"], files["wide"]])
    assert isinstance(same, Combined)
    assert same.graph_spec == ocpgem.load(files["a"]).graph_spec
    with pytest.raises(RequestError, match="2 different graphs"):
        _ = mixed.graph_spec


def test_a_released_checkpoint_is_loaded_directly(tmp_path: Path) -> None:
    file = released_file(tmp_path)
    atoms = as_atoms(list(random_systems(2)))
    assert ocpgem.predict(ocpgem.load(file), atoms)[0].forces.shape == (len(atoms[0]), 3)


def test_a_file_of_neither_kind_says_both(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_bytes(b"no\0model")
    with pytest.raises(CheckpointError, match=r"as a model file.*read as a released checkpoint"):
        ocpgem.load(tmp_path / "notes.pt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("runs/nowhere", "runs/nowhere does not exist"),
        ("GemNet-dT-S2EF-OC20-3M", "did you mean GemNet-dT-S2EF-OC20-2M"),
        ([], "no model is named"),
        (
            ROOT / "README.md",
            "README.md is text, not a checkpoint; give a run directory or a checkpoint file$",
        ),
    ],
)
def test_what_is_no_model_is_one_sentence(source: object, message: str) -> None:
    with pytest.raises(OcpgemError, match=message):
        ocpgem.load(source)


def test_a_device_that_is_not_there_is_refused_before_a_model_is_read(tmp_path: Path) -> None:
    for load in (ocpgem.load, ocpgem.Calculator.from_checkpoint):
        with pytest.raises(RequestError, match="device 'cuda:99' cannot be used here"):
            load(tmp_path / "nowhere.pt", device="cuda:99")


def test_a_catalogue_name_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = released_file(tmp_path)
    fetched = []

    def fetch(
        entry: object, path: Path, progress: object
    ) -> list[str]:  # the download itself is tested elsewhere
        fetched.append(path)
        path.write_bytes(source.read_bytes())
        return []

    monkeypatch.setattr(open_model, "fetch", fetch)
    for name in ("GemNet-dT-S2EF-OC20-2M", "gemnet-dt-s2ef-oc20-2m"):
        ocpgem.load(name)
    assert len(fetched) == 1
    assert fetched[0].is_relative_to(tmp_path / "cache" / "ocpgem" / "models")


@pytest.mark.parametrize("function", ["predict", "score", "relax", "Calculator"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("runs/x", r"'runs/x' is a name, not a loaded model; load it first: model = ocpgem.load\('runs/x'\)"),
        (Path("runs/x"), r"ocpgem.load\('runs/x'\)"),
        (["runs/x", "runs/y"], "a list is no model; ocpgem.load gives one"),
        (torch.nn.Linear(3, 1), "a Linear is no model"),
    ],
)
def test_a_model_that_is_not_loaded_is_a_wrong_request(function: str, given: object, message: str) -> None:
    structures = [] if function == "Calculator" else [as_atoms(list(random_systems(1)))]
    with pytest.raises(RequestError, match=message):
        getattr(ocpgem, function)(given, *structures)


def test_no_structures_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="no structures"):
        ocpgem.predict(ocpgem.load(files["a"]), [])


def test_importing_ocpgem_loads_no_torch() -> None:
    program = "import ocpgem, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
