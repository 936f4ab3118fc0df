"""Configurations in the two layouts of fairchem v1 / OCP, written from the facts of their format."""

from typing import Any

import yaml

MEAN, STD = -0.7554450631141663, 2.887317180633545
SIZES_T: dict[str, Any] = {
    "num_spherical": 7, "num_radial": 128, "num_blocks": 3, "emb_size_atom": 512, "emb_size_edge": 512,
    "emb_size_trip": 64, "emb_size_rbf": 16, "emb_size_cbf": 16, "emb_size_bil_trip": 64, "num_before_skip": 1,
    "num_after_skip": 2, "num_concat": 1, "num_atom": 3,
}  # fmt: skip
DT: dict[str, Any] = SIZES_T | {
    "cutoff": 6.0, "max_neighbors": 50, "rbf": {"name": "gaussian"}, "cbf": {"name": "spherical_harmonics"},
    "envelope": {"name": "polynomial", "exponent": 5}, "extensive": True, "output_init": "HeOrthogonal",
    "activation": "silu", "regress_forces": True, "direct_forces": True, "otf_graph": False,
    "scale_file": "somewhere/gemnet-dT.json",
}  # fmt: skip
OC: dict[str, Any] = {
    "num_spherical": 7, "num_radial": 128, "num_blocks": 4, "emb_size_atom": 256, "emb_size_edge": 512,
    "emb_size_trip_in": 64, "emb_size_trip_out": 64, "emb_size_quad_in": 32, "emb_size_quad_out": 32,
    "emb_size_aint_in": 64, "emb_size_aint_out": 64, "emb_size_rbf": 16, "emb_size_cbf": 16, "emb_size_sbf": 32,
    "num_before_skip": 2, "num_after_skip": 2, "num_concat": 1, "num_atom": 3, "num_output_afteratom": 3,
    "num_atom_emb_layers": 2, "num_global_out_layers": 2, "cutoff": 12.0, "cutoff_qint": 12.0,
    "cutoff_aeaint": 12.0, "cutoff_aint": 12.0, "max_neighbors": 30, "max_neighbors_qint": 8,
    "max_neighbors_aeaint": 20, "max_neighbors_aint": 1000, "rbf": {"name": "gaussian"},
    "cbf": {"name": "spherical_harmonics"}, "sbf": {"name": "legendre_outer"}, "quad_interaction": True,
    "atom_edge_interaction": True, "edge_atom_interaction": True, "atom_interaction": True, "qint_tags": [1, 2],
    "regress_forces": True, "direct_forces": True, "forces_coupled": False, "extensive": True,
}  # fmt: skip
OPTIM: dict[str, Any] = {
    "batch_size": 32, "eval_batch_size": 16, "num_workers": 2, "eval_every": 5000, "lr_initial": 0.0005,
    "optimizer": "AdamW", "optimizer_params": {"amsgrad": True}, "scheduler": "ReduceLROnPlateau", "mode": "min",
    "factor": 0.8, "patience": 3, "max_epochs": 80, "energy_coefficient": 1, "force_coefficient": 100,
    "loss_energy": "mae", "loss_force": "l2mae", "ema_decay": 0.999, "clip_grad_norm": 10,
}  # fmt: skip
TRAIN_SET = {
    "src": "data/s2ef/2M/train/", "normalize_labels": True, "target_mean": MEAN, "target_std": STD,
    "grad_target_mean": 0.0, "grad_target_std": STD,
}  # fmt: skip
OLD: dict[str, Any] = {
    "trainer": "forces",
    "dataset": [TRAIN_SET, {"src": "data/s2ef/all/val_id"}, {"src": "data/s2ef/all/test_id"}],
    "logger": "wandb",
    "task": {"dataset": "trajectory_lmdb", "train_on_free_atoms": True, "primary_metric": "forces_mae"},
    "model": {"name": "gemnet_t"} | DT,
    "optim": OPTIM,
}  # fmt: skip
NEW: dict[str, Any] = {
    "trainer": "ocp",
    "dataset": {
        "train": {
            "format": "lmdb",
            "src": "data/s2ef/2M/train",
            "key_mapping": {"y": "energy", "force": "forces"},
            "transforms": {
                "normalizer": {
                    "energy": {"mean": MEAN, "stdev": STD},
                    "forces": {"mean": 0.0, "stdev": STD},
                }
            },
        },
        "val": {"src": "data/s2ef/all/val_id"},
    },
    "logger": {"name": "tensorboard"},
    "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom", "train_on_free_atoms": True}},
    "loss_functions": [
        {"energy": {"fn": "mae", "coefficient": 2}},
        {"forces": {"fn": "l2mae", "coefficient": 100}},
    ],
    "evaluation_metrics": {"primary_metric": "forces_mae", "metrics": {"energy": ["mae"]}},
    "model": {"name": "gemnet_oc"} | OC,
    "optim": {
        "batch_size": 16,
        "lr_initial": 0.0005,
        "optimizer": "AdamW",
        "optimizer_params": {"amsgrad": True, "weight_decay": 0},
        "scheduler": "LambdaLR",
        "scheduler_params": {
            "lambda_type": "cosine", "warmup_epochs": 0.5, "warmup_factor": 0.2, "lr_min_factor": 0.02,
        },
        "max_epochs": 2,
        "eval_every": 1000,
        "checkpoint_every": 200,
        "clip_grad_norm": 10,
        "ema_decay": 0.999,
        "load_balancing": "atoms",
    },
}  # fmt: skip


def without(settings: dict[str, Any], *paths: str) -> dict[str, Any]:
    """A copy that lacks some settings."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(settings))
    for path in paths:
        *sections, key = path.split(".")
        here = copy
        for section in sections:
            here = here[section]
        del here[key]
    return copy


def changed(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(settings))
    *sections, key = path.split(".")
    here = copy
    for section in sections:
        here = here.setdefault(section, {})
    here[key] = value
    return copy
