"""What it would gain to merge the products of an interaction block that read the same edges; CPU or GPU.

    python benchmarks/common_input.py [--device cuda] [--edges 5032] [--repeats 9]

In a block of GemNet-OC four dense layers read the edge embeddings, in one of GemNet-dT two. Their products are computed
one by one, as the models do; with one gradient by the edges that every product is added to; and as one product with all
weights, with the gradients side by side. Prints a table; times are medians, taken in turns.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.speed.machine import as_words, machine
from benchmarks.speed.process import wait_for_gpu
from benchmarks.speed.timing import product_rate
from ocpgem.parallel.device import keep_freed_memory

WIDTH = 512


def one_by_one(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As the models do."""
    return tuple(F.linear(x, weight) for weight in weights)


class _AddedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        return one_by_one(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        of_x = grads[0] @ weights[0]
        for grad, weight in zip(grads[1:], weights[1:], strict=True):
            of_x.addmm_(grad, weight)
        return of_x, *(grad.t() @ x for grad in grads)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        weight = torch.cat(weights)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight).split(WIDTH, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        grad = torch.cat(grads, dim=1)
        return grad @ weight, *(grad.t() @ x).split(WIDTH)


WAYS: dict[str, Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]]] = {
    "one by one": one_by_one,
    "gradient added up": lambda x, weights: _AddedUp.apply(x, *weights),
    "one product": lambda x, weights: _Merged.apply(x, *weights),
}


def measured(n_edges: int, n_layers: int, device: str, repeats: int) -> dict[str, float]:
    """Milliseconds of products and gradients in each way."""
    torch.manual_seed(0)
    x = torch.randn(n_edges, WIDTH, device=device, requires_grad=True)
    weights = [torch.randn(WIDTH, WIDTH, device=device, requires_grad=True) for _ in range(n_layers)]
    grads = [torch.randn(n_edges, WIDTH, device=device) for _ in range(n_layers)]
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats + 1):
        for way, compute in WAYS.items():
            wait_for_gpu()
            started = time.perf_counter()
            torch.autograd.grad(compute(x, weights), [x, *weights], grads)
            wait_for_gpu()
            times[way].append(1000 * (time.perf_counter() - started))
    return {way: median(found[1:]) for way, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--edges", type=int, default=5032)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        keep_freed_memory()
    print(f"{as_words(machine(arguments.device))}; milliseconds\n")
    print(f"| layers | {' | '.join(WAYS)} | products alone |\n|---|---|---|---|---|")
    for n_layers in (2, 4):
        found = measured(arguments.edges, n_layers, arguments.device, arguments.repeats)
        flops = 3 * n_layers * 2 * arguments.edges * WIDTH**2
        cells = [f"{found[way]:.1f}" for way in WAYS]
        print(
            f"| {n_layers} | {' | '.join(cells)} | {1e-6 * flops / product_rate(arguments.device):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
