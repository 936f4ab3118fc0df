"""What a run has come to: its final state and its losses."""

import json
from pathlib import Path
from typing import Any

import torch


def final_state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint but the time it took."""
    content = torch.load(run / "checkpoints" / str(step) / "state.pt", weights_only=True)
    content["train_state"].pop("seconds")
    found: dict[str, torch.Tensor] = {}

    def collect(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}/{key}", inner)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                collect(f"{prefix}/{number}", inner)
        elif isinstance(value, int | float | torch.Tensor):
            found[prefix] = torch.as_tensor(value)

    collect("", content)
    return found


def same_state(one: Path, other: Path, step: int) -> bool:
    """Whether two runs have come to the same state to the last bit."""
    expected, found = final_state(one, step), final_state(other, step)
    assert len(expected) > 100
    return set(expected) == set(found) and all(torch.equal(expected[key], found[key]) for key in expected)


def train_records(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every complete training record; what is being written is left out."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
