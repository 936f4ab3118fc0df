"""Process groups: reading the environment, and collectives of a single process."""

import pytest
import torch

from ocpgem.errors import DataError, RequestError
from ocpgem.parallel import group

FULL = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_full_environment_is_read() -> None:
    assert group.read_environment(FULL) == group.RankEnvironment(1, 2, 1, "127.0.0.1", 29500)


@pytest.mark.parametrize("environ", [{}, {"MASTER_ADDR": "node1"}, {"MASTER_PORT": "1", "RANK": ""}])
def test_no_rank_variables_mean_a_single_process(environ: dict[str, str]) -> None:
    assert group.read_environment(environ) is None


@pytest.mark.parametrize("name", group.RANK_VARIABLES)
def test_a_missing_variable_is_named(name: str) -> None:
    environ = {key: value for key, value in FULL.items() if key != name}
    with pytest.raises(RequestError, match=f"but not {name};"):
        group.read_environment(environ)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_senseless_values_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        group.read_environment(FULL | change)


def test_collectives_are_identities_without_a_group() -> None:
    value = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert not group.is_initialised()
    assert (group.rank(), group.world_size(), group.is_main()) == (0, 1, True)
    assert torch.equal(group.all_reduce_sum(value), value)
    assert torch.equal(group.all_reduce_max(value), value)
    assert group.broadcast_object({"a": 1}) == {"a": 1}
    assert group.gather_objects("here") == ["here"]
    group.barrier()
    group.raise_together(None)
    group.shutdown()


def test_a_single_process_raises_its_own_error() -> None:
    error = DataError("record 3 is damaged")
    with pytest.raises(DataError) as caught:
        group.raise_together(error)
    assert caught.value is error


def test_a_reduced_tensor_is_a_copy() -> None:
    value = torch.ones(2, requires_grad=True)
    reduced = group.all_reduce_sum(value)
    reduced += 1
    assert not reduced.requires_grad
    assert torch.equal(value.detach(), torch.ones(2))
