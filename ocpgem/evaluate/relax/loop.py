"""The relaxation of a stream of systems: those that are done leave the batch, others take their place."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocpgem.data.system import System
from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.relax.optimizers import FireSettings, Layout, LbfgsSettings, make_optimizer
from ocpgem.evaluate.relax.surfaces import BrokenSystemError, Member, Surface

Floats = NDArray[np.float64]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RelaxSettings:
    """What is done to each system.

    fmax: eV/A, a system is done when the longest force on a free atom is below; steps: moves at most; optimizer:
    LbfgsSettings or FireSettings; record_every: of how many structures one is kept as a frame (0: none), the first and
    the last always.
    """

    fmax: float = 0.02
    steps: int = 300
    optimizer: LbfgsSettings | FireSettings = field(default_factory=LbfgsSettings)
    record_every: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fmax < float("inf"):
            raise RequestError(f"fmax is {self.fmax} eV/A; it must be a positive number")
        if self.steps < 0 or self.record_every < 0:
            raise RequestError(
                f"steps is {self.steps} and record_every {self.record_every}; neither may be negative"
            )


@dataclass(frozen=True)
class Frame:
    """A structure on the way. pos: [n, 3] A; energy: eV; forces: [n, 3] eV/A of all atoms, as predicted."""

    pos: Floats
    energy: float
    forces: Floats


@dataclass(frozen=True)
class Relaxed:
    """A system at the end of its relaxation.

    index: its number; system: as it began; last: where it ended; energy_start: eV; fmax: eV/A, the longest force on a
    free atom at the end; n_steps: moves made; problem: why it could not go on, None if nothing was wrong; frames: the
    structures that were kept.
    """

    index: int
    system: System
    last: Frame
    energy_start: float
    fmax: float
    n_steps: int
    converged: bool
    problem: str | None = None
    frames: list[Frame] = field(default_factory=list)


@dataclass
class _Active:
    """A member of the batch and what is known of its way."""

    member: Member
    n_steps: int = 0
    energy_start: float = float("nan")
    frames: list[Frame] = field(default_factory=list)
    problem: str | None = None


class Relaxation:
    """Relaxes systems in a batch that is kept full.

    surface: energies and forces; batch_size: systems at once; max_edges: cost of the systems at once, in edges
    (None: no limit). Where memory runs out all the same, the batch is halved, for good, and nothing is lost. stop:
    asked before every step; the relaxation ends there when it says yes.
    """

    def __init__(
        self,
        surface: Surface,
        settings: RelaxSettings,
        batch_size: int = 32,
        max_edges: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if batch_size < 1:
            raise RequestError(f"the batch size is {batch_size}; it must be at least 1")
        self.surface, self.settings = surface, settings
        self.batch_size, self.max_edges = batch_size, max_edges
        self.n_force_calls = 0  # batches computed
        self._stop = stop
        self._optimizer = make_optimizer(settings.optimizer)
        self._active: list[_Active] = []
        self._pos = torch.zeros(0, 3, dtype=torch.float64, device=surface.device)
        self._fixed = torch.zeros(0, dtype=torch.bool, device=surface.device)
        self._good = _Evaluated(self._pos, self._pos[:, 0], self._pos)
        self._layout = Layout.of([], surface.device)
        self._first: list[int] = [0]  # where the atoms of each system begin

    def run(self, members: Iterable[Member]) -> Iterator[Relaxed]:
        """Yield every system when it is done, in no particular order.

        Raises DataError, naming the system, where one cannot be computed as it is given; one that breaks on its way
        is yielded with the last structure that could be computed and the reason.
        """
        waiting = _Peekable(members)
        while not self._stop():
            self._admit(waiting)
            if not self._active:
                return
            found = self._evaluate()
            fmax = self._longest(found.forces)
            leaving = self._judge(found, fmax)
            if leaving:
                yield from [self._result(place, found, fmax) for place in leaving]
                found = self._remove(leaving, found)
            if self._active:
                self._move(found)

    def _admit(self, waiting: "_Peekable") -> None:
        """Fill the batch up to its limits; one system always fits."""
        entering: list[_Active] = []
        cost = sum(each.member.cost for each in self._active)
        while (following := waiting.peek()) is not None:
            n_systems = len(self._active) + len(entering)
            too_much = self.max_edges is not None and cost + following.cost > self.max_edges
            if n_systems >= self.batch_size or (n_systems > 0 and too_much):
                break
            entering.append(_Active(waiting.take()))
            cost += following.cost
        if not entering:
            return
        systems = [each.member.system for each in entering]
        pos = torch.from_numpy(np.concatenate([system.pos for system in systems]).astype(np.float64))
        fixed = torch.from_numpy(np.concatenate([system.fixed for system in systems]))
        self._active += entering
        self._pos = torch.cat((self._pos, pos.to(self.surface.device)))
        self._fixed = torch.cat((self._fixed, fixed.to(self.surface.device)))
        self._optimizer.append(len(pos), len(entering), self.surface.device)
        self._lay_out()

    def _lay_out(self) -> None:
        n_atoms = [each.member.system.n_atoms for each in self._active]
        self._layout = Layout.of(n_atoms, self.surface.device)
        self._first = [0, *itertools.accumulate(n_atoms)]

    def _longest(self, forces: Tensor) -> list[float]:
        free = torch.where(self._fixed.unsqueeze(1), 0.0, forces)
        longest: list[float] = self._layout.longest(free).tolist()
        return longest

    def _evaluate(self) -> "_Evaluated":
        """Compute the batch; a system that cannot be computed gets a problem and its last good values."""
        places = list(range(len(self._active)))
        energy = self._pos.new_full((len(places),), float("nan"))
        forces = torch.full_like(self._pos, float("nan"))
        while places:
            try:
                energy[places], forces[self._atoms(places)] = self._computed(places)
                break
            except BrokenSystemError as error:
                self._note(error.place, str(error))
                places.remove(error.place)
        found = _Evaluated(self._pos.clone(), energy, forces)
        self._restore_broken(found)
        return found

    def _atoms(self, places: Sequence[int]) -> Tensor:
        """The rows of some systems, ascending."""
        rows = [torch.arange(self._first[place], self._first[place + 1]) for place in places]
        return torch.cat(rows).to(self._pos.device)

    def _restore_broken(self, found: "_Evaluated") -> None:
        """Put the last good values where something is not finite; raise if there are none."""
        wrong_atoms = (~torch.isfinite(found.forces)).any(dim=1).double()
        wrong = ~torch.isfinite(found.energy) | (self._layout.longest(wrong_atoms.unsqueeze(1)) > 0)
        for place in wrong.nonzero().flatten().tolist():
            where = self._active[place].member.system.where
            self._note(place, f"{where}: its energy or forces are NaN or infinite")
            rows = slice(
                self._first[place], self._first[place + 1]
            )  # the same in `_good`: new systems stand behind
            found.pos[rows], found.forces[rows] = self._good.pos[rows], self._good.forces[rows]
            found.energy[place] = self._good.energy[place]

    def _note(self, place: int, problem: str) -> None:
        active = self._active[place]
        if active.n_steps == 0:
            raise DataError(f"{problem}; it cannot be relaxed")
        active.problem = active.problem or f"{problem}, after {active.n_steps} steps"

    def _computed(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Energies and forces of some systems, in as many pieces as memory asks for."""
        while True:
            pieces = self._pieces(places)
            try:
                results = [self._piece(piece) for piece in pieces]
                break
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside of `except`, where the traceback no longer holds the tensors of the failed attempt.
            self._halve(max(map(len, pieces)), places)
        energies, forces = zip(*results, strict=True)
        return torch.cat(energies), torch.cat(forces)

    def _pieces(self, places: Sequence[int]) -> list[list[int]]:
        pieces: list[list[int]] = [[]]
        cost = 0
        for place in places:
            own = self._active[place].member.cost
            too_much = self.max_edges is not None and cost + own > self.max_edges
            if pieces[-1] and (len(pieces[-1]) >= self.batch_size or too_much):
                pieces.append([])
                cost = 0
            pieces[-1].append(place)
            cost += own
        return pieces

    def _piece(self, places: list[int]) -> tuple[Tensor, Tensor]:
        members = [self._active[place].member for place in places]
        self.n_force_calls += 1
        try:
            return self.surface(members, self._pos[self._atoms(places)])
        except BrokenSystemError as error:
            raise BrokenSystemError(places[error.place], str(error)) from None

    def _halve(self, n_systems: int, places: Sequence[int]) -> None:
        if self.surface.device.type == "cuda":
            torch.cuda.empty_cache()
        if n_systems <= 1:
            largest = max((self._active[place].member for place in places), key=lambda member: member.cost)
            raise OcpgemError(f"memory does not suffice for {largest.system.where} alone")
        self.batch_size = n_systems // 2
        _log.warning("out of memory with %d systems at once; going on with %d", n_systems, self.batch_size)

    def _judge(self, found: "_Evaluated", fmax: list[float]) -> list[int]:
        """Keep frames; return who leaves."""
        leaving = []
        energies = found.energy.tolist()
        for place, active in enumerate(self._active):
            if active.n_steps == 0:
                active.energy_start = energies[place]
            ends = (
                fmax[place] < self.settings.fmax
                or active.n_steps >= self.settings.steps
                or active.problem is not None
            )
            if ends:
                leaving.append(place)
            every = self.settings.record_every
            if every and active.problem is None and (ends or active.n_steps % every == 0):
                active.frames.append(self._frame(place, found))
        self._good = found
        return leaving

    def _frame(self, place: int, found: "_Evaluated") -> Frame:
        mine = slice(self._first[place], self._first[place + 1])
        pos = found.pos[mine].cpu().numpy().copy()
        return Frame(pos, float(found.energy[place]), found.forces[mine].cpu().numpy().copy())

    def _result(self, place: int, found: "_Evaluated", fmax: list[float]) -> Relaxed:
        active = self._active[place]
        return Relaxed(
            index=active.member.index,
            system=active.member.system,
            last=self._frame(place, found),
            energy_start=active.energy_start,
            fmax=fmax[place],
            n_steps=active.n_steps,
            converged=active.problem is None and fmax[place] < self.settings.fmax,
            problem=active.problem,
            frames=active.frames,
        )

    def _remove(self, leaving: list[int], found: "_Evaluated") -> "_Evaluated":
        """Take systems out of the batch; returns what is left of `found`."""
        staying = [place for place in range(len(self._active)) if place not in leaving]
        systems = torch.tensor(staying, dtype=torch.int64, device=self._pos.device)
        atoms = self._atoms(staying) if staying else systems
        self._optimizer.keep(atoms, systems)
        self._active = [self._active[place] for place in staying]
        self._lay_out()
        self._pos, self._fixed = self._pos[atoms], self._fixed[atoms]
        self._good = _Evaluated(found.pos[atoms], found.energy[systems], found.forces[atoms])
        return self._good

    def _move(self, found: "_Evaluated") -> None:
        fixed = self._fixed.unsqueeze(1)
        step = self._optimizer.step(self._pos, torch.where(fixed, 0.0, found.forces), self._layout)
        self._pos = torch.where(fixed, self._pos, self._pos + step)
        for active in self._active:
            active.n_steps += 1


@dataclass(frozen=True)
class _Evaluated:
    """A batch computed. pos: [N, 3] A; energy: [B] eV; forces: [N, 3] eV/A."""

    pos: Tensor
    energy: Tensor
    forces: Tensor


class _Peekable:
    """Members one by one, with a look at the next."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = iter(members)
        self._next: Member | None = None

    def peek(self) -> Member | None:
        if self._next is None:
            self._next = next(self._members, None)
        return self._next

    def take(self) -> Member:
        member = self.peek()
        assert member is not None
        self._next = None
        return member


def _is_out_of_memory(error: Any) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)  # torch's allocator on CPUs raises a plain RuntimeError
    return "can't allocate memory" in said or "not enough memory" in said
