"""The bases of all paths: evaluated once per forward pass, projected to small sizes that all blocks share."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from ase.data import covalent_radii
from torch import Tensor, nn

from ocpgem.graph.topology import Topology
from ocpgem.models.gemnet.angle_samples import quadruplet_angle_samples, triplet_angle_samples
from ocpgem.models.gemnet.basis import RadialBasis, degree_of_harmonics, scaled_harmonics
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.edge_ops import pad_by_target
from ocpgem.models.gemnet.geometry import Geometry
from ocpgem.models.gemnet.layers import Dense, ScaleFactor, he_orthogonal_
from ocpgem.models.gemnet.legendre_angles import LegendreAngles
from ocpgem.models.gemnet.spherical_angles import SphericalAngles


@dataclass
class TripletBasis:
    """The bases of one kind of triplets, incoming edges b -> a and outgoing edges c -> a."""

    radial: Tensor
    """[n_incoming, radial_dim], multiplied onto the incoming edges."""
    circular: Tensor
    """[n_outgoing, circular_dim, n_spherical], the radial part of the circular basis."""


@dataclass
class QuadrupletBasis:
    """The bases of quadruplets d -> b -> a <- c."""

    radial: Tensor
    """[n_edges, radial_dim], multiplied onto the edges d -> b."""
    circular: Tensor
    """[n_middle, circular_dim, n_spherical], the radial part of the basis of b -> a and the angle a-b-d."""
    spherical: Tensor
    """The radial part of the basis of c -> a and both angles at it, as `angles` arranges it."""
    angles: LegendreAngles | SphericalAngles


@dataclass
class Basis:
    """Everything that the blocks read of the geometry."""

    radial_atom: Tensor
    """[n_edges, radial_dim], for atom updates."""
    radial_output: Tensor
    """[n_edges, radial_dim], for output heads."""
    harmonics: Tensor
    """[n_atoms, max_degree, n_spherical^2], scaled spherical harmonics of the edges of each target, zero-padded."""
    triplets: TripletBasis
    quadruplets: QuadrupletBasis | None = None
    atom_edge_harmonics: Tensor | None = None
    """As `harmonics`, of the atom-edge graph."""
    atom_to_edge: TripletBasis | None = None
    edge_to_atom: TripletBasis | None = None
    atom_atom: Tensor | None = None
    """[n_atoms, max_degree, radial_dim], of the atom-atom graph, zero-padded."""


class AngularProjection(nn.Module):
    """Radial functions [n, n_radial] (or [n, n_spherical, n_radial]) -> [n, out_dim, n_functions].

    One row of functions per angular function: the n_spherical circular harmonics or, with two angles, n_spherical^2
    products. The weight is [n_functions, n_radial, out_dim].
    """

    def __init__(self, config: GemNetConfig, out_dim: int, angles: Literal[1, 2]) -> None:
        super().__init__()
        n_spherical, n_radial = config.n_spherical, config.radial_basis.n_radial
        self.weight = nn.Parameter(torch.empty(n_spherical**angles, n_radial, out_dim))
        he_orthogonal_(self.weight)
        degrees = degree_of_harmonics(n_spherical) if angles == 2 else list(range(n_spherical))
        self._n_of_degree = [degrees.count(degree) for degree in range(n_spherical)]
        self.scale = ScaleFactor() if config.scaled_bases else None

    def forward(self, radial: Tensor) -> Tensor:
        weight = self.weight if self.scale is None else self.scale(self.weight)
        if radial.ndim == 2:
            return _project(radial, weight)
        parts = [
            _project(radial[:, degree], of_degree)
            for degree, of_degree in enumerate(weight.split(self._n_of_degree))
        ]
        return torch.cat(parts, dim=2)

    def observe(self, values: Tensor) -> None:
        """Show the angular functions themselves to a fit of the scale factor."""
        if self.scale is not None:
            self.scale.observe(self.scale(values), None)

    @property
    def is_observed(self) -> bool:
        """Whether a fit of the scale factor waits for values."""
        return self.scale is not None and self.scale.observer is not None


def _project(radial: Tensor, weight: Tensor) -> Tensor:
    """[n, n_radial], [n_functions, n_radial, out_dim] -> [n, out_dim, n_functions]."""
    w = weight.permute(2, 0, 1)  # [out_dim, n_functions, n_radial]
    return F.linear(radial, w.flatten(0, 1)).unflatten(1, w.shape[:2])


class Bases(nn.Module):
    """All radial bases and their projections; a path that the model lacks has none."""

    radii: Tensor | None
    """Covalent radii in A by atomic number, where distances are measured in them."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.n_spherical = config.n_spherical
        self.two_angle = config.angular_basis.two_angle
        n_radial, radial_dim = config.radial_basis.n_radial, config.radial_dim
        self.radial = _radial_basis(config, config.neighbors.cutoff)
        self.angular = _angular_basis(config, config.neighbors.cutoff)
        self.radial_triplet = Dense(n_radial, radial_dim)
        self.radial_atom = Dense(n_radial, radial_dim)
        self.radial_output = Dense(n_radial, radial_dim)
        self.circular_triplet = AngularProjection(config, config.triplets.circular_dim, angles=1)
        if config.quadruplets is not None:
            self.angular_middle = _radial_basis(
                config, config.quadruplets.cutoff, config.angular_basis.radial
            )
            self.radial_quadruplet = Dense(n_radial, radial_dim)
            self.circular_quadruplet = AngularProjection(config, config.quadruplets.circular_dim, angles=1)
            self.spherical_quadruplet = AngularProjection(config, config.quadruplets.spherical_dim, angles=2)
        atom_edge = config.atom_edge
        if atom_edge is not None:
            if atom_edge.to_edges:
                self.radial_of_atom_edge = _radial_basis(config, atom_edge.cutoff)
                self.radial_atom_to_edge = Dense(n_radial, radial_dim)
                self.circular_atom_to_edge = AngularProjection(config, atom_edge.circular_dim, angles=1)
            if atom_edge.to_atoms:
                self.angular_atom_edge = _radial_basis(config, atom_edge.cutoff, config.angular_basis.radial)
                self.radial_edge_to_atom = Dense(n_radial, radial_dim)
                self.circular_edge_to_atom = AngularProjection(config, atom_edge.circular_dim, angles=1)
        if config.atom_atom is not None:
            self.radial_of_atom_atom = _radial_basis(config, config.atom_atom.cutoff)
            self.radial_atom_atom = Dense(n_radial, radial_dim)
        self.config = config
        in_radii = config.radial_basis.unit == "covalent_radii"
        radii = torch.tensor(covalent_radii[: config.n_elements + 1], dtype=torch.float32)
        self.register_buffer("radii", radii if in_radii else None, persistent=False)

    def forward(self, geometry: Geometry, topology: Topology) -> tuple[Basis, Tensor]:
        """The projected bases, and the raw radial basis of the main edges, [n_edges, n_radial]."""
        edges, main = topology.main, geometry.main
        radial = self.radial(main.distance, main.radii)
        angular = radial if self.angular is None else self.angular(main.distance, main.radii)
        harmonics = scaled_harmonics(main.direction, self.n_spherical)
        basis = Basis(
            radial_atom=self.radial_atom(radial),
            radial_output=self.radial_output(radial),
            harmonics=pad_by_target(harmonics, edges),
            triplets=TripletBasis(self.radial_triplet(radial), self.circular_triplet(angular)),
        )
        if self.circular_triplet.is_observed:
            self.circular_triplet.observe(triplet_angle_samples(main, edges, self.n_spherical))
        if self.config.quadruplets is not None:
            basis.quadruplets = self._quadruplets(geometry, topology, radial, angular)
        if self.config.atom_edge is not None:
            self._add_atom_edge(basis, geometry, topology, radial, angular)
        if self.config.atom_atom is not None:
            assert geometry.atom_atom is not None
            assert topology.atom_atom is not None
            pairs = geometry.atom_atom
            of_pairs = self.radial_atom_atom(self.radial_of_atom_atom(pairs.distance, pairs.radii))
            basis.atom_atom = pad_by_target(of_pairs, topology.atom_atom)
        return basis, radial

    def _quadruplets(
        self, geometry: Geometry, topology: Topology, radial: Tensor, angular: Tensor
    ) -> QuadrupletBasis:
        middle, tables = geometry.middle, topology.quadruplets
        assert middle is not None
        assert tables is not None
        angles: LegendreAngles | SphericalAngles
        if self.two_angle == "legendre_outer":
            angles = LegendreAngles.of(geometry, topology, self.n_spherical)
        else:
            original = self.config.angular_basis.radial == "bessel_by_degree"  # the original GemNet
            angles = SphericalAngles.of(geometry, topology, self.n_spherical, in_angstrom=original)
        if self.circular_quadruplet.is_observed or self.spherical_quadruplet.is_observed:
            of_inner, of_both = quadruplet_angle_samples(angles, tables)
            self.circular_quadruplet.observe(of_inner)
            self.spherical_quadruplet.observe(of_both)
        return QuadrupletBasis(
            radial=self.radial_quadruplet(radial),
            circular=self.circular_quadruplet(self.angular_middle(middle.distance, middle.radii)),
            spherical=angles.arranged(self.spherical_quadruplet(angular), topology),
            angles=angles,
        )

    def _add_atom_edge(
        self, basis: Basis, geometry: Geometry, topology: Topology, radial: Tensor, angular: Tensor
    ) -> None:
        between, edges, path = geometry.atom_edge, topology.atom_edge, self.config.atom_edge
        assert between is not None
        assert edges is not None
        assert path is not None
        basis.atom_edge_harmonics = pad_by_target(
            scaled_harmonics(between.direction, self.n_spherical), edges
        )
        if path.to_edges:
            basis.atom_to_edge = TripletBasis(
                self.radial_atom_to_edge(self.radial_of_atom_edge(between.distance, between.radii)),
                self.circular_atom_to_edge(angular),
            )
            if self.circular_atom_to_edge.is_observed:
                self.circular_atom_to_edge.observe(
                    triplet_angle_samples(between, edges, self.n_spherical, geometry.main, topology.main)
                )
        if path.to_atoms:
            basis.edge_to_atom = TripletBasis(
                self.radial_edge_to_atom(radial),
                self.circular_edge_to_atom(self.angular_atom_edge(between.distance, between.radii)),
            )
            if self.circular_edge_to_atom.is_observed:
                self.circular_edge_to_atom.observe(
                    triplet_angle_samples(geometry.main, topology.main, self.n_spherical, between, edges)
                )


def _radial_basis(config: GemNetConfig, cutoff: float, name: str | None = None) -> RadialBasis:
    exact = config.variant.startswith("gemnet_OC")
    return RadialBasis(config.radial_basis, cutoff, name, config.n_spherical, config.scaled_bases, exact)


def _angular_basis(config: GemNetConfig, cutoff: float) -> RadialBasis | None:
    """The radial functions of the angular bases of main edges; None where they are always those of `radial_basis`."""
    basis = _radial_basis(config, cutoff, config.angular_basis.radial)
    same_kind = config.angular_basis.radial in (None, config.radial_basis.name)
    return None if same_kind and not basis.is_trainable and not config.scaled_bases else basis
