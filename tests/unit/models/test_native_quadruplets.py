"""Compiled sums over quadruplets: the numbers of torch's, alike for any number of threads and any padding."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from ocpgem import kernels
from ocpgem.kernels import native
from ocpgem.kernels.native_quadruplets import QuadrupletSums
from ocpgem.models.gemnet import spherical_sums
from ocpgem.models.gemnet.geometry import all_geometry, pad_by_middle
from ocpgem.models.gemnet.spherical_angles import SphericalAngles
from ocpgem.models.gemnet.spherical_sums import sum_over_quadruplets
from tests.quadruplet_structures import DEGENERATE, GENERIC
from tests.structures import case_config, random_potential, random_slabs, topology_of

LIBRARY, REASON = native.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=REASON)
STRUCTURES = GENERIC | DEGENERATE


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the compiled function was called for, of all gradients or of those that direct forces need."""
    found = []
    monkeypatch.setattr(kernels, "BACKEND", "native")
    for name in ("value", "gradients", "second_gradients"):
        original = getattr(QuadrupletSums, name)

        def noticing(*given: Any, original: Callable[..., Any] = original, kind: str = name) -> Any:
            found.append(f"{kind} of all" if given[-1] is True else kind)
            return original(*given)

        monkeypatch.setattr(QuadrupletSums, name, noticing)
    return found


def derivatives(
    structure: str, dtype: torch.dtype, orders: int, n_spherical: int = 4, channels: int = 8
) -> list[list[Tensor]]:
    """The sum, its gradients by all that it depends on, those of the gradients, up to the order."""
    batch, topology = STRUCTURES[structure]()
    batch.cell = batch.cell.to(dtype)
    tables, generator = topology.quadruplets, torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    pos = batch.pos.to(dtype).requires_grad_()
    x = random(len(tables.inner.main_edge), channels)
    spherical = random(topology.main.n_edges, 5, n_spherical**2)
    angles = SphericalAngles.of(
        all_geometry(pos, batch.cell, topology), topology, n_spherical, in_angstrom=False
    )
    padded = pad_by_middle(x, tables.inner, topology.quadruplet.n_edges)
    found = [[angles.sum(padded, angles.arranged(spherical, topology), topology)]]
    by = [x, spherical, pos]
    for order in range(1, orders + 1):
        weights = [random(*of.shape) for of in found[-1]]
        with_graph = order < orders
        of_order = torch.autograd.grad(
            found[-1], by, weights, create_graph=with_graph, materialize_grads=True
        )
        found.append(list(of_order))
        by += weights
    return [[of.detach() for of in of_order] for of_order in found]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("n_spherical", [1, 2, 7])
@pytest.mark.parametrize("orders", [2, 3])
def test_numbers_are_those_of_torch(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, structure: str, n_spherical: int, orders: int
) -> None:
    """A second derivative that is differentiated in turn is computed by torch, what depends on the first is not."""
    ours = derivatives(structure, torch.float32, orders, n_spherical)
    assert runs == ["value", "gradients of all", "second_gradients of all"]
    monkeypatch.setattr(kernels, "BACKEND", "torch")
    exact = derivatives(structure, torch.float64, orders, n_spherical)
    for of_ours, of_exact in zip(ours, exact, strict=True):
        scale = max(float(of.abs().max()) for of in of_exact)
        for found, expected in zip(of_ours, of_exact, strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-5 * scale)


