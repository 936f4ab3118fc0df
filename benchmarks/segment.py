"""Which way of summing segments is faster where: torch's operations or torch-scatter, by width and rows.

`python benchmarks/segment.py` prints a table and writes results/segment.json and results/segment.md here.
The rows are edges sorted by atom, 35 to an atom on average, as in a slab with a 6 A cutoff.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from ocpgem import segment

RESULTS = Path(__file__).parent / "results"
WIDTHS = (16, 32, 64, 128, 256, 512)


def index_add(values: Tensor, ptr: Tensor) -> Tensor:
    index = torch.repeat_interleave(ptr.diff(), output_size=values.shape[0])
    return values.new_zeros((ptr.shape[0] - 1, *values.shape[1:])).index_add_(0, index, values)


def segment_reduce(values: Tensor, ptr: Tensor) -> Tensor:
    return torch.segment_reduce(values.contiguous(), "sum", offsets=ptr, axis=0, unsafe=True)


def embedding_bag(values: Tensor, ptr: Tensor) -> Tensor:
    rows = torch.arange(values.shape[0], device=values.device)
    return torch.embedding_bag(values, rows, ptr, mode=0, include_last_offset=True)[0]


def torch_scatter(values: Tensor, ptr: Tensor) -> Tensor:
    return torch.ops.torch_scatter.segment_sum_csr(values.contiguous(), ptr, None)


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch index_add": index_add,
    "torch embedding_bag": embedding_bag,
    "torch segment_reduce": segment_reduce,
    "torch-scatter": torch_scatter,
}


def milliseconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Return the shortest time of a call, which other work on the machine disturbs least."""
    call()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best


def measure(n_rows: int, width: int, device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Time all kernels on one size, as functions that can be differentiated twice."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 51, (n_rows // 35,), generator=generator)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
    values = torch.randn(int(ptr[-1]), width, generator=generator).to(device).requires_grad_()
    weights = torch.randn(len(lengths), width, generator=generator).to(device)
    times = {}
    for name, kernel in KERNELS.items():
        segment._sum = kernel

        def forward() -> Tensor:
            return segment.segment_sum(values, ptr)

        def both() -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(), values, weights)

        with torch.no_grad():
            alone = milliseconds(forward, device, repeats)
        times[name] = {"forward": alone, "forward+backward": milliseconds(both, device, repeats)}
    return times


def table(rows: list[dict[str, object]]) -> str:
    """Write the rows as Markdown: forward / forward and backward in ms."""
    lines = [f"| rows | width | {' | '.join(KERNELS)} |", "| ---: | ---: |" + " ---: |" * len(KERNELS)]
    for row in rows:
        times: dict[str, dict[str, float]] = row["ms"]  # type: ignore[assignment]
        cells = [f"{times[name]['forward']:.3f} / {times[name]['forward+backward']:.3f}" for name in KERNELS]
        lines.append(f"| {row['n_rows']} | {row['width']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (1: least disturbed by other work)"
    )
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    try:
        import torch_scatter  # noqa: F401
    except (ImportError, OSError) as error:
        sys.exit(f"torch-scatter is needed for the comparison, but {error}; make setup-full")
    torch.set_num_threads(args.threads)
    rows = [
        {"n_rows": n_rows, "width": width, "ms": measure(n_rows, width, args.device, args.repeats)}
        for n_rows in (4_000, 20_000)
        for width in WIDTHS
    ]
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    about = f"{place}, {args.threads} thread(s), torch {torch.__version__}, float32, best of {args.repeats}"
    text = f"Segment sums, forward / forward and backward in ms ({about})\n\n{table(rows)}\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    name = "segment" if args.device == "cpu" else f"segment_{args.device}"
    (RESULTS / f"{name}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
