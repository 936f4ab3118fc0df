"""Sweep files: grids, lists and their mistakes."""

from pathlib import Path

import pytest

from ocpgem.errors import ConfigError
from ocpgem.launch.sweep import load_sweep, names_of, overrides_of


def sweep_file(folder: Path, text: str) -> Path:
    (folder / "sweep.yml").write_text(text)
    return folder / "sweep.yml"


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    sweep = load_sweep(
        sweep_file(tmp_path, "grid: {optim.lr: [1e-3, 1e-4], data.batch_size: [4, 8]}\nparallel: 2\n")
    )
    runs = sweep.runs()
    assert sweep.parallel == 2
    assert runs[1] == {"optim.lr": 1e-3, "data.batch_size": 8}
    assert names_of(runs)[1] == "001_lr=0.001_batch_size=8"
    assert overrides_of(runs[3]) == ["optim.lr=0.0001", "data.batch_size=8"]


def test_a_list_is_taken_as_it_is(tmp_path: Path) -> None:
    text = "list:\n  - {seed: 1}\n  - {optim.schedule.name: constant, data.val: {a: x/y}}\n"
    runs = load_sweep(sweep_file(tmp_path, text)).runs()
    assert names_of(runs) == ["000_seed=1", "001_name=constant_val=-a-x-y"]
    assert overrides_of(runs[1]) == ['optim.schedule.name="constant"', 'data.val={"a": "x/y"}']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parallel: 2\n", "either grid or list"),
        ("grid: {seed: [1]}\nlist: [{seed: 2}]\n", "either grid or list"),
        ("grid: {seed: []}\n", "grid.seed has no values"),
        ("list: [{seed: 1}, {seed: 1}]\n", "two runs of the sweep have the same settings"),
        ("grid: {seed: 3}\n", "grid.seed is 3"),
        ("gird: {seed: [3]}\n", "did you mean 'grid'"),
        ("grid: {seed: [" + ",".join(map(str, range(1001))) + "]}\n", "at most 1000"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(tmp_path, text))
    assert message in str(caught.value)
