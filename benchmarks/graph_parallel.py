"""What a training step keeps and sends where ranks share the edges of a batch, at published sizes.

    python benchmarks/graph_parallel.py --out benchmarks/results/graph_parallel.md

The model, its loss and gradients run as they are with torch's fake tensors, which have sizes and no content, for every
rank of groups of 1, 2, 4 and 8. One system: a copper slab of 96 atoms with CO. The released scheme is what GemNet-XL's
authors describe: edge embeddings are gathered by all ranks in every block, and their gradients summed and divided.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import add_adsorbate, fcc111, molecule

from ocpgem.config import load_config
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe
from ocpgem.data.system import System
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Normalization
from ocpgem.train.config import TrainConfig
from ocpgem.train.step_cost import step_cost

ROOT = Path(__file__).parents[1]
MODELS = {"GemNet-XL": "s2ef/all/gemnet_xl.yml", "GemNet-OC-Large": "s2ef/all/gemnet_OC_large.yml"}
SIZES = (1, 2, 4, 8)


def slab() -> System:
    """4 x 6 x 4 copper atoms, the lower two layers fixed, and a CO molecule."""
    atoms = fcc111("Cu", (4, 6, 4), vacuum=10)
    n_metal = len(atoms)
    add_adsorbate(atoms, molecule("CO"), 1.9, "ontop")
    atoms.pbc = True
    layer = atoms.get_tags()
    tags = np.where(np.arange(len(atoms)) >= n_metal, 2, np.where(layer == 1, 1, 0))
    noise = np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    return System(
        pos=(atoms.positions + noise).astype(np.float32),
        cell=atoms.cell.array.astype(np.float32),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=atoms.numbers.astype(np.uint8),
        tags=tags.astype(np.uint8),
        fixed=(layer > 2),
        energy=-1.0,
        forces=np.zeros((len(atoms), 3), dtype=np.float32),
        sid=0,
        fid=0,
    )


def rows(name: str, batch: Any, topology: Topology, config: TrainConfig) -> list[str]:
    """One line of the table for each size of a group."""
    found, alone = [], 0
    for size in SIZES:
        divided = config.model_copy(update={"parallel": config.parallel.model_copy(update={"graph": size})})
        costs = [step_cost(divided, batch, topology, Normalization(), rank) for rank in range(size)]
        kept, sent = max(cost.kept_bytes for cost in costs), max(cost.sent_bytes for cost in costs)
        alone = alone or kept
        edges = topology.main.n_edges * config.model.edge_dim * 4
        released = 2 * config.model.n_blocks * edges * (size - 1) // size
        less = f"{released / sent:.1f} x" if sent else ""
        found.append(
            f"| {name} | {size} | {kept / 1e9:.3f} | {kept / alone:.3f} | {1 / size:.3f} | "
            f"{sent / 1e6:.1f} | {released / 1e6:.1f} | {less} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| model | ranks of a group | kept by a rank, GB | of one rank's | 1/n | sent by a rank in a step, MB | "
        "all-gather of edge embeddings, MB | less by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, file in MODELS.items():
        config = load_config(ROOT / "configs" / file, [], TrainConfig)
        recipe = Recipe(InMemoryDataset([slab()]), config.model.graph_spec, config.model.n_elements)
        batch, topology = recipe.prepare(np.array([0]))
        lines += rows(f"{name}, {topology.main.n_edges:,} edges", batch, topology, config)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out is not None:
        head = "# Graph groups: memory and communication\n\n`python benchmarks/graph_parallel.py`\n\n"
        head += (__doc__ or "").partition(".md\n\n")[2] + "\n"
        arguments.out.write_text(head + text)


if __name__ == "__main__":
    main()
