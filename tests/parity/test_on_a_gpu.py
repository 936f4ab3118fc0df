"""A GPU gives the numbers of the released code, by torch's operations and by the Triton kernels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ocpgem import kernels
from ocpgem.models.gemnet.model import GemNet, Structures
from tests.parity.reference_cases import ReferenceCase, needs_reference
from tests.parity.test_released_models import FAMILIES, relative, released_model, renamed_gradients

pytestmark = [needs_reference, pytest.mark.gpu]


@pytest.fixture(params=["torch", "triton"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKEND", request.param)


def run_on_gpu(case: ReferenceCase, model: GemNet, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    batch = SimpleNamespace(**{name: value.cuda() for name, value in vars(case.batch(dtype)).items()})
    structures = Structures(batch.pos, batch.cell, batch.atomic_numbers)
    energy, forces = model.cuda()(structures, case.topology(model.graph_spec).to("cuda"))
    assert forces is not None
    return energy, forces


@pytest.mark.parametrize("name", FAMILIES)
def test_float64_energies_forces_and_gradients_agree(name: str) -> None:
    case = ReferenceCase.load(name)
    model = released_model(case, torch.float64)
    energy, forces = run_on_gpu(case, model, torch.float64)
    assert relative(energy.detach().cpu().numpy(), case.outputs["energy64"]) < 1e-9
    assert relative(forces.detach().cpu().numpy(), case.outputs["forces64"]) < 1e-9
    loss = sum(
        (torch.tensor(case.grads[key]).cuda() * x).sum() for key, x in (("_wE", energy), ("_wF", forces))
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    released = {key: torch.tensor(value) for key, value in case.grads.items() if not key.startswith("_")}
    expected = renamed_gradients(case, released)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        difference = (parameter.grad.cpu() - expected[key]).abs().max()
        assert float(difference) <= 1e-6 * float(expected[key].abs().max()), key


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_differs_no_more_than_three_times_the_released_rounding(name: str) -> None:
    case = ReferenceCase.load(name)
    with torch.no_grad():
        energy, forces = run_on_gpu(case, released_model(case, torch.float32), torch.float32)
    released = case.meta["f32_vs_f64"]
    assert np.abs(energy.cpu().numpy() - case.outputs["energy64"]).max() <= 3 * released["dE"]
    assert np.abs(forces.cpu().numpy() - case.outputs["forces64"]).max() <= 3 * released["dF"]
