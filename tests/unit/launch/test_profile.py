"""Cluster profiles: what they accept, and what each mistake is answered with."""

from pathlib import Path

import pytest

from ocpgem.errors import ConfigError
from ocpgem.launch.profile import ClusterProfile, load_profile, memory_in_mb, minutes_of
from tests.tiny_runs import ROOT


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:00:00", 60), ("2-12", 3600), ("1-00:30", 1470), ("1-00:00:01", 1441)],
)
def test_a_time_is_read_as_sbatch_reads_it(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("text", "mb"), [("64G", 65_536), ("500", 500), ("2000MB", 2000), ("1T", 1_048_576), ("0", 0)]
)
def test_a_memory_is_read_as_sbatch_reads_it(text: str, mb: int) -> None:
    assert memory_in_mb(text) == mb


def test_the_profiles_that_come_along_are_right() -> None:
    example = load_profile(ROOT / "slurm" / "example.yaml", [])
    assert (example.n_ranks, example.minutes, example.memory_mb) == (4, 1440, 245_760)
    local = load_profile(ROOT / "slurm" / "local_cluster.yaml", ["nodes=3"])
    assert (local.n_ranks, local.partition) == (6, "main")
    named = set((ROOT / "slurm" / "example.yaml").read_text().replace("#", " ").split())
    missing = [name for name in ClusterProfile.model_fields if f"{name}:" not in named]
    assert not missing, "the example shows every setting"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nodes=0", "nodes is 0"),
        ("time=soon", "time is 'soon'; it must be"),
        ("time=1", "not more than signal_seconds"),
        ("memory=lots", "memory is 'lots'"),
        ("mail.address=me", "mail.address is 'me'"),
        ("directives={ntasks-per-node: 2}", "directives.ntasks-per-node is set by tasks_per_node"),
        ("directives={array: 0-3}", "directives.array is set by --sweep"),
        ("directives={exclusive: false}", "directives.exclusive must be the long name"),
        ("tasks_per_node=8", "there must not be more ranks than GPUs"),
        ('setup=["a\\nb"]', "each item must be a single line"),
        ("partiton=gpu", "did you mean 'partition'"),
    ],
)
def test_a_mistake_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(ROOT / "slurm" / "example.yaml", [change])
    assert message in str(caught.value)


def test_a_name_without_a_file_is_answered_with_what_a_profile_is() -> None:
    with pytest.raises(ConfigError, match=r"such as slurm/local_cluster\.yaml"):
        load_profile(Path("mycluster"), [])
