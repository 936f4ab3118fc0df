"""The part of a translated v1 configuration that is about targets: data sets with their energies, normalisation."""

from collections.abc import Callable
from typing import Any

from ocpgem.train.v1_settings import Settings

TRAIN = ("dataset.0.", "dataset.train.", "dataset.")
VALIDATION = ("dataset.1.", "dataset.val.", "val_dataset.")
_NUMBERS = {"energy_mean": "target_mean", "energy_std": "target_std", "forces_std": "grad_target_std"}

Set = Callable[[str, Any], None]
Note = Callable[[str, str], None]


def data_set(old: Settings, places: tuple[str, ...]) -> Any:
    """The data set that stands at one of these places: its path, or a section if energies are added to its own."""
    path = old.take(*(f"{place}src" for place in places))
    references = old.take(*(f"{place}oc20_ref" for place in places))
    return path if path is None or not references else {"path": path, "add_references": references}


def as_section(entry: Any) -> dict[str, Any]:
    """A data set as a section."""
    return entry if isinstance(entry, dict) else {"path": entry}


def translate_targets(old: Settings, set_new: Set, note: Note) -> None:
    """Set `normalization` to what it was, and say what is different."""
    values = _numbers(old, note)
    fitted = old.take_all(r"dataset\.(0\.|train\.)?transforms\.normalizer\.fit.*")
    if fitted:
        set_new("normalization", {"fit": True})
        note(", ".join(fitted), "fitted here by normalization.fit")
    elif values:
        set_new("normalization", values)
    else:
        set_new("normalization", {"energy_mean": 0.0, "energy_std": 1.0, "forces_std": 1.0})
        note("dataset", "targets were not normalised; normalization: fit would take it from the data")
    _translate_references(old, set_new, note)


def _numbers(old: Settings, note: Note) -> dict[str, Any]:
    stand = {name: _of_train(old, theirs) for name, theirs in _NUMBERS.items()}
    named = {
        "energy_mean": _normalizer(old, "energy", "target", of=("mean",)),
        "energy_std": _normalizer(old, "energy", "target", of=("stdev", "std", "rmsd")),
        "forces_std": _normalizer(old, "forces", "grad_target", of=("stdev", "std", "rmsd")),
    }
    shift = _normalizer(old, "forces", "grad_target", of=("mean",)) or _of_train(old, "grad_target_mean")
    if shift:
        note("grad_target_mean", f"was {shift}; forces are not shifted here")
    labels = old.take_flag(*(f"{place}normalize_labels" for place in TRAIN))
    values = {
        key: named[key] if named[key] is not None else stand[key] if labels else None for key in _NUMBERS
    }
    return {key: value for key, value in values.items() if value is not None}


def _translate_references(old: Settings, set_new: Set, note: Note) -> None:
    names = ("lin_ref", "transforms.element_references.file")
    file = old.take(*(f"{place}{name}" for name in names for place in TRAIN))
    fitted = old.take_all(r"dataset\.(0\.|train\.)?transforms\.element_ref.*")
    if file:
        set_new("normalization.element_references.file", file)
        note(
            "lin_ref",
            "is read as normalization.element_references.file and stored in the model file",
        )
    elif fitted:
        set_new("normalization.element_references.fit", "least_squares")
        note(", ".join(fitted), "fitted here by normalization.element_references.fit")


def _normalizer(old: Settings, *targets: str, of: tuple[str, ...]) -> Any:
    return _of_train(old, *(f"transforms.normalizer.{target}.{name}" for target in targets for name in of))


def _of_train(old: Settings, *names: str) -> Any:
    """A number that stands with the training set."""
    return old.take_number(*(f"{place}{name}" for name in names for place in TRAIN))
