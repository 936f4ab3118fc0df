"""What tests of training share."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from ocpgem.parallel import group


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A group of this process alone, as a run without a launcher makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in group.RANK_VARIABLES:
            patch.setenv(name, "")  # remembered, so that what the group sets is taken back
            patch.delenv(name)
        group.init_from_environment("cpu")
        yield
        group.shutdown()
        _let_deepspeed_forget()


def _let_deepspeed_forget() -> None:
    """DeepSpeed remembers the group that it was first used with, and would look for it in the next one."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    comm.cdb = None
    for name, value in vars(groups).items():
        if isinstance(value, dist.ProcessGroup):
            setattr(groups, name, None)
