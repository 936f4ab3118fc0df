"""Weights of GemNet-OC as released with fairchem v1 / OCP (spec/gemnet.md 6.2)."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.mapping import KeyMap
from ocpgem.models.import_weights.released_blocks import (
    arguments_of,
    basis_name,
    convert,
    describe_block_layers,
    describe_edge_update,
    describe_edges_to_atoms,
    describe_embeddings,
    describe_messages,
    describe_radial_basis,
    describe_residuals,
    describe_stack,
    describe_unread_radial_basis,
    finish_config,
    flat_bilinear,
    output_init,
)

_FAMILY = "GemNet-OC"
_RADIAL = ("gaussian", "spherical_bessel", "bernstein")
log = logging.getLogger("ocpgem")


def config_from_kwargs(kwargs: Mapping[str, Any]) -> GemNetConfig:
    """Our configuration for the constructor arguments of the released class.

    The released class ignores arguments that it does not know, so they are left out here too, with a warning.
    Raises CheckpointError for a setting that has no counterpart.
    """
    args = arguments_of(kwargs, _FAMILY)
    basis_name(args.pop("cbf", {"name": "spherical_harmonics"}), "cbf", ("spherical_harmonics",))
    sbf = args.pop("sbf", {"name": "spherical_harmonics"})
    rbf = args.pop("rbf", {"name": "gaussian"})
    angular = args.pop("rbf_spherical", None)
    regress, direct = args.pop("regress_forces", True), args.pop("direct_forces", False)
    coupled = args.pop("forces_coupled", False)
    direct_kind = "direct_coupled" if coupled else "direct"
    triplets = {
        "in_dim": args.pop("emb_size_trip_in"),
        "out_dim": args.pop("emb_size_trip_out"),
        "circular_dim": args.pop("emb_size_cbf"),
    }
    config = {
        "variant": "gemnet_OC",
        "forces": (direct_kind if direct else "gradient") if regress else "none",
        "n_blocks": args.pop("num_blocks"),
        "atom_dim": args.pop("emb_size_atom"),
        "edge_dim": args.pop("emb_size_edge"),
        "radial_dim": args.pop("emb_size_rbf"),
        "n_spherical": args.pop("num_spherical"),
        "radial_basis": {
            "name": basis_name(rbf, "rbf", _RADIAL),
            "n_radial": args.pop("num_radial"),
            "envelope": args.pop("envelope", {"name": "polynomial", "exponent": 5}),
        },
        "angular_basis": {
            "radial": None if angular is None else basis_name(angular, "rbf_spherical", _RADIAL),
            "two_angle": basis_name(sbf, "sbf", ("legendre_outer", "spherical_harmonics")),
        },
        "scaled_bases": args.pop("scale_basis", False),
        "triplets": triplets,
        **_graphs_and_paths(args, triplets),
        "layers": {
            "before_skip": args.pop("num_before_skip"),
            "after_skip": args.pop("num_after_skip"),
            "concat": args.pop("num_concat"),
            "atom": args.pop("num_atom"),
            "atom_embedding": args.pop("num_atom_emb_layers", 0),
            "leading_dense": "if_widths_differ",
        },
        "global_head": {
            "after_atom": args.pop("num_output_afteratom"),
            "layers": args.pop("num_global_out_layers", 2),
        },
        "extensive": args.pop("extensive", True),
        "output_init": output_init(args.pop("output_init", "HeOrthogonal")),
        "n_elements": args.pop("num_elements", 83),
    }
    args.pop(
        "scale_backprop_forces", None
    )  # a trick of the released trainer's half precision; no other result
    if args:
        log.warning("ignored, as the released GemNet-OC does: %s", ", ".join(sorted(args)))
    return finish_config(config, {}, _FAMILY)


def _graphs_and_paths(args: dict[str, Any], triplets: dict[str, int]) -> dict[str, Any]:
    """The paths that are switched on, each with its graph (spec/gemnet.md 1.9)."""
    quad, pair = args.pop("quad_interaction", False), args.pop("atom_interaction", False)
    to_edges, to_atoms = args.pop("atom_edge_interaction", False), args.pop("edge_atom_interaction", False)
    strict = args.pop("enforce_max_neighbors_strictly", True)
    main = {"cutoff": args.pop("cutoff", 6.0), "max_neighbors": args.pop("max_neighbors", 50)}

    def limit(suffix: str, used: bool, fallback: dict[str, Any]) -> dict[str, Any]:
        given = {key: args.pop(f"{key}_{suffix}", None) for key in main}
        return {key: value if used and value else fallback[key] for key, value in given.items()}

    middle = limit("qint", quad, main)
    between = limit("aeaint", to_edges or to_atoms, main)
    largest = {key: max(main[key], middle[key], between[key]) for key in main}
    pairs = limit("aint", pair, largest)
    tags = args.pop("qint_tags", [0, 1, 2])
    quadruplets = {
        **middle,
        "in_dim": args.pop("emb_size_quad_in", 32),
        "out_dim": args.pop("emb_size_quad_out", 32),
        "circular_dim": triplets["circular_dim"],
        "spherical_dim": args.pop("emb_size_sbf", 32),
        "tags": None if {0, 1, 2} <= set(tags) else list(tags),
    }
    atom_atom = {
        **pairs,
        "in_dim": args.pop("emb_size_aint_in", 64),
        "out_dim": args.pop("emb_size_aint_out", 64),
    }
    has_atom_edge = to_edges or to_atoms
    return {
        "neighbors": {**main, "strict": strict},
        "quadruplets": quadruplets if quad else None,
        "atom_edge": {**between, **triplets, "to_edges": to_edges, "to_atoms": to_atoms}
        if has_atom_edge
        else None,
        "atom_atom": atom_atom if pair else None,
    }


def convert_state_dict(config: GemNetConfig, source: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The released state dict under our names; raises CheckpointError unless it fits exactly."""
    return convert(key_map, config, source, origin)


