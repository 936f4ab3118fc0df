"""Several potentials as one: an ensemble, or the energy of one model with the forces of another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocpgem.errors import RequestError
from ocpgem.graph.topology import GraphSpec, Topology
from ocpgem.models.potential import Potential, Predictions


class Combined(nn.Module):
    """Energies are the mean over some potentials, forces the mean over the same or over others.

    energy_from, forces_from: the members; a model may be in both and is then computed once. With several members the
    predictions carry their spread, the standard deviation over the members (n - 1 in the denominator): of the energy,
    and of the force vector as the root of the summed variances of its components.
    Raises RequestError for a member of `forces_from` that predicts no forces.
    """

    def __init__(
        self, energy_from: Sequence[Potential], forces_from: Sequence[Potential] | None = None
    ) -> None:
        super().__init__()
        assert len(energy_from) > 0, "an energy needs a model"
        if forces_from is None:
            forces_from = [] if any(each.config.forces == "none" for each in energy_from) else energy_from
        elif any(each.config.forces == "none" for each in forces_from):
            raise RequestError("forces are asked of a model that predicts none; name another one for them")
        members = list(dict.fromkeys([*energy_from, *forces_from]))
        self.members = nn.ModuleList(members)
        self.graph_specs: tuple[GraphSpec, ...] = tuple(dict.fromkeys(each.graph_spec for each in members))
        self.n_elements = min(each.config.n_elements for each in members)
        """The heaviest element that all members know."""
        self._spec_of = [self.graph_specs.index(each.graph_spec) for each in members]
        self._energy_from = [members.index(each) for each in energy_from]
        self._forces_from = [members.index(each) for each in forces_from]

    @property
    def has_forces(self) -> bool:
        """Whether any member gives forces."""
        return bool(self._forces_from)

    @property
    def description(self) -> str:
        """Which members give what, such as `energy of members 0, 1; forces of members 2`."""
        energy, forces = (", ".join(map(str, each)) for each in (self._energy_from, self._forces_from))
        return f"energy of members {energy}; forces of members {forces or 'none'}"

    @property
    def graph_spec(self) -> GraphSpec:
        """The edges that all members need; raises RequestError where they need different ones."""
        if len(self.graph_specs) > 1:
            raise RequestError(
                f"the members need {len(self.graph_specs)} different graphs, which this use of them does not provide; "
                "take models with the same cutoffs and neighbour limits"
            )
        return self.graph_specs[0]

    def forward(self, batch: object, topology: Topology | Sequence[Topology]) -> Predictions:
        """batch: a PyG batch; topology: one for each of `graph_specs`, or the only one."""
        topologies = [topology] if isinstance(topology, Topology) else topology
        assert len(topologies) == len(self.graph_specs), "one topology for each kind of graph"
        found = [
            member(batch, topologies[spec]) for member, spec in zip(self.members, self._spec_of, strict=True)
        ]
        energy = torch.stack([found[i].energy for i in self._energy_from])  # [n_members, n_systems]
        predictions = Predictions(energy.mean(dim=0), None)
        if len(energy) > 1:
            predictions.energy_spread = energy.std(dim=0)
        if self._forces_from:
            forces = torch.stack([found[i].forces for i in self._forces_from])  # [n_members, n_atoms, 3]
            predictions.forces = forces.mean(dim=0)
            if len(forces) > 1:
                predictions.forces_spread = _spread(forces)
        return predictions


def _spread(vectors: Tensor) -> Tensor:
    """The standard deviation over the first axis of vectors [n_members, n, 3] as one length [n]."""
    return vectors.var(dim=0).sum(dim=-1).sqrt()
