"""Relaxing in a batch: the paths of ASE, whatever the company; who leaves, who enters, what fails."""

import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import FIRE, LBFGS

from ocpgem.data.system import System, system_from_atoms
from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.relax.loop import Relaxation, Relaxed, RelaxSettings
from ocpgem.evaluate.relax.optimizers import FireSettings, LbfgsSettings
from ocpgem.evaluate.relax.surfaces import AseSurface, Member, PotentialSurface, Surface
from ocpgem.models.potential import Potential
from tests.structures import small_potential
from tests.tiny_runs import ROOT, clean_environment

METALS = ("Cu", "Ni", "Pd", "Ag", "Au", "Pt", "Al")
SETTINGS = {"lbfgs": LbfgsSettings(), "fire": FireSettings()}


def slab(seed: int) -> System:
    """An oxygen atom on a rattled slab of one to three layers; the lowest is fixed if there are more than one."""
    n_layers = 1 + seed % 3
    atoms = fcc111(METALS[seed % len(METALS)], (2, 2, n_layers), vacuum=6.0)
    add_adsorbate(atoms, "O", 1.4, "fcc")
    atoms.pbc = True
    atoms.rattle(0.08, seed=seed)
    if n_layers > 1:
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == n_layers))
    return system_from_atoms(atoms, sid=seed)


FMAX = {("emt", "lbfgs"): 0.1, ("emt", "fire"): 0.4, ("gemnet", "lbfgs"): 12.0, ("gemnet", "fire"): 12.0}
"""eV/A that some of the slabs reach within 15 steps and others do not."""


@cache
def slabs(n: int) -> tuple[System, ...]:
    return tuple(slab(seed) for seed in range(n))


def members(systems: Sequence[System]) -> list[Member]:
    return [Member(index, system, cost=10 * system.n_atoms) for index, system in enumerate(systems)]


def relax(surface: Surface, systems: Sequence[System], settings: RelaxSettings, **options) -> list[Relaxed]:
    """In the order of the systems."""
    found = list(Relaxation(surface, settings, **options).run(members(systems)))
    assert sorted(each.index for each in found) == list(range(len(systems)))
    return sorted(found, key=lambda each: each.index)


@cache
def potential() -> Potential:
    """Random weights, forces of some eV/A and a nearest-K limit."""
    model = small_potential("gemnet_T", neighbors={"cutoff": 4.5, "max_neighbors": 12})
    with torch.no_grad():
        model.normalization = model.normalization.model_copy(update={"energy_std": 30.0})
    return model


@pytest.mark.parametrize(("name", "optimizer"), [("lbfgs", LBFGS), ("fire", FIRE)])
def test_each_step_is_that_of_ase(name: str, optimizer) -> None:
    """Until rounding has grown by the flat directions; ASE remembers 100 pairs, which 20 steps do not fill."""
    systems = slabs(4)
    settings = RelaxSettings(fmax=1e-9, steps=20, optimizer=SETTINGS[name], record_every=1)
    for found in relax(AseSurface(EMT), systems, settings, batch_size=3):
        atoms = found.system.to_atoms()
        atoms.calc = EMT()
        path = []
        optimization = optimizer(atoms, logfile=None)
        optimization.attach(lambda atoms=atoms, path=path: path.append(atoms.positions.copy()))
        optimization.run(fmax=1e-9, steps=20)
        np.testing.assert_allclose([frame.pos for frame in found.frames], path, atol=1e-7)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("model", ["emt", "gemnet"])
def test_a_path_does_not_depend_on_the_company(name: str, model: str) -> None:
    surface = AseSurface(EMT) if model == "emt" else PotentialSurface(potential())
    systems = slabs(6)
    settings = RelaxSettings(fmax=FMAX[model, name], steps=15, optimizer=SETTINGS[name], record_every=1)
    alone = relax(surface, systems, settings, batch_size=1)
    assert len({each.n_steps for each in alone}) > 1, "systems must leave at different steps"
    for options in ({"batch_size": 4}, {"batch_size": 6, "max_edges": 250}, {"batch_size": 9}):
        for one, other in zip(alone, relax(surface, systems, settings, **options), strict=True):
            assert one.n_steps == other.n_steps
            assert len(one.frames) == one.n_steps + 1
            for mine, its in zip(one.frames, other.frames, strict=True):
                np.testing.assert_allclose(mine.pos, its.pos, atol=1e-8)
                assert mine.energy == pytest.approx(its.energy, abs=1e-8)


