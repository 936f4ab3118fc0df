"""Weights of the original GemNet-T, -dT, -Q and -dQ for molecules (spec/gemnet.md 6.3)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.fairchem_gemnet_t import describe_triplets
from ocpgem.models.import_weights.mapping import KeyMap
from ocpgem.models.import_weights.released_blocks import (
    arguments_of,
    convert,
    describe_block_layers,
    describe_edge_update,
    describe_edges_to_atoms,
    describe_embeddings,
    describe_messages,
    describe_stack,
    finish_config,
    output_init,
)

_FAMILY = "original GemNet"
_SCALE = {"zero_is_unfitted": False}
"""The original scale factors start at 1."""


def config_from_kwargs(kwargs: Mapping[str, Any]) -> GemNetConfig:
    """Our configuration for the constructor arguments of the original class.

    Raises CheckpointError naming an argument that has no counterpart.
    """
    args = arguments_of(kwargs, _FAMILY)
    triplets_only, direct = args.pop("triplets_only"), args.pop("direct_forces", False)
    coupled = args.pop("forces_coupled", False)
    forces = ("direct_coupled" if coupled else "direct") if direct else "gradient"
    cutoff_quadruplets = args.pop("int_cutoff", 10.0)
    quadruplets = {
        "cutoff": cutoff_quadruplets,
        "max_neighbors": 0,
        "in_dim": args.pop("emb_size_quad"),
        "out_dim": args.pop("emb_size_bil_quad"),
        "spherical_dim": args.pop("emb_size_sbf"),
        "circular_dim": args["emb_size_cbf"],
    }
    config = {
        "variant": f"gemnet_{'d' if direct else ''}{'T' if triplets_only else 'Q'}",
        "forces": forces,
        "n_blocks": args.pop("num_blocks"),
        "atom_dim": args.pop("emb_size_atom"),
        "edge_dim": args.pop("emb_size_edge"),
        "radial_dim": args.pop("emb_size_rbf"),
        "n_spherical": args.pop("num_spherical"),
        "radial_basis": {
            "name": "spherical_bessel",
            "n_radial": args.pop("num_radial"),
            "envelope": {"name": "polynomial", "exponent": args.pop("envelope_exponent", 5)},
        },
        "angular_basis": {"radial": "bessel_by_degree", "two_angle": "spherical_harmonics"},
        "neighbors": {"cutoff": args.pop("cutoff", 5.0), "max_neighbors": 0},
        "triplets": {
            "in_dim": args.pop("emb_size_trip"),
            "out_dim": args.pop("emb_size_bil_trip"),
            "circular_dim": args.pop("emb_size_cbf"),
        },
        "quadruplets": None if triplets_only else quadruplets,
        "layers": {
            "before_skip": args.pop("num_before_skip"),
            "after_skip": args.pop("num_after_skip"),
            "concat": args.pop("num_concat"),
            "atom": args.pop("num_atom"),
        },
        "force_radial": "before_layers",
        "extensive": args.pop("extensive", True),
        "output_init": output_init(args.pop("output_init", "HeOrthogonal")),
        "n_elements": 93,
    }
    return finish_config(config, args, _FAMILY)


def convert_state_dict(config: GemNetConfig, source: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The original state dict under our names; raises CheckpointError unless it fits exactly."""
    return convert(key_map, config, source, origin)


def key_map(config: GemNetConfig) -> KeyMap:
    """Which tensor of the original class is which of ours."""
    keys = KeyMap()
    keys.move("rbf_basis.frequencies", "bases.radial.functions.frequencies")
    describe_embeddings(keys)
    keys.move("mlp_rbf3.linear.weight", "bases.radial_triplet.weight")
    keys.move("mlp_cbf3.weight", "bases.circular_triplet.weight")
    if config.quadruplets is not None:
        keys.move("mlp_rbf4.linear.weight", "bases.radial_quadruplet.weight")
        n_spherical, n_radial = config.n_spherical, config.radial_basis.n_radial
        keys.move(
            "mlp_cbf4.linear.weight",
            "bases.circular_quadruplet.weight",
            transform=lambda w: w.reshape(-1, n_spherical, n_radial).permute(1, 2, 0).contiguous(),
            inverse=lambda w: w.permute(2, 0, 1).reshape(w.shape[2], n_spherical * n_radial),
        )
        keys.move("mlp_sbf4.weight", "bases.spherical_quadruplet.weight")
    for index in range(config.n_blocks + 1):
        _describe_output_block(keys, config, index)
    for index in range(config.n_blocks):
        released, ours = f"int_blocks.{index}", f"blocks.{index}"
        describe_triplets(keys, f"{released}.trip_interaction", f"{ours}.triplets", **_SCALE)
        if config.quadruplets is not None:
            _describe_quadruplets(keys, f"{released}.quad_interaction", f"{ours}.quadruplets")
        describe_block_layers(keys, config, released, ours, **_SCALE)
    keys.alias_endings(".weight", ".linear.weight")
    return keys


def _describe_quadruplets(keys: KeyMap, released: str, ours: str) -> None:
    describe_messages(keys, released, ours, "dense_db", **_SCALE)
    keys.move(f"{released}.mlp_cbf.linear.weight", f"{ours}.circular.weight")
    keys.move_scale(f"{released}.scale_cbf", f"{ours}.scale_circular", **_SCALE)
    keys.move(f"{released}.mlp_sbf.weight", f"{ours}.bilinear.weight")
    keys.move_scale(f"{released}.scale_sbf_sum", f"{ours}.bilinear.scale_sum", **_SCALE)
    describe_edge_update(keys, released, ours)


def _describe_output_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released = f"out_blocks.{index}"
    describe_edges_to_atoms(keys, config, released, f"energy_branches.{index}.to_atoms", **_SCALE)
    keys.alias_below(f"{released}.seq_energy.", f"{released}.layers.")
    keys.move(f"{released}.out_energy.linear.weight", f"energy_head.outputs.{index}.dense.weight")
    if not config.has_direct_forces:
        return
    ours = f"force_branches.{index}"
    describe_stack(keys, f"{released}.seq_forces", f"{ours}.layers", config.layers.atom, True)
    keys.move_scale(f"{released}.scale_rbf", f"{ours}.scale_radial", **_SCALE)
    keys.move(f"{released}.out_forces.linear.weight", f"force_head.outputs.{index}.dense.weight")
