"""Pairs of different structures, and which models with random weights give them different energies.

A model that gives both structures of a pair the same energy whatever its weights cannot learn to tell them apart.
`.venv/bin/python examples/universality.py` prints the table in a few seconds; docs/universality.md explains it.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ocpgem.graph.topology import GraphSpec, build_topology
from ocpgem.models.gemnet.config import GemNetConfig, Variant
from ocpgem.models.gemnet.edge_ops import from_source, sum_to_target
from ocpgem.models.gemnet.geometry import edge_geometry
from ocpgem.models.gemnet.layers import ScaleFactor
from ocpgem.models.gemnet.model import GemNet, Structures

Model = Callable[[Tensor], float]
"""Positions [n_atoms, 3] in A of atoms of one element -> energy."""
DISTANCE_ONLY = "distances only"
VARIANTS: tuple[str, ...] = get_args(Variant)
APART, SAME = 1e-6, 1e-10
"""Relative differences of two energies above which they count as different and below which as equal (float64)."""


@dataclass
class Pair:
    """Two structures of atoms of one element, and the graphs through which the models see them."""

    name: str
    first: Tensor
    second: Tensor
    cutoff: float
    """A, of all graphs."""
    apart: tuple[str, ...]
    """The models that tell them apart."""
    middle_cutoff: float | None = None
    """A, of the middle edges of quadruplets, and of the atom-atom graph, which must cover them; None: `cutoff`."""


BOND = 1.5


def ring(n_atoms: int) -> Tensor:
    """A regular polygon with sides of a bond."""
    angle = 2 * math.pi * torch.arange(n_atoms, dtype=torch.float64) / n_atoms
    radius = BOND / (2 * math.sin(math.pi / n_atoms))
    return radius * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)


def chain(*dihedrals: float) -> Tensor:
    """Bonds at 120 degrees, turned by these dihedral angles in degrees."""
    bend = math.radians(60)
    atoms = [
        torch.tensor(xyz, dtype=torch.float64)
        for xyz in ([-math.cos(bend), math.sin(bend), 0.0], [0.0, 0, 0], [1.0, 0, 0])
    ]
    for dihedral in map(math.radians, dihedrals):
        along = atoms[-1] - atoms[-2]
        normal = torch.linalg.cross(atoms[-2] - atoms[-3], along)
        normal = normal / normal.norm()
        sideways = torch.linalg.cross(normal, along)
        turned = math.cos(dihedral) * sideways + math.sin(dihedral) * normal
        atoms.append(atoms[-1] + math.cos(bend) * along + math.sin(bend) * turned)
    return BOND * torch.stack(atoms)


def star(sign: int) -> Tensor:
    """A central atom, and two atoms at opposite ends of each of three axes whose pairwise cosines are 0.3 in size.

    sign: of the product of the three cosines. An atom at an end sees one end of each other axis at the angle
    acos(0.3) and the other end at acos(-0.3), whichever the sign.
    """
    cosine = 0.3
    first, second = (1.0, 0.0, 0.0), (cosine, math.sqrt(1 - cosine**2), 0.0)
    x, y = cosine, (sign * cosine - cosine**2) / second[1]
    third = (x, y, math.sqrt(1 - x**2 - y**2))
    axes = torch.tensor([first, second, third], dtype=torch.float64)
    return BOND * torch.cat([torch.zeros(1, 3, dtype=torch.float64), axes, -axes])


def two_triangles() -> Tensor:
    """Far from each other."""
    return torch.cat([ring(3), ring(3) + torch.tensor([0.0, 0, 50.0])])


def antiprism() -> Tensor:
    """Two triangles above each other, every atom at the same five distances from the others as in a hexagon."""
    half_height = BOND * math.sqrt(2 / 3)
    up = torch.tensor([0.0, 0, half_height], dtype=torch.float64)
    return torch.cat([ring(3) + up, -ring(3) - up])


WITH_QUADRUPLETS = tuple(v for v in VARIANTS if GemNetConfig(variant=v).quadruplets)  # type: ignore[arg-type]
PAIRS = [
    Pair("hexagon, two triangles", ring(6), two_triangles(), 2.5, VARIANTS),
    Pair("hexagon, antiprism", ring(6), antiprism(), 4.0, VARIANTS),
    Pair("chain of 4: cis, trans", chain(0), chain(180), 2.5, WITH_QUADRUPLETS),
    Pair("chain of 4: cis, trans", chain(0), chain(180), 2.9, VARIANTS),
    Pair("star: signs", star(1), star(-1), 1.7, ()),
    Pair("star: signs", star(1), star(-1), 2.4, VARIANTS),
    Pair("chain of 5: + +, + -", chain(90, 90), chain(90, -90), 2.5, ()),
    Pair("chain of 5: + +, + -", chain(90, 90), chain(90, -90), 2.5, WITH_QUADRUPLETS, 3.4),
    Pair("mirror images", chain(90, 90), chain(-90, -90), 5.0, ()),
]


class DistanceOnly(nn.Module):
    """Message passing that sees atoms and distances alone, as in SchNet."""

    def __init__(self, cutoff: float, dim: int = 16, n_layers: int = 4) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.embedding = nn.Parameter(torch.randn(dim))
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(n_layers)
        )
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(n_layers)
        )
        self.output = nn.Linear(dim, 1)

    def forward(self, pos: Tensor) -> Tensor:
        """[n_atoms, 3] -> the energy."""
        topology, cell = topology_of(pos, GraphSpec(self.cutoff, 0))
        edges = topology.main
        distance = edge_geometry(pos, cell, topology.batch, edges).distance[:, None]
        h = self.embedding.expand(len(pos), -1)
        for make_filter, update in zip(self.filters, self.updates, strict=True):
            messages = from_source(h, edges) * make_filter(distance)
            h = h + update(sum_to_target(messages, edges))
        return self.output(h).sum()


def topology_of(pos: Tensor, spec: GraphSpec) -> tuple[Any, Tensor]:
    """The graphs of a molecule, all atoms tagged, and its cell, which has no effect."""
    cell = torch.zeros(1, 3, 3, dtype=torch.float64)
    n_atoms, tags = torch.tensor([len(pos)]), torch.ones(len(pos), dtype=torch.int64)
    return build_topology(pos, cell, torch.zeros(1, 3, dtype=torch.bool), n_atoms, spec, tags=tags), cell


def distance_only(pair: Pair) -> Model:
    """The model of distances with random weights and the pair's cutoff."""
    torch.manual_seed(0)
    model = DistanceOnly(pair.cutoff).double()
    return lambda pos: float(model(pos).detach())


