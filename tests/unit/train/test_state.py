"""Checkpoints of a run: complete or absent, the newest ones kept, damage noticed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ocpgem.checkpoint import load_potential
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.errors import CheckpointError
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel import group
from ocpgem.train.config import LossSection, OptimSection
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.engine import Engine
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.scale_fitting import scale_factors
from ocpgem.train.state import STATE_FILE, Checkpoints, TrainState
from tests.tiny_runs import listing, random_systems, tiny_config


@pytest.fixture(scope="module", autouse=True)
def _process_group() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # remembered, so that what the group sets is taken back
            patch.delenv(name)
        group.init_from_environment("cpu")
        yield
        group.shutdown()


class Run:
    """An engine and a moving average that have done some steps."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.potential = Potential(tiny_config().model, Normalization(energy_mean=-3.0))
        for number, scale in enumerate(scale_factors(self.potential).values()):
            scale.set(1 + 0.1 * number)
        self.engine = Engine(self.potential, OptimSection(lr=1e-2), 1, torch.device("cpu"))
        self.ema = ExponentialMovingAverage(self.potential, 0.9)

    def train(self, first: int, last: int) -> None:
        dataset = InMemoryDataset(list(random_systems(6)))
        steps = TrainLoader(Recipe(dataset, self.potential.graph_spec), 3, seed=0).steps(first)
        for step in range(first, last):
            step_batch = next(steps)
            (batch, topology), *_ = step_batch.micro_batches
            counts = GlobalCounts(step_batch.n_systems_global, step_batch.n_free_atoms_global)
            predictions = self.engine.forward(batch, topology)
            loss = loss_share(predictions, batch, LossSection(), self.potential.normalization, counts)
            self.engine.backward(loss, last=True)
            self.engine.step(1e-2)
            self.ema.update(step + 1)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.potential.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def run() -> Run:
    run = Run()
    run.train(0, 2)
    return run


def test_a_restored_run_takes_the_same_steps_to_the_last_bit(tmp_path: Path) -> None:
    run, checkpoints = Run(), Checkpoints(tmp_path, keep=2)
    run.train(0, 3)
    folder = checkpoints.save(TrainState(3, 1.5, 0.25), run.engine, run.ema)
    run.train(3, 6)
    other = Run(seed=1)
    assert not same(run.weights(), other.weights())
    state = checkpoints.load(folder, other.engine, other.ema)
    assert state == TrainState(3, 1.5, 0.25, world_size=1)
    other.train(3, 6)
    assert same(run.weights(), other.weights())
    assert same(run.ema.state_dict(), other.ema.state_dict())


def test_the_model_in_a_checkpoint_is_the_average_with_its_scale_factors(tmp_path: Path, run: Run) -> None:
    weights = run.weights()
    folder = Checkpoints(tmp_path, keep=1).save(TrainState(2), run.engine, run.ema)
    assert same(run.weights(), weights)
    loaded = load_potential(folder).state_dict()
    for name, value in run.ema.average.items():
        assert torch.equal(loaded[name], value)
        assert not torch.equal(loaded[name], weights[name])
    factors = [name for name in loaded if name.endswith(".factor")]
    assert len(factors) > 3
    assert all(torch.equal(loaded[name], weights[name]) for name in factors)


def test_only_the_newest_are_kept_and_nothing_half_written(tmp_path: Path, run: Run) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (8, 9, 10):  # by number, not by name
        checkpoints.save(TrainState(step), run.engine, run.ema)
    assert {name for name in listing(tmp_path) if name.isdigit()} == {"9", "10"}
    assert checkpoints.latest() == tmp_path / "10"
    assert not [name for name in listing(tmp_path) if "partial" in name]
    checkpoints.save(TrainState(10), run.engine, run.ema)  # writing it again replaces it
    assert checkpoints.latest() == tmp_path / "10"


def test_what_a_kill_left_half_written_is_ignored_and_overwritten(tmp_path: Path, run: Run) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    first = checkpoints.save(TrainState(2), run.engine, run.ema)
    shutil.copytree(first, tmp_path / "4.partial")
    (tmp_path / "4.partial" / STATE_FILE).unlink()
    (tmp_path / "4.partial" / "rubbish").touch()
    assert checkpoints.latest() == first
    shutil.copytree(first, tmp_path / "3")  # complete, but the pointer had not moved yet
    assert checkpoints.latest() == first
    second = checkpoints.save(TrainState(4), run.engine, run.ema)
    assert checkpoints.latest() == second
    assert not (tmp_path / "4.partial").exists()
    assert not (second / "rubbish").exists()


def test_damage_is_an_error_of_one_line_that_names_the_checkpoint(tmp_path: Path, run: Run) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    folder = checkpoints.save(TrainState(2), run.engine, run.ema)
    files = sorted(file for file in folder.iterdir() if file.name != "model.pt")
    assert len(files) == 3
    for file in files:
        whole = file.read_bytes()
        for content in (whole[: len(whole) // 2], b""):
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match=str(folder)) as caught:
                checkpoints.load(folder, run.engine, run.ema)
            assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    checkpoints.load(folder, run.engine, run.ema)
    (folder / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match="missing or incomplete"):
        checkpoints.latest()


def test_another_number_of_ranks_is_refused_with_the_command_that_works(tmp_path: Path, run: Run) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    folder = checkpoints.save(TrainState(2, world_size=3), run.engine, run.ema)
    with pytest.raises(
        CheckpointError, match="written by 3 ranks and this run has 1; resume it with --nproc 3"
    ):
        checkpoints.load(folder, run.engine, run.ema)


def test_what_is_unfinished_or_of_a_later_step_goes_and_the_newest_stays(run: Run, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for name in ("900", "3.partial"):
        (checkpoints.folder / name).mkdir(parents=True)
    newest = checkpoints.save(TrainState(step=6), run.engine, run.ema)
    assert checkpoints.latest() == newest
    left = {
        path.name for path in checkpoints.folder.iterdir() if path.suffix != ".py"
    }  # DeepSpeed adds scripts
    assert left == {"6", "latest"}


def test_bf16_reaches_the_dense_layers_inside_the_engine_and_only_in_training(run: Run) -> None:
    found = []
    dense = run.potential.model.blocks[0].dense
    handle = dense.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    dataset = InMemoryDataset(list(random_systems(2)))
    (batch, topology), *_ = next(
        TrainLoader(Recipe(dataset, run.potential.graph_spec), 2, seed=0).steps()
    ).micro_batches
    run.potential.train_in_bf16 = True
    try:
        predicted = run.engine.forward(batch, topology)
        run.potential.eval()(batch, topology)
    finally:
        run.potential.train_in_bf16 = False
        run.potential.train()
        handle.remove()
    assert found == [torch.bfloat16, torch.float32]
    assert (predicted.energy.dtype, predicted.forces.dtype) == (torch.float64, torch.float32)
