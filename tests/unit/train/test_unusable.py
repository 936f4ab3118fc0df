"""Unusable records are left out only if that is allowed, by name and reason, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpgem.data.cost import fit_edge_cost
from ocpgem.data.dataset import Dataset, InMemoryDataset, Subset
from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.data.system import System
from ocpgem.data.without import Without
from ocpgem.errors import DataError, RequestError
from ocpgem.models.normalization import Normalization
from ocpgem.models.potential import Potential
from ocpgem.train.batching import prepare_costs, train_batching
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import DataSets
from ocpgem.train.run_directory import RunDirectory
from ocpgem.train.unusable import (
    leave_out_unusable,
    read_skipped,
    summary_of_skipped,
    usable_training_set,
    usable_validation_sets,
)
from tests.tiny_runs import random_systems, tiny_config

ALLOW = {"allow": True, "at_most": 0.9}


def config(skip: dict[str, Any], **changes: Any) -> TrainConfig:
    return tiny_config(data={"skip": skip}, **changes)


def spoilt(n: int = 12) -> list[System]:
    """Systems of which 1, 3, 4, 6, 8 and 10 cannot be used."""
    systems = list(random_systems(n))
    systems[1].energy = float("nan")
    systems[3].forces = None
    forces = systems[4].forces
    assert forces is not None
    forces[0, 0] = np.inf
    systems[6].pos = systems[6].pos[:1]
    for key in ("atomic_numbers", "tags", "fixed", "forces"):
        setattr(systems[6], key, getattr(systems[6], key)[:1])
    systems[6].cell = np.eye(3, dtype=np.float32) * 50
    systems[8].atomic_numbers = np.full_like(systems[8].atomic_numbers, 95)
    systems[10].energy = None
    return systems


REASONS = {
    1: "energy that is not finite",
    3: "no forces",
    4: "forces that is not finite",
    6: "no two atoms within 4 A",
    8: "element 95 beyond 83",
    10: "no energy",
}


def left_out(
    settings: TrainConfig, dataset: Dataset, folder: Path | None = None
) -> tuple[Dataset, list[str]]:
    said: list[str] = []
    found = leave_out_unusable(settings, DataSets([dataset], [1.0], {}), folder, said.append)
    return found.training_set, said


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_a_data_set_without_some_records_is_the_rest_in_order(n: int, chosen: set[int]) -> None:
    systems = list(random_systems(n))
    indices = np.array(sorted(index for index in chosen if index < n), dtype=np.int64)
    found = Without(InMemoryDataset(systems, "x"), indices)
    rest = [system for index, system in enumerate(systems) if index not in chosen]
    assert [found[index] for index in range(len(found))] == rest
    assert found.sids.tolist() == [system.sid for system in rest]
    assert found.sizes["n_atoms"].tolist() == [system.n_atoms for system in rest]
    if rest:
        backwards = np.arange(len(found))[::-1]
        assert found.rows(backwards)["sid"].tolist() == [system.sid for system in rest][::-1]
        assert found[-1] is rest[-1]
        assert found.origin(0) == f"x, record {rest[0].sid}"
    with pytest.raises(IndexError):
        found[len(rest)]


@pytest.mark.parametrize("kind", ["memory", "lmdb", "subset"])
def test_every_kind_of_fault_is_found_named_and_listed(kind: str, tmp_path: Path) -> None:
    systems = spoilt()
    dataset: Dataset = InMemoryDataset(systems, "memory")
    if kind != "memory":
        for number in (6,):  # a data set of ours cannot be written with a record that has no edges
            systems[number] = list(random_systems(12))[number]
        rows = list(random_systems(12, 0))
        write_dataset(tmp_path / "set", rows)
        dataset = Rewritten(LmdbDataset(tmp_path / "set"), systems)
    expected = {k: v for k, v in REASONS.items() if kind == "memory" or k != 6}
    places = {index: index for index in range(12)}
    if kind == "subset":
        chosen = np.array([11, 10, 3, 2, 0])
        dataset = Subset(dataset, chosen)
        places = {int(record): place for place, record in enumerate(chosen)}
        expected = {10: REASONS[10], 3: REASONS[3]}
    found, said = left_out(config(ALLOW), dataset, tmp_path)
    kept = [sid for sid in places if sid not in expected]
    assert [found[index].sid for index in range(len(found))] == kept
    assert found.sids.tolist() == kept
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {entry["sid"]: entry["index"] for entry in listed} == {sid: places[sid] for sid in expected}
    for entry in listed:
        assert entry["reason"].startswith(expected[entry["sid"]])
        assert entry["fid"] == entry["sid"] % 3
        assert entry["record"].endswith(f"record {entry['sid']}")
        assert entry["data_set"] == "train"
    assert said[0] == f"{len(expected)} of {len(places)} records of train cannot be used and are left out"
    assert summary_of_skipped(tmp_path) == [
        f"unusable records left out: {len(expected)} of {len(places)} in train, listed in {tmp_path / 'skipped.jsonl'}"
    ]


class Rewritten(Dataset):
    """A stored data set whose records read as others."""

    def __init__(self, stored: LmdbDataset, systems: list[System]) -> None:
        self.path, self._stored, self._systems = stored.path, stored, systems

    stores_sizes = True  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> System:
        return self._systems[index]

    @property
    def sizes(self) -> Any:
        return self._stored.sizes


def test_what_is_left_can_be_trained_on() -> None:
    settings = config(ALLOW)
    found, _ = left_out(settings, InMemoryDataset(spoilt(), "memory"))
    potential = Potential(settings.model, Normalization())
    loader = TrainLoader(Recipe(found, potential.graph_spec), 3, seed=0)
    seen: list[int] = []
    for step in loader.steps():
        seen += [sid for batch, _ in step.micro_batches for sid in batch.sid.tolist()]
        assert step.n_systems_global == sum(batch.num_graphs for batch, _ in step.micro_batches)
        if step.epoch >= 1:
            break
    assert sorted(seen) == [0, 2, 5, 7, 9, 11]


def test_a_damaged_record_is_left_out_and_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", random_systems(9))
    shard = next((tmp_path / "set").glob("*.lmdb"))
    forces = list(random_systems(9))[4].forces
    assert forces is not None
    flipped = bytes([forces.tobytes()[0] ^ 4]) + forces.tobytes()[1:]
    shard.write_bytes(shard.read_bytes().replace(forces.tobytes(), flipped))
    dataset = LmdbDataset(tmp_path / "set")
    with pytest.raises(DataError, match="checksum"):
        dataset[4]
    found, _ = left_out(config(ALLOW), dataset, tmp_path)
    assert [found[index].sid for index in range(len(found))] == [0, 1, 2, 3, 5, 6, 7, 8]
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["sid"], entry["fid"], entry["index"]) == (4, 1, 4)
    assert "checksum" in entry["reason"]


def test_limits_concern_training_only(tmp_path: Path) -> None:
    systems = list(random_systems(10))
    forces = systems[2].forces
    assert forces is not None
    systems[2].fixed[:] = False
    forces[0] = (30, 40, 0)
    systems[5].energy = -200.0 * systems[5].n_atoms
    most = max(system.n_atoms for system in systems)
    large = [system.sid for system in systems if system.n_atoms == most]
    limits = ALLOW | {"max_force": 49, "max_energy_per_atom": 100, "max_atoms": most - 1}
    sets = DataSets([InMemoryDataset(systems)], [1.0], {"val": InMemoryDataset(systems)})
    found = leave_out_unusable(config(limits), sets, tmp_path, lambda text: None)
    assert set(range(10)) - set(found.training_set.sids.tolist()) == {2, 5, *large}
    assert len(found.val["val"]) == 10
    found = leave_out_unusable(config(limits | {"max_force": 51}), sets, None, lambda text: None)
    assert 2 in found.training_set.sids.tolist() or 2 in large


def test_a_validation_set_without_any_forces_is_scored_on_energies() -> None:
    systems = list(random_systems(6))
    for system in systems:
        system.forces = None
    systems[3].energy = None
    sets = DataSets([InMemoryDataset(list(random_systems(4)))], [1.0], {"val": InMemoryDataset(systems)})
    found = leave_out_unusable(config(ALLOW), sets, None, lambda text: None)
    assert found.val["val"].sids.tolist() == [0, 1, 2, 4, 5]


def test_nothing_is_left_out_unless_it_is_allowed(tmp_path: Path) -> None:
    dataset = InMemoryDataset(spoilt(), "memory")
    found, said = left_out(config({}), dataset, tmp_path)
    assert found is dataset
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_too_many_are_refused_with_the_most_frequent_reason(tmp_path: Path) -> None:
    systems = list(random_systems(10))
    for number in (2, 3, 7):
        systems[number].forces = None
    with pytest.raises(
        DataError, match=r"3 of 10 records of memory \(train\) .* no forces; the first is memory, rec"
    ):
        left_out(config({"allow": True, "at_most": 0.2}), InMemoryDataset(systems), tmp_path)
    assert list(tmp_path.iterdir()) == []
    for system in systems:
        system.energy = None
    with pytest.raises(DataError, match="10 of 10 records"):
        left_out(config({"allow": True, "at_most": 1}), InMemoryDataset(systems), tmp_path)


def test_a_resumed_run_leaves_out_the_same_without_looking_again(tmp_path: Path) -> None:
    systems = spoilt()
    first, _ = left_out(config(ALLOW), InMemoryDataset(systems), tmp_path)
    listed = (tmp_path / "skipped.jsonl").read_text()
    again, said = left_out(config(ALLOW), InMemoryDataset(list(random_systems(12))), tmp_path)
    assert again.sids.tolist() == first.sids.tolist()
    assert "6 of 12 records" in said[0]
    assert (tmp_path / "skipped.jsonl").read_text() == listed
    with pytest.raises(RequestError, match=r"has 11 records, but 12 when the run in .* looked"):
        left_out(config(ALLOW), InMemoryDataset(systems[:11]), tmp_path)
    (tmp_path / "skipped.jsonl").write_text("{")
    with pytest.raises(RequestError, match=r"skipped\.jsonl cannot be read"):
        left_out(config(ALLOW), InMemoryDataset(systems), tmp_path)


def test_several_sets_are_looked_at_each_for_itself(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("v", 2)):
        systems = list(random_systems(8, seed))
        systems[seed + 1].energy = None
        write_dataset(tmp_path / name, systems)
    data = {
        "train": [str(tmp_path / "a"), {"path": str(tmp_path / "b"), "weight": 2}],
        "val": {"v": str(tmp_path / "v")},
        "skip": {"allow": True, "at_most": 0.2},
    }
    settings = tiny_config(data=data)
    found = usable_training_set(settings, lambda text: None)
    draws = found.draws(0)
    assert draws is not None
    assert draws.counts == (7, 7)
    assert sorted(draws.order(0).tolist()) == sorted([*range(7), *(2 * list(range(7, 14)))])
    from ocpgem.train.datasets import open_data_sets

    run = tmp_path / "run"
    run.mkdir()
    sets = leave_out_unusable(settings, open_data_sets(settings.data), run, lambda text: None)
    skipped = read_skipped(run, open_data_sets(settings.data).named)
    assert skipped is not None
    assert [(entry.data_set, entry.index) for entry in skipped] == [
        ("train[0]", 1),
        ("train[1]", 2),
        ("val.v", 3),
    ]
    scored = usable_validation_sets(settings.data, run)
    assert scored["v"].sids.tolist() == sets.val["v"].sids.tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_a_record_beyond_max_edges_is_left_out_like_any_other_and_the_run_can_begin(tmp_path: Path) -> None:
    systems = list(random_systems(12))
    dataset = InMemoryDataset(systems, "memory")
    plain = config(ALLOW)
    edges = fit_edge_cost(dataset, plain.model.graph_spec).at_most(dataset.sizes)
    most = int(np.sort(edges)[-3])
    too_large = set(np.flatnonzero(edges > most).tolist())
    assert 1 <= len(too_large) <= 2
    limited = plain.model_copy(update={"data": plain.data.model_copy(update={"max_edges": most})})
    found, said = left_out(limited, dataset, tmp_path)
    assert set(found.sids) == {system.sid for system in systems} - too_large
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {entry["sid"] for entry in listed} == too_large
    for entry in listed:
        assert entry["reason"] == f"up to {edges[entry['sid']]} edges, more than max_edges {most}"
    assert said[0] == f"{len(too_large)} of 12 records of train cannot be used and are left out"

    # With the costs that were kept the rest fits; a second look leaves out the same.
    run = RunDirectory(tmp_path)
    potential = Potential(limited.model, Normalization())
    costs = prepare_costs(run, potential, Recipe(found, potential.graph_spec), limited.data)
    TrainLoader(Recipe(found, potential.graph_spec), train_batching(limited.data, costs), 0)
    again, _ = left_out(limited, InMemoryDataset(systems, "memory"), tmp_path)
    assert again.sids.tolist() == found.sids.tolist()
    with pytest.raises(RequestError, match=f"more than max_edges {most}"):
        TrainLoader(Recipe(dataset, potential.graph_spec), train_batching(limited.data, costs), 0)
