"""Random state dicts with the names and shapes of the released GemNets (../shared/spec/gemnet.md, section 6)."""

import math
from typing import Any

import torch
from torch import Tensor

Kwargs = dict[str, Any]
COMMON: Kwargs = {
    "num_spherical": 4,
    "num_radial": 6,
    "num_blocks": 2,
    "emb_size_atom": 8,
    "emb_size_edge": 10,
    "emb_size_rbf": 5,
    "emb_size_cbf": 4,
    "num_before_skip": 1,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 2,
    "cutoff": 4.5,
    "direct_forces": True,
}
GEMNET_T: Kwargs = {
    **COMMON,
    "emb_size_trip": 5,
    "emb_size_bil_trip": 6,
    "max_neighbors": 9,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "regress_forces": True,
}
GEMNET_OC: Kwargs = {
    **COMMON,
    "emb_size_trip_in": 5,
    "emb_size_trip_out": 6,
    "emb_size_quad_in": 4,
    "emb_size_quad_out": 5,
    "emb_size_aint_in": 5,
    "emb_size_aint_out": 4,
    "emb_size_sbf": 6,
    "num_output_afteratom": 2,
    "num_atom_emb_layers": 1,
    "num_global_out_layers": 1,
    "cutoff_qint": 4.0,
    "cutoff_aeaint": 5.0,
    "cutoff_aint": 5.5,
    "max_neighbors": 9,
    "max_neighbors_qint": 5,
    "max_neighbors_aeaint": 11,
    "max_neighbors_aint": 30,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "sbf": {"name": "legendre_outer"},
    "regress_forces": True,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
}
TUM: Kwargs = {
    **COMMON,
    "num_spherical": 5,
    "num_radial": 4,
    "emb_size_trip": 5,
    "emb_size_bil_trip": 6,
    "emb_size_quad": 4,
    "emb_size_bil_quad": 5,
    "emb_size_sbf": 5,
    "cutoff": 4.0,
    "int_cutoff": 6.0,
    "triplets_only": False,
    "forces_coupled": False,
    "num_targets": 1,
}


class _Writer:
    """Collects tensors; the same every time."""

    def __init__(self, kw: Kwargs) -> None:
        self.kw, self.state = kw, dict[str, Tensor]()
        self.generator = torch.Generator().manual_seed(7)
        self.atom, self.edge, self.radial = (kw[f"emb_size_{part}"] for part in ("atom", "edge", "rbf"))
        self.direct = kw.get("direct_forces", False)  # whatever regress_forces says

    def weight(self, key: str, *shape: int) -> None:
        self.state[key] = 1.2 / math.sqrt(shape[-1]) * torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, out_dim: int, in_dim: int) -> None:
        self.weight(f"{name}.linear.weight", out_dim, in_dim)

    def scale(self, name: str) -> None:
        self.state[f"{name}.scale_factor"] = 0.5 + torch.rand((), generator=self.generator)

    def residuals(self, name: str, count: int, dim: int, first: int = 0) -> None:
        for layer in range(first, first + count):
            for dense in (0, 1):
                self.linear(f"{name}.{layer}.dense_mlp.{dense}", dim, dim)

    def stack(self, name: str, count: int, out_dim: int, in_dim: int) -> None:
        """A dense layer and residual layers."""
        self.linear(f"{name}.0", out_dim, in_dim)
        self.residuals(name, count, out_dim, first=1)

    def radial_basis(self, name: str, kind: str) -> None:
        n = self.kw["num_radial"]
        if kind == "gaussian":
            self.state[f"{name}.rbf.offset"] = torch.linspace(0, 1, n)
        elif kind == "spherical_bessel":
            self.state[f"{name}.rbf.frequencies"] = self.frequencies()
        else:
            self.state[f"{name}.rbf.pregamma"] = 0.45264 + 0.3 * torch.rand((), generator=self.generator)
        if self.kw.get("scale_basis"):
            self.scale(f"{name}.scale_rbf")

    def frequencies(self) -> Tensor:
        n = self.kw["num_radial"]
        return math.pi * torch.arange(1, n + 1) * (1 + 0.05 * torch.rand(n, generator=self.generator))

    def also_below(self, prefix: str, other: str) -> None:
        """A module that the released class holds twice."""
        for key in [key for key in self.state if key.startswith(prefix)]:
            self.state[other + key.removeprefix(prefix)] = self.state[key]

    def embeddings(self, n_elements: int) -> None:
        self.state["atom_emb.embeddings.weight"] = torch.randn(
            n_elements, self.atom, generator=self.generator
        )
        self.linear("edge_emb.dense", self.edge, 2 * self.atom + self.kw["num_radial"])
        for end in ("h", "out"):
            self.linear(f"mlp_rbf_{end}", self.radial, self.kw["num_radial"])

    def edges_to_atoms(self, name: str, leading: bool) -> None:
        self.linear(f"{name}.dense_rbf", self.edge, self.radial)
        self.scale(f"{name}.scale_sum")
        if leading:
            self.linear(f"{name}.layers.0", self.atom, self.edge)
        self.residuals(f"{name}.layers", self.kw["num_atom"], self.atom, int(leading))

    def interaction(self, name: str, first: str, first_dim: int, in_dim: int, out_dim: int) -> None:
        """An interaction without its bilinear layer; edges take up its result."""
        self.linear(f"{name}.{first}", first_dim, first_dim)
        self.linear(f"{name}.mlp_rbf", first_dim, self.radial)
        self.scale(f"{name}.scale_rbf")
        self.linear(f"{name}.down_projection", in_dim, first_dim)
        for end in ("ca", "ac"):
            self.linear(f"{name}.up_projection_{end}", self.edge, out_dim)

    def block_layers(self, name: str, leading: bool) -> None:
        kw = self.kw
        self.linear(f"{name}.dense_ca", self.edge, self.edge)
        for part in ("before", "after"):
            self.residuals(f"{name}.layers_{part}_skip", kw[f"num_{part}_skip"], self.edge)
        self.residuals(f"{name}.atom_emb_layers", kw.get("num_atom_emb_layers", 0), self.atom)
        self.edges_to_atoms(f"{name}.atom_update", leading)
        self.linear(f"{name}.concat_layer.dense", self.edge, 2 * self.atom + self.edge)
        self.residuals(f"{name}.residual_m", kw["num_concat"], self.edge)


