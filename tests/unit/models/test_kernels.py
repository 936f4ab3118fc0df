"""Triton kernels equal torch's operations, in its interpreter on a CPU and on a GPU; mistakes are told."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.tiny_runs import clean_environment

ROOT = Path(__file__).resolve().parents[3]
INTERPRETED = {"TRITON_INTERPRET": "1", "OCPGEM_KERNELS": "triton"}


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | variables
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def assert_equal_to_torch(device: str, variables: Mapping[str, str]) -> None:
    done = python("-m", "tests.unit.models.kernels_in_interpreter", device, **variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    assert {"gemnet_dT", "gemnet_T", "gemnet_OC", "derivatives"} <= set(found)
    for check, difference in found.items():
        limit = 1e-6 if "float32" in check or "bfloat16" in check else 1e-13
        assert difference < limit, check


@pytest.mark.slow  # another Python, and Triton's interpreter takes milliseconds a program
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (make setup-full)"
)
def test_kernels_in_the_interpreter_equal_torch() -> None:
    assert_equal_to_torch("cpu", INTERPRETED)


@pytest.mark.gpu
def test_kernels_on_a_gpu_equal_torch() -> None:
    assert_equal_to_torch("cuda", {"OCPGEM_KERNELS": "triton"})


def test_an_unknown_choice_is_refused() -> None:
    done = python("main.py", "models", OCPGEM_KERNELS="cuda")
    assert done.returncode == 2
    assert "OCPGEM_KERNELS is 'cuda'; it must be torch or triton" in done.stderr


def test_triton_without_gpu_and_interpreter_is_refused_and_doctor_says_so() -> None:
    done = python("main.py", "doctor", OCPGEM_KERNELS="triton", CUDA_VISIBLE_DEVICES="")
    assert "OCPGEM_KERNELS is triton, but" in done.stdout
