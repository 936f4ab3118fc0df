"""Graphs and basis functions of the loop implementation (loop_reference.py), from ../shared/spec/gemnet.md alone."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

Offset = tuple[int, int, int]
Kwargs = dict[str, Any]
HALF = math.sqrt(0.5)
COMMON_DEFAULTS: Kwargs = {
    "cutoff": 6.0,
    "max_neighbors": 50,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "extensive": True,
    "regress_forces": True,
    "direct_forces": False,
    "forces_coupled": False,
    "scale_basis": False,
    "num_atom_emb_layers": 0,
}
OC_DEFAULTS: Kwargs = {
    **COMMON_DEFAULTS,
    "rbf_spherical": None,
    "sbf": {"name": "spherical_harmonics"},
    "qint_tags": [0, 1, 2],
    "num_global_out_layers": 2,
    "enforce_max_neighbors_strictly": True,
    **dict.fromkeys(("cutoff_qint", "cutoff_aeaint", "cutoff_aint")),
    **dict.fromkeys(("max_neighbors_qint", "max_neighbors_aeaint", "max_neighbors_aint")),
}


@dataclass(frozen=True)
class Structure:
    """One system; `cell` is not read where it is not periodic."""

    pos: Tensor
    """[n_atoms, 3], float64, A."""
    cell: Tensor
    """[3, 3], rows are lattice vectors, A."""
    atomic_numbers: Tensor
    tags: Tensor
    periodic: bool = True


class Prediction(NamedTuple):
    energy: Tensor
    forces: Tensor | None


class Edge(NamedTuple):
    source: int
    target: int
    offset: Offset
    distance: float


# Graphs (section 1)


def search(structure: Structure, cutoff: float, max_neighbors: int, strict: bool = True) -> list[Edge]:
    """All pairs within the cutoff, at most so many per target (1.1, 1.2, 1.14); 0: no limit."""
    pos, cell = structure.pos.detach().numpy(), structure.cell.numpy()
    images = range(-4, 5) if structure.periodic else range(1)
    offsets = np.array(list(itertools.product(images, repeat=3)))
    edges = []
    for target, source in itertools.product(range(len(pos)), repeat=2):
        square = ((pos[source] + offsets @ cell - pos[target]) ** 2).sum(axis=1)
        for image in np.flatnonzero((square <= cutoff**2) & (square > 1e-4)):
            offset = tuple(offsets[image].tolist())
            edges.append(Edge(source, target, offset, math.sqrt(square[image])))
    return truncate(edges, max_neighbors, strict, of_squares=True)


def truncate(edges: list[Edge], max_neighbors: int, strict: bool, of_squares: bool) -> list[Edge]:
    """The nearest per target; not strictly: and all within 0.01 of the first that is left out (1.2)."""
    if max_neighbors <= 0:
        return edges
    kept: set[int] = set()
    for rows in by_target(edges).values():
        length = np.array([edges[row].distance ** (2 if of_squares else 1) for row in rows])
        if len(rows) <= max_neighbors:
            kept.update(rows)
        elif strict:
            kept.update(rows[k] for k in np.argsort(length, kind="stable")[:max_neighbors])
        else:
            limit = np.sort(length)[max_neighbors] + 0.01
            kept.update(row for row, value in zip(rows, length, strict=True) if value <= limit)
    return [edge for row, edge in enumerate(edges) if row in kept]


class Limits(NamedTuple):
    cutoff: float
    max_neighbors: int


def subgraph(edges: list[Edge], limits: Limits, largest: Limits, strict: bool) -> list[Edge]:
    """A graph of GemNet-OC cut out of its largest one (1.9)."""
    if not math.isclose(limits.cutoff, largest.cutoff, rel_tol=1e-5):
        edges = [edge for edge in edges if edge.distance <= limits.cutoff]
    if limits.max_neighbors != largest.max_neighbors:
        edges = truncate(edges, limits.max_neighbors, strict, of_squares=False)
    return edges


def oc_limits(kw: Kwargs) -> tuple[Limits, Limits, Limits, Limits]:
    """Of the main, the atom-edge, the quadruplet and the atom-atom graph (1.9)."""

    def limits(suffix: str, used: bool, fallback: Limits) -> Limits:
        given = kw[f"cutoff_{suffix}"], kw[f"max_neighbors_{suffix}"]
        return Limits(
            *(value if used and value else other for value, other in zip(given, fallback, strict=True))
        )

    main = Limits(kw["cutoff"], kw["max_neighbors"])
    between = limits("aeaint", kw["atom_edge_interaction"] or kw["edge_atom_interaction"], main)
    middle = limits("qint", kw["quad_interaction"], main)
    largest = Limits(*(max(values) for values in zip(main, between, middle, strict=True)))
    return main, between, middle, limits("aint", kw["atom_interaction"], largest)


def symmetrise(edges: list[Edge], offsets_of_oc: bool) -> tuple[list[Edge], Tensor]:
    """One direction of each pair, then its reverse (1.7), and the row of each edge's reverse (1.8)."""
    kept = [
        edge
        for edge in edges
        if edge.source < edge.target
        or (
            edge.source == edge.target
            and (negative(edge.offset) if offsets_of_oc else edge.offset) < (0, 0, 0)
        )
    ]
    reverse = [Edge(edge.target, edge.source, negative(edge.offset), edge.distance) for edge in kept]
    n = len(kept)
    return kept + reverse, torch.arange(2 * n).roll(n)


