"""Every file below configs/: it loads, its model has the published size, and it can make a training step."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ocpgem.config import load_config
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet
from ocpgem.models.potential import Potential, n_parameters
from ocpgem.train.config import TrainConfig
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.targets import given_targets
from tests.tiny_runs import ROOT, random_system

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yml"))


def is_part(path: Path) -> bool:
    """Parts are only included by others; every other file must be a complete run."""
    return path.parent == CONFIGS / "models" or path.stem.startswith("base") or path.stem.endswith("schedule")


RUNS = [str(path.relative_to(CONFIGS)) for path in FILES if not is_part(path)]
PUBLISHED = {  # spec: 6.1, 6.2, 6.3
    "s2ef/2*/gemnet_dT.yml": 31_671_808,
    "s2ef/all/gemnet_dT.yml": 31_671_808,
    "oc22/s2ef/gemnet_dT*.yml": 31_671_808,
    "oc22/is2re/gemnet_T.yml": 23_176_448,
    "is2re/*/gemnet_T.yml": 23_176_448,
    "s2ef/all/gemnet_xl.yml": 292_939_520,
    "s2ef/2*/gemnet_OC.yml": 38_864_384,
    "s2ef/all/gemnet_OC.yml": 38_864_384,
    "s2ef/all/gemnet_OC_md.yml": 38_864_384,
    "oc22/s2ef/gemnet_OC*.yml": 38_864_384,
    "s2ef/all/gemnet_OC_large.yml": 216_408_064,
    "odac/s2ef/gemnet_OC.yml": 38_868_736,
    "odac/is2re/gemnet_OC.yml": 28_603_648,
    "molecules/*/gemnet_T.yml": 1_892_294,
    "molecules/*/gemnet_dT.yml": 2_302_534,
    "molecules/*/gemnet_Q.yml": 2_158_470,
    "molecules/*/gemnet_dQ.yml": 2_568_710,
}


def load(run: str, *overrides: str) -> TrainConfig:
    return load_config(CONFIGS / run, overrides, TrainConfig)


def reduced(run: str) -> TrainConfig:
    """The run with a narrow model; cutoffs, paths, bases and heads stay as they are."""
    model = load(run).model
    widths = {
        "n_blocks": 1,
        "atom_dim": 6,
        "edge_dim": 6 if model.atom_dim == model.edge_dim else 8,
        "radial_dim": 4,
        "n_spherical": 4,
        "radial_basis.n_radial": 5,
        "triplets.in_dim": 3,
        "triplets.out_dim": 4,
        "triplets.circular_dim": 3,
        "output_init": "he_orthogonal",  # with zeros, the first step would not reach the layers before the outputs
    }
    for path in ("quadruplets", "atom_edge", "atom_atom"):
        if getattr(model, path) is not None:
            dims = [name for name in type(getattr(model, path)).model_fields if name.endswith("_dim")]
            widths |= {f"{path}.{name}": 3 for name in dims}
    return load(run, *(f"model.{key}={value}" for key, value in widths.items()))


def included_by(path: Path) -> set[Path]:
    names = yaml.safe_load(path.read_text()).get("includes", [])
    direct = {(path.parent / name).resolve() for name in names}
    return direct.union(*(included_by(part) for part in direct))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_loads_and_its_model_has_the_published_size(run: str) -> None:
    config = load(run)
    with torch.device("meta"):
        size = n_parameters(GemNet(config.model))
    for pattern, published in PUBLISHED.items():
        if fnmatch(run, pattern):
            assert size == published
    assert config.steps >= config.validation.every_steps


def test_every_published_size_belongs_to_a_run() -> None:
    unused = [pattern for pattern in PUBLISHED if not any(fnmatch(run, pattern) for run in RUNS)]
    assert not unused


def test_every_part_is_included_by_a_run() -> None:
    used = set().union(*(included_by(CONFIGS / run) for run in RUNS))
    assert {path.resolve() for path in FILES if is_part(path)} == used - {
        (CONFIGS / run).resolve() for run in RUNS
    }


def systems(in_molecules: bool) -> InMemoryDataset:
    """Two slabs, or two molecules."""
    changes: dict[str, Any] = {"tags": np.array([0, 1, 2, 2, 1, 1], dtype=np.uint8)}
    if in_molecules:
        changes["pbc"] = np.zeros(3, dtype=bool)
    made = []
    for seed in range(50):
        system = random_system(np.random.default_rng(seed), seed)
        if system.n_atoms == 6:
            made.append(random_system(np.random.default_rng(seed), seed, **changes))
    return InMemoryDataset(made[:2])


@pytest.mark.parametrize("run", RUNS)
def test_a_run_makes_a_step_at_reduced_width(run: str) -> None:
    config = reduced(run)
    torch.manual_seed(0)
    normalization = given_targets(config.normalization)
    potential = Potential(config.model, normalization)
    recipe = Recipe(systems(run.startswith("molecules")), potential.graph_spec, config.model.n_elements)
    step = next(TrainLoader(recipe, 2, config.seed).steps())
    ((batch, topology),) = step.micro_batches
    counts = GlobalCounts(step.n_systems_global, step.n_free_atoms_global)
    before = {name: value.detach().clone() for name, value in potential.named_parameters()}
    loss = loss_share(potential(batch, topology), batch, config.loss, normalization, counts)
    loss.backward()
    torch.optim.AdamW(
        potential.parameters(),
        lr=config.optim.lr,
        betas=config.optim.betas,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        amsgrad=config.optim.amsgrad,
    ).step()
    assert torch.isfinite(loss)
    unmoved = [name for name, value in potential.named_parameters() if torch.equal(value, before[name])]
    assert not unmoved
    assert all(torch.isfinite(value).all() for value in potential.parameters())


def test_the_variants_by_themselves_have_the_published_sizes() -> None:
    sizes = {}
    for variant in ("gemnet_dT", "gemnet_Q", "gemnet_dQ", "gemnet_XL", "gemnet_OC", "gemnet_OC_large"):
        with torch.device("meta"):
            sizes[variant] = n_parameters(GemNet(GemNetConfig.model_validate({"variant": variant})))
    assert sizes == {
        "gemnet_dT": 31_671_808,
        "gemnet_Q": 2_158_470,
        "gemnet_dQ": 2_568_710,
        "gemnet_XL": 292_939_520,
        "gemnet_OC": 38_864_384,
        "gemnet_OC_large": 216_408_064,
    }