def gemnet(variant: str, pair: Pair, **changes: Any) -> Model:
    """A narrow GemNet of the variant with random weights and the pair's cutoffs; `changes` go to its configuration."""
    graph, middle = {"cutoff": pair.cutoff, "max_neighbors": 0}, {"max_neighbors": 0}
    middle["cutoff"] = pair.middle_cutoff or pair.cutoff
    values: dict[str, Any] = {
        "variant": variant, "n_blocks": 2, "atom_dim": 32, "edge_dim": 32, "radial_basis": {"n_radial": 12},
        "neighbors": graph,
    }  # fmt: skip
    paths = {"quadruplets": middle, "atom_edge": graph, "atom_atom": middle}
    published = GemNetConfig(variant=variant)  # type: ignore[arg-type]
    values |= {path: limits for path, limits in paths.items() if getattr(published, path) is not None}
    torch.manual_seed(0)
    model = GemNet(GemNetConfig.model_validate(values | changes)).double()
    for module in model.modules():
        if isinstance(module, ScaleFactor):
            module.set(3.0)  # in place of a fit; 1 would leave quadruplets with little effect

    def energy(pos: Tensor) -> float:
        topology, cell = topology_of(pos, model.graph_spec)
        structures = Structures(pos, cell, torch.full((len(pos),), 6))
        with torch.no_grad():
            return float(model(structures, topology)[0])

    return energy


def models_for(pair: Pair) -> dict[str, Model]:
    """Every model with the pair's cutoffs."""
    return {DISTANCE_ONLY: distance_only(pair)} | {variant: gemnet(variant, pair) for variant in VARIANTS}


def relative_difference(model: Model, pair: Pair) -> float:
    """Of the energies of both structures."""
    first, second = model(pair.first), model(pair.second)
    return abs(first - second) / max(abs(first), abs(second))


def verdict(difference: float) -> str:
    """How a difference is shown."""
    if difference > APART:
        return f"[green]{difference:.0e}[/]"
    return "same" if difference < SAME else f"[red]unclear {difference:.0e}[/]"


def main() -> None:
    """Print the table of pairs and models."""
    torch.set_num_threads(1)
    table = Table(title="Relative difference of the energies of two structures")
    table.add_column("pair")
    table.add_column("cutoff in A", justify="right")
    for name in (DISTANCE_ONLY, *VARIANTS):
        table.add_column(name.removeprefix("gemnet_"), justify="right")
    for pair in PAIRS:
        cutoff = f"{pair.cutoff}" + (f" ({pair.middle_cutoff})" if pair.middle_cutoff else "")
        differences = [relative_difference(model, pair) for model in models_for(pair).values()]
        table.add_row(pair.name, cutoff, *map(verdict, differences))
    Console().print(table)


if __name__ == "__main__":
    main()