def key_map(config: GemNetConfig) -> KeyMap:
    """Which tensor of the released class is which of ours. A stored scale factor of 0 means "not fitted"."""
    keys = KeyMap()
    describe_embeddings(keys)
    _describe_bases(keys, config)
    # The released class has force heads wherever direct_forces is true, even if regress_forces is false.
    unread = KeyMap()
    force_keys = keys if config.has_direct_forces else unread
    for index in range(config.n_blocks + 1):
        _describe_output_block(keys, config, index)
        _describe_force_block(force_keys, config, index)
    for index in range(config.n_blocks):
        _describe_interactions(keys, config, f"int_blocks.{index}", f"blocks.{index}")
        describe_block_layers(keys, config, f"int_blocks.{index}", f"blocks.{index}")
    _describe_head(keys, config, "E", "out_energy", "energy_head")
    _describe_head(force_keys, config, "F", "out_forces", "force_head")
    if config.forces == "none":
        keys.leave_unread(unread)
    return keys


def _describe_bases(keys: KeyMap, config: GemNetConfig) -> None:
    angular, path = config.angular_basis.radial, config.atom_edge
    describe_radial_basis(keys, config, None, "radial_basis", "bases.radial")
    keys.move("mlp_rbf_tint.linear.weight", "bases.radial_triplet.weight")
    _describe_circular(keys, config, "tint", "circular_triplet")
    # One radial basis serves all angles at main edges; the released file has it under up to three names.
    names = ["cbf_basis_tint.radial_basis"]
    if config.quadruplets is not None:
        names.append("sbf_basis_qint.radial_basis")
    if path is not None and path.to_edges:
        names.append("cbf_basis_aeint.radial_basis")
    describe_radial_basis(keys, config, angular, names[0], "bases.angular")
    for name in names[1:]:
        describe_radial_basis(keys, config, angular, name, None)
        keys.alias_below(f"{name}.", f"{names[0]}.")
    if config.quadruplets is not None:
        describe_radial_basis(keys, config, angular, "cbf_basis_qint.radial_basis", "bases.angular_middle")
        keys.move("mlp_rbf_qint.linear.weight", "bases.radial_quadruplet.weight")
        _describe_circular(keys, config, "qint", "circular_quadruplet", opposite_angle=True)
        keys.move(
            "mlp_sbf_qint.weight", "bases.spherical_quadruplet.weight", **_embedding(config.n_spherical**2)
        )
        if config.scaled_bases:
            keys.move_scale("sbf_basis_qint.scale_sbf", "bases.spherical_quadruplet.scale")
    if path is not None:
        if path.to_edges:
            describe_radial_basis(keys, config, None, "radial_basis_aeaint", "bases.radial_of_atom_edge")
        else:
            describe_unread_radial_basis(keys, config, "radial_basis_aeaint")
    if path is not None and path.to_edges:
        keys.move("mlp_rbf_aeint.linear.weight", "bases.radial_atom_to_edge.weight")
        _describe_circular(keys, config, "aeint", "circular_atom_to_edge")
    if path is not None and path.to_atoms:
        describe_radial_basis(
            keys, config, angular, "cbf_basis_eaint.radial_basis", "bases.angular_atom_edge"
        )
        keys.move("mlp_rbf_eaint.linear.weight", "bases.radial_edge_to_atom.weight")
        _describe_circular(keys, config, "eaint", "circular_edge_to_atom")
    if config.atom_atom is not None:
        describe_radial_basis(keys, config, None, "radial_basis_aint", "bases.radial_of_atom_atom")
        keys.move("mlp_rbf_aint.weight", "bases.radial_atom_atom.weight")


def _describe_circular(
    keys: KeyMap, config: GemNetConfig, released: str, ours: str, opposite_angle: bool = False
) -> None:
    keys.move(
        f"mlp_cbf_{released}.weight", f"bases.{ours}.weight", **_embedding(config.n_spherical, opposite_angle)
    )
    if config.scaled_bases:
        keys.move_scale(f"cbf_basis_{released}.scale_cbf", f"bases.{ours}.scale")


