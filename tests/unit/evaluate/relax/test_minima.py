"""A short form of benchmarks/relaxation.py: the minima of ASE's optimisers on the same potential."""

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.optimize import FIRE, LBFGS

import ocpgem
from ocpgem.evaluate.relax.surfaces import AseSurface
from tests.unit.evaluate.relax.test_loop import slabs

FMAX = 0.02


@pytest.mark.parametrize(("optimizer", "of_ase"), [("lbfgs", LBFGS), ("fire", FIRE)])
def test_minima_are_those_of_ase_within_a_milli_electron_volt(optimizer: str, of_ase) -> None:
    """With about as many force calls; rounding, and in L-BFGS another memory, may change the way."""
    structures = [system.to_atoms() for system in slabs(8)]
    results = ocpgem.relax(AseSurface(EMT), structures, fmax=FMAX, steps=400, optimizer=optimizer)
    same, calls = [], []
    for atoms, result in zip(structures, results, strict=True):
        assert result.converged
        atoms.calc = EMT()
        reference = of_ase(atoms, logfile=None)
        reference.run(fmax=FMAX, steps=400)
        same.append(abs(atoms.get_potential_energy() - result.energy) < 1e-3)
        calls.append((result.n_steps, reference.nsteps))
    assert np.mean(same) >= 0.95
    ours, ase = np.sum(calls, axis=0)
    assert ours < 1.2 * ase
