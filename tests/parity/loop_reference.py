"""The released GemNets written from ../shared/spec/gemnet.md alone: lists of edges, explicit angles, float64.

Nothing of ocpgem is used here, so that agreement with it means something. Section numbers are those of gemnet.md.
"""

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


# Layers and blocks (sections 3 and 4)


def activation(x: Tensor) -> Tensor:
    """3.1."""
    return torch.nn.functional.silu(x) / 0.6


def total(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of rows with equal index."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


class Weights:
    """A released state dict, in float64."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {key: value.double() for key, value in state.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.state[key]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.linear.weight"].T

    def dense(self, name: str, x: Tensor) -> Tensor:
        return activation(self.linear(name, x))

    def residuals(self, name: str, x: Tensor, count: int, first: int = 0) -> Tensor:
        """3.1."""
        for layer in range(first, first + count):
            inner = self.dense(f"{name}.{layer}.dense_mlp.0", x)
            x = (x + self.dense(f"{name}.{layer}.dense_mlp.1", inner)) * HALF
        return x

    def scale(self, name: str) -> Tensor:
        """0 means that it was never fitted and counts as 1 (3.4)."""
        factor = self[f"{name}.scale_factor"]
        return torch.where(factor == 0, 1.0, factor)

    def radial(self, name: str, basis: str, distance: Tensor, cutoff: float, kw: Kwargs, oc: bool) -> Tensor:
        """A radial basis with its envelope, [n, n_radial] (2.2, 2.4)."""
        u, n = distance / cutoff, kw["num_radial"]
        if basis == "gaussian":
            spacing = 1 / (n - 1) if oc else float(np.float32(1) / np.float32(n - 1))
            values = torch.exp(-0.5 / spacing**2 * (u[:, None] - self[f"{name}.rbf.offset"]) ** 2)
        elif basis == "spherical_bessel":
            waves = torch.sin(self[f"{name}.rbf.frequencies"] * u[:, None])
            values = math.sqrt(2 / cutoff**3) * waves / u[:, None]
        else:
            x = torch.exp(-torch.nn.functional.softplus(self[f"{name}.rbf.pregamma"]) * u)[:, None]
            k = torch.arange(n, dtype=u.dtype)
            binomials = torch.tensor([math.comb(n - 1, i) for i in range(n)], dtype=u.dtype)
            values = binomials * x**k * (1 - x) ** (n - 1 - k)
        values = values * envelope(u, kw["envelope"])[:, None]
        return values * self.scale(f"{name}.scale_rbf") if kw["scale_basis"] else values


class Blocks:
    """The layers that all released models share, on the main graph."""

    def __init__(self, weights: Weights, kw: Kwargs, main: Graph, swap: Tensor, numbers: Tensor) -> None:
        self.weights, self.kw, self.main, self.swap = weights, kw, main, swap
        self.n_atoms = len(numbers)
        self.first_atoms = weights["atom_emb.embeddings.weight"][numbers - 1]

    def concat(self, name: str, h: Tensor, x: Tensor) -> Tensor:
        """Edge embedding (3.3)."""
        both = torch.cat([h[self.main.source], h[self.main.target], x], dim=1)
        return self.weights.dense(f"{name}.dense", both)

    def messages(self, name: str, first: str, x: Tensor, radial: Tensor) -> Tensor:
        """What an interaction takes from its incoming edges (4.1)."""
        w = self.weights
        x = w.scale(f"{name}.scale_rbf") * w.dense(f"{name}.{first}", x) * w.linear(f"{name}.mlp_rbf", radial)
        return w.dense(f"{name}.down_projection", x)

    def edge_update(self, name: str, x: Tensor) -> Tensor:
        """Both directions of an edge (4.1)."""
        w = self.weights
        return (
            w.dense(f"{name}.up_projection_ca", x) + w.dense(f"{name}.up_projection_ac", x)[self.swap]
        ) * HALF

    def edges_to_atoms(self, name: str, m: Tensor, radial: Tensor, leading: bool) -> Tensor:
        """4.5."""
        w = self.weights
        summed = total(m * w.linear(f"{name}.dense_rbf", radial), self.main.target, self.n_atoms)
        x = w.scale(f"{name}.scale_sum") * summed
        if leading:
            x = w.dense(f"{name}.layers.0", x)
        return w.residuals(f"{name}.layers", x, self.kw["num_atom"], int(leading))

    def update(
        self, name: str, h: Tensor, m: Tensor, terms: list[Tensor], radial: Tensor, leading: bool
    ) -> tuple[Tensor, Tensor]:
        """The rest of an interaction block after its interactions (4.4)."""
        w, kw = self.weights, self.kw
        x = sum(terms, torch.zeros_like(m)) / math.sqrt(len(terms))
        m = (m + w.residuals(f"{name}.layers_before_skip", x, kw["num_before_skip"])) * HALF
        m = w.residuals(f"{name}.layers_after_skip", m, kw["num_after_skip"])
        h = w.residuals(f"{name}.atom_emb_layers", h, kw["num_atom_emb_layers"])
        h = (h + self.edges_to_atoms(f"{name}.atom_update", m, radial, leading)) * HALF
        x = w.residuals(f"{name}.residual_m", self.concat(f"{name}.concat_layer", h, m), kw["num_concat"])
        return h, (m + x) * HALF

    def finish(self, atom_energy: Tensor, edge_forces: Tensor | None, pos: Tensor) -> Prediction:
        """Energy of the system, and forces as the model makes them (5.2)."""
        energy = atom_energy.sum() if self.kw["extensive"] else atom_energy.mean()
        forces = None
        if pos.requires_grad:
            forces = -torch.autograd.grad(energy, pos)[0]
        elif edge_forces is not None:
            if self.kw["forces_coupled"]:
                edge_forces = (edge_forces + edge_forces[self.swap]) / 2
            forces = total(edge_forces * self.main.direction, self.main.target, self.n_atoms)
        return Prediction(energy.detach(), None if forces is None else forces.detach())


def positions(structure: Structure, kw: Kwargs) -> Tensor:
    by_gradient = kw["regress_forces"] and not kw["direct_forces"]
    return structure.pos.clone().requires_grad_(by_gradient)


def cosines(outgoing: Graph, incoming: Graph, rows: tuple[Tensor, Tensor]) -> Tensor:
    """2.5."""
    product = (outgoing.direction[rows[0]] * incoming.direction[rows[1]]).sum(dim=1)
    return product.clamp(-1, 1)


# GemNet-T of fairchem and the original GemNets (sections 4, 5, 5.6)


class QuadrupletValues(NamedTuple):
    rows: Quadruplets
    radial: Tensor
    """[n_edges, emb_size_rbf] of the edges d -> b."""
    inner: Tensor
    """[n_quadruplets, emb_size_cbf] of d -> b -> a."""
    angular: Tensor
    """[n_quadruplets, n_spherical^2]."""
    spherical: Tensor
    """[n_edges, emb_size_sbf, n_spherical^2] of c -> a."""


def gemnet_t(kwargs: Kwargs, state: Mapping[str, Tensor], structure: Structure) -> Prediction:
    """GemNet-T and -dT of fairchem."""
    kw, w = COMMON_DEFAULTS | kwargs, Weights(state)
    pos = positions(structure, kw)
    edges, swap = symmetrise(search(structure, kw["cutoff"], kw["max_neighbors"]), offsets_of_oc=False)
    main = Graph(edges, pos, structure.cell)
    name = kw["rbf"]["name"]
    radial = w.radial("radial_basis", name, main.distance, kw["cutoff"], kw, oc=False)
    of_triplets = w.radial("cbf_basis3.radial_basis", name, main.distance, kw["cutoff"], kw, oc=False)
    down = torch.einsum("er,sri->eis", of_triplets, w["mlp_cbf3.weight"])
    rows = triplets(main, main)
    angular = circular(cosines(main, main, rows), kw["num_spherical"])
    blocks = Blocks(w, kw, main, swap, structure.atomic_numbers)
    return _three_index_model(blocks, pos, radial, rows, angular, down, None, tum=False)


def tum(kwargs: Kwargs, state: Mapping[str, Tensor], structure: Structure) -> Prediction:
    """GemNet-T, -dT, -Q and -dQ of the original code, for molecules."""
    defaults = {"cutoff": 5.0, "int_cutoff": 10.0, "envelope_exponent": 5}
    kw, w = COMMON_DEFAULTS | defaults | kwargs, Weights(state)
    pos, cutoff, n_spherical = positions(structure, kw), kw["cutoff"], kw["num_spherical"]
    edges, swap = symmetrise(search(structure, cutoff, 0), offsets_of_oc=False)
    main = Graph(edges, pos, structure.cell)
    shape = envelope(main.distance / cutoff, {"name": "polynomial", "exponent": kw["envelope_exponent"]})
    waves = torch.sin(w["rbf_basis.frequencies"] * main.distance[:, None] / cutoff)
    radial = shape[:, None] * math.sqrt(2 / cutoff) * waves / main.distance[:, None]  # 2.6
    by_degree = bessel_by_degree(main.distance, cutoff, kw)
    down = torch.einsum("esr,sri->eis", by_degree, w["mlp_cbf3.weight"])
    rows = triplets(main, main)
    vector = pos[main.source] - pos[main.target]
    angular = circular(torch.cos(angle(vector[rows[0]], vector[rows[1]])), n_spherical)
    quads = None
    if not kw["triplets_only"]:
        quads = _tum_quadruplets(w, kw, structure, pos, main, radial, by_degree)
    blocks = Blocks(w, kw, main, swap, structure.atomic_numbers)
    return _three_index_model(blocks, pos, radial, rows, angular, down, quads, tum=True)


def _tum_quadruplets(
    w: Weights, kw: Kwargs, structure: Structure, pos: Tensor, main: Graph, radial: Tensor, by_degree: Tensor
) -> QuadrupletValues:
    """2.5, 2.6."""
    n_spherical = kw["num_spherical"]
    middle = Graph(search(structure, kw["int_cutoff"], 0), pos, structure.cell)
    rows = quadruplets(main, middle)
    a, b = pos[main.target[rows.ca]], pos[middle.source[rows.ba]]
    c, d = pos[main.source[rows.ca]], pos[main.source[rows.db]]
    dihedral = angle(rejection(c - a, b - a), rejection(d - b, a - b))
    at_a, at_b = angle(b - a, c - a), angle(a - b, d - b)
    of_middle = bessel_by_degree(middle.distance, kw["int_cutoff"], kw)[rows.ba]
    inner = (of_middle * circular(torch.cos(at_b), n_spherical)[:, :, None]).flatten(1)
    degrees = [degree for degree in range(n_spherical) for _ in range(2 * degree + 1)]
    return QuadrupletValues(
        rows,
        w.linear("mlp_rbf4", radial),
        w.linear("mlp_cbf4", inner),
        harmonics(torch.cos(at_a), torch.sin(at_a), dihedral, n_spherical),
        torch.einsum("esr,sri->eis", by_degree[:, degrees], w["mlp_sbf4.weight"]),
    )


def _three_index_model(
    blocks: Blocks,
    pos: Tensor,
    radial: Tensor,
    rows: tuple[Tensor, Tensor],
    angular: Tensor,
    down: Tensor,
    quads: QuadrupletValues | None,
    tum: bool,
) -> Prediction:
    """The flow of T and of the original models (5.1, 5.6), whose bilinear layers have three indices (3.5)."""
    w, kw, n_edges = blocks.weights, blocks.kw, len(blocks.main.edges)
    of_triplets, of_atoms, of_outputs = (w.linear(f"mlp_rbf{end}", radial) for end in ("3", "_h", "_out"))
    h = blocks.first_atoms
    m = blocks.concat("edge_emb", h, radial)
    outputs = [_output(blocks, 0, m, of_outputs, tum)]
    for index in range(kw["num_blocks"]):
        block = f"int_blocks.{index}"
        name = f"{block}.trip_interaction"
        x = blocks.messages(name, "dense_ba", m, of_triplets)
        summed = total(angular[:, :, None] * x[rows[1]][:, None, :], rows[0], n_edges)
        y = torch.einsum("eis,esj,jio->eo", down, summed, w[f"{name}.mlp_cbf.weight"])
        terms = [
            w.dense(f"{block}.dense_ca", m),
            blocks.edge_update(name, y * w.scale(f"{name}.scale_cbf_sum")),
        ]
        if quads is not None:
            name = f"{block}.quad_interaction"
            x = blocks.messages(name, "dense_db", m, quads.radial)[quads.rows.db]
            x = w.scale(f"{name}.scale_cbf") * x * w.linear(f"{name}.mlp_cbf", quads.inner)
            summed = total(quads.angular[:, :, None] * x[:, None, :], quads.rows.ca, n_edges)
            y = torch.einsum("eis,esj,jio->eo", quads.spherical, summed, w[f"{name}.mlp_sbf.weight"])
            terms.append(blocks.edge_update(name, y * w.scale(f"{name}.scale_sbf_sum")))
        h, m = blocks.update(block, h, m, terms, of_atoms, leading=True)
        outputs.append(_output(blocks, index + 1, m, of_outputs, tum))
    energies = sum((energy for energy, _ in outputs), torch.zeros(()))[:, 0]
    forces = [force for _, force in outputs if force is not None]
    return blocks.finish(energies, torch.stack(forces).sum(dim=0) if forces else None, pos)


def _output(blocks: Blocks, index: int, m: Tensor, radial: Tensor, tum: bool) -> tuple[Tensor, Tensor | None]:
    """Energies of atoms and forces of edges (4.6, 5.6)."""
    w, kw, name = blocks.weights, blocks.kw, f"out_blocks.{index}"
    energy = w.linear(f"{name}.out_energy", blocks.edges_to_atoms(name, m, radial, leading=True))
    if not (kw["regress_forces"] and kw["direct_forces"]):
        return energy, None

    def layers(x: Tensor) -> Tensor:
        return w.residuals(f"{name}.seq_forces", w.dense(f"{name}.seq_forces.0", x), kw["num_atom"], 1)

    if tum:
        x = layers(w.scale(f"{name}.scale_rbf") * m * w.linear(f"{name}.dense_rbf", radial))
    else:
        x = w.scale(f"{name}.scale_rbf_F") * layers(m) * w.linear(f"{name}.dense_rbf_F", radial)
    return energy, w.linear(f"{name}.out_forces", x)


# GemNet-OC (sections 1.9, 4, 5)


class Path(NamedTuple):
    """An interaction of GemNet-OC over triplets: which rows, their angular values, the weights of their radial part."""

    radial: Tensor
    rows: tuple[Tensor, Tensor]
    angular: Tensor
    down: Tensor

    def sums(self, x: Tensor) -> Tensor:
        """[n_outgoing, emb_size_cbf, channels] from values of the incoming edges."""
        values = self.angular[:, :, None] * x[self.rows[1]][:, None, :]
        return self.down @ total(values, self.rows[0], len(self.down))


class OcBases:
    """Graphs of GemNet-OC and the values that its blocks share."""

    def __init__(self, w: Weights, kw: Kwargs, structure: Structure, pos: Tensor) -> None:
        self.w, self.kw, self.of_angles = w, kw, (kw["rbf_spherical"] or kw["rbf"])["name"]
        self.limits = limits = oc_limits(kw)
        strict = kw["enforce_max_neighbors_strictly"]
        if kw["atom_edge_interaction"] or kw["edge_atom_interaction"] or kw["atom_interaction"]:
            largest = limits[3]
        else:
            largest = limits[0]
        found = search(structure, *largest, strict)
        main, between, middle = (subgraph(found, each, largest, strict) for each in limits[:3])
        tagged = torch.isin(structure.tags, torch.tensor(kw["qint_tags"])).tolist()
        middle = [edge for edge in middle if tagged[edge.source] or tagged[edge.target]]
        main, self.swap = symmetrise(main, offsets_of_oc=True)
        self.main, self.between, self.middle, self.pairs = (
            Graph(edges, pos, structure.cell) for edges in (main, between, middle, found)
        )
        self.radial = self.basis("radial_basis", self.main, 0, angular=False)
        self.of_main = self.basis("cbf_basis_tint.radial_basis", self.main, 0)

    def basis(self, name: str, graph: Graph, limits: int, angular: bool = True) -> Tensor:
        kind = self.of_angles if angular else self.kw["rbf"]["name"]
        return self.w.radial(name, kind, graph.distance, self.limits[limits].cutoff, self.kw, oc=True)

    def down(self, values: Tensor, weight: str, scale: str) -> Tensor:
        """[n, out, n_functions]; the released layer reads its weight in another order than it is shaped (3.5)."""
        shape = self.w[weight].shape
        matrix = self.w[weight].reshape(shape[0], shape[2], shape[1])
        result = torch.einsum("er,ris->eis", values, matrix)
        return result * self.w.scale(scale) if self.kw["scale_basis"] else result

    def path(self, end: str, radial: Tensor, outgoing: Graph, incoming: Graph, of_outgoing: Tensor) -> Path:
        rows = triplets(outgoing, incoming)
        return Path(
            radial,
            rows,
            circular(cosines(outgoing, incoming, rows), self.kw["num_spherical"]),
            self.down(of_outgoing, f"mlp_cbf_{end}.weight", f"cbf_basis_{end}.scale_cbf"),
        )

    def edges_to_edges(self) -> Path:
        return self.path(
            "tint", self.w.linear("mlp_rbf_tint", self.radial), self.main, self.main, self.of_main
        )

    def atoms_to_edges(self) -> Path:
        values = self.basis("radial_basis_aeaint", self.between, 1, angular=False)
        radial = self.w.linear("mlp_rbf_aeint", values)
        return self.path("aeint", radial, self.main, self.between, self.of_main)

    def edges_to_atoms(self) -> Path:
        of_outgoing = self.basis("cbf_basis_eaint.radial_basis", self.between, 1)
        radial = self.w.linear("mlp_rbf_eaint", self.radial)
        return self.path("eaint", radial, self.between, self.main, of_outgoing)

    def atoms_to_atoms(self) -> Tensor:
        values = self.basis("radial_basis_aint", self.pairs, 3, angular=False)
        return values @ self.w["mlp_rbf_aint.weight"].T

    def quadruplets(self) -> QuadrupletValues:
        """2.4, 2.5."""
        n_spherical = self.kw["num_spherical"]
        rows = quadruplets(self.main, self.middle)
        ca, ba, db = (
            graph.direction[row] for graph, row in zip((self.main, self.middle, self.main), rows, strict=True)
        )
        at_a, at_b = (ca * ba).sum(dim=1).clamp(-1, 1), (ba * db).sum(dim=1).clamp(-1, 1)
        dihedral = angle(torch.linalg.cross(ca, ba), torch.linalg.cross(db, ba))
        if self.kw["sbf"]["name"] == "legendre_outer":
            one, other = circular(at_a, n_spherical), circular(torch.cos(dihedral), n_spherical)
            angular = (one[:, :, None] * other[:, None, :]).flatten(1)
        else:
            sine = (1 - at_a**2).clamp(min=1e-40).sqrt()
            angular = harmonics(at_a, sine, dihedral, n_spherical)
        of_middle = self.basis("cbf_basis_qint.radial_basis", self.middle, 2)
        down = self.down(of_middle, "mlp_cbf_qint.weight", "cbf_basis_qint.scale_cbf")
        return QuadrupletValues(
            rows,
            self.w.linear("mlp_rbf_qint", self.radial),
            (down[rows.ba] @ circular(at_b, n_spherical)[:, :, None])[:, :, 0],
            angular,
            self.down(self.of_main, "mlp_sbf_qint.weight", "sbf_basis_qint.scale_sbf"),
        )


def gemnet_oc(kwargs: Kwargs, state: Mapping[str, Tensor], structure: Structure) -> Prediction:
    """GemNet-OC with any of its paths."""
    kw, w = OC_DEFAULTS | kwargs, Weights(state)
    pos = positions(structure, kw)
    bases = OcBases(w, kw, structure, pos)
    to_edges = {"trip_interaction": bases.edges_to_edges()}
    if kw["atom_edge_interaction"]:
        to_edges["atom_edge_interaction"] = bases.atoms_to_edges()
    quads = bases.quadruplets() if kw["quad_interaction"] else None
    to_atoms = bases.edges_to_atoms() if kw["edge_atom_interaction"] else None
    of_pairs = bases.atoms_to_atoms() if kw["atom_interaction"] else None
    leading = kw["emb_size_atom"] != kw["emb_size_edge"]
    blocks = Blocks(w, kw, bases.main, bases.swap, structure.atomic_numbers)
    of_atoms, of_outputs = w.linear("mlp_rbf_h", bases.radial), w.linear("mlp_rbf_out", bases.radial)
    h = blocks.first_atoms
    m = blocks.concat("edge_emb", h, bases.radial)
    outputs = [_oc_output(blocks, 0, h, m, of_outputs, leading)]
    for index in range(kw["num_blocks"]):
        block = f"int_blocks.{index}"
        terms = [w.dense(f"{block}.dense_ca", m)]
        for path_name, path in to_edges.items():
            name = f"{block}.{path_name}"
            if path_name == "trip_interaction":
                x = blocks.messages(name, "dense_ba", m, path.radial)
            else:
                x = _messages_of_atoms(w, name, h[bases.between.source], path.radial)
            terms.append(
                blocks.edge_update(name, _bilinear(w, name, "mlp_cbf", "scale_cbf_sum", path.sums(x)))
            )
        if quads is not None:
            terms.append(_oc_quadruplets(blocks, f"{block}.quad_interaction", m, quads))
        of_h = [h]
        if to_atoms is not None:
            name = f"{block}.edge_atom_interaction"
            sums = to_atoms.sums(blocks.messages(name, "dense_ba", m, to_atoms.radial))
            sums = total(sums, bases.between.target, len(h))
            of_h.append(
                w.dense(f"{name}.up_projection_ca", _bilinear(w, name, "mlp_cbf", "scale_cbf_sum", sums))
            )
        if of_pairs is not None:
            of_h.append(_oc_pairs(w, f"{block}.atom_interaction", h, bases.pairs, of_pairs))
        h = torch.stack(of_h).sum(dim=0) / math.sqrt(len(of_h))
        h, m = blocks.update(block, h, m, terms, of_atoms, leading)
        outputs.append(_oc_output(blocks, index + 1, h, m, of_outputs, leading))
    return _oc_heads(blocks, outputs, pos)


def _messages_of_atoms(w: Weights, name: str, h: Tensor, radial: Tensor) -> Tensor:
    """As `Blocks.messages`, of the atoms at the start of the edges (4.1)."""
    x = w.scale(f"{name}.scale_rbf") * w.dense(f"{name}.dense_ba", h) * w.linear(f"{name}.mlp_rbf", radial)
    return w.dense(f"{name}.down_projection", x)


def _bilinear(w: Weights, name: str, layer: str, scale: str, sums: Tensor) -> Tensor:
    """The flat bilinear layer of OC (3.5)."""
    layer_name = f"{name}.{layer}.bilinear" if layer else f"{name}.bilinear"
    return w.linear(layer_name, sums.flatten(1)) * w.scale(f"{name}.{scale}")


def _oc_quadruplets(blocks: Blocks, name: str, m: Tensor, quads: QuadrupletValues) -> Tensor:
    """4.2."""
    w = blocks.weights
    x = blocks.messages(name, "dense_db", m, quads.radial)[quads.rows.db]
    x = w.scale(f"{name}.scale_cbf") * x * w.linear(f"{name}.mlp_cbf", quads.inner)
    summed = total(quads.angular[:, :, None] * x[:, None, :], quads.rows.ca, len(m))
    return blocks.edge_update(name, _bilinear(w, name, "mlp_sbf", "scale_sbf_sum", quads.spherical @ summed))


def _oc_pairs(w: Weights, name: str, h: Tensor, pairs: Graph, radial: Tensor) -> Tensor:
    """4.3."""
    x = w.dense(f"{name}.down_projection", h)[pairs.source]
    summed = total(radial[:, :, None] * x[:, None, :], pairs.target, len(h))
    return w.dense(f"{name}.up_projection", _bilinear(w, name, "", "scale_rbf_sum", summed))


def _oc_output(
    blocks: Blocks, index: int, h: Tensor, m: Tensor, radial: Tensor, leading: bool
) -> tuple[Tensor, Tensor | None]:
    """Features of atoms and of edges for the global heads (4.6)."""
    w, kw, name = blocks.weights, blocks.kw, f"out_blocks.{index}"
    x = blocks.edges_to_atoms(name, m, radial, leading)
    if kw["num_output_afteratom"] >= 1:
        x = w.residuals(f"{name}.seq_energy2", (x + h) * HALF, kw["num_output_afteratom"])
    if not (kw["regress_forces"] and kw["direct_forces"]):
        return x, None
    y = w.residuals(f"{name}.seq_forces", m, kw["num_atom"])
    return x, w.scale(f"{name}.scale_rbf_F") * y * w.linear(f"{name}.dense_rbf_F", radial)


def _oc_heads(blocks: Blocks, outputs: list[tuple[Tensor, Tensor | None]], pos: Tensor) -> Prediction:
    """5.1."""
    w, kw = blocks.weights, blocks.kw

    def head(mlp: str, out: str, features: list[Tensor]) -> Tensor:
        x = w.residuals(mlp, w.dense(f"{mlp}.0", torch.cat(features, dim=1)), kw["num_global_out_layers"], 1)
        return w.linear(out, x)

    energies = head("out_mlp_E", "out_energy", [x for x, _ in outputs])[:, 0]
    of_edges = [y for _, y in outputs if y is not None]
    return blocks.finish(energies, head("out_mlp_F", "out_forces", of_edges) if of_edges else None, pos)
