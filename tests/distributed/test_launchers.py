"""torchrun and the deepspeed launcher start the same training as --nproc does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import (
    ROOT,
    clean_environment,
    run_main,
    tiny_settings,
    write_settings,
    write_tiny_data,
)

# Each starts two ranks and a launcher that imports torch itself.
pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if '"train"' in line]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launchers")
    settings = tiny_settings(*write_tiny_data(folder), steps=3, log_every_steps=1)
    return write_settings(folder / "tiny.yml", settings)


@pytest.fixture(scope="module")
def expected(config: Path) -> list[float]:
    done = run_main("train", config, "--run-dir", config.parent / "nproc", "--nproc", 2)
    assert done.returncode == 0, done.stderr
    return losses(config.parent / "nproc")


@pytest.mark.parametrize(
    "launcher",
    [["torchrun", "--standalone", "--nproc-per-node=2"], ["deepspeed", "--num_accelerators", "2"]],
    ids=["torchrun", "deepspeed"],
)
def test_a_launcher_starts_the_training_that_nproc_starts(
    launcher: list[str], config: Path, expected: list[float]
) -> None:
    run = config.parent / launcher[0]
    environ = clean_environment() | {"PATH": f"{BIN}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    words = [*launcher, str(ROOT / "main.py"), "train", str(config), "--run-dir", str(run)]
    done = subprocess.run(
        [BIN / words[0], *words[1:]], env=environ, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run) == expected