def _embedding(n_functions: int, opposite_angle: bool = False) -> dict[str, Callable[[Tensor], Tensor]]:
    """The released projection [n_radial, n_functions, out] <-> ours [n_functions, n_radial, out].

    The released code flattens the last two axes and reads them as [out, n_functions] (spec/gemnet.md 9.1).
    opposite_angle: it takes the cosine of the angle with the opposite sign, which changes that of odd degrees (9.3).
    """
    signs = torch.ones(n_functions, 1, 1)
    if opposite_angle:
        signs[1::2] = -1

    def transform(w: Tensor) -> Tensor:
        n_radial = w.shape[0]
        return w.reshape(n_radial, -1, n_functions).permute(2, 0, 1) * signs.to(w)

    def inverse(w: Tensor) -> Tensor:
        return (w * signs.to(w)).permute(1, 2, 0).reshape(w.shape[1], n_functions, w.shape[2])

    return {"transform": transform, "inverse": inverse}


def _describe_interactions(keys: KeyMap, config: GemNetConfig, released: str, ours: str) -> None:
    quadruplets, path, pair = config.quadruplets, config.atom_edge, config.atom_atom
    triplets = config.triplets
    _describe_sum(
        keys, f"{released}.trip_interaction", f"{ours}.triplets", triplets.in_dim, triplets.circular_dim
    )
    describe_edge_update(keys, f"{released}.trip_interaction", f"{ours}.triplets")
    if quadruplets is not None:
        source, target = f"{released}.quad_interaction", f"{ours}.quadruplets"
        describe_messages(keys, source, target, "dense_db")
        keys.move(f"{source}.mlp_cbf.linear.weight", f"{target}.circular.weight")
        keys.move_scale(f"{source}.scale_cbf", f"{target}.scale_circular")
        flat = flat_bilinear(quadruplets.in_dim, quadruplets.spherical_dim)
        keys.move(f"{source}.mlp_sbf.bilinear.linear.weight", f"{target}.bilinear.weight", **flat)
        keys.move_scale(f"{source}.scale_sbf_sum", f"{target}.bilinear.scale_sum")
        describe_edge_update(keys, source, target)
    if path is not None and path.to_edges:
        source, target = f"{released}.atom_edge_interaction", f"{ours}.atom_to_edge"
        _describe_sum(keys, source, target, path.in_dim, path.circular_dim)
        describe_edge_update(keys, source, target)
    if path is not None and path.to_atoms:
        source, target = f"{released}.edge_atom_interaction", f"{ours}.edge_to_atom"
        _describe_sum(keys, source, target, path.in_dim, path.circular_dim)
        keys.move(f"{source}.up_projection_ca.linear.weight", f"{target}.up.weight")
    if pair is not None:
        source, target = f"{released}.atom_interaction", f"{ours}.atom_atom"
        keys.move(f"{source}.down_projection.linear.weight", f"{target}.down.weight")
        flat = flat_bilinear(pair.in_dim, config.radial_dim)
        keys.move(f"{source}.bilinear.linear.weight", f"{target}.bilinear.weight", **flat)
        keys.move_scale(f"{source}.scale_rbf_sum", f"{target}.bilinear.scale_sum")
        keys.move(f"{source}.up_projection.linear.weight", f"{target}.up.weight")


def _describe_sum(keys: KeyMap, released: str, ours: str, in_dim: int, circular_dim: int) -> None:
    describe_messages(keys, released, ours, "dense_ba")
    flat = flat_bilinear(in_dim, circular_dim)
    keys.move(f"{released}.mlp_cbf.bilinear.linear.weight", f"{ours}.bilinear.weight", **flat)
    keys.move_scale(f"{released}.scale_cbf_sum", f"{ours}.bilinear.scale_sum")


def _describe_output_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released, ours = f"out_blocks.{index}", f"energy_branches.{index}"
    head = config.global_head
    describe_edges_to_atoms(keys, config, released, f"{ours}.to_atoms")
    keys.alias_below(f"{released}.seq_energy_pre.", f"{released}.layers.")
    describe_residuals(keys, f"{released}.seq_energy2", f"{ours}.after_atom", head.after_atom if head else 0)


def _describe_force_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released, ours = f"out_blocks.{index}", f"force_branches.{index}"
    describe_residuals(keys, f"{released}.seq_forces", f"{ours}.layers", config.layers.atom)
    keys.move(f"{released}.dense_rbf_F.linear.weight", f"{ours}.radial.weight")
    keys.move_scale(f"{released}.scale_rbf_F", f"{ours}.scale_radial")


def _describe_head(keys: KeyMap, config: GemNetConfig, letter: str, output: str, ours: str) -> None:
    head = config.global_head
    assert head is not None
    describe_stack(keys, f"out_mlp_{letter}", f"{ours}.layers", head.layers, True)
    keys.move(f"{output}.linear.weight", f"{ours}.output.dense.weight")
