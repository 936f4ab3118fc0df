"""The rank variables of a process that srun started, from what SLURM tells it."""

import socket
from collections.abc import Iterator, Mapping, MutableMapping

from ocpgem.errors import OcpgemError, RequestError
from ocpgem.launch.slurm import ask, expand_nodes, per_node, read_facts

FIRST_PORT = 20_000
N_PORTS = 12_000  # ends below 32768, where Linux begins to give out ports by itself
_STRIDE = (
    997  # to the next candidate: a prime far from the difference of two jobs that were submitted together
)


def adopt_slurm_ranks(environ: MutableMapping[str, str]) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in a task that srun started.

    Nothing happens outside SLURM, where a launcher (torchrun, deepspeed) has set RANK, and in a step of one task.
    OMP_NUM_THREADS becomes the task's cores where it is not set. Raises RequestError where the job has several tasks
    but this process is not one of them, and where SLURM's variables do not fit together.
    """
    if environ.get("RANK") or not environ.get("SLURM_JOB_ID"):
        return
    if not _is_task(environ):
        _refuse_batch_script(environ)
        return
    size = _number(environ, "SLURM_STEP_NUM_TASKS")
    if environ.get("SLURM_CPUS_PER_TASK"):
        environ.setdefault("OMP_NUM_THREADS", str(_number(environ, "SLURM_CPUS_PER_TASK")))
    if size == 1:
        return
    rank, local = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
    if rank >= size:
        raise RequestError(
            f"SLURM_PROCID is {rank}, but SLURM_STEP_NUM_TASKS is {size}; start the ranks with srun"
        )
    tasks = per_node(_value(environ, "SLURM_STEP_TASKS_PER_NODE"))
    node = _number(environ, "SLURM_NODEID")
    if node >= len(tasks):
        raise RequestError(
            f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE lists {len(tasks)} nodes; start the ranks with srun"
        )
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(_local_device(environ, local, tasks[node])),
        "LOCAL_WORLD_SIZE": str(tasks[node]),
    }
    if not (environ.get("MASTER_ADDR") and environ.get("MASTER_PORT")):
        first = expand_nodes(_value(environ, "SLURM_STEP_NODELIST"))[0]
        found["MASTER_ADDR"] = address_of(first)
        found["MASTER_PORT"] = str(next(job_ports(environ)))
        if rank == 0:
            _require_free(int(found["MASTER_PORT"]), environ)
    environ.update(found)


def meeting_point(environ: Mapping[str, str]) -> tuple[str, int]:
    """Address and a free port for the ranks of a batch job; called in its batch script, on its first node.

    The search begins at a number that belongs to the job, so that two jobs on one node do not meet.
    """
    first = expand_nodes(_value(environ, "SLURM_JOB_NODELIST"))[0]
    for port in job_ports(environ):
        if is_free(port):
            return address_of(first), port
    raise OcpgemError(f"all ports from {FIRST_PORT} to {FIRST_PORT + N_PORTS - 1} are taken on {first}")


def job_ports(environ: Mapping[str, str]) -> Iterator[int]:
    """The ports a job tries, each once; two jobs, or two steps of one, begin at different ones."""
    step = environ.get("SLURM_STEP_ID", "0")
    start = int(_value(environ, "SLURM_JOB_ID")) + 101 * (int(step) if step.isdecimal() else 0)
    for count in range(N_PORTS):
        yield FIRST_PORT + (start + count * _STRIDE) % N_PORTS


def is_free(port: int) -> bool:
    """Whether a process on this machine could listen on `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def address_of(node: str) -> str:
    """A name or address under which this machine finds `node`: its name, else the address that SLURM uses.

    A name that does not resolve would leave the ranks waiting for each other without a word.
    """
    if _resolves(node):
        return node
    try:
        address = read_facts(ask("scontrol", "--oneliner", "show", "node", node)).get("NodeAddr", "")
    except OcpgemError:
        address = ""
    if address and _resolves(address):
        return address
    raise RequestError(
        f"the node {node} has no address that {socket.gethostname()} can find; set MASTER_ADDR to one and MASTER_PORT"
    )


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _is_task(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script has a PROCID, too, but no step."""
    return bool(environ.get("SLURM_STEP_ID")) and "SLURM_PROCID" in environ


def _refuse_batch_script(environ: Mapping[str, str]) -> None:
    tasks = environ.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" in environ and tasks.isdecimal() and int(tasks) > 1:
        raise RequestError(
            f"this SLURM job has {tasks} tasks, but the command was started once, without srun; "
            "put srun before it (slurm/train.sbatch), or ask for one task and use --nproc or torchrun"
        )


def _local_device(environ: Mapping[str, str], local: int, tasks: int) -> int:
    """The number of this task's GPU among those that it sees: the only one, or the one with its own number."""
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(visible) == 1:
        return 0  # --gpus-per-task or --gpu-bind: each task sees its own
    if visible and len(visible) < tasks:
        raise RequestError(
            f"{tasks} tasks on {environ.get('SLURMD_NODENAME', 'this node')} share {len(visible)} GPUs; "
            "ask for as many tasks per node as GPUs per node"
        )
    return local


def _require_free(port: int, environ: Mapping[str, str]) -> None:
    if not is_free(port):
        raise RequestError(
            f"port {port}, where the ranks of job {environ['SLURM_JOB_ID']} would meet, is taken on "
            f"{environ.get('SLURMD_NODENAME', 'this node')}; set MASTER_ADDR and MASTER_PORT before srun"
        )


def _value(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise RequestError(f"{name} is not set although this is a SLURM job; start the ranks with srun")
    return value


def _number(environ: Mapping[str, str], name: str) -> int:
    value = _value(environ, name)
    if not value.isdecimal():
        raise RequestError(f"{name} is {value!r}; it must be a whole number")
    return int(value)
