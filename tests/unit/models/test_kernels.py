"""Triton kernels equal torch's operations, in its interpreter on a CPU and on a GPU; mistakes are told."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ocpgem.kernels import native
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


@pytest.mark.slow  # compiles twenty-four kernels
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (make setup-full)"
)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_kernels_compile_for_gpus_that_are_not_here(capability: int, dtype: str) -> None:
    """For an A100 and an H100, with no more shared memory than every GPU has."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ocpgem.kernels import angular_triton

    sum_type = tl.float64 if dtype == "fp64" else tl.float32
    for n_degrees, of_degree in ((7, 16), (1, 64)):
        for name, size in (("_read", 16), ("_accumulate", of_degree), ("_weigh", 16)):
            kernel = getattr(angular_triton, name)
            tensors, sizes, constants = kernel.arg_names[:3], kernel.arg_names[3:6], kernel.arg_names[6:]
            signature = (
                dict.fromkeys(tensors, f"*{dtype}")
                | dict.fromkeys(sizes, "i32")
                | dict.fromkeys(constants, "constexpr")
            )
            values = dict(zip(constants, (n_degrees, size, 64, sum_type), strict=True))
            source = ASTSource(fn=kernel, signature=signature, constexprs=values)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert compiled.asm["cubin"]
            assert compiled.metadata.shared <= 48 * 1024, name


@pytest.mark.gpu
def test_kernels_on_a_gpu_equal_torch() -> None:
    assert_equal_to_torch("cuda", {"OCPGEM_KERNELS": "triton"})


def test_an_unknown_choice_is_refused() -> None:
    done = python("main.py", "models", OCPGEM_KERNELS="cuda")
    assert done.returncode == 2
    assert "OCPGEM_KERNELS is 'cuda'; it must be torch, native or triton" in done.stderr


@pytest.mark.parametrize(
    ("choice", "said"),
    [("torch", "torch's own (OCPGEM_KERNELS=torch)"), ("native", "compiled functions for")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU doctor speaks of that")
def test_doctor_says_what_computes(choice: str, said: str) -> None:
    if choice == "native" and native.library()[0] is None:
        pytest.skip(native.library()[1])
    assert said in python("main.py", "doctor", OCPGEM_KERNELS=choice).stdout


def test_triton_without_gpu_and_interpreter_is_refused_and_doctor_says_so() -> None:
    done = python("main.py", "doctor", OCPGEM_KERNELS="triton", CUDA_VISIBLE_DEVICES="")
    assert "OCPGEM_KERNELS is triton, but" in done.stdout
