"""Weights of GemNet-T, -dT and -XL as released with fairchem v1 / OCP (spec/gemnet.md 6.1)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ocpgem.errors import CheckpointError
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
    describe_stack,
    finish_config,
    output_init,
)

_FAMILY = "GemNet-T"
_RADIAL = ("gaussian", "spherical_bessel", "bernstein")


def config_from_kwargs(kwargs: Mapping[str, Any]) -> GemNetConfig:
    """Our configuration for the constructor arguments of the released class.

    Raises CheckpointError naming a setting that has no counterpart.
    """
    args = {"regress_forces": True, "direct_forces": False, **arguments_of(kwargs, _FAMILY)}
    basis_name(args.pop("cbf", {"name": "spherical_harmonics"}), "cbf", ("spherical_harmonics",))
    regress, direct = args.pop("regress_forces"), args.pop("direct_forces")
    rbf = args.pop("rbf", {"name": "gaussian"})
    args.pop("scatter_atoms", None)  # how GemNet-XL divided its work
    if args.pop("scale_num_blocks", False):
        raise CheckpointError(
            "scale_num_blocks is on, which no released GemNet-XL uses and which is not built: it divides what the "
            "output blocks add up by num_blocks + 1; divide the weights of every out_energy and out_forces by that "
            "number and set it to false"
        )
    config = {
        "variant": "gemnet_dT" if direct and regress else "gemnet_T",
        "forces": ("direct" if direct else "gradient") if regress else "none",
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
        "neighbors": {"cutoff": args.pop("cutoff", 6.0), "max_neighbors": args.pop("max_neighbors", 50)},
        "triplets": {
            "in_dim": args.pop("emb_size_trip"),
            "out_dim": args.pop("emb_size_bil_trip"),
            "circular_dim": args.pop("emb_size_cbf"),
        },
        "layers": {
            "before_skip": args.pop("num_before_skip"),
            "after_skip": args.pop("num_after_skip"),
            "concat": args.pop("num_concat"),
            "atom": args.pop("num_atom"),
        },
        "extensive": args.pop("extensive", True),
        "output_init": output_init(args.pop("output_init", "HeOrthogonal")),
        "n_elements": args.pop("num_elements", 83),
    }
    return finish_config(config, args, _FAMILY)


def convert_state_dict(config: GemNetConfig, source: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The released state dict under our names; raises CheckpointError unless it fits exactly."""
    return convert(key_map, config, source, origin)


def key_map(config: GemNetConfig) -> KeyMap:
    """Which tensor of the released class is which of ours. A stored scale factor of 0 means "not fitted"."""
    keys = KeyMap()
    describe_radial_basis(keys, config, None, "radial_basis", "bases.radial")
    describe_radial_basis(keys, config, None, "cbf_basis3.radial_basis", "bases.angular")
    describe_embeddings(keys)
    keys.move("mlp_rbf3.linear.weight", "bases.radial_triplet.weight")
    keys.move("mlp_cbf3.weight", "bases.circular_triplet.weight")
    # The released class has force heads wherever direct_forces is true, even if regress_forces is false.
    unread = KeyMap()
    for index in range(config.n_blocks + 1):
        _describe_output_block(keys, config, index)
        _describe_force_block(keys if config.has_direct_forces else unread, config, index)
    if config.forces == "none":
        keys.leave_unread(unread)
    for index in range(config.n_blocks):
        released, ours = f"int_blocks.{index}", f"blocks.{index}"
        describe_triplets(keys, f"{released}.trip_interaction", f"{ours}.triplets")
        describe_block_layers(keys, config, released, ours)
    return keys


def describe_triplets(keys: KeyMap, released: str, ours: str, **scale: bool) -> None:
    """The triplet interaction of GemNet-T, in fairchem and in the original code."""
    describe_messages(keys, released, ours, "dense_ba", **scale)
    keys.move(f"{released}.mlp_cbf.weight", f"{ours}.bilinear.weight")
    keys.move_scale(f"{released}.scale_cbf_sum", f"{ours}.bilinear.scale_sum", **scale)
    describe_edge_update(keys, released, ours)


def _describe_output_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released, ours = f"out_blocks.{index}", f"energy_branches.{index}"
    describe_edges_to_atoms(keys, config, released, f"{ours}.to_atoms")
    keys.alias_below(f"{released}.seq_energy.", f"{released}.layers.")
    keys.move(f"{released}.out_energy.linear.weight", f"energy_head.outputs.{index}.dense.weight")


def _describe_force_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released, ours = f"out_blocks.{index}", f"force_branches.{index}"
    describe_stack(keys, f"{released}.seq_forces", f"{ours}.layers", config.layers.atom, True)
    keys.move(f"{released}.dense_rbf_F.linear.weight", f"{ours}.radial.weight")
    keys.move_scale(f"{released}.scale_rbf_F", f"{ours}.scale_radial")
    keys.move(f"{released}.out_forces.linear.weight", f"force_head.outputs.{index}.dense.weight")
