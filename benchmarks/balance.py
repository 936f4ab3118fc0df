"""How evenly the edges of training steps are divided over simulated ranks, beside batches of a fixed number per rank.

    python benchmarks/balance.py [--steps 200]      (two minutes)

Systems have the sizes of OC20: 20 to 225 atoms, lognormal with mean 73; edges per atom (6 A, nearest 50) have the mean,
spread and range of 4,000 real OC20 frames. Every step holds about 4, 5, 8 or 16 systems a rank. Shown is the slowest
rank's share of edges over the mean share, as mean over steps and as the worst step:

- fixed: each rank takes the next systems of the order, as a distributed sampler with a fixed batch size does;
- systems, edges: steps of ocpgem with `data.batch_size` as a number of systems or as a budget of edges;
- graph of 12 A: the same budget where the edges of the model's graph are only estimated (12 A, nearest 30: GemNet-OC),
  as the mean per atom; those of a system differ from it as they do on the real frames. The balance is that of the
  true edges. With `data.stored_edges` their numbers are known;
- least possible: no division is better, for a rank computes at least the largest system of the step. With 4 systems
  a rank the largest systems of OC20 are more than a share, and a run says so; from 4.2 on none is more than 1.05 of it.

Writes benchmarks/results/balance.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ocpgem.data.balance import balance
from ocpgem.data.cost import STORED_EDGES, SYSTEMS, Batching, Budget, Cost
from ocpgem.data.draws import all_once
from ocpgem.data.plan import Step, TrainPlan
from ocpgem.data.sizes import SIZES, SizeTable

RESULT = Path(__file__).parent / "results" / "balance.md"
N_SYSTEMS = 2_000_000
RANKS = (8, 64, 512)
PER_RANK = (4, 5, 8, 16)
EDGES_PER_ATOM = (33.1, 9.3, 16.0, 45.0)
"""Mean, standard deviation and range on 4,000 real OC20 frames (20 relaxations)."""
EDGES_PER_ATOM_12 = (30.83, 0.59, 29.7, 32.0)
"""The same of the graph with 12 A and 30 neighbours, which does not depend on the edges within 6 A."""

Floats = NDArray[np.float64]


def oc20_sizes(count: int, seed: int = 0) -> SizeTable:
    """A side table with the sizes of OC20."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, dtype=SIZES)
    sigma = 0.42
    rows["n_atoms"] = np.clip(rng.lognormal(np.log(73) - sigma**2 / 2, sigma, count), 20, 225)
    rows["n_edges"] = rows["n_atoms"] * _edges_per_atom(EDGES_PER_ATOM, count, rng)
    rows["n_free"] = rows["n_atoms"] // 3
    return rows


def _edges_per_atom(
    statistics: tuple[float, float, float, float], count: int, rng: np.random.Generator
) -> Floats:
    mean, deviation, least, most = statistics
    return np.clip(rng.normal(mean, deviation, count), least, most)


def fixed_shares(order: NDArray[np.integer], edges: Floats, ranks: int, per_rank: int) -> Iterator[Floats]:
    """Edges of each rank, step by step, where each takes the next systems of the order."""
    size = ranks * per_rank
    for start in range(0, len(order) - size + 1, size):
        yield edges[order[start : start + size]].reshape(ranks, per_rank).sum(axis=1)


def planned_shares(steps: Iterator[Step], rows_cost: Floats, edges: Floats, ranks: int) -> Iterator[Floats]:
    """Edges of each rank, step by step, as `TrainPlan.share` divides them by the cost it knows."""
    for step in steps:
        bins = balance(np.rint(rows_cost[step.systems]).astype(np.int64), ranks)
        yield np.array([edges[step.systems[chosen]].sum() for chosen in bins])


def _bounds(steps: Iterator[Step], edges: Floats, ranks: int) -> Iterator[Floats]:
    """For each step, shares whose largest is the largest system, or the mean where that is larger."""
    for step in steps:
        mean = edges[step.systems].sum() / ranks
        largest = max(mean, float(edges[step.systems].max()))
        yield np.array([largest, 2 * mean - largest])


def over_mean(shares: Iterator[Floats], steps: int) -> tuple[float, float]:
    """The slowest rank's share over the mean, in per cent: mean over steps, and the worst step."""
    excess = [100 * (share.max() / share.mean() - 1) for share in islice(shares, steps)]
    return float(np.mean(excess)), float(np.max(excess))


def measure(ranks: int, per_rank: int, steps: int) -> list[str]:
    """The rows of the table for one number of ranks."""
    rows = oc20_sizes(N_SYSTEMS)
    edges = rows["n_edges"].astype(np.float64)
    wide = Cost("edges", per_atom=EDGES_PER_ATOM_12[0])
    wide_true = rows["n_atoms"] * _edges_per_atom(EDGES_PER_ATOM_12, len(rows), np.random.default_rng(1))
    draws = all_once(len(rows), 0)
    plans = {
        name: TrainPlan(draws, rows.__getitem__, Batching(Budget(cost, int(amount * ranks * per_rank))))
        for name, cost, amount in (
            ("systems", SYSTEMS, 1),
            ("edges", STORED_EDGES, edges.mean()),
            ("edges, graph of 12 A", wide, wide.of(rows).mean()),
        )
    }
    found = {"fixed": over_mean(fixed_shares(draws.take(0, 0, len(rows)), edges, ranks, per_rank), steps)}
    for name, plan in plans.items():
        true, known = (wide_true, wide.of(rows)) if name.endswith("12 A") else (edges, edges)
        found[name] = over_mean(planned_shares(plan.steps(), known, true, ranks), steps)
    found["least possible"] = over_mean(_bounds(plans["edges"].steps(), edges, ranks), steps)
    started = time.process_time()
    for step in islice(plans["edges"].steps(), 5):
        plans["edges"].share(step, 0, ranks)
    milliseconds = (time.process_time() - started) / 5 * 1e3
    return [
        f"| {ranks} | {per_rank} | {name} | {mean:.2f} % | {worst:.2f} % | {milliseconds:.1f} |"
        for name, (mean, worst) in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    lines = [
        "# The slowest rank's edges above the mean",
        "",
        f"`python benchmarks/balance.py --steps {args.steps}`; OC20 sizes, {N_SYSTEMS:,} systems",
        "",
        "| ranks | systems a rank | batches | mean step | worst step | planning a step, ms of CPU |",
        "|---|---|---|---|---|---|",
    ]
    for per_rank in PER_RANK:
        for ranks in RANKS:
            lines += measure(ranks, per_rank, args.steps)
    text = "\n".join(lines) + "\n"
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