def tables_of(structure: str, n_spherical: int = 3) -> tuple[list[Tensor], Tensor]:
    """The tables of a sum, as `SphericalAngles.sum` hands them on, and which rows it excludes."""
    batch, topology = STRUCTURES[structure]()
    found = []

    def keep(tables: tuple[Tensor, ...], excluded: Tensor, *others: object) -> Tensor:
        found.append((list(tables), excluded))
        return sum_over_quadruplets(tables, excluded, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ocpgem.models.gemnet.spherical_angles.sum_over_quadruplets", keep)
        tables = topology.quadruplets
        pos, batch.cell = batch.pos.float(), batch.cell.float()
        geometry = all_geometry(pos, batch.cell, topology)
        angles = SphericalAngles.of(geometry, topology, n_spherical, in_angstrom=False)
        x = pad_by_middle(
            torch.randn(len(tables.inner.main_edge), 16), tables.inner, topology.quadruplet.n_edges
        )
        spherical = torch.randn(topology.main.n_edges, 5, n_spherical**2)
        angles.sum(x, angles.arranged(spherical, topology), topology)
    return found[0]


def of_tables(tables: list[Tensor], excluded: Tensor, grad: Tensor) -> list[Tensor]:
    """The sum, its gradients, and those of the squares of these."""
    leaves = [table.detach().requires_grad_() for table in tables]
    grad = grad.detach().requires_grad_()
    value = sum_over_quadruplets(leaves, excluded, 3)
    firsts = torch.autograd.grad(value, leaves, grad, create_graph=True)
    seconds = torch.autograd.grad(sum(of.square().sum() for of in firsts), [grad, *leaves])
    return [value.detach(), *(of.detach() for of in firsts), *seconds]


def assert_close(ours: list[Tensor], exact: list[Tensor]) -> None:
    """Relative to the largest value of each tensor."""
    for found, expected in zip(ours, exact, strict=True):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found.to(expected.dtype), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("height", [1e-3, 5e-5, 1e-6])
def test_sines_of_planar_quadruplets_and_their_slopes_are_those_of_torch(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, height: float
) -> None:
    """With heights so small that the sine of a planar quadruplet, 1e-9 over both of them, is large or at its bound."""
    torch.manual_seed(0)
    tables, excluded = tables_of("lattice")
    grad = torch.randn(*tables[4].shape[:3], tables[0].shape[3])
    flat = of_tables(tables, excluded, grad)
    for table in tables[1:3]:
        table[..., -1] /= height
    ours = of_tables(tables, excluded, grad)
    assert (ours[0] - flat[0]).abs().max() > 1e-4
    monkeypatch.setattr(kernels, "BACKEND", "torch")
    exact = of_tables([table.double() for table in tables], excluded, grad.double())
    assert_close(ours, exact)
    for number in (2, 3, 8, 9):  # gradients of both sides' heights, and theirs
        slopes, expected = ours[number][..., -1].double(), exact[number][..., -1]
        assert bool(expected.any()) == (height > 1e-6)  # at the bound there is no slope
        torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("orders", [2, 3])
def test_copies_of_tables_and_gradients_can_be_differentiated(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, orders: int
) -> None:
    """Of what is not contiguous."""
    torch.manual_seed(0)
    given, excluded = tables_of("cells smaller than the cutoff")

    def outputs() -> list[Tensor]:
        leaves = [table.transpose(0, 1).contiguous().requires_grad_() for table in given]
        factor = torch.tensor(1.5, requires_grad=True)
        of_order: list[Tensor] = [
            sum_over_quadruplets([leaf.transpose(0, 1) for leaf in leaves], excluded, 3)
        ]
        grads = [(factor * factor).expand_as(of_order[0])]
        found = [of_order[0].detach()]
        for order in range(1, orders + 1):
            of_order = list(
                torch.autograd.grad(
                    of_order, [*leaves, factor], grads, create_graph=order < orders, materialize_grads=True
                )
            )
            found += [of.detach() for of in of_order]
            grads = [of.detach().sign() for of in of_order]
        return found

    ours = outputs()
    assert ("second_gradients of all" in runs) == (orders == 2)
    monkeypatch.setattr(kernels, "BACKEND", "torch")
    assert_close(ours, outputs())


def test_memory_is_on_the_cpu_whatever_the_default_device_is(runs: list[str]) -> None:
    tables, excluded = tables_of("lattice")
    expected = sum_over_quadruplets(tables, excluded, 3)
    with torch.device("meta"):
        assert torch.equal(sum_over_quadruplets(tables, excluded, 3), expected)
    no_atoms = sum_over_quadruplets([table[:0] for table in tables], excluded[:0], 3)
    assert no_atoms.shape == (0, *expected.shape[1:])
    assert len(runs) == 4


def test_threads_with_one_model_do_not_disturb_each_other(runs: list[str]) -> None:
    """One takes its forces while the other has just taken its own."""
    potential = random_potential(case_config("gemnet_Q", quadruplets={"in_dim": 8})).float()
    batch = random_slabs((6, 4), torch.float32)
    topology = topology_of(batch, potential.graph_spec)
    expected = potential(batch, topology).forces.detach()

    def differ(with_graph: bool) -> int:
        with torch.set_grad_enabled(with_graph):
            found = [potential(batch, topology).forces for _ in range(15)]
        return sum(not torch.allclose(forces, expected, rtol=1e-4, atol=1e-5) for forces in found)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(differ, (False, False))) == [0, 0]
        assert list(pool.map(differ, (True, False))) == [0, 0]


@pytest.mark.parametrize("case", ["gemnet_Q", "gemnet_dQ", "gemnet_OC spherical"])
def test_checkpointed_models_have_the_same_gradients(runs: list[str], case: str) -> None:
    potential = random_potential(case_config(case, quadruplets={"in_dim": 8})).float().train()
    batch = random_slabs((6, 4), torch.float32)
    topology = topology_of(batch, potential.graph_spec)

    def gradients() -> list[Tensor]:
        predicted = potential(batch, topology)
        loss = predicted.energy.sum() + predicted.forces.pow(2).sum()
        return list(torch.autograd.grad(loss, list(potential.parameters()), materialize_grads=True))

    expected, n_values = gradients(), runs.count("value")
    potential.model.checkpoint_activations = True
    for found, of_expected in zip(gradients(), expected, strict=True):
        assert torch.equal(found, of_expected)
    assert runs.count("value") > 2 * n_values


