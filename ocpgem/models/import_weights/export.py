"""Writing our weights in the layout of fairchem v1 (GemNet-T, -XL, -OC) or of the original GemNet code (molecules).

The state dict comes from the same description that reads released files, run backwards. Settings are translated back
and then forth again, so that a model whose settings have no released counterpart is refused instead of written wrongly.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import CheckpointError
from ocpgem.files import write_text, written_whole
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights import normalizers
from ocpgem.models.import_weights.released import FAMILIES
from ocpgem.models.potential import Normalization, Potential


def export_released(potential: Potential, path: Path) -> list[str]:
    """Write `potential` to `path` for the released code; the file is complete or absent.

    A model of the original code is a bare state dict with the constructor's arguments beside it in
    NAME_kwargs.json. Returns what was written. Raises CheckpointError if the released code has no such model.
    """
    family = family_of(potential.config)
    kwargs = released_kwargs(potential.config)
    state = {key: value.detach().cpu() for key, value in potential.model.state_dict().items()}
    released = FAMILIES[family].key_map(potential.config).to_released(state)
    if family != "tum":
        with written_whole(path) as file:
            torch.save(_container(family, kwargs, released, potential), file)
        return [
            f"{path}: {len(released)} tensors of {family} with settings and normalisation, as fairchem v1 writes them"
        ]
    if potential.normalization != Normalization():
        raise CheckpointError(
            "the original GemNet code does not normalise its targets, but this model does, so it cannot be exported"
        )
    arguments = path.with_name(f"{path.stem}_kwargs.json")
    with written_whole(path) as file:
        torch.save(released, file)
    write_text(arguments, json.dumps(kwargs, indent=4) + "\n")
    return [
        f"{path}: state dict of the original GemNet code, {len(released)} keys",
        f"{arguments}: its arguments",
    ]


def family_of(config: GemNetConfig) -> str:
    """Which released code has models like this one; raises CheckpointError if none has."""
    if config.angular_basis.radial == "bessel_by_degree":
        return "tum"
    family = "gemnet_t" if config.global_head is None else "gemnet_oc"
    if (family == "gemnet_oc") != config.variant.startswith(
        "gemnet_OC"
    ):  # they differ in graph and basis, too
        raise CheckpointError(
            f"no released model is a {config.variant} with{'out' if config.global_head is None else ''} global_head, "
            "so it cannot be exported"
        )
    return family


def released_kwargs(config: GemNetConfig) -> dict[str, Any]:
    """The arguments of the released constructor for `config`.

    Raises CheckpointError naming the settings that the released code lacks.
    """
    family = family_of(config)
    kwargs = {"gemnet_t": _gemnet_t, "gemnet_oc": _gemnet_oc, "tum": _tum}[family](config)
    back = FAMILIES[family].config_from_kwargs(kwargs)
    lost = list(_differences(config.model_dump(exclude={"variant"}), back.model_dump(exclude={"variant"})))
    if lost:
        raise CheckpointError(
            f"the released {family} has no counterpart of this model's {', '.join(lost)}, so it cannot be exported"
        )
    return kwargs


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in ours.items():
        other = theirs[key]
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            yield f"{prefix}{key} = {value}"


def _container(
    family: str, kwargs: dict[str, Any], state: dict[str, Tensor], potential: Potential
) -> dict[str, Any]:
    """A container of fairchem v1 as it is written at the end of a training."""
    has_forces = potential.config.forces != "none"
    scaling = normalizers.to_released(potential.normalization, has_forces)
    outputs: dict[str, Any] = {"energy": {"shape": 1, "level": "system"}}
    if has_forces:
        outputs["forces"] = {
            "irrep_dim": 1,
            "level": "atom",
            "train_on_free_atoms": True,
            "eval_on_free_atoms": True,
        }
    return {
        "epoch": 0,
        "step": 0,
        "state_dict": state,
        **scaling,
        "config": {
            "task": {"dataset": "lmdb"},
            "trainer": "ocp",
            "model": {"name": family, **kwargs},
            "outputs": outputs,
            "loss_functions": [{name: {"fn": "mae", "coefficient": 1}} for name in outputs],
            "evaluation_metrics": {"metrics": {name: ["mae"] for name in outputs}},
            "optim": {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0},
            "dataset": {},
            "logger": None,
            "amp": False,
            "gpus": 0,
        },
        "ema": None,
        "amp": None,
        "best_val_metric": None,
        "primary_metric": None,
    }


def _common(config: GemNetConfig) -> dict[str, Any]:
    return {
        "num_spherical": config.n_spherical,
        "num_radial": config.radial_basis.n_radial,
        "num_blocks": config.n_blocks,
        "emb_size_atom": config.atom_dim,
        "emb_size_edge": config.edge_dim,
        "emb_size_rbf": config.radial_dim,
        "emb_size_cbf": config.triplets.circular_dim,
        "num_before_skip": config.layers.before_skip,
        "num_after_skip": config.layers.after_skip,
        "num_concat": config.layers.concat,
        "num_atom": config.layers.atom,
        "cutoff": config.neighbors.cutoff,
        "extensive": config.extensive,
        "direct_forces": config.has_direct_forces,
        "output_init": "zeros" if config.output_init == "zeros" else "HeOrthogonal",
    }


def _envelope(config: GemNetConfig) -> dict[str, Any]:
    """The exponential envelope takes no exponent."""
    envelope = config.radial_basis.envelope
    return envelope.model_dump() if envelope.name == "polynomial" else {"name": envelope.name}


def _periodic(config: GemNetConfig) -> dict[str, Any]:
    return {
        **_common(config),
        "max_neighbors": config.neighbors.max_neighbors,
        "rbf": {"name": config.radial_basis.name},
        "envelope": _envelope(config),
        "cbf": {"name": "spherical_harmonics"},
        "regress_forces": config.forces != "none",
        "otf_graph": True,
        "use_pbc": True,
        "activation": "silu",
        "num_elements": config.n_elements,
    }


def _gemnet_t(config: GemNetConfig) -> dict[str, Any]:
    triplets = config.triplets
    return {**_periodic(config), "emb_size_trip": triplets.in_dim, "emb_size_bil_trip": triplets.out_dim}


def _gemnet_oc(config: GemNetConfig) -> dict[str, Any]:
    quad, path, pair = config.quadruplets, config.atom_edge, config.atom_atom
    kwargs = {
        **_periodic(config),
        "emb_size_trip_in": config.triplets.in_dim,
        "emb_size_trip_out": config.triplets.out_dim,
        "emb_size_quad_in": quad.in_dim if quad else 32,
        "emb_size_quad_out": quad.out_dim if quad else 32,
        "emb_size_sbf": quad.spherical_dim if quad else 32,
        "emb_size_aint_in": pair.in_dim if pair else 64,
        "emb_size_aint_out": pair.out_dim if pair else 64,
        "num_output_afteratom": config.global_head.after_atom if config.global_head else 0,
        "num_global_out_layers": config.global_head.layers if config.global_head else 0,
        "num_atom_emb_layers": config.layers.atom_embedding,
        "sbf": {"name": config.angular_basis.two_angle},
        "scale_basis": config.scaled_bases,
        "forces_coupled": config.forces == "direct_coupled",
        "quad_interaction": quad is not None,
        "atom_edge_interaction": path is not None and path.to_edges,
        "edge_atom_interaction": path is not None and path.to_atoms,
        "atom_interaction": pair is not None,
        "qint_tags": [0, 1, 2] if quad is None or quad.tags is None else list(quad.tags),
        "enforce_max_neighbors_strictly": config.neighbors.strict,
    }
    if config.angular_basis.radial is not None:
        kwargs["rbf_spherical"] = {"name": config.angular_basis.radial}
    for suffix, graph in (("qint", quad), ("aeaint", path), ("aint", pair)):
        if graph is not None:
            kwargs |= {f"cutoff_{suffix}": graph.cutoff, f"max_neighbors_{suffix}": graph.max_neighbors}
    return kwargs


def _tum(config: GemNetConfig) -> dict[str, Any]:
    quad = config.quadruplets
    return {
        **_common(config),
        "emb_size_trip": config.triplets.in_dim,
        "emb_size_bil_trip": config.triplets.out_dim,
        "emb_size_quad": quad.in_dim if quad else 32,
        "emb_size_bil_quad": quad.out_dim if quad else 32,
        "emb_size_sbf": quad.spherical_dim if quad else 32,
        "num_targets": 1,
        "int_cutoff": quad.cutoff if quad else 10.0,
        "envelope_exponent": config.radial_basis.envelope.exponent,
        "forces_coupled": config.forces == "direct_coupled",
        "triplets_only": quad is None,
        "activation": "swish",
    }
