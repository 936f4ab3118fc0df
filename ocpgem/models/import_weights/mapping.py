"""The correspondence between the tensors of a released model and ours: described once, run in both directions.

A module for one family of released models has `key_map(config) -> KeyMap`, which describes all tensors of the model:

    keys = KeyMap()
    keys.move("mlp_rbf3.linear.weight", "bases.radial_triplet.weight")
    keys.move("mlp_cbf3.weight", "bases.circular_triplet.weight", transform=..., inverse=...)
    keys.move_scale("out_blocks.0.scale_sum", "energy_branches.0.to_atoms.scale_sum")
    keys.alias_below("out_blocks.0.seq_energy.", "out_blocks.0.layers.")
    keys.constant("radial_basis.rbf.offset", centers)

`to_ours` then renames a released state dict, every source key used once and every target filled, and `to_released`
renames ours back.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ocpgem.errors import CheckpointError

Transform = Callable[[Tensor], Tensor]
SCALE_SUFFIX = ".scale_factor"
"""The end of every released name of a scale factor."""


@dataclass(frozen=True)
class _Move:
    released: str
    ours: str
    transform: Transform | None
    inverse: Transform | None

    def targets(self) -> tuple[str, ...]:
        return (self.ours,)

    def apply(self, value: Tensor) -> dict[str, Tensor]:
        return {self.ours: value if self.transform is None else self.transform(value)}


@dataclass(frozen=True)
class _Scale:
    released: str
    ours: str
    zero_is_unfitted: bool

    def targets(self) -> tuple[str, ...]:
        return (f"{self.ours}.factor", f"{self.ours}.fitted")

    def apply(self, value: Tensor) -> dict[str, Tensor]:
        factor = value.detach().reshape(())
        fitted = torch.ones_like(factor, dtype=torch.bool)
        if self.zero_is_unfitted:
            fitted = factor != 0
            factor = torch.where(fitted, factor, torch.ones_like(factor))
        return dict(zip(self.targets(), (factor, fitted), strict=True))


class KeyMap:
    """Which tensor of a released state dict is which of ours."""

    def __init__(self) -> None:
        self._moves: list[_Move] = []
        self._scales: list[_Scale] = []
        self._aliases: dict[str, list[str]] = {}
        self._constants: dict[str, Tensor] = {}
        self._unread: dict[str, Tensor] = {}
        self._unread_if_there: set[str] = set()

    def move(
        self,
        source: str,
        target: str,
        transform: Transform | None = None,
        inverse: Transform | None = None,
    ) -> None:
        """The released tensor `source` is our `target`, after `transform`; `inverse` leads back exactly."""
        assert (transform is None) == (inverse is None), f"{source}: transform and inverse belong together"
        self._moves.append(_Move(source, target, transform, inverse))

    def move_scale(self, source: str, target: str, zero_is_unfitted: bool = True) -> None:
        """The released module `source` (its tensor is `source`.scale_factor) is our ScaleFactor `target`.

        zero_is_unfitted: a stored 0 says "not fitted" and acts as 1, as in fairchem.
        """
        self._scales.append(_Scale(source + SCALE_SUFFIX, target, zero_is_unfitted))

    def alias(self, alias: str, original: str) -> None:
        """`alias` is a second released name of the tensor that is moved as `original`."""
        self._aliases.setdefault(original, []).append(alias)

    def alias_below(self, prefix: str, original_prefix: str) -> None:
        """What was described so far under `original_prefix` has second released names under `prefix`."""
        for original in [entry.released for entry in self._entries()]:
            if original.startswith(original_prefix):
                self.alias(prefix + original.removeprefix(original_prefix), original)

    def alias_endings(self, ending: str, original_ending: str) -> None:
        """What was described so far with `original_ending` has second released names with `ending`."""
        for original in [entry.released for entry in self._entries()]:
            for name in self._names(original):
                if name.endswith(original_ending):
                    self.alias(name.removesuffix(original_ending) + ending, original)

    def constant(self, key: str, value: Tensor) -> None:
        """`key` is a released buffer that we compute ourselves, as `value`."""
        self._constants[key] = value

    def unread(self, key: str, initial: Tensor) -> None:
        """`key` is a released parameter that no output depends on; we have none, and write its initial value."""
        self._unread[key] = initial

    def leave_unread(self, others: "KeyMap") -> None:
        """A file may hold what `others` describes, but no output depends on it; we have none and write none."""
        for entry in others._entries():
            self._unread_if_there.update(others._names(entry.released))

    @property
    def scale_names(self) -> list[str]:
        """The released module names of the scale factors, without ".scale_factor"."""
        return [scale.released.removesuffix(SCALE_SUFFIX) for scale in self._scales]

    def our_scale(self, name: str) -> str:
        """Our module for the released scale factor `name`."""
        return next(scale.ours for scale in self._scales if scale.released == name + SCALE_SUFFIX)

    def is_unfitted(self, name: str, value: Tensor) -> bool:
        """Whether `value` says that the released scale factor `name` was never fitted."""
        scale = next(scale for scale in self._scales if scale.released == name + SCALE_SUFFIX)
        return scale.zero_is_unfitted and not bool(value.ne(0).any())

    def unfitted_scales(self) -> dict[str, Tensor]:
        """Every released scale factor as it is stored before it is fitted."""
        return {
            scale.released: torch.tensor(0.0 if scale.zero_is_unfitted else 1.0) for scale in self._scales
        }

    def trainable(self, state_keys: Iterable[str]) -> list[str]:
        """Those of `state_keys` that are trainable parameters, each tensor under the first of its names."""
        first_names = {name: move.released for move in self._moves for name in self._names(move.released)}
        unread = {*self._unread, *self._unread_if_there}
        first_names |= {key: key for key in unread if not key.endswith(SCALE_SUFFIX)}
        seen: set[str] = set()
        found = []
        for key in state_keys:
            tensor = first_names.get(key)
            if tensor is not None and tensor not in seen:
                seen.add(tensor)
                found.append(key)
        return found

    def without_second_names(self, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`source` with each tensor under the first of its names only."""
        first = set(self.trainable(source))
        second = {name for move in self._moves for name in self._names(move.released)} - first
        return {key: value for key, value in source.items() if key not in second}

    def to_ours(
        self, source: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str
    ) -> dict[str, Tensor]:
        """The state dict `source` of a released model under our names; it must fill `expected` exactly.

        Second names and constants may be absent; where present they must agree. Raises CheckpointError that lists the
        keys of `source` that have no use, what is missing, and the shapes that differ.
        """
        unused = set(source) - set(self._unread) - self._unread_if_there
        missing: list[str] = []
        shapes: list[str] = []
        target: dict[str, Tensor] = {}
        for entry in self._entries():
            value = self._take(source, unused, self._names(entry.released), origin)
            if value is None:
                missing.append(f"{entry.ours} (from {entry.released})")
                continue
            try:
                target |= entry.apply(value)
            except RuntimeError:  # torch cannot bring it into the form that the settings imply
                shapes.append(f"{entry.released} is {list(value.shape)}")
        for key, constant in self._constants.items():
            if key in unused:
                unused.remove(key)
                _require_equal_constant(key, source[key], constant, origin)
        assert expected.keys() >= target.keys(), f"no model has {set(target) - set(expected)}"
        shapes += [
            f"{key} is {list(value.shape)} but the model needs {list(expected[key].shape)}"
            for key, value in target.items()
            if value.shape != expected[key].shape
        ]
        undescribed = set(expected) - {key for entry in self._entries() for key in entry.targets()}
        missing += undescribed
        if unused or missing or shapes:
            raise CheckpointError(
                f"{origin} does not fit the model: unused keys {sorted(unused) or 'none'}; "
                f"missing {sorted(missing) or 'none'}; wrong shapes {shapes or 'none'}"
            )
        return target

    def to_released(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict under the released names, with second names and constants."""
        computed = self._constants | self._unread
        released: dict[str, Tensor] = {key: value.clone() for key, value in computed.items()}
        for move in self._moves:
            value = ours[move.ours]
            value = value if move.inverse is None else move.inverse(value).contiguous()
            released |= dict.fromkeys(self._names(move.released), value)
        for scale in self._scales:
            factor, fitted = ours[f"{scale.ours}.factor"], ours[f"{scale.ours}.fitted"]
            if scale.zero_is_unfitted:
                factor = torch.where(~fitted & factor.eq(1), torch.zeros_like(factor), factor)
            released |= dict.fromkeys(self._names(scale.released), factor)
        return released

    def _entries(self) -> "list[_Move | _Scale]":
        return [*self._moves, *self._scales]

    def _names(self, released: str) -> tuple[str, ...]:
        """All released names of one tensor, the one it is moved by first."""
        return (released, *self._aliases.get(released, ()))

    def _take(
        self, source: Mapping[str, Tensor], unused: set[str], names: Iterable[str], origin: str
    ) -> Tensor | None:
        """The tensor that `source` has under one or more of `names`; they are used up."""
        present = [name for name in names if name in unused]
        unused.difference_update(present)
        for second in present[1:]:
            if not source[second].equal(source[present[0]]):
                raise CheckpointError(
                    f"{origin}: {second} differs from {present[0]}, of which it should be a second name"
                )
        return source[present[0]] if present else None


def _require_equal_constant(key: str, value: Tensor, constant: Tensor, origin: str) -> None:
    if value.shape != constant.shape or not value.double().allclose(constant.double(), rtol=1e-6, atol=1e-7):
        raise CheckpointError(f"{origin}: the constant {key} does not have the value that its settings imply")
