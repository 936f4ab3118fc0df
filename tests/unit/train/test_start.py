"""Fine-tuning begins with the weights of another model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ocpgem.checkpoint import save_potential
from ocpgem.config import dump_config, parse_config
from ocpgem.data.batch import collate
from ocpgem.errors import ConfigError
from ocpgem.graph.topology import build_topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.config import StartSection, TrainConfig
from ocpgem.train.scale_fitting import scale_factors
from ocpgem.train.start import start_factors, start_weights
from tests.tiny_runs import TINY_MODEL, random_systems, tiny_settings


def potential(seed: int, normalization: Normalization | None = None, **changes: Any) -> Potential:
    torch.manual_seed(seed)
    model = GemNetConfig.model_validate(TINY_MODEL | changes)
    return Potential(model, normalization or Normalization())


@pytest.fixture
def source(tmp_path: Path) -> StartSection:
    made = potential(0, Normalization(energy_std=2.0, forces_std=0.5), n_elements=80)
    for number, scale in enumerate(scale_factors(made).values()):
        scale.set(1 + number / 10)
    save_potential(made, tmp_path / "model.pt")
    return StartSection(checkpoint=str(tmp_path / "model.pt"))


def predict(model: Potential) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch = collate(list(random_systems(2)))
    topology = build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, model.graph_spec)
    with torch.no_grad():
        found = model.eval()(batch, topology)
    return found.energy, found.forces


def begun(source: StartSection, model: Potential) -> Potential:
    start_weights(model, source)
    for name, factor in start_factors(model, source).items():
        scale_factors(model)[name].set(factor)
    return model


def test_kept_heads_speak_ev_whatever_the_new_normalisation(source: StartSection) -> None:
    from ocpgem.checkpoint import load_potential

    energy, forces = predict(load_potential(source.checkpoint))
    new = begun(source, potential(1, Normalization(energy_mean=7.0, energy_std=0.3, forces_std=4.0)))
    found_energy, found_forces = predict(new)
    assert found_energy - 7.0 == pytest.approx(energy, abs=1e-5)
    assert found_forces is not None
    assert forces is not None
    assert found_forces.numpy() == pytest.approx(forces.numpy(), abs=1e-5)


def test_new_heads_begin_at_random_and_the_rest_as_given(source: StartSection) -> None:
    from ocpgem.checkpoint import load_potential

    given = load_potential(source.checkpoint).state_dict()
    fresh = potential(1).state_dict()
    new = begun(source.model_copy(update={"new_heads": True}), potential(1)).state_dict()
    for name, tensor in new.items():
        if name.endswith((".factor", ".fitted")):
            continue
        if "head" in name or "branches" in name:
            assert torch.equal(tensor, fresh[name]), name
        elif "atom_embedding" not in name:
            assert torch.equal(tensor, given[name]), name


def test_elements_are_added_and_may_begin_as_others(source: StartSection) -> None:
    from ocpgem.checkpoint import load_potential

    given = load_potential(source.checkpoint).model.atom_embedding.weight
    model = potential(1, n_elements=100)
    own = model.model.atom_embedding.weight.detach().clone()
    lines = start_weights(model, source.model_copy(update={"elements": {92: 60}}))
    weight = model.model.atom_embedding.weight
    assert torch.equal(weight[:80], given)
    assert torch.equal(weight[91], given[59])
    assert torch.equal(weight[95], own[95])
    assert lines[1] == "20 heavier elements than the checkpoint knows begin at random"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_blocks": 2}, "is missing in .*make the model section alike"),
        ({"edge_dim": 12}, r"has the shape \(12, .*make the model section alike"),
        ({"atom_dim": 12}, "has the shape|model.atom_dim is 12 here and 8"),
    ],
)
def test_a_model_of_another_form_is_refused(
    source: StartSection, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start_weights(potential(1, **changes), source)


def test_pairs_of_elements_that_the_source_has_met_stay_known(tmp_path: Path) -> None:
    made = potential(0, unseen_pairs="damp")
    assert made.model.element_pairs is not None
    made.model.element_pairs.set_known([(1, 6)])
    save_potential(made, tmp_path / "model.pt")
    new = potential(1, unseen_pairs="damp")
    assert new.model.element_pairs is not None
    new.model.element_pairs.set_known([(1, 8)])
    start_weights(new, StartSection(checkpoint=str(tmp_path / "model.pt")))
    assert new.model.element_pairs.known.nonzero().tolist() == [[1, 6], [1, 8], [6, 1], [8, 1]]


def test_the_normalisation_is_kept_unless_another_is_named(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, tmp_path, start_from={"checkpoint": "model.pt"})
    settings.pop("normalization", None)
    config = parse_config(yaml.safe_dump(settings), TrainConfig, "test")
    assert config.normalization.keep
    assert parse_config(dump_config(config), TrainConfig, "frozen").normalization.keep
    fitted = parse_config(yaml.safe_dump(settings | {"normalization": "fit"}), TrainConfig, "test")
    assert fitted.normalization.fit
    assert not fitted.normalization.keep
    del settings["start_from"]
    with pytest.raises(ConfigError, match="needs start_from"):
        parse_config(yaml.safe_dump(settings | {"normalization": "keep"}), TrainConfig, "test")
