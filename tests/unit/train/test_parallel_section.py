"""Ways of dividing the work over ranks that cannot be combined."""

from typing import Any

import pytest
from pydantic import ValidationError

from ocpgem.train.config import TrainConfig
from tests.tiny_runs import tiny_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": {"zero_stage": 0, "overlap": True}}, "overlap needs zero_stage 1, 2 or 3"),
        ({"parallel": {"graph": 2, "overlap": True}}, "overlap does not work with graph above 1"),
        ({"parallel": {"graph": 2, "zero_stage": 3}}, "zero_stage 0, 1 and 2, not with 3"),
        ({"parallel": {"reduce_bucket": 0}}, "greater than or equal to 1"),
        ({"parallel": {"overlap": True}, "compile": "blocks"}, r"parallel\.overlap: true"),
        (
            {"parallel": {"overlap": True}, "faults": {"non_finite": "skip"}},
            r"faults\.non_finite: skip does not work with parallel\.overlap",
        ),
        (
            {"parallel": {"zero_stage": 3}, "faults": {"non_finite": "skip"}},
            r"faults\.non_finite: skip does not work with parallel\.zero_stage: 3",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(tiny_settings("train", **changes))
