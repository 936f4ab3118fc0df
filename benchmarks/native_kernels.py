"""The compiled functions of ocpgem/kernels beside torch's operations, on a CPU, at sizes that the models use.

    python benchmarks/native_kernels.py [--repeats 40]

Both are measured in turns in one process that keeps freed memory, as runs do; medians, in milliseconds. The last row
shows what `GaussianRadial` avoids: exponentials too small to be told from 0.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.speed.machine import as_words, machine
from ocpgem import kernels
from ocpgem.models.gemnet.activation import silu_and_gradient, silu_tangents, silu_terms
from ocpgem.models.gemnet.products import times_transposed
from ocpgem.models.gemnet.spherical_sums import sum_over_quadruplets
from ocpgem.models.gemnet.triplets import angular_sum
from ocpgem.parallel.device import keep_freed_memory

Rows = Iterator[tuple[str, Callable[[], object]]]
Pair = tuple[str, Callable[[], object], Callable[[], object]]
ROWS = (1024, 512)
"""Of activations that are computed together; see `ocpgem.models.gemnet.in_blocks`."""


def by_torch(call: Callable[[], object]) -> Callable[[], object]:
    def with_torch() -> object:
        with kernels.torch_only():
            return call()

    return with_torch


def activations() -> Rows:
    x, grad, base = torch.randn(ROWS), torch.randn(ROWS), torch.randn(ROWS)
    yield "SiLU", lambda: silu_terms(x)
    yield "SiLU and residual", lambda: silu_terms(x, base=base, alpha=0.5)
    yield "gradient of SiLU", lambda: silu_terms(x, (grad,), order=1)
    yield "SiLU and its gradient", lambda: silu_and_gradient(x, grad)
    yield "tangents of SiLU", lambda: silu_tangents(x, base.clone(), grad)


def products() -> Rows:
    """What the gradient of `product` by its first factor takes, A B^T, with the widths of published models."""
    for left, right in (
        ((512, 16, 64), (512, 7, 64)),
        ((6662, 16, 64), (6662, 7, 64)),
        ((336, 20, 64), (336, 13, 64)),
        ((336, 20, 64), (336, 1, 64)),
        ((5028, 8, 224), (5028, 7, 224)),
    ):
        a, b = torch.randn(left), torch.randn(right)
        yield f"A B^T, {list(left)}, {list(right)}", lambda a=a, b=b: times_transposed(a, b)


def triplets(atoms: int, degree: int) -> Rows:
    """Sums over triplets with the channels and functions of published models."""
    x, harmonics = torch.rand(atoms, degree, 64), torch.rand(atoms, degree, 49)
    leaves = [x.requires_grad_(), harmonics.requires_grad_()]
    return derivatives(f"sum over triplets, {list(x.shape)}", leaves, lambda: angular_sum(x, harmonics, 7))


def quadruplets() -> Rows:
    """Sums weighted by spherical harmonics, with the sizes of the published GemNet-Q, of 64 atoms."""
    n, atoms, middle, degree, inner, channels = 7, 64, 20, 20, 19, 32
    of_inner, of_outer = (
        torch.rand(atoms, middle, inner, 4 * n + 1),
        torch.rand(atoms, middle, degree, 8 * n + 1),
    )
    polar, spherical = torch.rand(atoms, degree, n * n, middle), torch.rand(atoms, degree, 32, n * n)
    given = [torch.rand(atoms, middle, inner, channels), of_inner, of_outer, polar, spherical]
    tables = [table.requires_grad_() for table in given]
    excluded = torch.randint(inner, (atoms, middle, degree))
    return derivatives("sum over quadruplets", tables, lambda: sum_over_quadruplets(tables, excluded, n))


def derivatives(name: str, leaves: list[torch.Tensor], value: Callable[[], torch.Tensor]) -> Rows:
    """The value, its gradients by the leaves, and theirs."""

    def firsts(create_graph: bool) -> tuple[torch.Tensor, ...]:
        found = value()
        return torch.autograd.grad(found, leaves, torch.ones_like(found), create_graph=create_graph)

    def seconds() -> None:
        found = firsts(create_graph=True)
        torch.autograd.grad(found, leaves, [torch.ones_like(of) for of in found])

    yield name, value
    yield "the same with gradients", lambda: firsts(create_graph=False)
    yield "the same with gradients of gradients", seconds


def exponentials() -> Pair:
    exponent = torch.rand(38_046, 128, dtype=torch.float64) * -2000
    return (
        "exponential, at least -60",
        lambda: torch.exp(exponent.clamp(min=-60)),
        lambda: torch.exp(exponent),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    if kernels.BACKEND != "native":
        sys.exit(f"there is nothing to compare: {kernels.REASON}")
    keep_freed_memory()
    print(f"{as_words(machine())}\n")
    print("| what | torch, ms | compiled, ms | torch / compiled |\n|---|---|---|---|")
    sums = (*triplets(336, 20), *triplets(162, 52), *quadruplets())
    pairs = [(name, call, by_torch(call)) for name, call in (*activations(), *products(), *sums)]
    for name, ours, torchs in (*pairs, exponentials()):
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for call, found in zip((ours, torchs), seconds, strict=True):
                started = time.perf_counter()
                call()
                found.append(time.perf_counter() - started)
        own, other = (1000 * statistics.median(found) for found in seconds)
        print(f"| {name} | {other:.3f} | {own:.3f} | {other / own:.2f} |", flush=True)


if __name__ == "__main__":
    main()
