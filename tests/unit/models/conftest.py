"""What tests of models share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[None]:
    """A test may set how many threads torch has; others have as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