def negative(offset: Offset) -> Offset:
    return -offset[0], -offset[1], -offset[2]


def plus(a: Offset, b: Offset) -> Offset:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def by_target(edges: Sequence[Edge]) -> dict[int, list[int]]:
    rows = defaultdict(list)
    for row, edge in enumerate(edges):
        rows[edge.target].append(row)
    return rows


class Graph:
    """Edges with their distances D and unit vectors v, which point into the target (1.3)."""

    def __init__(self, edges: list[Edge], pos: Tensor, cell: Tensor) -> None:
        self.edges = edges
        self.source = indices([edge.source for edge in edges])
        self.target = indices([edge.target for edge in edges])
        offset = torch.tensor([edge.offset for edge in edges], dtype=pos.dtype).reshape(-1, 3)
        vector = pos[self.target] - pos[self.source] - offset @ cell
        self.distance = vector.norm(dim=1)
        self.direction = vector / self.distance[:, None]


def indices(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def triplets(outgoing: Graph, incoming: Graph) -> tuple[Tensor, Tensor]:
    """Pairs of different edges into the same atom (1.11, 1.12): rows of both."""
    incoming_of = by_target(incoming.edges)
    pairs = [
        (out, row)
        for out, edge in enumerate(outgoing.edges)
        for row in incoming_of[edge.target]
        if (incoming.edges[row].source, incoming.edges[row].offset) != (edge.source, edge.offset)
    ]
    return indices([out for out, _ in pairs]), indices([row for _, row in pairs])


class Quadruplets(NamedTuple):
    """Rows of the edges c -> a (main), b -> a (middle) and d -> b (main)."""

    ca: Tensor
    ba: Tensor
    db: Tensor


def quadruplets(main: Graph, middle: Graph) -> Quadruplets:
    """d -> b -> a <- c with c, a, b and d, b, a and c, d different images (1.12, 1.14)."""
    main_of, middle_of = by_target(main.edges), by_target(middle.edges)
    found = []
    for ca, (c, a, offset_c, _) in enumerate(main.edges):
        for ba in middle_of[a]:
            b, _, offset_b, _ = middle.edges[ba]
            if (b, offset_b) == (c, offset_c):
                continue
            for db in main_of[b]:
                d, _, offset_d, _ = main.edges[db]
                image_d = plus(offset_d, offset_b)
                if (d, image_d) not in ((a, (0, 0, 0)), (c, offset_c)):
                    found.append((ca, ba, db))
    return Quadruplets(*(indices([rows[k] for rows in found]) for k in range(3)))


# Bases (section 2)


def envelope(u: Tensor, kind: Mapping[str, Any]) -> Tensor:
    """2.1."""
    if kind["name"] == "exponential":
        inside = torch.exp(-(u**2) / ((1 - u) * (1 + u)))
    else:
        p = kind["exponent"]
        inside = (
            1 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1) - p * (p + 1) / 2 * u ** (p + 2)
        )
    return torch.where(u < 1, inside, torch.zeros_like(u))


