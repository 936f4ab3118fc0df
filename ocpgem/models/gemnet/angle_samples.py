"""Angles of single triplets and quadruplets, which fits of the scale factors of bases ask for."""

import torch
from torch import Tensor

from ocpgem.graph.topology import EdgeSet, Quadruplets
from ocpgem.models.gemnet.basis import circular_harmonics
from ocpgem.models.gemnet.edge_ops import pad_by_target
from ocpgem.models.gemnet.geometry import EdgeGeometry
from ocpgem.models.gemnet.legendre_angles import LegendreAngles
from ocpgem.models.gemnet.spherical_angles import SphericalAngles

_SAMPLES = 2**17
"""Angles that are evaluated one by one to fit the scale factor of a basis."""


def triplet_angle_samples(
    incoming: EdgeGeometry,
    in_edges: EdgeSet,
    n_spherical: int,
    outgoing: EdgeGeometry | None = None,
    out_edges: EdgeSet | None = None,
) -> Tensor:
    """Y_l0 of single triplets [n, n_spherical], for the fit of a basis' scale factor; at most about 10^5 of them."""
    directions = pad_by_target(incoming.direction, in_edges)
    same = outgoing is None or out_edges is None
    others = (
        directions if outgoing is None or out_edges is None else pad_by_target(outgoing.direction, out_edges)
    )
    cosine = others @ directions.transpose(1, 2)  # [n_atoms, out_degree, in_degree]
    valid = (others.abs().sum(-1) > 0)[:, :, None] & (directions.abs().sum(-1) > 0)[:, None, :]
    # An edge meets itself at the angle 0; such pairs are no triplets.
    valid &= (
        cosine < 1 - 1e-6 if not same else ~torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
    )
    chosen = cosine[valid]
    step = max(1, len(chosen) // _SAMPLES)
    return circular_harmonics(chosen[::step].clamp(-1, 1), n_spherical)


def quadruplet_angle_samples(
    angles: LegendreAngles | SphericalAngles, tables: Quadruplets
) -> tuple[Tensor, Tensor]:
    """The angular functions of single rows and single quadruplets.

    Returns [n_inner, n_spherical] and [n, n_spherical^2], the latter of at most about 10^5 quadruplets.
    """
    of_inner = circular_harmonics(angles.inner.cosine, angles.n_spherical)
    counts = torch.bincount(tables.inner.middle_edge, minlength=len(angles.inner_circular))
    first = counts.cumsum(0) - counts
    per_row = counts[tables.outer.middle_edge]
    outer_row = torch.repeat_interleave(torch.arange(len(per_row), device=per_row.device), per_row)
    start = per_row.cumsum(0) - per_row
    within = torch.arange(len(outer_row), device=per_row.device) - start[outer_row]
    inner_row = first[tables.outer.middle_edge[outer_row]] + within
    step = max(1, len(outer_row) // _SAMPLES)
    return of_inner, angles.functions(inner_row[::step], outer_row[::step])