def gemnet_t_state(kw: Kwargs) -> dict[str, Tensor]:
    """Section 6.1."""
    writer = _Writer(kw)
    for name in ("radial_basis", "cbf_basis3.radial_basis"):
        writer.radial_basis(name, kw["rbf"]["name"])
    _three_index_layers(writer, n_elements=83, tum=False)
    return writer.state


def tum_state(kw: Kwargs) -> dict[str, Tensor]:
    """Section 6.3; every dense weight has two names."""
    writer = _Writer(kw)
    writer.state["rbf_basis.frequencies"] = writer.frequencies()
    if not kw["triplets_only"]:
        n_radial, n_spherical = kw["num_radial"], kw["num_spherical"]
        writer.linear("mlp_rbf4", writer.radial, n_radial)
        writer.linear("mlp_cbf4", kw["emb_size_cbf"], n_spherical * n_radial)
        writer.weight("mlp_sbf4.weight", n_spherical**2, n_radial, kw["emb_size_sbf"])
    _three_index_layers(writer, n_elements=93, tum=True)
    for key in [key for key in writer.state if key.endswith(".linear.weight")]:
        writer.state[key.replace(".linear.weight", ".weight")] = writer.state[key]
    return writer.state


def _three_index_layers(writer: _Writer, n_elements: int, tum: bool) -> None:
    kw, cbf = writer.kw, writer.kw["emb_size_cbf"]
    writer.embeddings(n_elements)
    writer.linear("mlp_rbf3", writer.radial, kw["num_radial"])
    writer.weight("mlp_cbf3.weight", kw["num_spherical"], kw["num_radial"], cbf)
    for index in range(kw["num_blocks"]):
        block = f"int_blocks.{index}"
        name, in_dim, out_dim = f"{block}.trip_interaction", kw["emb_size_trip"], kw["emb_size_bil_trip"]
        writer.interaction(name, "dense_ba", writer.edge, in_dim, out_dim)
        writer.weight(f"{name}.mlp_cbf.weight", in_dim, cbf, out_dim)
        writer.scale(f"{name}.scale_cbf_sum")
        if tum and not kw["triplets_only"]:
            name, in_dim, out_dim = f"{block}.quad_interaction", kw["emb_size_quad"], kw["emb_size_bil_quad"]
            writer.interaction(name, "dense_db", writer.edge, in_dim, out_dim)
            writer.linear(f"{name}.mlp_cbf", in_dim, cbf)
            writer.weight(f"{name}.mlp_sbf.weight", in_dim, kw["emb_size_sbf"], out_dim)
            for end in ("cbf", "sbf_sum"):
                writer.scale(f"{name}.scale_{end}")
        writer.block_layers(block, leading=True)
    for index in range(kw["num_blocks"] + 1):
        name = f"out_blocks.{index}"
        writer.edges_to_atoms(name, leading=True)
        writer.also_below(f"{name}.layers.", f"{name}.seq_energy.")
        writer.linear(f"{name}.out_energy", 1, writer.atom)
        if writer.direct:
            writer.stack(f"{name}.seq_forces", kw["num_atom"], writer.edge, writer.edge)
            writer.linear(f"{name}.out_forces", 1, writer.edge)
            writer.scale(f"{name}.scale_rbf" if tum else f"{name}.scale_rbf_F")
            if not tum:
                writer.linear(f"{name}.dense_rbf_F", writer.edge, writer.radial)