def test_short_memories_and_small_steps_are_kept_to() -> None:
    settings = RelaxSettings(
        fmax=0.05, steps=40, optimizer=LbfgsSettings(maxstep=0.04, memory=3), record_every=1
    )
    for found in relax(AseSurface(EMT), slabs(3), settings):
        moves = np.diff([frame.pos for frame in found.frames], axis=0)
        assert 0.039 < np.linalg.norm(moves, axis=2).max() < 0.04 + 1e-9


@pytest.mark.parametrize("name", SETTINGS)
def test_converged_means_that_no_free_atom_feels_more_than_fmax(name: str) -> None:
    for found in relax(
        AseSurface(EMT), slabs(3), RelaxSettings(fmax=0.05, optimizer=SETTINGS[name]), batch_size=2
    ):
        assert found.converged
        assert np.linalg.norm(found.last.forces[~found.system.fixed], axis=1).max() < 0.05
        assert found.last.energy < found.energy_start
        atoms = found.system.to_atoms()
        atoms.positions, atoms.calc = found.last.pos, EMT()
        assert atoms.get_potential_energy() == pytest.approx(found.last.energy, abs=1e-9)


def test_steps_are_counted_as_moves_and_none_is_a_prediction() -> None:
    (found,) = relax(AseSurface(EMT), slabs(1), RelaxSettings(fmax=1e-9, steps=0, record_every=1))
    assert (found.n_steps, len(found.frames), found.converged) == (0, 1, False)
    np.testing.assert_array_equal(found.last.pos, found.system.pos)
    run = Relaxation(AseSurface(EMT), RelaxSettings(fmax=1e-9, steps=7, record_every=3))
    (found,) = run.run(members(slabs(1)))
    assert (found.n_steps, run.n_force_calls, len(found.frames)) == (7, 8, 4)  # 0, 3, 6 and the last


def test_fixed_atoms_stay_to_the_bit() -> None:
    system = slab(2)
    system.pos[system.fixed, 0] = -0.0
    for settings in SETTINGS.values():
        (found,) = relax(AseSurface(EMT), [system], RelaxSettings(fmax=0.05, optimizer=settings))
        assert found.n_steps > 3
        before, after = (pos[system.fixed].astype(np.float32) for pos in (system.pos, found.last.pos))
        assert before.tobytes() == after.tobytes()


def test_a_skin_changes_nothing() -> None:
    settings = RelaxSettings(fmax=0.01, steps=15, record_every=1)
    with_skin = relax(PotentialSurface(potential(), skin=0.6), slabs(4), settings)
    without = relax(PotentialSurface(potential(), skin=0.0), slabs(4), settings)
    for one, other in zip(with_skin, without, strict=True):
        for mine, its in zip(one.frames, other.frames, strict=True):
            np.testing.assert_array_equal(mine.pos, its.pos)
            np.testing.assert_array_equal(mine.forces, its.forces)


class Failing:
    """EMT that gives NaN for one system from some call on."""

    device = torch.device("cpu")

    def __init__(self, index: int, after: int) -> None:
        self.emt, self.index, self.left = AseSurface(EMT), index, after

    def __call__(self, members: Sequence[Member], pos: torch.Tensor):
        energy, forces = self.emt(members, pos)
        for place, member in enumerate(members):
            if member.index == self.index:
                self.left -= 1
                if self.left < 0:
                    energy[place] = float("nan")
        return energy, forces


def test_a_system_that_breaks_on_its_way_ends_at_its_last_good_structure() -> None:
    settings = RelaxSettings(fmax=0.02, steps=12, record_every=1)
    whole = relax(AseSurface(EMT), slabs(3), settings)
    found = relax(Failing(1, after=5), slabs(3), settings, batch_size=2)
    assert [each.problem is None for each in found] == [True, False, True]
    assert "sid 1" in str(found[1].problem)
    assert "after 5 steps" in str(found[1].problem)
    assert not found[1].converged
    np.testing.assert_array_equal(found[1].last.pos, whole[1].frames[4].pos)
    assert found[1].last.energy == whole[1].frames[4].energy
    for place in (0, 2):
        np.testing.assert_allclose(found[place].last.pos, whole[place].last.pos, atol=1e-9)


