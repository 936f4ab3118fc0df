"""The data section of a configuration: one path, several weighted sets, subsets, what energies are."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocpgem.config import dump_config, load_config, parse_config
from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.mixture import Mixture
from ocpgem.errors import ConfigError, DataError, RequestError
from ocpgem.train.config import DataSection, TrainConfig
from ocpgem.train.datasets import describe_sets, open_training_set, open_validation_sets
from tests.tiny_runs import random_systems, tiny_settings, write_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_dataset(folder / "a", random_systems(10, 0))
    write_dataset(folder / "b", random_systems(6, 1))
    return folder


def section(folder: Path, train: Any, **others: Any) -> DataSection:
    def placed(entry: Any) -> Any:
        if isinstance(entry, str):
            return str(folder / entry)
        return entry | {"path": str(folder / entry["path"])}

    entries = [placed(entry) for entry in train] if isinstance(train, list) else placed(train)
    return DataSection.model_validate({"train": entries} | others)


def test_a_path_alone_is_the_whole_data_set(folder: Path) -> None:
    found = open_training_set(section(folder, "a"))
    assert isinstance(found, LmdbDataset)
    assert found.draws(0) is None


def test_several_sets_are_joined_and_described(folder: Path) -> None:
    data = section(folder, ["a", {"path": "b", "weight": 2.5, "subset": {"first": 4}}])
    found = open_training_set(data)
    assert isinstance(found, Mixture)
    assert found.sids.tolist() == [*range(10), *range(4)]
    assert describe_sets(data, found, 0) == [
        f"  {folder / 'a'}: 10 systems, weight 1, 10 draws an epoch (50.0%)",
        f"  {folder / 'b'}: 4 systems, weight 2.5, 10 draws an epoch (50.0%)",
    ]


def test_one_set_can_have_a_weight(folder: Path) -> None:
    found = open_training_set(section(folder, {"path": "a", "weight": 0.5}))
    draws = found.draws(0)
    assert draws is not None
    assert draws.per_epoch == 5


def test_a_random_fraction_grows_without_losing_records(folder: Path) -> None:
    def sids(fraction: float, seed: int = 3) -> set[int]:
        chosen = {"path": "a", "subset": {"fraction": fraction, "seed": seed}}
        return set(open_training_set(section(folder, chosen)).sids.tolist())

    assert [len(sids(fraction)) for fraction in (0.01, 0.3, 0.55, 1.0)] == [1, 3, 6, 10]
    assert sids(0.3) < sids(0.55) < sids(1.0)
    assert sids(0.3) != sids(0.3, seed=4)


def test_records_are_chosen_by_a_file_of_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen.txt").write_text("7\n2 0\n")
    np.save(tmp_path / "chosen.npy", np.array([7, 2, 0]))
    for name in ("chosen.txt", "chosen.npy"):
        chosen = {"path": "a", "subset": {"indices": str(tmp_path / name)}}
        found = open_training_set(section(folder, chosen))
        assert found.sids.tolist() == [7, 2, 0]
        assert [found[index].sid for index in range(3)] == [7, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 10", "asks for record 10 of .*a, which has records 0 to 9"),
        ("-1", "asks for record -1"),
        ("1 2 1", "names record 1 2 times"),
        ("one", "does not hold record numbers"),
        ("", "holds no record numbers"),
        ("99999999999999999999", "does not hold record numbers"),
    ],
)
def test_wrong_record_numbers_are_refused(text: str, message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen.txt").write_text(text)
    data = section(folder, {"path": "a", "subset": {"indices": str(tmp_path / "chosen.txt")}})
    with pytest.raises(DataError, match=message):
        open_training_set(data)


def test_what_is_missing_is_a_wrong_request(folder: Path) -> None:
    for subset, message in (
        ({"first": 11}, "has 10 records; it has no first 11"),
        ({"indices": "none.txt"}, "none.txt .* does not exist"),
    ):
        with pytest.raises(RequestError, match=message):
            open_training_set(section(folder, {"path": "a", "subset": subset}))
    np.save(folder / "floats.npy", np.array([0.5]))
    with pytest.raises(DataError, match="it holds float64 numbers"):
        open_training_set(section(folder, {"path": "a", "subset": {"indices": str(folder / "floats.npy")}}))


def test_validation_sets_have_subsets_and_references_too(folder: Path) -> None:
    (folder / "ref.pkl").write_bytes(pickle.dumps({f"random{sid}": -100.0 * sid for sid in range(6)}))
    entry = {"path": str(folder / "b"), "subset": {"first": 3}, "add_references": str(folder / "ref.pkl")}
    found = open_validation_sets(section(folder, "a", val={"small": entry, "all": str(folder / "b")}))
    assert [len(dataset) for dataset in found.values()] == [3, 6]
    plain, shifted = found["all"][2].energy, found["small"][2].energy
    assert plain is not None
    assert shifted == plain - 200


def test_the_configuration_round_trips_and_names_every_file(folder: Path) -> None:
    data = section(folder, ["a", {"path": "b", "add_references": "ref.pkl", "subset": {"indices": "i.txt"}}])
    assert parse_config(dump_config(data), DataSection, "dump") == data
    assert data.files == [str(folder / "a"), str(folder / "b"), "i.txt", "ref.pkl"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": []}, "data.train"),
        (
            {"train": {"path": "a", "wieght": 2}},
            "data.train.wieght is not a known key; did you mean .*weight",
        ),
        (
            {"train": ["a", {"path": "b", "weight": 0}]},
            r"data.train\[1\].weight is 0; it must be a number > 0",
        ),
        ({"train": {"path": "a", "subset": {}}}, "exactly one of first, fraction and indices"),
        ({"train": {"path": "a", "subset": {"first": 2, "fraction": 0.1}}}, "exactly one of"),
        ({"train": {"path": "a", "subset": {"first": 2, "seed": 1}}}, "seed belongs to fraction"),
        ({"train": "a", "val": {"v": {"path": "a", "weight": 2}}}, "val.v.weight must be 1"),
        ({"train": "a", "skip": {"max_force": 2}}, "max_force leaves records out, which needs allow: true"),
    ],
)
def test_mistakes_are_named(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_settings(tmp_path / "c.yml", tiny_settings("a") | {"data": data})
    with pytest.raises(ConfigError, match=message):
        load_config(file, [], TrainConfig)
