"""What the released GemNets have in common: names of layers, blocks and bases (spec/gemnet.md 6)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import CheckpointError
from ocpgem.models.gemnet.basis import GaussianRadial, RadialBasis
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet
from ocpgem.models.import_weights.mapping import SCALE_SUFFIX, KeyMap

_RADIAL_PARAMETER = {
    "spherical_bessel": ("frequencies", "frequencies"),
    "bernstein": ("pregamma", "gamma"),
}
_NOT_THE_MODEL = ("otf_graph", "use_pbc", "use_pbc_single", "scale_file", "num_atoms", "bond_feat_dim")
"""Arguments of the released classes that say nothing about what is computed here."""
_NULL_IS_FALSE = ("regress_forces", "extensive", "enforce_max_neighbors_strictly")
"""Switches that are on by default, which the released classes take as off where a file says null."""


def arguments_of(kwargs: Mapping[str, Any], family: str) -> dict[str, Any]:
    """A copy of the constructor arguments without those that do not matter or whose None means the default.

    None means false for switches. Elsewhere it is the default of the released classes, or they fail with it.
    Raises CheckpointError for an activation or a number of targets that is not built.
    """
    args = {key: value for key, value in kwargs.items() if key not in _NOT_THE_MODEL and value is not None}
    args |= {key: False for key in _NULL_IS_FALSE if key in kwargs and kwargs[key] is None}
    activation = kwargs.get("activation", "swish")
    if activation not in ("silu", "swish"):
        given = "null, which stands for none at all" if activation is None else repr(activation)
        raise CheckpointError(
            f"activation is {given}; only silu (swish) is supported, and no released GemNet uses another"
        )
    args.pop("activation", None)
    if args.pop("num_targets", 1) not in (1, None):
        raise CheckpointError(
            f"only one energy per system is supported; this {family} has num_targets above 1"
        )
    return args


def finish_config(config: dict[str, Any], left_over: Mapping[str, Any], family: str) -> GemNetConfig:
    """The checked configuration; raises CheckpointError for arguments that nothing has used."""
    if left_over:
        names = ", ".join(sorted(left_over))
        raise CheckpointError(f"arguments of the released {family} without a counterpart: {names}")
    return GemNetConfig.model_validate(config)


def basis_name(args: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    """The name of a basis in the released arguments; raises CheckpointError for one that is not built."""
    name = str(args["name"]).lower()
    if name not in known:
        raise CheckpointError(f"{key} is {name!r}; supported are {', '.join(known)}")
    return name


def output_init(value: str) -> str:
    """Our name of the initialisation of output layers, which does not matter once weights are loaded."""
    return "zeros" if value.lower() == "zeros" else "he_orthogonal"


def convert(
    key_map: Callable[[GemNetConfig], KeyMap], config: GemNetConfig, source: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """The released state dict under our names; raises CheckpointError unless it fits exactly."""
    with torch.device("meta"):
        expected = GemNet(config).state_dict()
    return key_map(config).to_ours(source, expected, origin)


def describe_radial_basis(
    keys: KeyMap,
    config: GemNetConfig,
    name: str | None,
    released: str,
    ours: str | None,
) -> None:
    """The parameters or constants of one radial basis; `ours` is None where we compute it once for several."""
    name = name or config.radial_basis.name
    if name == "gaussian":
        keys.constant(f"{released}.rbf.offset", GaussianRadial(config.radial_basis.n_radial).centers)
    elif name in _RADIAL_PARAMETER and ours is not None:
        theirs, here = _RADIAL_PARAMETER[name]
        keys.move(f"{released}.rbf.{theirs}", f"{ours}.functions.{here}")
    if config.scaled_bases and ours is not None:
        keys.move_scale(f"{released}.scale_rbf", f"{ours}.scale")


def describe_unread_radial_basis(keys: KeyMap, config: GemNetConfig, released: str) -> None:
    """A radial basis that the released class has although no interaction of this configuration reads it."""
    basis = RadialBasis(config.radial_basis, cutoff=1.0)
    describe_radial_basis(keys, config, None, released, None)
    if config.radial_basis.name in _RADIAL_PARAMETER:
        theirs, ours = _RADIAL_PARAMETER[config.radial_basis.name]
        keys.unread(f"{released}.rbf.{theirs}", getattr(basis.functions, ours).detach())
    if config.scaled_bases:
        keys.unread(f"{released}.scale_rbf{SCALE_SUFFIX}", torch.zeros(()))


def describe_embeddings(keys: KeyMap) -> None:
    """Atom and edge embeddings and the projections that every released model has."""
    keys.move("atom_emb.embeddings.weight", "atom_embedding.weight")
    keys.move("edge_emb.dense.linear.weight", "edge_embedding.weight")
    keys.move("mlp_rbf_h.linear.weight", "bases.radial_atom.weight")
    keys.move("mlp_rbf_out.linear.weight", "bases.radial_output.weight")


def describe_residuals(keys: KeyMap, released: str, ours: str, n_layers: int, first: int = 0) -> None:
    """A stack of residual blocks."""
    for layer in range(first, first + n_layers):
        for dense in (0, 1):
            source = f"{released}.{layer}.dense_mlp.{dense}.linear.weight"
            keys.move(source, f"{ours}.{layer}.dense_{dense + 1}.weight")


def describe_stack(keys: KeyMap, released: str, ours: str, n_layers: int, has_leading_dense: bool) -> None:
    """A stack of residual blocks, where `has_leading_dense` after a dense layer."""
    if has_leading_dense:
        keys.move(f"{released}.0.linear.weight", f"{ours}.0.weight")
    describe_residuals(keys, released, ours, n_layers, first=int(has_leading_dense))


def describe_edges_to_atoms(
    keys: KeyMap, config: GemNetConfig, released: str, ours: str, **scale: bool
) -> None:
    """The sum over edges and its dense layers."""
    leading = config.layers.leading_dense == "always" or config.edge_dim != config.atom_dim
    keys.move(f"{released}.dense_rbf.linear.weight", f"{ours}.radial.weight")
    keys.move_scale(f"{released}.scale_sum", f"{ours}.scale_sum", **scale)
    describe_stack(keys, f"{released}.layers", f"{ours}.layers", config.layers.atom, leading)


def describe_messages(keys: KeyMap, released: str, ours: str, dense: str, **scale: bool) -> None:
    """Dense layer, radial basis and down-projection of one interaction."""
    for source, target in ((dense, "dense"), ("mlp_rbf", "radial"), ("down_projection", "down")):
        keys.move(f"{released}.{source}.linear.weight", f"{ours}.messages.{target}.weight")
    keys.move_scale(f"{released}.scale_rbf", f"{ours}.messages.scale_radial", **scale)


def describe_edge_update(keys: KeyMap, released: str, ours: str) -> None:
    """The two up-projections of one interaction."""
    keys.move(f"{released}.up_projection_ca.linear.weight", f"{ours}.update.up.weight")
    keys.move(f"{released}.up_projection_ac.linear.weight", f"{ours}.update.up_reverse.weight")


def describe_block_layers(
    keys: KeyMap, config: GemNetConfig, released: str, ours: str, **scale: bool
) -> None:
    """What an interaction block has beside its interactions."""
    layers = config.layers
    keys.move(f"{released}.dense_ca.linear.weight", f"{ours}.dense.weight")
    describe_residuals(keys, f"{released}.layers_before_skip", f"{ours}.before_skip", layers.before_skip)
    describe_residuals(keys, f"{released}.layers_after_skip", f"{ours}.after_skip", layers.after_skip)
    describe_residuals(keys, f"{released}.atom_emb_layers", f"{ours}.atom_layers", layers.atom_embedding)
    describe_edges_to_atoms(keys, config, f"{released}.atom_update", f"{ours}.to_atoms", **scale)
    keys.move(f"{released}.concat_layer.dense.linear.weight", f"{ours}.edge_update.weight")
    describe_residuals(keys, f"{released}.residual_m", f"{ours}.after_edge_update", layers.concat)


def flat_bilinear(in_dim: int, basis_dim: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """GemNet-OC's bilinear weight [out, basis_dim * in_dim] <-> ours [in_dim, basis_dim, out]."""
    return {
        "transform": lambda w: w.reshape(-1, basis_dim, in_dim).permute(2, 1, 0).contiguous(),
        "inverse": lambda w: w.permute(2, 1, 0).reshape(w.shape[2], basis_dim * in_dim),
    }
