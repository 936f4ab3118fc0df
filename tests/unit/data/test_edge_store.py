"""Edges that are stored beside a data set are those that a search finds, and never those of anything else."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ocpgem.cli import main
from ocpgem.data import edge_store, loader
from ocpgem.data.cost import fit_edge_cost
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.edge_record import decode_edges, encode_edges
from ocpgem.data.edge_store import EdgeStore, edges_of, graph_name, store_edges
from ocpgem.data.lmdb_store import LmdbDataset, ShardWriter, finish_dataset, shard_name, write_dataset
from ocpgem.data.loader import Recipe, TrainLoader, WorkerSettings
from ocpgem.errors import DataError, RequestError
from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.system_edges import SystemEdges, system_edges
from ocpgem.graph.topology import Topology
from tests.tiny_runs import random_systems, tiny_settings, write_settings

GRAPHS = ("main", "atom_edge", "quadruplet", "atom_atom")
PLAIN = GraphSpec(4.0, 20)
EVERYTHING = GraphSpec(
    5.0,
    12,
    self_images="positive",
    quadruplet=Limit(4.5, 6),
    quadruplet_tags=(1, 2),
    atom_edge=Limit(5.0, 8),
    atom_atom=Limit(6.0, 30),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven records in three shards."""
    systems = list(random_systems(11))
    paths = [tmp_path / "set" / shard_name(number) for number in range(3)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        with ShardWriter(path) as writer:
            for system in systems[4 * number : 4 * number + 4]:
                writer.add(system)
    finish_dataset(paths[0].parent, paths)
    return paths[0].parent


def stored(folder: Path, graph: GraphSpec = PLAIN) -> LmdbDataset:
    dataset = LmdbDataset(folder)
    dataset.use_stored_edges(graph)
    return dataset


def same(one: SystemEdges, other: SystemEdges) -> bool:
    return one.n_atoms == other.n_atoms and all(
        (a is None) == (b is None)
        and (
            a is None
            or b is None
            or all(np.array_equal(getattr(a, key), getattr(b, key)) for key in type(a).__dataclass_fields__)
        )
        for a, b in ((getattr(one, name), getattr(other, name)) for name in GRAPHS)
    )  # fmt: skip


def equal(one: Topology, other: Topology) -> bool:
    return pickle.dumps(_plain(one)) == pickle.dumps(_plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


@pytest.mark.parametrize("graph", [PLAIN, EVERYTHING], ids=["one graph", "four graphs"])
def test_what_is_stored_is_what_a_search_finds(folder: Path, graph: GraphSpec) -> None:
    summary = store_edges(folder, graph, workers=1)
    assert summary.startswith(f"edges of 11 records in {folder}/edges/{graph_name(graph)}: ")
    dataset = stored(folder, graph)
    for index in range(-1, 11):
        system = dataset[index]
        assert system.edges is not None
        found = system_edges(system.pos, system.cell, system.pbc, graph, system.tags)
        assert same(edges_of(system, graph), found)
        assert dataset.sizes["n_edges"][index] == len(found.main)
        assert dataset.rows(np.array([index % 11]))["n_edges"][0] == len(found.main)
    cost = fit_edge_cost(dataset, graph)
    assert cost.of(dataset.sizes).tolist() == dataset.sizes["n_edges"].tolist(), (
        "nothing is estimated any more"
    )


def test_workers_change_nothing_and_are_not_needed_twice(folder: Path) -> None:
    store_edges(folder, PLAIN, workers=2)
    files = {file.name: file.read_bytes() for file in (folder / "edges" / graph_name(PLAIN)).glob("*.json")}
    with_two = [stored(folder)[index].edges for index in range(11)]
    assert "holds the edges already" in store_edges(folder, PLAIN, workers=1)
    store_edges(folder, PLAIN, workers=1, anew=True)
    assert [stored(folder)[index].edges for index in range(11)] == with_two
    assert files == {
        file.name: file.read_bytes() for file in (folder / "edges" / graph_name(PLAIN)).glob("*.json")
    }


@pytest.mark.parametrize("settings", [WorkerSettings(0), WorkerSettings(2), WorkerSettings(1, start="spawn")])
def test_a_loader_makes_the_same_batches_without_searching(
    folder: Path, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = TrainLoader(Recipe(LmdbDataset(folder), EVERYTHING), 4, 0).steps()
    expected = [next(searched) for _ in range(3)]
    store_edges(folder, EVERYTHING, workers=1)
    if settings.start == "fork":  # what is forked has the same searches

        def search(*_: object) -> SystemEdges:
            raise AssertionError("a search although the edges are stored")

        monkeypatch.setattr(edge_store, "system_edges", search)
    steps = TrainLoader(Recipe(stored(folder, EVERYTHING), EVERYTHING), 4, 0, settings=settings).steps()
    for step in expected:
        found = next(steps)
        assert [indices.tolist() for indices in found.indices] == [
            indices.tolist() for indices in step.indices
        ]
        for (batch, topology), (other, others) in zip(found.micro_batches, step.micro_batches, strict=True):
            assert torch.equal(batch.pos, other.pos)
            assert equal(topology, others)
    steps.close()  # type: ignore[attr-defined]


def test_edges_of_another_graph_are_searched(folder: Path) -> None:
    store_edges(folder, PLAIN, workers=1)
    dataset = stored(folder)
    other = GraphSpec(3.5, 20)
    system = dataset[3]
    assert same(edges_of(system, other), system_edges(system.pos, system.cell, system.pbc, other))
    for change in (
        {"cutoff": 4.1},
        {"max_neighbors": 21},
        {"truncation": "symmetric"},
        {"self_images": "positive"},
    ):
        changed = GraphSpec(**({"cutoff": 4.0, "max_neighbors": 20} | change))
        with pytest.raises(
            RequestError, match=r"has no stored edges for the model's graph .*; make them: python main"
        ):
            LmdbDataset(folder).use_stored_edges(changed)


def test_a_data_set_that_was_made_anew_does_not_get_the_old_edges(folder: Path) -> None:
    store_edges(folder, PLAIN, workers=1)
    for file in (*folder.glob("*.lmdb"), *folder.glob("*.json"), folder / "sizes.npy"):
        file.unlink()
    write_dataset(folder, random_systems(9, seed=5))
    with pytest.raises(
        DataError, match=r"was made for another data set than .* holds now; make the edges anew"
    ):
        stored(folder)
    store_edges(folder, PLAIN, workers=1)
    assert len(stored(folder)) == 9


def test_edges_of_other_positions_are_refused_by_the_name_of_their_record(folder: Path) -> None:
    """As where a shard is replaced by one of the same size."""
    store_edges(folder, PLAIN, workers=1)
    system = stored(folder)[2]
    system.pos = system.pos + np.float32(1e-3)
    recipe = Recipe(InMemoryDataset([system]), PLAIN)
    with pytest.raises(
        DataError, match=r"sid 2, frame 2 .*record 2.*: the stored edges are of other positions"
    ):
        recipe.prepare(np.array([0]))


def test_every_flipped_bit_is_noticed() -> None:
    system = next(random_systems(1))
    content = encode_edges(system_edges(system.pos, system.cell, system.pbc, EVERYTHING, system.tags), system)
    decode_edges(content, system, "here")
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(DataError, match="here: the stored edges are damaged"):
            decode_edges(bytes(damaged), system, "here")
    for length in range(len(content)):
        with pytest.raises(DataError, match="damaged"):
            decode_edges(content[:length], system, "here")


def test_many_edges_and_far_images_keep_their_numbers() -> None:
    """Numbers beyond one and two bytes."""
    system = next(random_systems(1))
    system.cell = np.diag([0.9, 1.0, 300.0]).astype(np.float32)
    graph = GraphSpec(200.0, 0) if system.n_atoms < 3 else GraphSpec(60.0, 0)
    edges = system_edges(system.pos, system.cell, system.pbc, graph)
    assert len(edges.main) > 1 << 16
    assert same(decode_edges(encode_edges(edges, system), system, ""), edges)


def test_what_was_interrupted_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = edge_store._edges_as_bytes
    done: list[int] = []

    def interrupted(*args: Any) -> Any:
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    monkeypatch.setattr(edge_store, "_edges_as_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store_edges(folder, PLAIN, workers=1)
    with pytest.raises(RequestError, match="has no stored edges"):
        stored(folder)
    again: list[int] = []

    def counted(*args: Any) -> Any:
        again.append(1)
        return real(*args)

    monkeypatch.setattr(edge_store, "_edges_as_bytes", counted)
    store_edges(folder, PLAIN, workers=1)
    assert len(again) == 7, "the first shard was finished"
    assert edges_of(stored(folder)[5], PLAIN).n_atoms == stored(folder)[5].n_atoms


def test_a_record_without_edges_has_none_stored_and_its_own_error(tmp_path: Path) -> None:
    systems = list(random_systems(3))
    write_dataset(tmp_path / "set", systems)
    graph = GraphSpec(0.5, 20)  # A: nobody is so near
    assert "3 records have none that a model could use" in store_edges(tmp_path / "set", graph, workers=1)
    with pytest.raises(DataError, match=r"no two of its . atoms are within 0\.5 A"):
        edges_of(stored(tmp_path / "set", graph)[1], graph)


def test_what_cannot_have_stored_edges_says_so(folder: Path) -> None:
    for dataset in (
        InMemoryDataset(list(random_systems(1)), "frames.extxyz"),
        LmdbDataset(folder / shard_name(0)),
    ):
        with pytest.raises(RequestError, match="cannot have stored edges, only the folder of a data set"):
            dataset.use_stored_edges(PLAIN)
    with pytest.raises(RequestError, match="is not the folder of a data set of ocpgem"):
        store_edges(folder / shard_name(0), PLAIN)


def test_a_pickled_data_set_carries_no_files(folder: Path) -> None:
    store_edges(folder, PLAIN, workers=1)
    dataset = stored(folder)
    assert dataset[0].edges is not None
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[10].edges == dataset[10].edges
    assert isinstance(dataset._edges, EdgeStore)
    assert loader.edges_of is edges_of


def test_the_command_stores_what_the_run_of_a_configuration_reads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig
    from ocpgem.train.datasets import edges_to_read, open_data_sets

    write_dataset(tmp_path / "val", random_systems(4, seed=1))
    settings = tiny_settings(folder, tmp_path / "val", data={"stored_edges": True})
    settings["data"]["train"] = {"path": str(folder), "subset": {"first": 7}}
    file = write_settings(tmp_path / "config.yml", settings)
    config = load_config(file, (), TrainConfig)
    with pytest.raises(RequestError, match=f"{folder} has no stored edges"):
        open_data_sets(config.data, edges_to_read(config))
    assert main(["data", "edges", "--config", str(file), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"edges of 11 records in {folder}/edges/" in said
    assert f"edges of 4 records in {tmp_path}/val/edges/" in said
    found = open_data_sets(config.data, edges_to_read(config))
    assert found.training_set[6].edges is not None
    assert found.val["val"][3].edges is not None
    description = json.loads(next((folder / "edges").glob("*/edges.json")).read_text())
    assert description["graph"]["cutoff"] == yaml.safe_load(file.read_text())["model"]["neighbors"]["cutoff"]
    shutil.rmtree(folder / "edges")
    assert main(["data", "edges", str(tmp_path / "nowhere"), "--config", str(file)]) == 2
    assert "error: " in capsys.readouterr().err
