"""`compile: blocks` and `full`: the numbers of a run that is not compiled, few graphs, refusals in one sentence."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ocpgem import segment
from ocpgem.checkpoint import load_potential
from ocpgem.errors import RequestError
from ocpgem.graph.buckets import MOST_SHAPES, Buckets
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Potential
from ocpgem.train.compiling import MOST_GRAPHS, compile_blocks, compile_full, n_graphs
from ocpgem.train.run import train
from tests.structures import case_config, random_potential, random_slabs, topology_of
from tests.tiny_runs import ROOT, clean_environment, tiny_config, write_tiny_data

NO_COMPILER = shutil.which("g++") is None


def run(folder: Path, how: str) -> None:
    train(tiny_config(folder / "train", folder / "val", compile=how), folder / how)


def measured(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "wait", "_s", "gpu", "memory")
    return [
        {
            key: value
            for key, value in line.items()
            if isinstance(value, float) and not any(t in key for t in timed)
        }
        for line in lines
    ]


@pytest.mark.slow  # a C++ compiler translates a block twice
@pytest.mark.timeout(900)
@pytest.mark.skipif(NO_COMPILER, reason="needs g++")
def test_a_compiled_run_has_the_numbers_of_one_that_is_not(tmp_path: Path) -> None:
    """Batches of several sizes, training and validation; each run in a process of its own, as DeepSpeed wants it."""
    write_tiny_data(tmp_path)
    for how in ("off", "blocks", "full"):
        program = [sys.executable, "-m", "tests.unit.train.test_compiling", str(tmp_path), how]
        done = subprocess.run(
            program, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for how in ("blocks", "full"):
        plain, compiled = measured(tmp_path / "off"), measured(tmp_path / how)
        assert len(plain) > 4
        assert "loss" in plain[0]
        for one, other in zip(plain, compiled, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        models = [load_potential(tmp_path / run / "checkpoints" / "6" / "model.pt") for run in ("off", how)]
        for (name, weight), (same_name, other_weight) in zip(
            *(model.named_parameters() for model in models), strict=True
        ):
            assert name == same_name
            torch.testing.assert_close(weight, other_weight, rtol=1e-4, atol=1e-5)
    assert "torch.compile" not in (tmp_path / "off" / "summary.txt").read_text()
    # One for training and one for validation, whatever the sizes of the batches.
    assert (
        f"torch.compile: 2 graphs (at most {MOST_GRAPHS}" in (tmp_path / "blocks" / "summary.txt").read_text()
    )
    found = re.search(
        r"torch.compile: (\d+) graphs, one for", (tmp_path / "full" / "summary.txt").read_text()
    )
    assert found is not None
    assert 1 <= int(found[1]) <= MOST_SHAPES


@pytest.mark.slow  # the graphs of whole blocks
@pytest.mark.timeout(900)
@pytest.mark.skipif(NO_COMPILER, reason="needs g++")
@pytest.mark.parametrize("case", ["gemnet_OC", "gemnet_dQ"])
def test_all_paths_of_a_block_are_one_graph_for_all_sizes(case: str) -> None:
    """Forward only and without the C++ compiler, the last stage: both together take minutes for such a block."""
    torch._dynamo.reset()  # else graphs of other tests count against the limit, beyond which nothing is translated
    config = case_config(case, n_blocks=1)
    plain, compiled = (random_potential(config, torch.float32).train() for _ in range(2))
    compile_blocks(compiled, torch.device("cpu"), backend="aot_eager")
    before = n_graphs()
    for seed, n_atoms in enumerate([(9, 5), (7, 4, 6), (5, 6, 7, 8)]):
        batch = random_slabs(n_atoms, torch.float32, seed)
        topology = topology_of(batch, config.graph_spec)
        with torch.no_grad():
            one, other = plain(batch, topology), compiled(batch, topology)
        torch.testing.assert_close(one.energy, other.energy, rtol=1e-6, atol=1e-5)
        assert (one.forces - other.forces).abs().max() <= 2e-5 * one.forces.abs().max()
    assert 1 <= n_graphs() - before <= 2  # a size that two parts share at first may be set free once


@pytest.mark.slow  # a block is translated twice
@pytest.mark.parametrize("backend", ["torch", "scatter"])
def test_sums_over_segments_stay_one_operation_in_a_compiled_block(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-scatter's sums, too, of which torch.compile knows nothing."""
    if backend == "scatter":
        pytest.importorskip("torch_scatter", reason="torch-scatter is not installed (make setup-full)")
    monkeypatch.setattr(segment, "BACKEND", backend)
    torch._dynamo.reset()  # what was translated for one backend would be used for the other
    config = case_config("gemnet_dT", n_blocks=1)
    plain, compiled = (random_potential(config).train() for _ in range(2))
    compile_blocks(compiled, torch.device("cpu"), backend="aot_eager")
    batch = random_slabs((7, 4))
    topology = topology_of(batch, config.graph_spec)
    found = []
    for potential in (plain, compiled):
        predictions = potential(batch, topology)
        (predictions.energy.sum() + predictions.forces.pow(2).sum()).backward()
        found.append(torch.cat([weight.grad.flatten() for weight in potential.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.slow  # the graphs of three whole models, each for two sizes
@pytest.mark.timeout(900)
@pytest.mark.skipif(NO_COMPILER, reason="needs g++")
@pytest.mark.parametrize("case", ["gemnet_dT", "gemnet_dQ", "gemnet_OC"])
def test_a_whole_model_is_one_graph_for_each_size_batches_are_filled_up_to(case: str) -> None:
    """Energies, forces and gradients of weights, without the C++ compiler, the last stage."""
    config = case_config(case, n_blocks=1)
    plain, compiled = (random_potential(config).train() for _ in range(2))
    compile_full(compiled, torch.device("cpu"), backend="aot_eager")
    buckets, before = Buckets(most=2), n_graphs()
    sizes = [(9, 5), (8, 5), (4, 3), (9, 4), (4, 2)]
    for seed, n_atoms in enumerate(sizes):
        batch = random_slabs(n_atoms, seed=seed)
        topology = topology_of(batch, config.graph_spec)
        expected, found = outputs(plain, batch, topology), outputs(compiled, batch, buckets.pad(topology))
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert len(buckets.shapes) == 2
    assert n_graphs() - before == 2


def outputs(potential: Potential, batch: Any, topology: Topology) -> torch.Tensor:
    """Energies, forces and the gradients of all weights in one row."""
    potential.zero_grad()
    predicted = potential(batch, topology)
    assert predicted.forces is not None
    (predicted.energy.sum() + predicted.forces.pow(2).sum()).backward()
    of_weights = [p.grad.flatten() for p in potential.parameters() if p.grad is not None]
    return torch.cat([predicted.energy.detach(), predicted.forces.detach().flatten(), *of_weights])


@pytest.mark.parametrize("how", ["blocks", "full"])
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": {"variant": "gemnet_T"}}, "gradient"),
        ({"activation_checkpointing": True}, "activation_checkpointing"),
        ({"parallel": {"zero_stage": 3}}, "zero_stage"),
        ({"parallel": {"graph": 2}}, "graph"),
    ],
)
def test_what_cannot_be_compiled_is_refused(changes: dict[str, Any], word: str, how: str) -> None:
    with pytest.raises(ValidationError, match=f"compile: {how} does not work with .*{word}"):
        tiny_config(compile=how, **changes)


def test_a_missing_compiler_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    potential = random_potential(case_config("gemnet_dT"), torch.float32)
    for compiling in (compile_blocks, compile_full):
        with pytest.raises(RequestError, match="no no-such-compiler on PATH"):
            compiling(potential, torch.device("cpu"))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