def test_a_system_that_flies_apart_is_told() -> None:
    """Beyond the cutoff of the model no edges are left, so it has no energy."""
    model = small_potential("gemnet_T", neighbors={"cutoff": 2.0, "max_neighbors": 50})
    model.normalization = model.normalization.model_copy(update={"energy_std": 1e5})
    pairs = [  # of many pairs of elements, some repel each other in a random model
        System(
            pos=np.array([[0, 0, 0], [1.9, 0, 0]], dtype=np.float32),
            cell=np.zeros((3, 3), dtype=np.float32),
            pbc=np.zeros(3, dtype=bool),
            atomic_numbers=np.array([1, number], dtype=np.uint8),
            tags=np.full(2, 2, dtype=np.uint8),
            fixed=np.zeros(2, dtype=bool),
        )
        for number in range(2, 12)
    ]
    found = relax(PotentialSurface(model), pairs, RelaxSettings(steps=9))
    apart = [each for each in found if each.problem is not None]
    assert 0 < len(apart) < len(pairs)
    for each in apart:
        assert "no two of its 2 atoms are within 2.0 A" in str(each.problem)
        assert np.linalg.norm(np.diff(each.last.pos, axis=0)) < 2.0


def test_a_system_that_is_broken_from_the_start_is_an_error() -> None:
    with pytest.raises(DataError, match=r"sid 1.*cannot be relaxed"):
        relax(Failing(1, after=0), slabs(2), RelaxSettings())


class Crowded:
    """EMT with room for a few systems at once."""

    device = torch.device("cpu")

    def __init__(self, room: int) -> None:
        self.emt, self.room, self.sizes = AseSurface(EMT), room, []

    def __call__(self, members: Sequence[Member], pos: torch.Tensor):
        self.sizes.append(len(members))
        if len(members) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.emt(members, pos)


def test_the_batch_is_halved_until_memory_suffices_and_paths_stay(caplog) -> None:
    settings = RelaxSettings(fmax=0.05, steps=30)
    surface = Crowded(2)
    found = relax(surface, slabs(9), settings, batch_size=8)
    assert surface.sizes[:3] == [8, 4, 2]
    assert max(surface.sizes[3:]) == 2
    assert "out of memory with 8 systems at once; going on with 4" in caplog.text
    for one, other in zip(relax(AseSurface(EMT), slabs(9), settings), found, strict=True):
        assert one.n_steps == other.n_steps
        np.testing.assert_allclose(one.last.pos, other.last.pos, atol=1e-9)


def test_a_system_too_large_for_the_memory_is_named() -> None:
    with pytest.raises(OcpgemError, match=r"memory does not suffice for sid \d"):
        relax(Crowded(0), slabs(3), RelaxSettings())


REAL_MEMORY = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/unit/evaluate/relax"]
from test_loop import PotentialSurface, RelaxSettings, Relaxation, members, slabs
from tests.structures import small_potential
sizes = {"edge_dim": 192, "n_blocks": 1, "triplets": {"in_dim": 64, "out_dim": 64}}
surface = PotentialSurface(small_potential("gemnet_T", **sizes))
settings = RelaxSettings(fmax=1e-9, steps=0)
list(Relaxation(surface, settings, batch_size=1).run(members(slabs(1))))
in_use = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (in_use + 300_000_000,) * 2)
run = Relaxation(surface, settings, batch_size=64)
print(len(list(run.run(members(slabs(6) * 4)))), run.batch_size)
"""


@pytest.mark.slow  # a process of its own, whose memory is limited
def test_memory_that_really_runs_out_halves_the_batch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REAL_MEMORY, str(ROOT)],
        env=clean_environment() | {"MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    n_relaxed, batch_size = map(int, done.stdout.split())
    assert n_relaxed == 24
    assert 1 <= batch_size < 24
    assert "out of memory with 24 systems at once; going on with 12" in done.stderr


def test_the_relaxation_ends_when_it_is_told_to() -> None:
    calls = iter([False, False, True])
    run = Relaxation(AseSurface(EMT), RelaxSettings(fmax=1e-9, steps=1), 1, stop=lambda: next(calls))
    assert [each.index for each in run.run(members(slabs(3)))] == [0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RelaxSettings(fmax=0.0), "fmax is 0"),
        (lambda: RelaxSettings(steps=-1), "steps is -1"),
        (lambda: LbfgsSettings(maxstep=-0.2), "maxstep is -0.2"),
        (lambda: LbfgsSettings(memory=0), "memory is 0"),
        (lambda: FireSettings(dt=float("nan")), "dt is nan"),
        (lambda: Relaxation(AseSurface(EMT), RelaxSettings(), batch_size=0), "batch size is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        make()
