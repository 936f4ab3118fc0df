"""What the released models computed, read as this project's objects (see ../shared/reference/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ocpgem.graph.topology import GraphSpec, Topology, build_topology

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(),
    reason="the recorded outputs of the released models (../shared/reference) are not here",
)


@dataclass
class ReferenceCase:
    """One recorded case."""

    folder: Path
    kwargs: dict[str, Any]
    meta: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    grads: dict[str, NDArray[Any]]

    @classmethod
    def load(cls, name: str) -> "ReferenceCase":
        folder = REFERENCE / name
        return cls(
            folder=folder,
            kwargs=json.loads((folder / "kwargs.json").read_text())["kwargs"],
            meta=json.loads((folder / "meta.json").read_text()),
            state_dict=torch.load(folder / "state_dict.pt", weights_only=True),
            inputs=dict(np.load(folder / "inputs.npz")),
            outputs=dict(np.load(folder / "outputs.npz")),
            grads=dict(np.load(folder / "grads.npz")),
        )

    def batch(self, dtype: torch.dtype) -> SimpleNamespace:
        """The systems as the fields that a potential reads."""
        x = self.inputs
        return SimpleNamespace(
            pos=torch.tensor(x["positions"], dtype=dtype),
            cell=torch.tensor(x["cell"], dtype=dtype),
            pbc=torch.tensor(x["pbc"]),
            atomic_numbers=torch.tensor(x["atomic_numbers"]),
            natoms=torch.tensor(x["natoms"]),
            tags=torch.tensor(x["tags"]),
        )

    def topology(self, spec: GraphSpec) -> Topology:
        batch = self.batch(torch.float64)
        return build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, spec, tags=batch.tags)
