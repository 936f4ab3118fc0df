"""Weights of GemNet-T and -dT as released with fairchem v1 / OCP (spec/gemnet.md 6.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import CheckpointError
from ocpgem.models.gemnet.basis import GaussianRadial
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet
from ocpgem.models.import_weights.mapping import KeyMap

_RADIAL_PARAMETER = {"spherical_bessel": "frequencies", "bernstein": "pregamma"}
_OUR_RADIAL_PARAMETER = {"spherical_bessel": "frequencies", "bernstein": "gamma"}


def config_from_kwargs(kwargs: Mapping[str, Any]) -> GemNetConfig:
    """Our configuration for the constructor arguments of the released class.

    Raises CheckpointError naming an argument that has no counterpart.
    """
    args = {"regress_forces": True, "direct_forces": False, **kwargs}
    for ignored in (
        "otf_graph",
        "use_pbc",
        "use_pbc_single",
        "scale_file",
        "num_targets",
        "num_atoms",
        "bond_feat_dim",
    ):
        args.pop(ignored, None)
    if args.pop("activation", "swish") not in ("silu", "swish"):
        raise CheckpointError(
            "only the activation silu (swish) is supported; no released GemNet uses another"
        )
    if args.pop("cbf", {"name": "spherical_harmonics"})["name"] != "spherical_harmonics":
        raise CheckpointError("only the circular basis spherical_harmonics is supported for GemNet-T")
    regress, direct = args.pop("regress_forces"), args.pop("direct_forces")
    rbf, envelope = (
        args.pop("rbf", {"name": "gaussian"}),
        args.pop("envelope", {"name": "polynomial", "exponent": 5}),
    )
    output_init = args.pop("output_init", "HeOrthogonal").lower()
    config = {
        "variant": "gemnet_dT" if direct and regress else "gemnet_T",
        "forces": ("direct" if direct else "gradient") if regress else "none",
        "n_blocks": args.pop("num_blocks"),
        "atom_dim": args.pop("emb_size_atom"),
        "edge_dim": args.pop("emb_size_edge"),
        "radial_dim": args.pop("emb_size_rbf"),
        "n_spherical": args.pop("num_spherical"),
        "radial_basis": {"name": rbf["name"], "n_radial": args.pop("num_radial"), "envelope": envelope},
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
        "output_init": "zeros" if output_init == "zeros" else "he_orthogonal",
        "n_elements": args.pop("num_elements", 83),
    }
    if args:
        raise CheckpointError(
            f"arguments of the released GemNet-T without a counterpart: {', '.join(sorted(args))}"
        )
    return GemNetConfig.model_validate(config)


def convert_state_dict(config: GemNetConfig, source: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The released state dict under our names; raises CheckpointError unless it fits exactly.

    A stored scale factor of 0 is the released sign for "not fitted" and means 1.
    """
    keys = KeyMap(source, origin)
    _move_basis(keys, config)
    keys.move("atom_emb.embeddings.weight", "atom_embedding.weight")
    keys.move("edge_emb.dense.linear.weight", "edge_embedding.weight")
    for index in range(config.n_blocks + 1):
        _move_output_block(keys, config, index)
    for index in range(config.n_blocks):
        _move_interaction_block(keys, config, index)
    with torch.device("meta"):
        expected = GemNet(config).state_dict()
    return keys.finish(expected)


def _move_basis(keys: KeyMap, config: GemNetConfig) -> None:
    basis = config.radial_basis
    for copy in ("radial_basis.rbf", "cbf_basis3.radial_basis.rbf"):
        if basis.name == "gaussian":
            keys.drop_constant(f"{copy}.offset", GaussianRadial(basis.n_radial).centers)
    if basis.name != "gaussian":
        released, ours = _RADIAL_PARAMETER[basis.name], _OUR_RADIAL_PARAMETER[basis.name]
        keys.move(f"radial_basis.rbf.{released}", f"radial_basis.functions.{ours}")
        keys.move(f"cbf_basis3.radial_basis.rbf.{released}", f"circular_radial_basis.functions.{ours}")
    for released, ours in (("mlp_rbf3", "triplet"), ("mlp_rbf_h", "atom"), ("mlp_rbf_out", "output")):
        keys.move(f"{released}.linear.weight", f"basis_projection.radial_{ours}.weight")
    keys.move("mlp_cbf3.weight", "basis_projection.circular")


