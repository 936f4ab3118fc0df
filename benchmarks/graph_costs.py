"""What the neighbour search and a topology allocate and hold: counted, so no clock is involved.

    python benchmarks/graph_costs.py --record

writes results/graph_costs.json here, which tests/unit/graph/test_graph_costs.py compares with the code as it is.
"""

import argparse
import dataclasses
import gc
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ocpgem.graph.neighbors import neighbor_search
from ocpgem.graph.system_edges import system_edges
from ocpgem.graph.topology import concat
from ocpgem.models.gemnet.config import GemNetConfig

RECORDED = Path(__file__).resolve().parent / "results" / "graph_costs.json"
VARIANTS = ("gemnet_dT", "gemnet_OC", "gemnet_Q")
"""Triplets; the four graphs and quadruplets of the OC models; quadruplets of the original ones. Published cutoffs."""
SEARCHES = (6.0, 12.0)
"""Cutoffs of the searches alone, A."""
SIDES = (3, 4)
"""Atoms along the two short edges of the systems, which have four layers: 36 and 64 atoms."""


def slab(side: int) -> dict[str, np.ndarray[Any, Any]]:
    """Four jittered layers 2.6 A apart under 15 A of vacuum, the same every time; the uppermost is tagged."""
    rng = np.random.default_rng(side)
    grid = np.stack(np.meshgrid(range(side), range(side), range(4), indexing="ij"), -1).reshape(-1, 3)
    return {
        "pos": 2.6 * grid + rng.uniform(-0.1, 0.1, grid.shape),
        "cell": np.diag([2.6 * side, 2.6 * side, 25.4]),
        "pbc": np.ones(3, dtype=bool),
        "tags": np.where(grid[:, 2] == 3, 2, 0),
    }


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of Python and numpy alive at one time during a call, beside those alive before it.

    One call before does not count: it fills caches.
    """
    call()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def search_costs(cutoff: float) -> dict[str, int]:
    """Of one search after another in every system."""
    systems = [slab(side) for side in SIDES]

    def search() -> list[int]:
        return [len(neighbor_search(s["pos"], s["cell"], s["pbc"], cutoff).source) for s in systems]

    return {"pairs": sum(search()), "peak_bytes": peak_bytes(search)}


def topology_costs(variant: str) -> dict[str, int]:
    """Of the topology of a batch of all systems, searches included."""
    spec = GemNetConfig.model_validate({"variant": variant}).graph_spec
    systems = [slab(side) for side in SIDES]

    def build() -> Any:
        return concat([system_edges(s["pos"], s["cell"], s["pbc"], spec, s["tags"]) for s in systems])

    topology = build()
    elements = sum(tensor.numel() for tensor in tensors_of(topology))
    return {"edges": topology.main.n_edges, "elements": elements, "peak_bytes": peak_bytes(build)}


def tensors_of(part: Any) -> Iterator[Tensor]:
    """Every tensor of a topology."""
    if isinstance(part, Tensor):
        yield part
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from tensors_of(getattr(part, field.name))


def all_costs() -> dict[str, dict[str, int]]:
    """Everything that is recorded."""
    found = {f"search {cutoff:g} A": search_costs(cutoff) for cutoff in SEARCHES}
    return found | {f"topology {variant}": topology_costs(variant) for variant in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED}")
    arguments = parser.parse_args()
    text = json.dumps(all_costs(), indent=2) + "\n"
    print(text, end="")
    if arguments.record:
        RECORDED.write_text(text)


if __name__ == "__main__":
    main()
