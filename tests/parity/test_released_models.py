"""Every variant gives the numbers of the released code with the released code's weights."""

from types import ModuleType

import numpy as np
import pytest
import torch

from ocpgem.errors import CheckpointError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet, Structures
from ocpgem.models.import_weights import fairchem_gemnet_oc, fairchem_gemnet_t, tum_gemnet
from tests.parity.reference_cases import ReferenceCase, needs_reference

pytestmark = needs_reference
FAMILIES: dict[str, ModuleType] = {
    "fc_gemnet_dT": fairchem_gemnet_t,
    "fc_gemnet_T": fairchem_gemnet_t,
    "fc_gemnet_oc": fairchem_gemnet_oc,
    "tum_T": tum_gemnet,
    "tum_Q": tum_gemnet,
    "tum_dQ": tum_gemnet,
}


def config_of(case: ReferenceCase) -> GemNetConfig:
    return FAMILIES[case.folder.name].config_from_kwargs(case.kwargs)


def converted(case: ReferenceCase, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return FAMILIES[case.folder.name].convert_state_dict(config_of(case), tensors, str(case.folder))


def released_model(case: ReferenceCase, dtype: torch.dtype) -> GemNet:
    model = GemNet(config_of(case))
    model.load_state_dict(converted(case, case.state_dict))
    return model.to(dtype)


def run(case: ReferenceCase, model: GemNet, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    batch = case.batch(dtype)
    structures = Structures(batch.pos, batch.cell, batch.atomic_numbers)
    energy, forces = model(structures, case.topology(model.graph_spec))
    assert forces is not None
    return energy, forces


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_float64_energies_and_forces_agree_to_1e_9(name: str) -> None:
    case = ReferenceCase.load(name)
    energy, forces = run(case, released_model(case, torch.float64), torch.float64)
    assert relative(energy.detach().numpy(), case.outputs["energy64"]) < 1e-9
    assert relative(forces.detach().numpy(), case.outputs["forces64"]) < 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_differs_no_more_than_three_times_the_released_rounding(name: str) -> None:
    case = ReferenceCase.load(name)
    with torch.no_grad():
        energy, forces = run(case, released_model(case, torch.float32), torch.float32)
    released = case.meta["f32_vs_f64"]
    assert np.abs(energy.numpy() - case.outputs["energy64"]).max() <= 3 * released["dE"]
    assert np.abs(forces.numpy() - case.outputs["forces64"]).max() <= 3 * released["dF"]


@pytest.mark.parametrize("name", FAMILIES)
def test_parameter_gradients_agree(name: str) -> None:
    """Recorded in float64 and stored as float32, so they agree to the float32 rounding of the stored values."""
    case = ReferenceCase.load(name)
    model = released_model(case, torch.float64)
    energy, forces = run(case, model, torch.float64)
    loss = (torch.tensor(case.grads["_wE"]) * energy).sum() + (torch.tensor(case.grads["_wF"]) * forces).sum()
    assert abs(float(loss.detach()) - float(case.grads["_L"])) < 1e-9 * abs(float(case.grads["_L"]))
    loss.backward()
    released = {key: torch.tensor(value) for key, value in case.grads.items() if not key.startswith("_")}
    expected = renamed_gradients(case, released)
    compared = 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        scale = float(expected[key].abs().max())
        assert float((parameter.grad - expected[key]).abs().max()) <= 1e-6 * scale, key
        compared += 1
    assert compared == len(list(model.parameters())) > 50


def renamed_gradients(case: ReferenceCase, released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients under our names: what maps the weights is linear and orthogonal, so it maps their gradients, too."""
    # A tensor with several names has its gradient under one of them; equal random values tell which.
    by_value = {case.state_dict[key].numpy().tobytes(): gradient for key, gradient in released.items()}
    stand_in = {
        key: value if key.endswith("scale_factor") else by_value.get(value.numpy().tobytes(), value)
        for key, value in case.state_dict.items()
    }
    return converted(case, stand_in)


def test_a_state_dict_with_a_missing_and_a_foreign_key_is_refused_with_both_named() -> None:
    case = ReferenceCase.load("fc_gemnet_dT")
    broken = dict(case.state_dict)
    broken["int_blocks.0.dense_xx.linear.weight"] = broken.pop("int_blocks.0.dense_ca.linear.weight")
    with pytest.raises(CheckpointError, match=r"dense_xx.*blocks.0.dense.weight.*dense_ca"):
        converted(case, broken)


@pytest.mark.parametrize("name", ["fc_gemnet_dT", "tum_Q"])
def test_an_unknown_argument_of_the_released_model_is_refused(name: str) -> None:
    kwargs = ReferenceCase.load(name).kwargs | {"num_magic": 3}
    with pytest.raises(CheckpointError, match="num_magic"):
        FAMILIES[name].config_from_kwargs(kwargs)
