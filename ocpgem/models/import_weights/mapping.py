"""Renaming the tensors of a released state dict: every source key used exactly once, every target filled."""

from collections.abc import Mapping

from torch import Tensor

from ocpgem.errors import CheckpointError


class KeyMap:
    """Takes tensors out of a source state dict under our names and proves at the end that none is left over."""

    def __init__(self, source: Mapping[str, Tensor], origin: str) -> None:
        self._source = dict(source)
        self._unused = set(source)
        self._origin = origin
        self.missing: list[str] = []
        self.target: dict[str, Tensor] = {}

    def move(self, source_key: str, target_key: str) -> None:
        """Take the tensor `source_key` as `target_key`; a missing one is noted for `finish`."""
        if source_key not in self._unused:
            self.missing.append(f"{target_key} (from {source_key})")
            return
        self._unused.remove(source_key)
        self.target[target_key] = self._source[source_key]

    def drop_alias(self, alias: str, original: str) -> None:
        """Drop `alias`, a second name of `original`, where the source has it, after checking that both are equal."""
        if alias not in self._unused:
            return
        self._unused.remove(alias)
        if not self._source[alias].equal(self._source[original]):
            raise CheckpointError(
                f"{self._origin}: {alias} differs from {original}, of which it should be a second name"
            )

    def drop_constant(self, key: str, expected: Tensor) -> None:
        """Drop a stored constant that we compute ourselves, after checking that it agrees."""
        if key not in self._unused:
            return
        self._unused.remove(key)
        value = self._source[key]
        if value.shape != expected.shape or not value.double().allclose(
            expected.double(), rtol=1e-6, atol=1e-7
        ):
            raise CheckpointError(
                f"{self._origin}: the constant {key} does not have the value that its settings imply"
            )

    def keys_below(self, prefix: str) -> list[str]:
        """The source keys not yet used that start with `prefix`."""
        return sorted(key for key in self._unused if key.startswith(prefix))

    def finish(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The renamed state dict.

        Raises CheckpointError listing source keys left over, targets not filled, and shapes that differ.
        """
        unfilled = sorted(set(expected) - set(self.target))
        shapes = [
            f"{key} is {list(value.shape)} but the model needs {list(expected[key].shape)}"
            for key, value in self.target.items()
            if key in expected and value.shape != expected[key].shape
        ]
        if self._unused or unfilled or shapes:
            missing = sorted(set(unfilled) | set(self.missing))
            raise CheckpointError(
                f"{self._origin} does not fit the model: unused keys {sorted(self._unused) or 'none'}; "
                f"missing {missing or 'none'}; wrong shapes {shapes or 'none'}"
            )
        return self.target