def legendre(degree: int, z: Tensor) -> Tensor:
    before, now = torch.zeros_like(z), torch.ones_like(z)
    for k in range(1, degree + 1):
        before, now = now, ((2 * k - 1) * z * now - (k - 1) * before) / k
    return now


def circular(z: Tensor, n_spherical: int) -> Tensor:
    """Y_l of cosines, [n, n_spherical] (2.3)."""
    degrees = range(n_spherical)
    columns = [math.sqrt((2 * degree + 1) / (4 * math.pi)) * legendre(degree, z) for degree in degrees]
    return torch.stack(columns, dim=1)


def associated_legendre(degree: int, m: int, z: Tensor, sine: Tensor) -> Tensor:
    """P_l^m without the Condon-Shortley sign."""
    before, now = torch.zeros_like(z), float(math.prod(range(1, 2 * m, 2))) * sine**m
    for k in range(m + 1, degree + 1):
        before, now = now, ((2 * k - 1) * z * now - (k + m - 1) * before) / (k - m)
    return now


def harmonics(z: Tensor, sine: Tensor, azimuth: Tensor, n_spherical: int) -> Tensor:
    """Real spherical harmonics, [n, n_spherical^2], orders 0, 1, ..., l, -l, ..., -1 within a degree (2.4)."""
    columns = []
    for degree in range(n_spherical):
        for order in [*range(degree + 1), *range(-degree, 0)]:
            m = abs(order)
            ratio = math.factorial(degree - m) / math.factorial(degree + m)
            norm = math.sqrt((1 if m == 0 else 2) * (2 * degree + 1) / (4 * math.pi) * ratio)
            around = torch.cos(m * azimuth) if order >= 0 else torch.sin(m * azimuth)
            columns.append(norm * associated_legendre(degree, m, z, sine) * around)
    return torch.stack(columns, dim=1)


def angle(p: Tensor, q: Tensor) -> Tensor:
    """atan2(max(|p x q|, 1e-9), p . q) (2.5); the length of a zero vector has a gradient of zero."""
    square = torch.linalg.cross(p, q).square().sum(dim=-1)
    length = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    return torch.atan2(length.clamp(min=1e-9), (p * q).sum(dim=-1))


def rejection(w: Tensor, k: Tensor) -> Tensor:
    """2.5."""
    return w - ((w * k).sum(dim=-1) / (k * k).sum(dim=-1))[:, None] * k


def bessel_zeros(degree: int, count: int) -> np.ndarray:
    """The first positive zeros of j_l, by their changes of sign."""
    grid = np.linspace(0.5, 80, 40001)
    values = special.spherical_jn(degree, grid)
    crossings = np.flatnonzero(values[:-1] * values[1:] < 0)[:count]
    return np.array(
        [
            optimize.brentq(lambda x: special.spherical_jn(degree, x), grid[k], grid[k + 1], xtol=1e-14)
            for k in crossings
        ]
    )


def spherical_bessel(degree: int, x: Tensor) -> Tensor:
    """j_l in its closed trigonometric form (9.22)."""
    before, now = torch.cos(x) / x, torch.sin(x) / x
    for k in range(degree):
        before, now = now, (2 * k + 1) / x * now - before
    return now


def bessel_by_degree(distance: Tensor, cutoff: float, kw: Kwargs) -> Tensor:
    """b_lk, [n, n_spherical, n_radial] (2.6)."""
    u = distance[:, None] / cutoff
    columns = []
    for degree in range(kw["num_spherical"]):
        zeros = bessel_zeros(degree, kw["num_radial"]).astype(np.float32)
        # The original code hands scipy float32 zeros, so the norms carry float32 rounding.
        norms = math.sqrt(2) / np.abs(special.spherical_jn(degree + 1, zeros).astype(np.float64))
        columns.append(
            torch.tensor(norms) * spherical_bessel(degree, u * torch.tensor(zeros.astype(np.float64)))
        )
    shape = envelope(distance / cutoff, {"name": "polynomial", "exponent": kw["envelope_exponent"]})
    return torch.stack(columns, dim=1) * cutoff**-1.5 * shape[:, None, None]
