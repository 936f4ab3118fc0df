"""The interaction over quadruplets d -> b -> a <- c (GemNet eq. 9, two-hop form)."""

from torch import Tensor, nn

from ocpgem.graph.topology import Topology
from ocpgem.models.gemnet.bases import QuadrupletBasis
from ocpgem.models.gemnet.config import GemNetConfig, QuadrupletConfig
from ocpgem.models.gemnet.edge_ops import from_main_edge, unpad
from ocpgem.models.gemnet.fit_counts import quadruplets_per_row
from ocpgem.models.gemnet.geometry import pad_by_middle
from ocpgem.models.gemnet.layers import Dense, ScaleFactor, float32_region
from ocpgem.models.gemnet.triplets import Bilinear, EdgeMessages, EdgeUpdate
from ocpgem.parallel.graph import gather


class QuadrupletInteraction(nn.Module):
    """Updates each edge c -> a from the edges d -> b whose target is joined to a by a middle edge b -> a."""

    def __init__(self, config: GemNetConfig, sizes: QuadrupletConfig) -> None:
        super().__init__()
        self.messages = EdgeMessages(config.edge_dim, config.radial_dim, sizes.in_dim)
        self.circular = Dense(sizes.circular_dim, sizes.in_dim)
        self.scale_circular = ScaleFactor()
        self.bilinear = Bilinear(sizes.in_dim, sizes.spherical_dim, sizes.out_dim)
        self.update = EdgeUpdate(sizes.out_dim, config.edge_dim)

    def forward(self, m: Tensor, basis: QuadrupletBasis, topology: Topology) -> Tensor:
        """m [n_edges, edge_dim] -> update of the same shape."""
        tables, angles = topology.quadruplets, basis.angles
        assert tables is not None
        x = self.messages(m, basis.radial)
        with float32_region(x):
            near = gather(x.to(basis.circular.dtype), tables.far.exchange if tables.far else None)
            rows = from_main_edge(near, tables.inner)  # [n_inner, in_dim]
            x_inner = pad_by_middle(rows, tables.inner, len(angles.inner_circular))
            filters = (
                self.scale_circular(self.circular.weight) @ basis.circular
            )  # [n_middle, in_dim, n_spherical]
            weighted = x_inner * (angles.inner_circular @ filters.transpose(1, 2))
            if self.scale_circular.is_observed:
                self.scale_circular.observe(unpad(weighted, tables.inner.slot), rows)
            summed = angles.sum(weighted, basis.spherical, topology)
            reference, times = rows, None
            if self.bilinear.scale_sum.is_observed:
                reference, times = (
                    unpad(weighted, tables.inner.slot),
                    quadruplets_per_row(tables, len(angles.inner_circular)),
                )
        return self.update(self.bilinear(summed, reference, times), topology.main)
