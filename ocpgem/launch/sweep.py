"""A sweep: many runs of one configuration, described by a grid or a list of settings."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from ocpgem.config import Contradiction, Section, load_config

MAX_RUNS = 1000


class SweepSection(Section):
    """A sweep file: `grid` for all combinations, or `list` for the runs one by one."""

    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="setting -> its values; every combination is a run"
    )
    list_: list[dict[str, Any]] = Field(
        default_factory=list, alias="list", description="the settings of each run"
    )
    parallel: int | None = Field(None, ge=1, description="how many runs may be active at the same time")

    def contradictions(self) -> Iterator[Contradiction]:
        """It describes runs, each once."""
        both = ("grid", "list")
        if bool(self.grid) == bool(self.list_):
            yield both, "a sweep file holds either grid or list, with at least one setting"
            return
        for key, values in self.grid.items():
            if not values:
                yield ("grid",), f"grid.{key} has no values"
        if any(not each for each in self.list_):
            yield ("list",), "list holds a run without settings"
        runs = self.runs()
        if len(runs) > MAX_RUNS:
            yield both, f"the sweep has {len(runs)} runs; at most {MAX_RUNS} are submitted at once"
        if len({str(each) for each in runs}) < len(runs):
            yield both, "two runs of the sweep have the same settings"

    def runs(self) -> list[dict[str, Any]]:
        """The settings of each run."""
        if self.list_:
            return self.list_
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]


def load_sweep(path: Path) -> SweepSection:
    """Read a sweep file. Raises ConfigError listing every mistake."""
    return load_config(path, [], SweepSection)


def overrides_of(settings: dict[str, Any]) -> list[str]:
    """Settings as overrides of the command line; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def names_of(runs: list[dict[str, Any]]) -> list[str]:
    """Folder names that say what is special about each run, as `003_lr=0.001_batch_size=8`."""
    width = max(3, len(str(len(runs) - 1)))
    found = []
    for number, settings in enumerate(runs):
        parts = [f"{key.rpartition('.')[2]}={json.dumps(value)}" for key, value in settings.items()]
        plain = re.sub(r"[^\w.=+-]+", "-", "_".join(parts).replace('"', ""))[:80].rstrip("-")
        found.append(f"{number:0{width}d}_{plain}")
    return found
