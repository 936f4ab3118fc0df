"""Rank variables from SLURM's, with its mistakes named."""

import socket
from typing import Any

import pytest

from ocpgem.errors import RequestError
from ocpgem.launch import rank_environment
from ocpgem.launch.rank_environment import adopt_slurm_ranks, job_ports, meeting_point
from ocpgem.parallel.group import read_environment

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "localhost,other",
}


def adopted(**changes: str | None) -> dict[str, str]:
    environ = {key: value for key, value in (TASK | changes).items() if value is not None}
    adopt_slurm_ranks(environ)
    return environ


def test_a_task_of_srun_becomes_a_rank() -> None:
    place = read_environment(adopted())
    assert place is not None
    assert (place.rank, place.world_size, place.local_rank, place.master_addr) == (3, 4, 1, "localhost")
    assert place.master_port == next(job_ports(TASK))


def test_the_meeting_point_of_the_batch_script_is_kept() -> None:
    place = read_environment(adopted(MASTER_ADDR="n7", MASTER_PORT="23456"))
    assert place is not None
    assert (place.master_addr, place.master_port) == ("n7", 23456)


def test_what_a_launcher_has_set_is_kept() -> None:
    environ = adopted(RANK="0", WORLD_SIZE="2")
    assert environ["RANK"] == "0"
    assert "MASTER_PORT" not in environ


def test_a_task_uses_its_cores_and_its_only_gpu() -> None:
    environ = adopted(SLURM_CPUS_PER_TASK="6", CUDA_VISIBLE_DEVICES="0")
    assert environ["OMP_NUM_THREADS"] == "6"
    assert environ["LOCAL_RANK"] == "0"
    assert adopted(CUDA_VISIBLE_DEVICES="0,1")["LOCAL_RANK"] == "1"


def test_a_single_task_and_an_interactive_shell_need_nothing() -> None:
    assert "RANK" not in adopted(SLURM_STEP_NUM_TASKS="1")
    assert "RANK" not in adopted(SLURM_STEP_ID=None, SLURM_PROCID=None, SLURM_NTASKS="4")
    environ: dict[str, str] = {}
    adopt_slurm_ranks(environ)
    assert environ == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_STEP_ID": None, "SLURM_NTASKS": "4"}, "started once, without srun; put srun before it"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'; it must be a whole number"),
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is 4, but SLURM_STEP_NUM_TASKS is 4"),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "4"},
            "SLURM_NODEID is 1, but SLURM_STEP_TASKS_PER_NODE lists 1 nodes",
        ),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_STEP_NODELIST": "no-such-node.invalid"}, "no-such-node.invalid has no address"),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "1,3", "CUDA_VISIBLE_DEVICES": "0,1"},
            "3 tasks on this node share 2 GPUs",
        ),
    ],
)
def test_variables_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        adopted(**changes)


def test_rank_zero_refuses_a_port_that_is_taken() -> None:
    with socket.socket() as holder:
        holder.bind(("", next(job_ports(TASK))))
        holder.listen()
        with pytest.raises(RequestError, match="is taken on this node; set MASTER_ADDR and MASTER_PORT"):
            adopted(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")


def test_a_job_avoids_ports_that_are_taken() -> None:
    environ = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localhost"}
    ports = job_ports(environ)
    with socket.socket() as holder:
        holder.bind(("", next(ports)))
        holder.listen()
        assert meeting_point(environ) == ("localhost", next(ports))


def test_jobs_that_are_submitted_together_never_share_a_port() -> None:
    first = [next(job_ports({"SLURM_JOB_ID": str(number)})) for number in range(100_000, 110_000)]
    assert len(set(first)) == len(first)
    assert min(first) >= rank_environment.FIRST_PORT
    assert max(first) < 32_768
    every = list(job_ports({"SLURM_JOB_ID": "5"}))
    assert len(set(every)) == len(every) == rank_environment.N_PORTS
