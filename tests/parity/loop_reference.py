"""The released GemNets written from ../shared/spec/gemnet.md alone: lists of edges, explicit angles, float64.

Nothing of ocpgem is used here (nor in loop_graphs.py and loop_blocks.py), so that agreement with it means something.
Section numbers are those of gemnet.md.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tests.parity.loop_blocks import Blocks, QuadrupletValues, Weights, cosines, positions, total
from tests.parity.loop_graphs import (
    COMMON_DEFAULTS,
    HALF,
    OC_DEFAULTS,
    Graph,
    Kwargs,
    Prediction,
    Structure,
    angle,
    bessel_by_degree,
    circular,
    envelope,
    harmonics,
    oc_limits,
    quadruplets,
    rejection,
    search,
    subgraph,
    symmetrise,
    triplets,
)


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
