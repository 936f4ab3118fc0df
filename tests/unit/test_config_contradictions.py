"""Values that are right by themselves and do not go together: all are told at once, each with where it was set."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from ocpgem.config import Contradiction, Section, load_config, parse_config
from ocpgem.errors import ConfigError
from ocpgem.train.config import TrainConfig
from tests.tiny_runs import tiny_settings


class Inner(Section):
    low: int = Field(0, ge=0)
    high: int = 9
    step: int = 1

    def contradictions(self) -> Iterator[Contradiction]:
        if self.low > self.high:
            yield ("low", "high"), f"low is {self.low}, above high ({self.high})"
        if self.step > self.high:
            yield ("step", "high"), f"step is {self.step}, above high ({self.high})"


class Root(Section):
    inner: Inner = Inner()
    many: list[Inner] = Field(default_factory=list)
    by_name: dict[str, Inner] = Field(default_factory=dict)
    name: str = "a"
    lr: float = Field(0.1, gt=0, le=1)
    size: int = 1

    def contradictions(self) -> Iterator[Contradiction]:
        if self.name == "b" and self.size < 2:
            yield ("name", "size"), "name: b needs size 2"
        if self.lr > 0.5 and self.inner.step > 1:
            yield ("lr", "inner.step"), "lr is above 0.5, which needs inner.step: 1"
        if self.name == "b" and self.inner.low > 0:
            yield ("name", "inner.low"), "name: b needs inner.low: 0"


def lines(tmp_path: Path, text: str, *overrides: str, base: str = "{}") -> list[str]:
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "c.yaml").write_text("includes: base.yaml\n" + text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", overrides, Root)
    found = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    return [line.removeprefix("  ") for line in (found[1:] if len(found) > 1 else found)]


def test_all_contradictions_come_in_one_message_each_with_the_origin_of_its_keys(tmp_path: Path) -> None:
    text = "lr: 0.9\ninner:\n  low: 3"
    assert lines(tmp_path, text, "name=b", base="inner: {high: 5, step: 2}\n") == [
        "name: b needs size 2 (override name=b)",
        "lr is above 0.5, which needs inner.step: 1 (c.yaml line 2 and base.yaml line 1)",
        "name: b needs inner.low: 0 (override name=b and c.yaml line 4)",
    ]


def test_an_override_that_has_nothing_to_do_with_it_is_not_named(tmp_path: Path) -> None:
    assert lines(tmp_path, "inner: {low: 3, high: 2}", "inner.step=2", "size=4") == [
        "inner: low is 3, above high (2) (c.yaml line 2)"
    ]


def test_the_contradictions_of_several_sections_are_told_with_their_paths(tmp_path: Path) -> None:
    text = "inner:\n  low: 9\n  high: 0\nmany: [{}, {low: 10}]\nby_name: {x: {step: 11}}\n"
    assert lines(tmp_path, text, "name=b", "size=2") == [
        "inner: low is 9, above high (0) (c.yaml line 3 and c.yaml line 4)",
        "inner: step is 1, above high (0) (c.yaml line 4)",
        "many[1]: low is 10, above high (9) (c.yaml line 5)",
        "by_name.x: step is 11, above high (9) (c.yaml line 6)",
    ]


def test_wrong_values_and_contradictions_of_right_ones_are_told_together(tmp_path: Path) -> None:
    assert lines(tmp_path, "name: b\nlr: 9\ninner: {low: 10}\n") == [
        "inner: low is 10, above high (9) (c.yaml line 4)",
        "lr is 9; it must be a number > 0 and <= 1 (c.yaml line 3)",
        "name: b needs size 2 (c.yaml line 2)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: b\nsize: x", "size is 'x'"),
        ("name: b\nsiz: 2", "siz is not a known key"),
        ("lr: 0.9\ninner: {step: x}", "inner.step is 'x'"),
        ("name: b\nsize: 2\ninner: {lw: 0, low: 1}", "inner.lw is not a known key"),
        ("many: [{low: 10, hihg: 11}]", "many[0].hihg is not a known key"),
        ("inner: {low: 10, high: x}", "inner.high is 'x'"),
    ],
)
def test_a_contradiction_that_a_mistake_may_have_caused_is_not_told(
    text: str, expected: str, tmp_path: Path
) -> None:
    found = lines(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_an_origin_that_is_not_known_is_not_invented(tmp_path: Path) -> None:
    class Never(Section):
        size: int = 1

        def contradictions(self) -> Iterator[Contradiction]:
            yield ("size",), "this never works"

    with pytest.raises(ConfigError) as caught:
        parse_config("{}", Never, "stored")
    assert str(caught.value) == "this never works"


def test_what_an_override_misses_in_a_section_of_a_file_is_placed_in_the_file(tmp_path: Path) -> None:
    class Needs(Section):
        path: str
        size: int = 1

    class Holder(Section):
        part: Needs
        steps: int

    (tmp_path / "c.yaml").write_text("# a comment\npart: {size: 2}")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", ["part.size=3"], Holder)
    found = str(caught.value).replace(f"{tmp_path}/", "")
    assert "part.path is missing; it must be text (c.yaml line 2)" in found
    assert "steps is missing; it must be a whole number (c.yaml line 2)" in found


def test_a_section_made_in_python_tells_all_of_its_contradictions() -> None:
    with pytest.raises(ValidationError, match=r"low is 3, above high \(2\); step is 3, above high \(2\)"):
        Inner(low=3, high=2, step=3)


def test_independent_contradictions_of_a_run_come_in_one_message() -> None:
    settings = tiny_settings(
        "train",
        loss={"energy": 0, "forces": 0},
        optim={"lr": 9, "schedule": {"name": "plateau"}},
        parallel={"zero_stage": 0, "graph": 2, "overlap": True},
        data={"hide_elements": 0.5},
        normalization="keep",
    )
    with pytest.raises(ConfigError) as caught:
        parse_config(repr(settings), TrainConfig, "run")
    found = str(caught.value).splitlines()
    assert found[0] == "7 mistakes in run:"
    for part in (
        "optim.lr is 9; it must be a number > 0 and <= 1",
        "loss.energy and loss.forces are both 0",
        "overlap needs zero_stage 1, 2 or 3",
        "overlap does not work with graph above 1, and graph is 2",
        "data.hide_elements needs model.shared_embedding: true",
        "optim.schedule.plateau needs a validation set (data.val)",
        "normalization: keep needs start_from",
    ):
        assert sum(part in line for line in found) == 1
