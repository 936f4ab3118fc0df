"""What a model asks of its graphs; checked when it is made."""

from dataclasses import dataclass

from ocpgem.errors import RequestError


@dataclass(frozen=True)
class Limit:
    """Which pairs of atoms a graph joins: cutoff in A (inclusive) and how many neighbours an atom keeps (0: all)."""

    cutoff: float
    max_neighbors: int

    def __post_init__(self) -> None:
        if not 0 < self.cutoff < float("inf"):
            raise RequestError(f"the graph cutoff is {self.cutoff} A; it must be a positive number")
        if self.max_neighbors < 0:
            raise RequestError(f"max_neighbors is {self.max_neighbors}; it must be 0 (no limit) or more")

    def covers(self, other: "Limit") -> bool:
        """Whether no other graph with that limit can have an edge beyond this one."""
        most = self.max_neighbors or float("inf")
        return other.cutoff <= self.cutoff and (other.max_neighbors or float("inf")) <= most


@dataclass(frozen=True)
class GraphSpec:
    """What a model needs of its graphs. Source: gemnet.md 1.2, 1.7, 1.9, 1.14.

    cutoff, max_neighbors: limit of the main graph; strict: keep exactly max_neighbors, else all up to 0.01
    beyond the next one (A, in the search A^2); truncation: "released", or "symmetric" (keep all ties, and both
    directions of an edge that either end keeps: independent of how atoms are numbered); self_images: which
    offsets of an atom to itself survive the released symmetrisation, lexicographically "negative" ones or
    "positive" ones (GemNet-OC). The other graphs stay directed: quadruplet, the edges b -> a in the middle of
    quadruplets d -> b -> a <- c, of which quadruplet_tags keeps those with an atom of one of these tags
    (None: all); atom_edge; atom_atom, which must cover the others.
    """

    cutoff: float
    max_neighbors: int
    strict: bool = True
    truncation: str = "released"
    self_images: str = "negative"
    quadruplet: Limit | None = None
    quadruplet_tags: tuple[int, ...] | None = None
    atom_edge: Limit | None = None
    atom_atom: Limit | None = None

    def __post_init__(self) -> None:
        if self.truncation not in ("released", "symmetric"):
            raise RequestError(f"truncation is {self.truncation!r}; it must be released or symmetric")
        if self.self_images not in ("negative", "positive"):
            raise RequestError(f"self_images is {self.self_images!r}; it must be negative or positive")
        if self.quadruplet_tags is not None and (self.quadruplet is None or not self.quadruplet_tags):
            missing = "a quadruplet graph to apply to" if self.quadruplet is None else "at least one tag"
            raise RequestError(f"quadruplet_tags is {self.quadruplet_tags}; it needs {missing}")
        for name, limit in self._limits().items():
            if self.atom_atom is not None and not self.atom_atom.covers(limit):
                raise RequestError(
                    f"the {name} graph has cutoff {limit.cutoff} A and max_neighbors {limit.max_neighbors}; neither "
                    f"may exceed those of the atom_atom graph, {self.atom_atom.cutoff} A and "
                    f"{self.atom_atom.max_neighbors} (0: no limit)"
                )

    @property
    def main(self) -> Limit:
        """The limit of the main graph."""
        return Limit(self.cutoff, self.max_neighbors)

    @property
    def may_be_empty(self) -> bool:
        """Whether a system may have no main edge: GemNet-OC gives it an energy, the others do not (gemnet.md 1.10)."""
        return self.self_images == "positive"

    @property
    def parent(self) -> Limit:
        """The limit of the one search from whose neighbours every graph selects."""
        limits = self._limits().values()
        most = [limit.max_neighbors for limit in limits]
        largest = Limit(max(limit.cutoff for limit in limits), 0 if 0 in most else max(most))
        return self.atom_atom or largest

    def _limits(self) -> dict[str, Limit]:
        """The limits of the graphs other than atom_atom."""
        named = {"main": self.main, "quadruplet": self.quadruplet, "atom_edge": self.atom_edge}
        return {name: limit for name, limit in named.items() if limit is not None}