def test_bits_do_not_depend_on_threads_or_padding(runs: list[str], threads: None) -> None:
    torch.manual_seed(0)
    tables, excluded = tables_of("cells smaller than the cutoff")
    n_atoms, middle, inner, channels = tables[0].shape
    degree, rows = tables[4].shape[1:3]
    grad = torch.randn(n_atoms, degree, rows, channels)
    torch.set_num_threads(1)
    alone = of_tables(tables, excluded, grad)
    torch.set_num_threads(3)
    for found, expected in zip(of_tables(tables, excluded, grad), alone, strict=True):
        assert torch.equal(found, expected)

    wider = {"middle": middle + 3, "inner": inner + 9, "degree": degree + 2}

    def padded(table: Tensor, *names: str) -> Tensor:
        """With zeros behind these dimensions, which follow that of the atoms; none where the name is empty."""
        shape = list(table.shape)
        for place, name in enumerate(names, start=1):
            shape[place] = wider.get(name, shape[place])
        found = table.new_zeros(shape)
        found[tuple(slice(size) for size in table.shape)] = table
        return found

    dims = [
        ("middle", "inner"),
        ("middle", "inner"),
        ("middle", "degree"),
        ("degree", "", "middle"),
        ("degree",),
    ]
    larger = [padded(table, *names) for table, names in zip(tables, dims, strict=True)]
    excluded = torch.where(excluded == inner, wider["inner"], excluded)
    found = of_tables(larger, padded(excluded, "middle", "degree"), padded(grad, "degree"))
    for of_larger, expected in zip(found, alone, strict=True):
        assert torch.equal(of_larger[tuple(slice(size) for size in expected.shape)], expected)
        assert of_larger.abs().sum() == pytest.approx(float(expected.abs().sum()), rel=1e-5)
    assert runs == ["value"] + 3 * ["value", "gradients of all", "second_gradients of all"]


def test_gradients_of_angles_are_not_computed_for_direct_forces(runs: list[str]) -> None:
    (x, *angles, spherical), excluded = tables_of("lattice")
    leaves = [x.requires_grad_(), *angles, spherical.requires_grad_()]
    sum_over_quadruplets(leaves, excluded, 3).sum().backward()
    assert runs[1:] == ["value", "gradients"]
    assert x.grad is not None
    runs.clear()
    leaves[1].requires_grad_()
    sum_over_quadruplets(leaves, excluded, 3).sum().backward()
    assert runs == ["value", "gradients of all"]
    assert leaves[1].grad is not None
    assert leaves[2].grad is None


def test_torch_computes_what_the_compiled_functions_do_not_know(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = spherical_sums._sum_block
    monkeypatch.setattr(
        spherical_sums, "_sum_block", lambda *given, **n: calls.append(1) or original(*given, **n)
    )
    for dtype, channels in ((torch.float64, 8), (torch.float32, 12)):
        calls.clear()
        derivatives("nothing but a row", dtype, 2, channels=channels)
        assert calls
    assert not runs


@pytest.mark.parametrize("read", ["", "pos", "cell"])
def test_gradients_by_positions_are_taken_for_forces_and_for_who_reads_them(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """With the loss of forces, nobody reads the gradient by positions: only what depends on weights is computed."""
    potential = random_potential(case_config("gemnet_Q", quadruplets={"in_dim": 8})).float().train()
    batch = random_slabs((6, 4), torch.float32)
    topology = topology_of(batch, potential.graph_spec)
    if read:
        getattr(batch, read).requires_grad_()

    def outputs() -> list[Tensor]:
        predicted = potential(batch, topology)
        loss = predicted.energy.sum() + predicted.forces.pow(2).sum()
        leaves = [*potential.parameters(), *([getattr(batch, read)] if read else [])]
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return [predicted.energy.detach(), predicted.forces.detach(), *found]

    ours, n_blocks = outputs(), potential.config.n_blocks
    kinds = {kind: runs.count(kind) for kind in runs}
    with_angles = {"gradients of all": 2 * n_blocks, "second_gradients of all": n_blocks}
    without = {"gradients of all": n_blocks, "gradients": n_blocks, "second_gradients": n_blocks}
    assert kinds == {"value": n_blocks} | (with_angles if read else without)
    monkeypatch.setattr(kernels, "BACKEND", "torch")
    for found, expected in zip(ours, outputs(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_tables_of_other_sizes_are_refused_before_anything_is_read(runs: list[str]) -> None:
    tables, excluded = tables_of("lattice")
    for number, table in enumerate(tables):
        wrong = [*tables[:number], table[:, :-1].contiguous(), *tables[number + 1 :]]
        with pytest.raises(ValueError, match="sizes of tables and excluded are"):
            sum_over_quadruplets(wrong, excluded, 3)
    with pytest.raises(ValueError, match="sizes of tables and excluded are"):
        sum_over_quadruplets(tables, excluded[:, :, :-1], 3)
