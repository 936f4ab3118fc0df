"""Normalisation and energies of elements: by hand, against numpy, from files, and through a model file."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from ocpgem.checkpoint import load_potential, save_potential
from ocpgem.config import dump_config, parse_config
from ocpgem.data.dataset import Dataset, InMemoryDataset
from ocpgem.data.mixture import Mixture
from ocpgem.data.system import System
from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.models.normalization import Normalization
from ocpgem.models.potential import Potential
from ocpgem.train.target_section import NormalizationSection
from ocpgem.train.targets import Targets, element_pairs_of, fit_targets, given_targets, require_references
from tests.tiny_runs import random_system, random_systems, tiny_config

H, O, CU, PT = 1, 8, 29, 78  # noqa: E741


def fit(dataset: Dataset | list[System], forces: bool = True, **settings: Any) -> Targets:
    data = InMemoryDataset(dataset) if isinstance(dataset, list) else dataset
    return fit_targets(NormalizationSection(**settings), data, forces, "test")


def of(numbers: list[int], energy: float, sid: int = 0) -> System:
    """A system with these elements."""
    n = len(numbers)
    system = random_system(np.random.default_rng(sid), sid, energy=energy)
    return System(
        pos=np.arange(3 * n, dtype=np.float32).reshape(n, 3) / 3,
        cell=np.eye(3, dtype=np.float32) * 20,
        pbc=system.pbc,
        atomic_numbers=np.array(numbers, dtype=np.uint8),
        tags=np.zeros(n, dtype=np.uint8),
        fixed=np.zeros(n, dtype=bool),
        energy=energy,
        forces=np.ones((n, 3), dtype=np.float32),
        sid=sid,
    )


def many(n: int, elements: dict[int, float], noise: float, seed: int = 0) -> list[System]:
    """Random compositions with the energies of their elements and noise."""
    rng = np.random.default_rng(seed)
    systems = []
    for sid in range(n):
        system = random_system(rng, sid, atomic_numbers=None)
        numbers = rng.choice(list(elements), len(system.pos)).astype(np.uint8)
        energy = sum(elements[number] for number in numbers.tolist()) + float(rng.normal(0, noise))
        system.atomic_numbers, system.energy = numbers, energy
        systems.append(system)
    return systems


def design(systems: list[System], elements: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    counts = np.array([[np.sum(s.atomic_numbers == number) for number in elements] for s in systems])
    return counts.astype(float), np.array([s.energy for s in systems])


def test_mean_and_deviation_of_the_energy_and_rms_of_the_free_force_components() -> None:
    systems = list(random_systems(9))
    found = fit(systems, fit=True).normalization
    energies = np.array([s.energy for s in systems])
    free = np.concatenate([s.forces[~s.fixed].ravel() for s in systems if s.forces is not None])
    assert found.energy_mean == pytest.approx(energies.mean(), rel=1e-12)
    assert found.energy_std == pytest.approx(energies.std(), rel=1e-12)
    assert found.forces_std == pytest.approx(np.sqrt((free.astype(float) ** 2).mean()), rel=1e-12)
    assert found.element_energies == {}


def test_energies_of_a_million_ev_keep_their_spread() -> None:
    energies = -1e6 + np.random.default_rng(0).normal(0, 1e-3, 50)
    systems = [of([H, H, O], float(energy), sid) for sid, energy in enumerate(energies)]
    found = fit(systems, fit=True).normalization
    assert found.energy_std == pytest.approx(energies.std(), rel=1e-3)
    assert found.energy_mean == pytest.approx(energies.mean(), rel=1e-14)


def test_a_sample_is_spread_evenly_from_the_first_to_the_last_record() -> None:
    systems = list(random_systems(9))
    found = fit(systems, fit=True, sample=3).normalization
    assert found.energy_mean == pytest.approx(np.mean([systems[i].energy for i in (0, 4, 8)]))


def test_data_without_spread_keep_their_scale() -> None:
    system = next(random_systems(1))
    assert system.forces is not None
    system.forces = np.zeros_like(system.forces)
    targets = fit([system] * 3, fit=True)
    assert (targets.normalization.energy_std, targets.normalization.forces_std) == (1.0, 1.0)
    assert "no spread" in targets.remarks[0]


def test_what_is_given_is_not_fitted() -> None:
    found = fit(list(random_systems(9)), fit=True, energy_mean=2.5).normalization
    assert found.energy_mean == 2.5
    assert found.energy_std != 1.0


def test_labels_are_needed_only_where_they_are_trained_on() -> None:
    systems = list(random_systems(3))
    systems[2].forces = None
    assert fit(systems, forces=False, fit=True).normalization.forces_std > 0
    with pytest.raises(DataError, match="sid 2, frame 2 has no forces"):
        fit(systems, fit=True)
    systems[1].energy = None
    with pytest.raises(DataError, match="sid 1, frame 1 has no energy"):
        fit(systems, forces=False, fit=True)


def test_a_label_that_is_not_a_number_is_refused_by_name() -> None:
    systems = list(random_systems(3))
    systems[1].energy = float("nan")
    with pytest.raises(DataError, match="sid 1, frame 1: energy holds a value that is not finite"):
        fit(systems, fit=True)


def test_energies_of_elements_by_hand() -> None:
    """H2 at -6, H2O at -14 and O2 at -10: H is -3 + a third of the 2 eV that do not fit... solved by hand below."""
    systems = [of([H, H], -6.0), of([H, H, O], -14.0, 1), of([O, O], -10.0, 2)]
    # Normal equations: [[8, 2], [2, 5]] (h, o) = (-40, -34); h = -132/36, o = -192/36.
    found = fit(systems, element_references={"fit": "least_squares"})
    assert found.normalization.element_energies == pytest.approx({H: -132 / 36, O: -192 / 36}, rel=1e-12)
    assert (found.normalization.energy_mean, found.normalization.energy_std) == (0.0, 1.0), "not asked for"
    residuals = np.array([-6 + 264 / 36, -14 + 264 / 36 + 192 / 36, -10 + 384 / 36])
    both = fit(systems, fit=True, element_references={"fit": "least_squares"}).normalization
    assert both.energy_mean == pytest.approx(residuals.mean(), rel=1e-10)
    assert both.energy_std == pytest.approx(residuals.std(), rel=1e-10)


def test_ridge_by_hand() -> None:
    """One element: (sum n^2 / N + r) e = sum n y / N, with n = 1, 2 and y = -3, -8."""
    systems = [of([PT], -3.0), of([PT, PT], -8.0, 1)]
    found = fit(systems, element_references={"fit": "ridge", "ridge": 0.5}).normalization
    assert found.element_energies == pytest.approx({PT: (-19 / 2) / (5 / 2 + 0.5)}, rel=1e-12)


@pytest.mark.parametrize("ridge", [None, 1e-6, 0.3])
def test_fits_equal_those_of_numpy(ridge: float | None) -> None:
    true = {H: -3.4, O: -432.1, CU: -1000.7, PT: -3.1}
    systems = many(60, true, noise=0.1)
    counts, energies = design(systems, list(true))
    if ridge is None:
        expected = np.linalg.lstsq(counts, energies, rcond=None)[0]
        rule: dict[str, Any] = {"fit": "least_squares"}
    else:
        stacked = np.vstack([counts, np.sqrt(ridge * 60) * np.eye(4)])
        expected = np.linalg.lstsq(stacked, np.concatenate([energies, np.zeros(4)]), rcond=None)[0]
        rule = {"fit": "ridge", "ridge": ridge}
    targets = fit(systems, fit=True, element_references=rule)
    found = targets.normalization
    assert [found.element_energies[number] for number in true] == pytest.approx(expected.tolist(), rel=1e-9)
    residuals = energies - counts @ expected
    assert found.energy_mean == pytest.approx(residuals.mean(), abs=1e-8)
    assert found.energy_std == pytest.approx(residuals.std(), rel=1e-6)
    assert f"is {energies.std():.4g} eV without them and {residuals.std():.4g} eV with" in targets.remarks[0]


def test_elements_that_always_come_together_share_their_energy_and_that_is_said() -> None:
    systems = [of([CU] + [H, O] * (sid % 3 + 1), -2.0 - 7.0 * (sid % 3 + 1), sid) for sid in range(40)]
    targets = fit(systems, element_references={"fit": "least_squares"})
    found = targets.normalization.element_energies
    assert found == pytest.approx({H: -3.5, O: -3.5, CU: -2.0}, rel=1e-9), "the smallest sum of squares"
    assert (
        "determine only 2 combinations of the 3 energies; those of H, O are not told apart"
        in targets.remarks[1]
    )


def test_a_rare_element_is_determined() -> None:
    systems = many(3000, {H: -3.0, O: -5.0}, noise=0.0)
    systems.append(of([H, O, PT], -8.0 - 6.25, 9999))
    targets = fit(systems, element_references={"fit": "least_squares"})
    assert targets.normalization.element_energies == pytest.approx({H: -3, O: -5, PT: -6.25}, rel=1e-8)
    assert len(targets.remarks) == 1


def test_references_that_explain_nothing_are_remarked() -> None:
    systems = many(50, {H: 0.0, O: 0.0}, 0.5)
    for system in systems:
        assert system.energy is not None
        system.energy -= 3.0
    targets = fit(systems, element_references={"fit": "least_squares"})
    assert "not sums over elements" in targets.remarks[1]


def test_few_records_for_many_elements_are_remarked() -> None:
    targets = fit(many(30, {H: -3.0, O: -5.0, CU: -1.0, PT: -2.0}, 0.1), element_references={"fit": "ridge"})
    assert "30 records are few for 4 energies" in targets.remarks[-1]


def test_sets_count_as_often_as_they_are_drawn() -> None:
    one, two = [of([H], -1.0), of([H], -3.0, 1)], [of([H], -11.0, 2)]
    mixture = Mixture([InMemoryDataset(one), InMemoryDataset(two)], [1.0, 2.0])
    found = fit(mixture, fit=True).normalization
    expected = np.array([-1.0, -3.0, -11.0, -11.0])
    assert found.energy_mean == pytest.approx(expected.mean())
    assert found.energy_std == pytest.approx(expected.std())


def test_references_shift_labels_and_predictions_alike() -> None:
    """With references of elements the model has to learn the same numbers as without them from shifted labels."""
    shift = {H: -3.25, O: -430.5, CU: -1.75, PT: 0.5}
    systems = list(random_systems(20))
    shifted = list(random_systems(20))
    for system in shifted:
        assert system.energy is not None
        system.energy += sum(shift[number] for number in system.atomic_numbers.tolist())
    plain = fit(systems, fit=True, element_references={"fit": "least_squares"}).normalization
    moved = fit(shifted, fit=True, element_references={"fit": "least_squares"}).normalization
    for number, energy in plain.element_energies.items():
        assert moved.element_energies[number] == pytest.approx(energy + shift[number], abs=1e-9)
    assert moved.energy_mean == pytest.approx(plain.energy_mean, abs=1e-9)
    assert moved.energy_std == pytest.approx(plain.energy_std, rel=1e-9)


def test_an_element_without_the_energy_that_others_have_is_refused() -> None:
    with pytest.raises(
        DataError, match="records hold Cu, Pt, but normalization gives no energy for it; it has"
    ):
        fit(many(9, {H: 1, CU: 2, PT: 3}, 0.1), fit=True, element_energies={H: -3.0, O: -5.0})


def test_a_validation_set_with_an_element_without_energy_is_refused_before_training() -> None:
    sets: dict[str, Dataset] = {"ood": InMemoryDataset(many(9, {H: 1, CU: 2}, 0.1), "place")}
    require_references(Normalization(), sets)
    require_references(Normalization(element_energies={H: -3.0, CU: -1.0}), sets)
    with pytest.raises(
        DataError, match=r"place \(val.ood\) holds Cu, for which the training records give no energy"
    ):
        require_references(Normalization(element_energies={H: -3.0}), sets)


def test_the_released_linear_references_are_read(tmp_path: Path) -> None:
    table = np.zeros(100)
    table[[H, O]], table[26] = (-3.5, -5.25), 1e-14
    np.savez(tmp_path / "oc22_linfit_coeffs.npz", coeff=table)
    torch.save({"energy": {"element_references": torch.tensor(table)}}, tmp_path / "references.pt")
    (tmp_path / "references.json").write_text(json.dumps({"H": -3.5, "8": -5.25}))
    for name in ("oc22_linfit_coeffs.npz", "references.json"):
        section = NormalizationSection(element_references={"file": str(tmp_path / name)})  # type: ignore[arg-type]
        assert given_targets(section).element_energies == {H: -3.5, O: -5.25}
    section = NormalizationSection(element_references={"file": str(tmp_path / "references.pt")})  # type: ignore[arg-type]
    assert given_targets(section).element_energies == {H: -3.5, O: -5.25, 26: 1e-14}


def test_released_normalisers_are_read(tmp_path: Path) -> None:
    old = {"mean": torch.tensor(-0.75), "std": torch.tensor(2.5)}
    torch.save(old, tmp_path / "energy.pt")
    torch.save({"grad_target": {"mean": 0.0, "rmsd": torch.tensor(2.5)}, "target": old}, tmp_path / "both.pt")
    (tmp_path / "forces.json").write_text('{"mean": 0, "std": 2.5}')
    for energy in ("energy.pt", "both.pt"):
        for forces in ("forces.json", "both.pt"):
            section = NormalizationSection(
                energy_file=str(tmp_path / energy), forces_file=str(tmp_path / forces)
            )
            assert given_targets(section) == Normalization(energy_mean=-0.75, energy_std=2.5, forces_std=2.5)


class Attack:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        import os

        return os.mkdir, ("attacked",)


def test_hostile_and_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("pickled.npz", coeff=np.array([Attack()], dtype=object), allow_pickle=True)
    np.savez("other.npz", weights=np.zeros(3))
    np.savez("flat.npz", coeff=np.zeros((3, 3)))
    np.savez("nan.npz", coeff=np.array([0.0, np.nan]))
    np.savez("shifted.npz", coeff=np.array([-3.5, 0.0]))
    np.savez("long.npz", coeff=np.ones(200) * (np.arange(200) > 0))
    np.savez("zero.npz", coeff=np.zeros(100))
    Path("cut.npz").write_bytes(Path("zero.npz").read_bytes()[:60])
    Path("attack.pt").write_bytes(pickle.dumps(Attack()))
    torch.save(torch.zeros(3), "tensor.pt")
    Path("unknown.json").write_text('{"Xx": 1}')
    Path("text.json").write_text('{"H": "x"}')
    Path("twice.json").write_text('{"H": 1, "1": 2}')
    Path("list.json").write_text("[1]")
    cases = {
        "pickled.npz": "cannot be read as an archive of numbers",
        "other.npz": "has no array coeff; it has weights",
        "flat.npz": r"coeff is float64 of shape \[3, 3\]",
        "nan.npz": "energy of element 1 is not finite",
        "shifted.npz": "an energy at 0",
        "long.npz": "beyond atomic number 118",
        "zero.npz": "holds no energy of any element",
        "cut.npz": "cannot be read as an archive",
        "attack.pt": "attack.pt",
        "tensor.pt": "not energies by atomic number",
        "unknown.json": "'Xx' is neither",
        "text.json": "the energy of H is not a number",
        "twice.json": "names element 1 twice",
        "list.json": "does not hold a map",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            given_targets(NormalizationSection(element_references={"file": name}))  # type: ignore[arg-type]
    assert not Path("attacked").exists()
    for name in ("attack.pt", "tensor.pt"):
        with pytest.raises(OcpgemError, match=name):
            given_targets(NormalizationSection(energy_file=name))
    assert not Path("attacked").exists()
    torch.save({"mean": 1.0, "std": 2.0}, "shift.pt")
    with pytest.raises(DataError, match="forces cannot be shifted"):
        given_targets(NormalizationSection(forces_file="shift.pt"))
    for name, message in (("none.npz", "does not exist"), ("refs.txt", "must end in .npz, .pt, .json")):
        with pytest.raises(RequestError, match=message):
            given_targets(NormalizationSection(element_references={"file": name}))  # type: ignore[arg-type]


def test_what_was_fitted_comes_back_from_its_file_and_from_a_model_file_bit_for_bit(tmp_path: Path) -> None:
    found = fit(list(random_systems(30)), fit=True, element_references={"fit": "ridge"}).normalization
    (tmp_path / "targets.json").write_text(found.model_dump_json())
    assert given_targets(NormalizationSection(file=str(tmp_path / "targets.json"))) == found
    save_potential(Potential(tiny_config().model, found), tmp_path / "model.pt")
    assert load_potential(tmp_path / "model.pt").normalization == found
    with pytest.raises(RequestError, match="does not exist"):
        given_targets(NormalizationSection(file=str(tmp_path / "none.json")))
    np.savez(tmp_path / "binary.npz", coeff=np.full(50, 1e300))
    with pytest.raises(OcpgemError, match=r"binary\.npz"):
        given_targets(NormalizationSection(file=str(tmp_path / "binary.npz")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"element_references": {}}, "either fit or file"),
        ({"element_references": {"fit": "ridge", "file": "x.npz"}}, "either fit or file"),
        ({"energy_file": "a.pt", "energy_std": 2}, "energy_file and energy_std give the same numbers"),
        ({"element_references": {"file": "x.npz"}, "element_energies": {1: 1}}, "give the same numbers"),
        ({"file": "t.json", "fit": True}, "file gives everything; leave out fit"),
        ({"fit": True, "energy_mean": 1, "energy_std": 2, "forces_std": 3}, "nothing to fit"),
        ({"sample": 10}, "sample belongs to a fit"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NormalizationSection.model_validate(settings)


def test_the_section_round_trips_and_the_word_fit_stands_for_itself() -> None:
    settings = {"fit": True, "energy_mean": -3.0, "element_references": {"fit": "ridge", "ridge": 0.1}}
    section = NormalizationSection.model_validate(settings)
    assert parse_config(dump_config(section), NormalizationSection, "dump") == section
    assert tiny_config(normalization="fit").normalization == NormalizationSection(fit=True)
    assert tiny_config().normalization == NormalizationSection(fit=True)


def test_pairs_of_elements_are_those_of_one_system() -> None:
    data = InMemoryDataset([of([H, PT, PT], 0.0), of([O, PT], 0.0, sid=1)])
    assert element_pairs_of(data) == [(H, H), (H, PT), (O, O), (O, PT), (PT, PT)]
