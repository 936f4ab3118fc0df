import numpy as np
import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Center

from ocpgem.data.batch import AtomicData, collate, to_data
from ocpgem.errors import DataError


@pytest.fixture
def systems(make_system):
    return [
        make_system(5 + 3 * seed, seed, pos_relaxed=np.ones((5 + 3 * seed, 3), "f4")) for seed in range(4)
    ]


def assert_same(left, right):
    assert list(left.keys()) == list(right.keys())
    for key in right.keys():  # noqa: SIM118  (a PyG object iterates over pairs)
        assert left[key].dtype == right[key].dtype, key
        assert torch.equal(left[key], right[key]), key


def test_a_batch_equals_what_pyg_makes(systems):
    fast, reference = collate(systems), Batch.from_data_list([to_data(system) for system in systems])
    assert type(fast) is type(reference)
    assert_same(fast, reference)
    assert fast.num_graphs == reference.num_graphs == 4
    for bookkeeping in ("_slice_dict", "_inc_dict"):
        ours, theirs = getattr(fast, bookkeeping), getattr(reference, bookkeeping)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_batch_comes_apart_again(systems):
    batch = collate(systems)
    for one, system in zip(batch.to_data_list(), systems, strict=True):
        assert isinstance(one, AtomicData)
        assert_same(one, to_data(system))
    assert_same(batch.get_example(2), to_data(systems[2]))
    assert batch[1:3][0].sid.item() == systems[1].sid


def test_pyg_loaders_and_transforms_work_on_our_data(systems):
    data = [Center()(to_data(system)) for system in systems]
    (batch,) = DataLoader(data, batch_size=4)
    assert batch.num_graphs == 4
    assert torch.allclose(batch[3].pos.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(Center()(collate(systems)).pos.mean(0), torch.zeros(3), atol=1e-4)


def test_a_batch_can_be_copied_and_moved(systems):
    batch = collate(systems).clone().to("cpu")
    assert batch.natoms.tolist() == [5, 8, 11, 14]


def test_energy_keeps_double_precision(make_system):
    assert collate([make_system(energy=-1234.56789012345)]).energy.item() == -1234.56789012345


def test_absent_labels_are_absent_attributes(make_system):
    batch = collate([make_system(energy=None, forces=None, seed=seed) for seed in range(2)])
    assert "energy" not in batch
    assert "forces" not in batch


def test_labels_on_some_systems_only_are_refused(make_system):
    with pytest.raises(DataError, match="sid 1001, frame 1 has no forces but sid 1000, frame 0 has"):
        collate([make_system(), make_system(seed=1, forces=None)])


def test_an_unusable_label_names_its_system(make_system):
    bad = make_system(seed=1, energy=float("nan"), source="val.lmdb, record 9")
    with pytest.raises(DataError, match=r"sid 1001, frame 1 \(val.lmdb, record 9\): energy .* not finite"):
        collate([make_system(), bad])


def test_the_model_decides_how_heavy_an_atom_may_be(make_system):
    system = make_system(atomic_numbers=np.full(12, 84, np.uint8))
    collate([system], max_atomic_number=84)
    with pytest.raises(DataError, match="atomic number 84 is outside 1 to 83"):
        collate([system], max_atomic_number=83)


def test_an_element_without_a_reference_energy_is_named_with_its_system(systems):
    known = sorted({number for system in systems for number in system.atomic_numbers.tolist()})
    assert collate(systems, elements=known).num_graphs == 4
    systems[2].atomic_numbers[1] = 79
    with pytest.raises(
        DataError, match=r"sid \d+, frame 2 holds Au, for which the model has no reference energy"
    ):
        collate(systems, elements=known)
