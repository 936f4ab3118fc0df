"""Process groups, and collectives that are safe to call whether or not there is more than one process."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ocpgem.errors import OcpgemError, RequestError

T = TypeVar("T")

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DEFAULT_TIMEOUT = timedelta(minutes=15)
_STORE_TIMEOUT = timedelta(seconds=10)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class RankEnvironment:
    """The place of this process among all processes, as a launcher states it in the environment."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int


def read_environment(environ: Mapping[str, str]) -> RankEnvironment | None:
    """Read the rank variables; None where none is set (a single process started by hand).

    Raises RequestError when only some are set or a value makes no sense.
    """
    found = [name for name in RANK_VARIABLES if environ.get(name)]
    if not found:
        return None
    # One process needs no meeting point: some shells and job scripts leave MASTER_ADDR set for everything
    # they start.
    if set(found) <= {"MASTER_ADDR", "MASTER_PORT"}:
        return None
    missing = [name for name in RANK_VARIABLES if name not in found]
    if missing:
        raise RequestError(
            f"the environment sets {', '.join(found)} but not {', '.join(missing)}; "
            "set all five to run several processes, or none to run one"
        )
    numbers = {name: _whole_number(name, environ[name]) for name in RANK_VARIABLES if name != "MASTER_ADDR"}
    rank_, size, local = numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"]
    if size < 1 or not 0 <= rank_ < size or local < 0:
        raise RequestError(
            f"the environment says RANK={rank_}, WORLD_SIZE={size}, LOCAL_RANK={local}; "
            "RANK must lie in 0..WORLD_SIZE-1 and LOCAL_RANK must not be negative"
        )
    return RankEnvironment(rank_, size, local, environ["MASTER_ADDR"], numbers["MASTER_PORT"])


def init_from_environment(device: torch.device | str, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
    """Join the process group that the environment describes; alone, become a group of one on a free port.

    A group of one is a real group, so that training follows one path everywhere. Tensors on the CPU travel
    over gloo, tensors on a GPU over NCCL. The rank variables are set afterwards also for a single process,
    since DeepSpeed reads them. Does nothing where a group exists. Raises RequestError for a wrong environment
    and where the other ranks cannot be reached.

    device: where this process computes; on CUDA it selects the GPU, `cuda` alone meaning the one numbered
        LOCAL_RANK.
    timeout: how long a collective waits for a rank that does not come.
    """
    if is_initialised():
        return
    device = torch.device(device)
    place = read_environment(os.environ)
    if device.type == "cuda":
        local = place.local_rank if place else 0
        torch.cuda.set_device(device if device.index is not None else torch.device("cuda", local))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if place is None or place.world_size == 1:
        _init_alone(backend, timeout)
        return
    _keep_gloo_on_loopback(place.master_addr)
    try:
        dist.init_process_group(
            backend, init_method="env://", rank=place.rank, world_size=place.world_size, timeout=timeout
        )
    except (dist.DistNetworkError, dist.DistStoreError, dist.DistBackendError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise RequestError(
            f"rank {place.rank} of {place.world_size} could not join the process group at "
            f"{place.master_addr}:{place.master_port}: {first_line}; "
            "check that all ranks run and that the port is free"
        ) from error


def shutdown() -> None:
    """Leave the process group; nothing happens where there is none."""
    if is_initialised():
        dist.destroy_process_group()


def is_initialised() -> bool:
    """Whether this process is a member of a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, 0 to `world_size() - 1`."""
    return dist.get_rank() if is_initialised() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_initialised() else 1


def is_main() -> bool:
    """Whether this is process 0, the one that prints and writes files."""
    return rank() == 0


def connect_to_store() -> dist.TCPStore | None:
    """A connection of our own to the store by which the ranks met; None where there is only one rank."""
    if world_size() == 1:
        return None
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=_STORE_TIMEOUT,
    )


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, on every rank; the argument stays as it was, no gradient flows."""
    return _all_reduce(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """The element-wise maximum of `tensor` over all ranks, on every rank; the argument stays as it was."""
    return _all_reduce(tensor, dist.ReduceOp.MAX)


def broadcast_object(value: T, source: int = 0) -> T:
    """The object that rank `source` holds, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def gather_objects(value: T) -> list[T] | None:
    """The objects of all ranks, in rank order, on rank 0; None on the others."""
    if world_size() == 1:
        return [value]
    boxes: list[T] | None = [value] * world_size() if is_main() else None
    dist.gather_object(value, boxes, dst=0)
    return boxes


def all_gather_objects(value: T) -> list[T]:
    """The objects of all ranks, in rank order, on every rank."""
    boxes = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(boxes, value)
    return boxes


def barrier() -> None:
    """Wait until every rank has come here."""
    if world_size() > 1:
        # A sum over a CPU tensor goes over gloo also on GPU machines, where dist.barrier would have to guess
        # a device.
        dist.all_reduce(torch.zeros(1))


def raise_together(error: OcpgemError | None) -> None:
    """Raise the error of the lowest rank that has one, on every rank; return where none has.

    Every rank calls it at the end of work that contains no other collective, so that one bad record ends all
    ranks with the same sentence instead of leaving the others to wait for the one that failed.
    """
    if world_size() == 1:
        if error is not None:
            raise error
        return
    errors: list[OcpgemError | None] = [None] * world_size()
    dist.all_gather_object(errors, error)
    first = next((each for each in errors if each is not None), None)
    if first is not None:
        raise first


def on_main(work: Callable[[], T]) -> T:
    """Do something on rank 0 only; its result is everybody's result and its error everybody's error."""
    error: OcpgemError | None = None
    found: list[T] = []
    if is_main():
        try:
            found.append(work())
        except OcpgemError as caught:
            error = caught
    raise_together(error)
    return broadcast_object(found)[0]


def on_all(work: Callable[[], T]) -> T:
    """Do something that contains no collective on every rank; the error of any is everybody's."""
    error: OcpgemError | None = None
    found: list[T] = []
    try:
        found.append(work())
    except OcpgemError as caught:
        error = caught
    raise_together(error)
    return found[0]


def _all_reduce(tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
    result = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(result, op=operation)
    return result


def _init_alone(backend: str, timeout: timedelta) -> None:
    """Form a group of one; the store picks its own port, so that any number of runs share a machine."""
    _keep_gloo_on_loopback("127.0.0.1")
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ.update(alone)
    os.environ.setdefault("LOCAL_RANK", "0")


def _keep_gloo_on_loopback(master_addr: str) -> None:
    """Let gloo use the loopback device when all ranks are here: the machine's name may resolve to nowhere."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if master_addr in _LOOPBACK and names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RequestError(
            f"the environment variable {name} is {text!r}; it must be a whole number"
        ) from None
