"""L-BFGS and FIRE for many systems at once, on any device; each system's path is its own.

Atoms of all systems stand in one array, [N, 3], system after system. Everything that an optimiser keeps is per atom or
per system and every sum runs over one system, so a system neither sees nor waits for the others; those that leave take
their rows with them, and those that enter start with none.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ocpgem.errors import RequestError
from ocpgem.segment import segment_sum

CURVATURE = 1e-10  # s.y over |s||y| below which a pair says nothing about a minimum


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise RequestError(f"{name} is {value}; it must be a positive number")


@dataclass(frozen=True)
class Layout:
    """Which rows belong to which system. ptr: [B + 1] first atom of each; system: [N] system of each atom."""

    ptr: Tensor
    system: Tensor

    @classmethod
    def of(cls, n_atoms: list[int], device: torch.device) -> "Layout":
        """The layout of systems with so many atoms."""
        counts = torch.tensor(n_atoms, dtype=torch.int64)
        ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        system = torch.repeat_interleave(torch.arange(len(n_atoms)), counts)
        return cls(ptr.to(device), system.to(device))

    @property
    def n_systems(self) -> int:
        """Number of systems."""
        return len(self.ptr) - 1

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """Scalar product [B] of two vectors [N, 3] in the space of each system."""
        return segment_sum((one * other).sum(dim=1), self.ptr)

    def longest(self, vectors: Tensor) -> Tensor:
        """The length [B] of the longest of the vectors [N, 3] of each system."""
        lengths = vectors.norm(dim=1)
        result = lengths.new_zeros(self.n_systems)
        return result.scatter_reduce(0, self.system, lengths, "amax")

    def spread(self, values: Tensor) -> Tensor:
        """A value per system [B] as a column for its atoms, [N, 1]."""
        return values[self.system].unsqueeze(1)


class Optimizer(ABC):
    """Proposes steps. Between two calls of `step` systems may be left out and then others appended."""

    @abstractmethod
    def append(self, n_atoms: int, n_systems: int, device: torch.device) -> None:
        """Add rows for systems that begin, behind those that are there."""

    @abstractmethod
    def keep(self, atoms: Tensor, systems: Tensor) -> None:
        """Keep the rows of some atoms [n] and systems [m] (positions, ascending)."""

    @abstractmethod
    def step(self, pos: Tensor, forces: Tensor, layout: Layout) -> Tensor:
        """By how much [N, 3] in A to move from `pos` [N, 3] A with `forces` [N, 3] eV/A (zero on fixed atoms)."""


@dataclass(frozen=True)
class LbfgsSettings:
    """L-BFGS without a line search, with the defaults of the released tools.

    maxstep: A, the most an atom moves in one step (the released relaxations of OC20 used 0.04); memory: pairs kept;
    damping: factor on every step; alpha: eV/A^2, the curvature assumed at first.
    """

    maxstep: float = 0.2
    memory: int = 50
    damping: float = 1.0
    alpha: float = 70.0

    def __post_init__(self) -> None:
        for name in ("maxstep", "damping", "alpha"):
            _require_positive(name, getattr(self, name))
        if self.memory < 1:
            raise RequestError(f"memory is {self.memory}; L-BFGS must remember at least 1 step")


class LBFGS(Optimizer):
    """Limited-memory BFGS by the two-loop recursion (Nocedal, Math. Comp. 35, 773 (1980)), one for each system.

    A pair whose curvature s.y is not positive, which noise or a saddle makes, is not used: the direction then always
    leads downhill along the forces.
    """

    def __init__(self, settings: LbfgsSettings = LbfgsSettings()) -> None:
        self.settings = settings
        # Newest first; what a system has not done yet is zero, with weight zero.
        self._moves: list[Tensor] = []  # [N, 3] each
        self._changes: list[Tensor] = []  # [N, 3] each, of the gradient
        self._weights: list[Tensor] = []  # [B] each, 1 / s.y or 0
        self._last: tuple[Tensor, Tensor] | None = None  # positions and forces before the last step
        self._steps: Tensor | None = None  # [B] steps done
        self._begun = False  # whether any system has made a step

    def append(self, n_atoms: int, n_systems: int, device: torch.device) -> None:
        rows = torch.zeros(n_atoms, 3, dtype=torch.float64, device=device)
        column = rows.new_zeros(n_systems)
        if self._steps is None or self._last is None:
            self._last, self._steps = (rows, rows), column.long()
            return
        self._moves = [torch.cat((each, rows)) for each in self._moves]
        self._changes = [torch.cat((each, rows)) for each in self._changes]
        self._weights = [torch.cat((each, column)) for each in self._weights]
        self._last = torch.cat((self._last[0], rows)), torch.cat((self._last[1], rows))
        self._steps = torch.cat((self._steps, column.long()))

    def keep(self, atoms: Tensor, systems: Tensor) -> None:
        assert self._steps is not None
        assert self._last is not None
        self._steps = self._steps[systems]
        oldest = int(self._steps.max()) if len(systems) else 0  # pairs that no system here has made
        self._moves = [each[atoms] for each in self._moves[:oldest]]
        self._changes = [each[atoms] for each in self._changes[:oldest]]
        self._weights = [each[systems] for each in self._weights[:oldest]]
        self._last = self._last[0][atoms], self._last[1][atoms]

    def step(self, pos: Tensor, forces: Tensor, layout: Layout) -> Tensor:
        assert self._steps is not None
        if self._begun:
            self._remember(pos, forces, layout)
        direction = self._direction(forces, layout)
        scale = (self.settings.maxstep / layout.longest(direction)).clamp(max=1.0)
        self._last, self._begun = (pos, forces), True
        self._steps = self._steps + 1
        return direction * layout.spread(scale * self.settings.damping)

    def _remember(self, pos: Tensor, forces: Tensor, layout: Layout) -> None:
        assert self._steps is not None
        assert self._last is not None
        move, change = pos - self._last[0], self._last[1] - forces
        curvature = layout.dot(move, change)
        lengths = (layout.dot(move, move) * layout.dot(change, change)).sqrt()
        usable = (self._steps > 0) & (curvature > CURVATURE * lengths)
        weight = torch.where(usable, 1.0 / curvature, 0.0)
        used = layout.spread(usable)
        self._moves.insert(0, torch.where(used, move, 0.0))
        self._changes.insert(0, torch.where(used, change, 0.0))
        self._weights.insert(0, weight)
        for kept in (self._moves, self._changes, self._weights):
            del kept[self.settings.memory :]

    def _direction(self, forces: Tensor, layout: Layout) -> Tensor:
        gradient = -forces
        shares = []
        for move, change, weight in zip(self._moves, self._changes, self._weights, strict=True):
            share = weight * layout.dot(move, gradient)
            gradient = gradient - layout.spread(share) * change
            shares.append(share)
        result = gradient / self.settings.alpha
        pairs = list(zip(self._moves, self._changes, self._weights, shares, strict=True))
        for move, change, weight, share in reversed(pairs):
            result = result + layout.spread(share - weight * layout.dot(change, result)) * move
        return -result


@dataclass(frozen=True)
class FireSettings:
    """FIRE with the values of its paper, as in ASE.

    maxstep: A, the longest step of a whole system; dt, dt_max: time steps, first and largest; n_min: steps downhill
    before the time step grows; grow, shrink: factors on it; mix: share of the force's direction in the velocity at
    first; mix_decay: factor on that.
    """

    maxstep: float = 0.2
    dt: float = 0.1
    dt_max: float = 1.0
    n_min: int = 5
    grow: float = 1.1
    shrink: float = 0.5
    mix: float = 0.1
    mix_decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("maxstep", "dt", "dt_max"):
            _require_positive(name, getattr(self, name))


class FIRE(Optimizer):
    """Fast inertial relaxation (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)), one for each system."""

    def __init__(self, settings: FireSettings = FireSettings()) -> None:
        self.settings = settings
        self._velocity: Tensor | None = None  # [N, 3]
        self._dt: Tensor  # [B]
        self._mix: Tensor  # [B]
        self._downhill: Tensor  # [B] steps downhill in a row
        self._begun: Tensor  # [B] whether a step was made

    def append(self, n_atoms: int, n_systems: int, device: torch.device) -> None:
        velocity = torch.zeros(n_atoms, 3, dtype=torch.float64, device=device)
        dt = velocity.new_full((n_systems,), self.settings.dt)
        mix = velocity.new_full((n_systems,), self.settings.mix)
        downhill = torch.zeros(n_systems, dtype=torch.int64, device=device)
        if self._velocity is not None:
            velocity = torch.cat((self._velocity, velocity))
            dt, mix = torch.cat((self._dt, dt)), torch.cat((self._mix, mix))
            downhill = torch.cat((self._downhill, downhill))
            self._begun = torch.cat((self._begun, downhill.new_zeros(n_systems, dtype=torch.bool)))
        else:
            self._begun = downhill.bool()
        self._velocity, self._dt, self._mix, self._downhill = velocity, dt, mix, downhill

    def keep(self, atoms: Tensor, systems: Tensor) -> None:
        assert self._velocity is not None
        self._velocity = self._velocity[atoms]
        self._dt, self._mix = self._dt[systems], self._mix[systems]
        self._downhill, self._begun = self._downhill[systems], self._begun[systems]

    def step(self, pos: Tensor, forces: Tensor, layout: Layout) -> Tensor:
        assert self._velocity is not None
        velocity = self._steered(self._velocity, forces, layout)
        self._begun = torch.ones_like(self._begun)
        self._velocity = velocity + layout.spread(self._dt) * forces
        step = layout.spread(self._dt) * self._velocity
        scale = (self.settings.maxstep / layout.dot(step, step).sqrt()).clamp(max=1.0)
        return step * layout.spread(scale)

    def _steered(self, velocity: Tensor, forces: Tensor, layout: Layout) -> Tensor:
        """Turn velocities towards the forces, or stop where they lead uphill; adapt the time steps."""
        settings = self.settings
        speed = layout.dot(velocity, velocity).sqrt()
        strength = layout.dot(forces, forces).sqrt()
        downhill = layout.dot(velocity, forces) > 0
        pull = torch.where(downhill, self._mix * speed / strength, 0.0)
        rest = torch.where(downhill, 1.0 - self._mix, 0.0)
        turned = layout.spread(rest) * velocity + layout.spread(pull) * forces
        longer = downhill & (self._downhill > settings.n_min)
        faster = (self._dt * settings.grow).clamp(max=settings.dt_max)
        uphill = ~downhill & self._begun
        self._dt = torch.where(longer, faster, torch.where(uphill, self._dt * settings.shrink, self._dt))
        self._mix = torch.where(longer, self._mix * settings.mix_decay, self._mix)
        self._mix = torch.where(uphill, settings.mix, self._mix)
        self._downhill = torch.where(downhill, self._downhill + 1, 0)
        return turned


OPTIMIZERS = ("lbfgs", "fire")


def make_optimizer(settings: LbfgsSettings | FireSettings) -> Optimizer:
    """The optimiser that belongs to some settings."""
    return LBFGS(settings) if isinstance(settings, LbfgsSettings) else FIRE(settings)
