"""Which pairs of elements a model has met in training, and how far it may be trusted on an atom among others."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet
from ocpgem.models.gemnet.edge_ops import at_ends, sum_to_target


class ElementPairs(nn.Module):
    """Knows which elements occurred together in a system of the training data.

    The table is kept with the weights; where it was never filled, as in a new model, every pair counts as known.
    """

    known: Tensor

    def __init__(self, n_elements: int) -> None:
        super().__init__()
        self.register_buffer("known", torch.ones(n_elements + 1, n_elements + 1, dtype=torch.bool))

    @torch.no_grad()
    def set_known(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Know these pairs of atomic numbers, in either order, and no others."""
        self.known.zero_()
        first, second = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).unbind(1)
        self.known[first, second] = True
        self.known[second, first] = True

    def share_known(self, atomic_numbers: Tensor, edges: EdgeSet) -> Tensor:
        """The share [n_own, 1] of an atom's neighbours whose element is known beside its own; 1 without any."""
        source, target = at_ends(atomic_numbers.unsqueeze(1), edges)
        pair = self.known[source, target].float()
        known, all_of_them = sum_to_target(torch.cat([pair, torch.ones_like(pair)], 1), edges).unbind(1)
        return torch.where(all_of_them > 0, known / all_of_them.clamp(min=1), 1.0).unsqueeze(1)