def _move_scale(keys: KeyMap, released: str, ours: str) -> None:
    keys.move(f"{released}.scale_factor", f"{ours}.factor")
    factor = keys.target.get(f"{ours}.factor")
    if factor is not None:
        factor = factor.detach().reshape(())
        fitted = factor != 0
        keys.target[f"{ours}.factor"] = torch.where(fitted, factor, torch.ones_like(factor))
        keys.target[f"{ours}.fitted"] = fitted


def _move_residuals(keys: KeyMap, released: str, ours: str, n_layers: int, first: int = 0) -> None:
    for layer in range(first, first + n_layers):
        for dense in (0, 1):
            source = f"{released}.{layer}.dense_mlp.{dense}.linear.weight"
            keys.move(source, f"{ours}.{layer}.dense_{dense + 1}.weight")


def _move_widening(keys: KeyMap, released: str, ours: str, n_residual: int) -> None:
    keys.move(f"{released}.0.linear.weight", f"{ours}.0.weight")
    _move_residuals(keys, released, ours, n_residual, first=1)


def _move_edges_to_atoms(keys: KeyMap, config: GemNetConfig, released: str, ours: str) -> None:
    keys.move(f"{released}.dense_rbf.linear.weight", f"{ours}.radial.weight")
    _move_scale(keys, f"{released}.scale_sum", f"{ours}.scale_sum")
    _move_widening(keys, f"{released}.layers", f"{ours}.layers", config.layers.atom)


def _move_output_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released, ours = f"out_blocks.{index}", f"energy_heads.{index}"
    _move_edges_to_atoms(keys, config, released, f"{ours}.to_atoms")
    for alias in keys.keys_below(f"{released}.seq_energy."):
        keys.drop_alias(alias, alias.replace(".seq_energy.", ".layers."))
    keys.move(f"{released}.out_energy.linear.weight", f"{ours}.out.weight")
    if config.forces != "direct":
        return
    ours = f"force_heads.{index}"
    _move_widening(keys, f"{released}.seq_forces", f"{ours}.layers", config.layers.atom)
    keys.move(f"{released}.dense_rbf_F.linear.weight", f"{ours}.radial.weight")
    _move_scale(keys, f"{released}.scale_rbf_F", f"{ours}.scale_radial")
    keys.move(f"{released}.out_forces.linear.weight", f"{ours}.out.weight")


def _move_interaction_block(keys: KeyMap, config: GemNetConfig, index: int) -> None:
    released, ours = f"int_blocks.{index}", f"blocks.{index}"
    keys.move(f"{released}.dense_ca.linear.weight", f"{ours}.dense.weight")
    triplets, our_triplets = f"{released}.trip_interaction", f"{ours}.triplets"
    for source, target in (
        ("dense_ba", "dense_in"),
        ("mlp_rbf", "radial"),
        ("down_projection", "down"),
        ("up_projection_ca", "up"),
        ("up_projection_ac", "up_reverse"),
    ):
        keys.move(f"{triplets}.{source}.linear.weight", f"{our_triplets}.{target}.weight")
    keys.move(f"{triplets}.mlp_cbf.weight", f"{our_triplets}.bilinear")
    _move_scale(keys, f"{triplets}.scale_rbf", f"{our_triplets}.scale_radial")
    _move_scale(keys, f"{triplets}.scale_cbf_sum", f"{our_triplets}.scale_sum")
    layers = config.layers
    _move_residuals(keys, f"{released}.layers_before_skip", f"{ours}.before_skip", layers.before_skip)
    _move_residuals(keys, f"{released}.layers_after_skip", f"{ours}.after_skip", layers.after_skip)
    _move_edges_to_atoms(keys, config, f"{released}.atom_update", f"{ours}.to_atoms")
    keys.move(f"{released}.concat_layer.dense.linear.weight", f"{ours}.edge_update.weight")
    _move_residuals(keys, f"{released}.residual_m", f"{ours}.after_edge_update", layers.concat)