def gemnet_oc_state(kw: Kwargs) -> dict[str, Tensor]:
    """Section 6.2."""
    writer = _Writer(kw)
    _oc_bases(writer)
    writer.embeddings(n_elements=83)
    leading = writer.atom != writer.edge
    for index in range(kw["num_blocks"]):
        _oc_interactions(writer, f"int_blocks.{index}")
        writer.block_layers(f"int_blocks.{index}", leading)
    n_outputs = kw["num_blocks"] + 1
    for index in range(n_outputs):
        name = f"out_blocks.{index}"
        writer.edges_to_atoms(name, leading)
        writer.also_below(f"{name}.layers.", f"{name}.seq_energy_pre.")
        writer.residuals(f"{name}.seq_energy2", kw["num_output_afteratom"], writer.atom)
        if writer.direct:
            writer.scale(f"{name}.scale_rbf_F")
            writer.residuals(f"{name}.seq_forces", kw["num_atom"], writer.edge)
            writer.linear(f"{name}.dense_rbf_F", writer.edge, writer.radial)
    writer.stack("out_mlp_E", kw["num_global_out_layers"], writer.atom, n_outputs * writer.atom)
    writer.linear("out_energy", 1, writer.atom)
    if writer.direct:
        writer.stack("out_mlp_F", kw["num_global_out_layers"], writer.edge, n_outputs * writer.edge)
        writer.linear("out_forces", 1, writer.edge)
    return writer.state


def _oc_bases(writer: _Writer) -> None:
    kw, scaled = writer.kw, writer.kw.get("scale_basis")
    n_radial, n_spherical, cbf = kw["num_radial"], kw["num_spherical"], kw["emb_size_cbf"]
    to_edges, to_atoms = kw["atom_edge_interaction"], kw["edge_atom_interaction"]
    plain, of_angles = kw["rbf"]["name"], (kw.get("rbf_spherical") or kw["rbf"])["name"]

    def circular(end: str, shared: bool = False) -> None:
        if shared:
            writer.also_below("cbf_basis_tint.radial_basis.", f"cbf_basis_{end}.radial_basis.")
        else:
            writer.radial_basis(f"cbf_basis_{end}.radial_basis", of_angles)
        writer.linear(f"mlp_rbf_{end}", writer.radial, n_radial)
        writer.weight(f"mlp_cbf_{end}.weight", n_radial, n_spherical, cbf)
        if scaled:
            writer.scale(f"cbf_basis_{end}.scale_cbf")

    writer.radial_basis("radial_basis", plain)
    circular("tint")
    if kw["quad_interaction"]:
        circular("qint")
        writer.also_below("cbf_basis_tint.radial_basis.", "sbf_basis_qint.radial_basis.")
        writer.weight("mlp_sbf_qint.weight", n_radial, n_spherical**2, kw["emb_size_sbf"])
        if scaled:
            writer.scale("sbf_basis_qint.scale_sbf")
    if to_edges or to_atoms:
        writer.radial_basis("radial_basis_aeaint", plain)
    if to_edges:
        circular("aeint", shared=True)
    if to_atoms:
        circular("eaint")
    if kw["atom_interaction"]:
        writer.radial_basis("radial_basis_aint", plain)
        writer.weight("mlp_rbf_aint.weight", writer.radial, n_radial)


def _oc_interactions(writer: _Writer, block: str) -> None:
    kw, cbf = writer.kw, writer.kw["emb_size_cbf"]
    in_dim, out_dim = kw["emb_size_trip_in"], kw["emb_size_trip_out"]
    for path, used, first_dim in (
        ("trip", True, writer.edge),
        ("atom_edge", kw["atom_edge_interaction"], writer.atom),
        ("edge_atom", kw["edge_atom_interaction"], writer.edge),
    ):
        if used:
            name = f"{block}.{path}_interaction"
            writer.interaction(name, "dense_ba", first_dim, in_dim, out_dim)
            writer.linear(f"{name}.mlp_cbf.bilinear", out_dim, in_dim * cbf)
            writer.scale(f"{name}.scale_cbf_sum")
    if kw["edge_atom_interaction"]:
        del writer.state[f"{block}.edge_atom_interaction.up_projection_ac.linear.weight"]
        writer.linear(f"{block}.edge_atom_interaction.up_projection_ca", writer.atom, out_dim)
    if kw["quad_interaction"]:
        name, in_dim, out_dim = f"{block}.quad_interaction", kw["emb_size_quad_in"], kw["emb_size_quad_out"]
        writer.interaction(name, "dense_db", writer.edge, in_dim, out_dim)
        writer.linear(f"{name}.mlp_cbf", in_dim, cbf)
        writer.linear(f"{name}.mlp_sbf.bilinear", out_dim, in_dim * kw["emb_size_sbf"])
        for end in ("cbf", "sbf_sum"):
            writer.scale(f"{name}.scale_{end}")
    if kw["atom_interaction"]:
        name, in_dim, out_dim = f"{block}.atom_interaction", kw["emb_size_aint_in"], kw["emb_size_aint_out"]
        writer.linear(f"{name}.bilinear", out_dim, in_dim * writer.radial)
        writer.linear(f"{name}.down_projection", in_dim, writer.atom)
        writer.linear(f"{name}.up_projection", writer.atom, out_dim)
        writer.scale(f"{name}.scale_rbf_sum")
