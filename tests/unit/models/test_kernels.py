"""Triton kernels equal torch's operations, in its interpreter on a CPU and on a GPU; mistakes are told."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.kernels import native
from tests.tiny_runs import clean_environment

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (make setup-full)"
)
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
    assert {"gemnet_dT", "gemnet_T", "gemnet_Q", "gemnet_OC", "gemnet_OC gradient", "derivatives"} <= set(
        found
    )
    limits = {"float32": 1e-6, "bfloat16": 2**-6}
    for check, difference in found.items():
        assert difference <= next((limits[dtype] for dtype in limits if dtype in check), 1e-13), check


@pytest.mark.slow  # another Python, and Triton's interpreter takes milliseconds a program
@needs_triton
def test_kernels_in_the_interpreter_equal_torch() -> None:
    assert_equal_to_torch("cpu", INTERPRETED)


def assert_compiles(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, object], capability: int
) -> None:
    """With no more shared memory than every GPU has."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants))
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 48 * 1024, kernel


for_gpus_that_are_not_here = pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])


@pytest.mark.slow  # compiles twenty-four kernels
@needs_triton
@for_gpus_that_are_not_here
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_sums_over_angles_compile(capability: int, dtype: str) -> None:
    import triton.language as tl

    from ocpgem.kernels import angular_triton

    sum_type = tl.float64 if dtype == "fp64" else tl.float32
    for n_degrees, of_degree in ((7, 16), (1, 64)):
        for name, size in (("_read", 16), ("_accumulate", of_degree), ("_weigh", 16)):
            kernel = getattr(angular_triton, name)
            types = dict.fromkeys(kernel.arg_names[:3], f"*{dtype}") | dict.fromkeys(
                kernel.arg_names[3:6], "i32"
            )
            constants = dict(zip(kernel.arg_names[6:], (n_degrees, size, 64, sum_type), strict=True))
            assert_compiles(kernel, types, constants, capability)


@pytest.mark.slow  # compiles forty-eight kernels
@needs_triton
@for_gpus_that_are_not_here
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_activations_compile(capability: int, dtype: str) -> None:
    import triton.language as tl

    from ocpgem.kernels import silu_triton

    block = {"TYPE": tl.float64 if dtype == "fp64" else tl.float32, "BLOCK": silu_triton._BLOCK}
    scales = {"ALPHA": 1.3, "SCALE": 0.7}
    of_terms = [
        {"ORDER": order} | scales | dict.fromkeys(left_out)
        for order, left_out in (
            (0, ("factor", "other", "base")),
            (0, ("factor", "other")),
            (1, ("other",)),
            (2, ("base",)),
            (3, ("other", "base")),
        )
    ]
    of_kernels: dict[str, list[dict[str, Any]]] = {
        "_silu": of_terms,
        "_silu_and_gradient": [{}, {"base": None}],
        "_silu_tangents": [{}],
    }
    for name, chosen in of_kernels.items():
        kernel = getattr(silu_triton, name)
        for more in chosen:
            constants = block | more
            types = {argument: f"*{dtype}" for argument in kernel.arg_names if argument not in constants}
            assert_compiles(kernel, types | {"n": "i32"}, constants, capability)


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
