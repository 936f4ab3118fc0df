"""Faults of one rank at a chosen moment, for `forked.start`: what happens, where, and at which occurrence."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ocpgem.errors import CheckpointError

Act = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(10_000)


def raise_error() -> None:
    raise ValueError("something nobody foresaw")


def refuse() -> None:
    raise AssertionError("sizes differ")  # as DeepSpeed does


def find_damage() -> None:
    raise CheckpointError("state.pt is cut short")


def run_out_of_memory() -> None:
    torch.empty(1 << 60)


def at(moment: str, rank: int, occurrence: int, act: Act) -> Callable[[int], None]:
    """`act` in `rank` when it comes to `moment` for the `occurrence`-th time (from 1)."""

    def fault(number: int) -> None:
        if number == rank:
            count = iter(range(1, 1_000_000))
            _MOMENTS[moment](lambda: act() if next(count) == occurrence else None)

    return fault


def _wrap(owner: Any, name: str, before: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _forward(act: Act) -> None:
    from ocpgem.models.potential import Potential

    _wrap(Potential, "forward", lambda self, *_, **__: act() if self.training else None)


def _validation(act: Act) -> None:
    from ocpgem.models.potential import Potential

    _wrap(Potential, "forward", lambda self, *_, **__: None if self.training else act())


def _backward(act: Act) -> None:
    from ocpgem.train.engine import Engine

    def hook(_: torch.Tensor) -> None:
        act()

    _wrap(Engine, "backward", lambda self, share, last: share.register_hook(hook))


def _all_reduce(act: Act) -> None:
    import torch.distributed as dist

    _wrap(dist, "all_reduce", lambda *_, **__: act())


def _save(act: Act) -> None:
    from ocpgem.train import checkpoint_files

    _wrap(checkpoint_files, "_write_all", lambda *_: act())


def _rename(act: Act) -> None:
    """Between a complete checkpoint and the move of the pointer."""
    from ocpgem.train import checkpoint_files

    _wrap(checkpoint_files, "write_text", lambda path, _: act() if Path(path).name == "latest" else None)


def _read(act: Act) -> None:
    """Of a checkpoint; rank 0 does it first when it chooses one."""
    from ocpgem.train import state

    _wrap(state, "_read", lambda *_: act())


def _resume(act: Act) -> None:
    from ocpgem.train import engine_state

    _wrap(engine_state, "_set_whole", lambda *_: act())


def _step(act: Act) -> None:
    from ocpgem.train.engine import Engine

    _wrap(Engine, "step", lambda *_: act())


_MOMENTS = {
    "forward": _forward,
    "backward": _backward,
    "all-reduce": _all_reduce,
    "optimiser step": _step,
    "save": _save,
    "move of the pointer": _rename,
    "validation": _validation,
    "resume": _resume,
    "read": _read,
}
MOMENTS = tuple(_MOMENTS)
