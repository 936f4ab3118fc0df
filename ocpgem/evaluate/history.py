"""The numbers of a run over its steps, as its metrics.jsonl holds them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.errors import DataError, RequestError

Record = dict[str, Any]


@dataclass(frozen=True)
class History:
    """Records of training, and of validation by split, each in order of step and once per step."""

    train: list[Record]
    validation: dict[str, list[Record]]

    @property
    def n_steps(self) -> int:
        """The last step anything is known of."""
        return max(record["step"] for record in self._all())

    @property
    def seconds(self) -> float:
        """How long the run took, over all its restarts."""
        return max(float(record.get("seconds", 0.0)) for record in self._all())

    def _all(self) -> list[Record]:
        return self.train + [record for records in self.validation.values() for record in records]


def series(records: list[Record], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Steps and values of one number, without the records that lack it or hold no finite value."""
    pairs = [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
    steps = np.array([step for step, _ in pairs], dtype=float)
    values = np.array([value for _, value in pairs], dtype=float)
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def read_history(run_dir: Path) -> History:
    """Read `metrics.jsonl` of a run directory.

    A last line that was cut off by the end of the run is left out. Raises RequestError where there is no such
    file, and DataError, naming the line, where it holds anything else.
    """
    path = run_dir / "metrics.jsonl"
    if not run_dir.is_dir():
        what = "is a file" if run_dir.is_file() else "does not exist"
        raise RequestError(f"{run_dir} {what}; give the folder of a run")
    if not path.is_file():
        raise RequestError(f"{run_dir} has no metrics.jsonl, so it is not the folder of a run that has begun")
    train: dict[int, Record] = {}
    validation: dict[str, dict[int, Record]] = {}
    lines = path.read_text(errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is not None:
            kept = train if record["kind"] == "train" else validation.setdefault(str(record["split"]), {})
            kept[record["step"]] = record
        elif number < len(lines):  # every complete line ends with a break: only the last piece can be cut off
            raise DataError(f"{path}, line {number} is not a record of metrics: {line[:60]!r}")
    if not train and not validation:
        raise DataError(f"{path} holds no records yet; train for some steps first")
    return History(
        [train[step] for step in sorted(train)],
        {split: [records[step] for step in sorted(records)] for split, records in validation.items()},
    )


def _parse(line: str) -> Record | None:
    """The record in a line, None where there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    kind = record.get("kind")
    return record if kind == "train" or (kind == "val" and "split" in record) else None
