"""The graphs of one small periodic system by plain loops over atoms and images, straight from gemnet.md 1.1 to 1.12."""

import itertools
from dataclasses import dataclass

import numpy as np

from ocpgem.graph.spec import GraphSpec, Limit

Edge = tuple[int, int, int, int, int]  # source, target, offset of the source
REACH = 6


@dataclass(frozen=True)
class BruteForce:
    pos: np.ndarray
    cell: np.ndarray
    spec: GraphSpec
    tags: np.ndarray

    def graphs(self) -> dict[str, list[Edge]]:
        spec = self.spec
        found = self.search(spec.parent)
        graphs = {"main": self.symmetric(self.sub(found, spec.main))}
        for name in ("quadruplet", "atom_edge", "atom_atom"):
            limit = getattr(spec, name)
            if limit is not None:
                graphs[name] = list(self.sub(found, limit))
        if spec.quadruplet_tags is not None:
            chosen = np.isin(self.tags, spec.quadruplet_tags)
            graphs["quadruplet"] = [e for e in graphs["quadruplet"] if chosen[e[0]] or chosen[e[1]]]
        return graphs

    def search(self, limit: Limit) -> dict[Edge, float]:
        """Distances of the edges, by target, source, offset."""
        found: dict[Edge, float] = {}
        images = list(itertools.product(range(-REACH, REACH + 1), repeat=3))
        for target, source in itertools.product(range(len(self.pos)), repeat=2):
            vectors = self.pos[target] - (self.pos[source] + np.array(images) @ self.cell)
            for n, distance in zip(images, np.linalg.norm(vectors, axis=1).tolist(), strict=True):
                if 0.01 < distance <= limit.cutoff:
                    assert max(map(abs, n)) < REACH, "the loop does not reach far enough"
                    found[(source, target, *n)] = distance
        return self.truncated(found, limit.max_neighbors, power=2)

    def sub(self, found: dict[Edge, float], limit: Limit) -> dict[Edge, float]:
        near = {edge: distance for edge, distance in found.items() if distance <= limit.cutoff}
        return self.truncated(near, limit.max_neighbors, power=1)

    def truncated(self, found: dict[Edge, float], k: int, power: int) -> dict[Edge, float]:
        kept: dict[Edge, float] = {}
        for target in range(len(self.pos)):
            mine = {edge: distance for edge, distance in found.items() if edge[1] == target}
            if 0 < k < len(mine):
                # Rounded, as an atom's images at n and -n are equally far; sorting keeps the order of the list.
                ordered = sorted(mine, key=lambda edge: round(mine[edge], 7))
                if not self.spec.strict:
                    most = mine[ordered[k]] ** power + 0.01
                    ordered = [edge for edge in mine if mine[edge] ** power <= most]
                elif self.spec.truncation == "symmetric":
                    ordered = [edge for edge in mine if mine[edge] <= mine[ordered[k - 1]] + 1e-7]
                else:
                    ordered = ordered[:k]
                mine = {edge: mine[edge] for edge in mine if edge in set(ordered)}
            kept |= mine
        return kept

    def symmetric(self, found: dict[Edge, float]) -> list[Edge]:
        if self.spec.truncation == "symmetric":
            kept = set(found)
        else:
            sign = 1 if self.spec.self_images == "negative" else -1
            kept = {
                (s, t, *n)
                for s, t, *n in found
                if s < t or (s == t and tuple(sign * i for i in n) < (0, 0, 0))
            }
        return list(kept | {(t, s, -n1, -n2, -n3) for s, t, n1, n2, n3 in kept})

    def quadruplets(self) -> list[tuple[int, ...]]:
        """a, then b, c, d each with the offset of its image against a."""
        graphs = self.graphs()
        found = []
        for b, a, *n_b in graphs["quadruplet"]:
            for c, to_a, *n_c in graphs["main"]:
                for d, to_b, *n_db in graphs["main"]:
                    n_d = [i + j for i, j in zip(n_db, n_b, strict=True)]
                    images = {(a, 0, 0, 0), (b, *n_b), (c, *n_c), (d, *n_d)}
                    # Only neighbours in the chain can never coincide, so four images are four exclusions met.
                    if to_a == a and to_b == b and len(images) == 4:
                        found.append((a, b, *n_b, c, *n_c, d, *n_d))
        return found
