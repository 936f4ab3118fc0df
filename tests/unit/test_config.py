"""Reading configurations: merging, overrides, round trips, and what each mistake is answered with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from ocpgem.config import Contradiction, Section, dump_config, load_config, parse_config
from ocpgem.errors import ConfigError


class Quadruplets(Section):
    cutoff: float = Field(12.0, gt=0, le=20)


class Gemnet(Section):
    kind: Literal["gemnet"] = "gemnet"
    cutoff: float = Field(6.0, gt=0, le=50)
    blocks: int = Field(3, ge=1)
    quadruplets: Quadruplets | None = None


class Schnet(Section):
    kind: Literal["schnet"]
    filters: int = 64


class Optim(Section):
    lr: float = Field(1e-3, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    amsgrad: bool = False
    schedule: Literal["cosine", "plateau"] = "cosine"
    warmup: int | None = Field(None, ge=0)


class Split(Section):
    path: Path
    limit: int | None = None


class Budget(Section):
    atoms: int | None = Field(None, ge=1)
    edges: int | None = Field(None, ge=1)

    def contradictions(self) -> Iterator[Contradiction]:
        if (self.atoms is None) == (self.edges is None):
            yield ("atoms", "edges"), "a budget is given in one unit"


class Root(Section):
    name: str = "run"
    model: Annotated[Gemnet | Schnet, Field(discriminator="kind")] = Gemnet()
    optim: Optim = Optim()
    references: dict[int, float] = Field(default_factory=dict)
    splits: list[Split] = Field(default_factory=list)
    parts: str | Split | list[str | Split] | None = None
    size: Annotated[int, Field(ge=1)] | Budget = 8
    weights: list[float] = Field(default_factory=list)

    def contradictions(self) -> Iterator[Contradiction]:
        if self.optim.amsgrad and self.optim.lr > 0.1:
            yield (
                ("optim.amsgrad", "optim.lr"),
                f"optim.lr is {self.optim.lr}; with amsgrad it must not exceed 0.1",
            )


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, Root)
    assert caught.value.exit_code == 2
    return str(caught.value)


def message_of(text: str, tmp_path: Path, *overrides: str) -> str:
    return message(write(tmp_path, "c.yaml", text), *overrides)


# ---- what is read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.e-4", 1e-4),
        (".5", 0.5),
        ("1", 1.0),
        ("+2.5e-1", 0.25),
        ("1e-05", 1e-5),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "c.yaml", f"optim: {{lr: {text}}}"), [], Root).optim.lr == value


@pytest.mark.parametrize(
    "text", ["no", "on", "12:30", "2026-01-01", "0x10", "1_000", "=", "1e", "'1e-4'", '"null"']
)
def test_text_that_only_yaml_1_1_takes_for_something_else_stays_text(text: str, tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "c.yaml", f"name: {text}"), [], Root).name == text.strip("'\"")


def test_included_maps_merge_lists_replace_and_later_wins(tmp_path: Path) -> None:
    write(tmp_path, "base/optim.yaml", "optim: {lr: 0.5, betas: [0.1, 0.2], warmup: 3}\nweights: [1, 2]")
    write(tmp_path, "base/all.yaml", "includes: optim.yaml\noptim: {lr: 0.25}\nname: base")
    write(tmp_path, "second.yaml", "optim: {schedule: plateau}\nname: second\nweights: [3]")
    path = write(tmp_path, "c.yaml", "includes: [base/all.yaml, second.yaml]\noptim: {warmup: null}")
    config = load_config(path, [], Root)
    assert config.optim == Optim(lr=0.25, betas=(0.1, 0.2), schedule="plateau", warmup=None)
    assert (config.name, config.weights) == ("second", [3.0])


def test_a_file_may_be_included_along_two_ways(tmp_path: Path) -> None:
    write(tmp_path, "root.yaml", "name: root")
    write(tmp_path, "a.yaml", "includes: [root.yaml]")
    write(tmp_path, "b.yaml", "includes: [root.yaml]")
    assert load_config(write(tmp_path, "c.yaml", "includes: [a.yaml, b.yaml]"), [], Root).name == "root"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optim.lr=1e-4", ("optim", "lr"), 1e-4),
        (" optim.lr =0.5", ("optim", "lr"), 0.5),
        ("optim.betas=[0.5, 0.75]", ("optim", "betas"), (0.5, 0.75)),
        ("optim={lr: 0.5}", ("optim", "warmup"), 7),
        ("optim.warmup=", ("optim", "warmup"), None),
        ("optim.warmup=null", ("optim", "warmup"), None),
        ("model.quadruplets.cutoff=3", ("model", "quadruplets", "cutoff"), 3.0),
        ("references.8=-1.5", ("references", 8), -1.5),
        ("name=a=b", ("name",), "a=b"),
        ('name="3"', ("name",), "3"),
    ],
)
def test_an_override_sets_one_value(override: str, path: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    file = write(tmp_path, "c.yaml", "optim: {warmup: 7}\nmodel: {kind: gemnet, quadruplets: null}")
    found: Any = load_config(file, [override], Root)
    for key in path:
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    file = write(tmp_path, "c.yaml", "name: x")
    assert load_config(file, ["name=a", "name=b"], Root).name == "b"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("references: {1: null}", [], {8: -2.0}),
        ("references: null", [], {}),
        ("references: {}", [], {1: -1.0, 8: -2.0}),
        ("name: x", ["references.8=null"], {1: -1.0}),
        ("name: x", ["references={1: null, 8: null, 6: -3}"], {6: -3.0}),
        ("name: x", ["references.8=null", "references.8=null"], {1: -1.0}),
        ("name: x", ["references.8=null", "references.8=5"], {1: -1.0, 8: 5.0}),
        ("references: {6: -3}", ["references=null"], {}),
        ("references: {6: -3}", ["references=null", "references.7=-4"], {7: -4.0}),
    ],
)
def test_null_takes_names_of_a_map_back(
    text: str, overrides: list[str], expected: dict[int, float], tmp_path: Path
) -> None:
    write(tmp_path, "base.yaml", "references: {1: -1, 8: -2}")
    path = write(tmp_path, "c.yaml", f"includes: [base.yaml]\n{text}")
    assert load_config(path, overrides, Root).references == expected


def test_anchors_may_be_used(tmp_path: Path) -> None:
    text = "splits: [&one {path: a, limit: 3}, *one]"
    assert load_config(write(tmp_path, "c.yaml", text), [], Root).splits == [Split(path="a", limit=3)] * 2


def test_a_configuration_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError):
        Root().name = "other"  # type: ignore[misc]


# ---- round trip

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    [
        "1e-4",
        "null",
        "~",
        "true",
        "no",
        "",
        " x ",
        "0x1",
        "- a",
        "a: b",
        "#",
        "2026-01-01",
        "1:30",
        "é\n\n ü",
        "<<",
    ]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    texts,
    st.floats(1e-300, 1),
    st.lists(numbers),
    st.dictionaries(st.integers(1, 118), numbers),
    st.none() | st.floats(1e-9, 20),
)
def test_what_is_dumped_loads_back_equal(
    name: str, lr: float, weights: list[float], references: dict[int, float], cutoff: float | None
) -> None:
    quadruplets = None if cutoff is None else Quadruplets(cutoff=cutoff)
    config = Root(
        name=name,
        optim=Optim(lr=lr),
        weights=weights,
        references=references,
        model=Gemnet(quadruplets=quadruplets),
        splits=[Split(path=Path("a b/c"))],
    )
    assert parse_config(dump_config(config), Root, "dump") == config


def test_the_dump_holds_the_defaults_too() -> None:
    assert "schedule: cosine" in dump_config(Root())


def test_stored_text_must_be_complete() -> None:
    with pytest.raises(ConfigError, match="includes are not possible here"):
        parse_config("includes: [a.yaml]", Root, "model.pt")


# ---- mistakes in values and keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: {lr: -1}", "optim.lr is -1; it must be a number > 0 and <= 1 ({c} line 1)"),
        ("optim: {lr: .nan}", "optim.lr is nan; it must be a number > 0 and <= 1 ({c} line 1)"),
        ("optim:\n  lr: fast", "optim.lr is 'fast'; it must be a number > 0 and <= 1 ({c} line 2)"),
        ("optim: {lr: true}", "optim.lr is true; it must be a number > 0 and <= 1 ({c} line 1)"),
        ("optim: {lr: }", "optim.lr is empty; it must be a number > 0 and <= 1 ({c} line 1)"),
        ("optim: {lr: [1, 2]}", "optim.lr is [1, 2]; it must be a number > 0 and <= 1 ({c} line 1)"),
        ("optim: {warmup: 1.5}", "optim.warmup is 1.5; it must be a whole number >= 0 or null ({c} line 1)"),
        ("optim: {warmup: -3}", "optim.warmup is -3; it must be a whole number >= 0 or null ({c} line 1)"),
        ("optim: {amsgrad: 7}", "optim.amsgrad is 7; it must be true or false ({c} line 1)"),
        (
            "optim: {schedule: linear}",
            "optim.schedule is 'linear'; it must be one of 'cosine', 'plateau' ({c} line 1)",
        ),
        ("optim: {betas: [1]}", "optim.betas[1] is missing; it must be a number ({c} line 1)"),
        ("optim: {betas: [1, x]}", "optim.betas[1] is 'x'; it must be a number ({c} line 1)"),
        ("name: 3", "name is 3; it must be text; quote it to make it text ({c} line 1)"),
        ("weights: 3", "weights is 3; it must be a list, each a number ({c} line 1)"),
        ("weights: [1, true]", "weights[1] is true; it must be a number ({c} line 1)"),
        (
            "references: {a: 1}",
            "'a' is not possible as a key of references: input should be a valid integer, unable to parse string "
            "as an integer ({c} line 1)",
        ),
        ("splits: [{limit: 3}]", "splits[0].path is missing; it must be a path ({c} line 1)"),
        ("splits: [{path: 3}]", "splits[0].path is 3; it must be a path ({c} line 1)"),
        ("splits: [x]", "splits[0] is 'x'; it must be a section with the keys path, limit ({c} line 1)"),
        (
            "model: {kind: dimenet}",
            "model.kind is 'dimenet'; it must be one of 'gemnet', 'schnet' ({c} line 1)",
        ),
        ("model: {cutoff: 3}", "model.kind is missing; it must be one of 'gemnet', 'schnet' ({c} line 1)"),
        (
            "model: {kind: gemnet, quadruplets: {cutoff: 99}}",
            "model.quadruplets.cutoff is 99; it must be a number > 0 and <= 20 ({c} line 1)",
        ),
        (
            "optim:\n# all keys commented out",
            "optim is empty; "
            "it must be a section with the keys lr, betas, amsgrad, schedule, warmup ({c} line 1)",
        ),
        (
            "optim: {amsgrad: true, lr: 0.5}",
            "optim.lr is 0.5; with amsgrad it must not exceed 0.1 ({c} line 1)",
        ),
        ("optim: {lrr: 1}", "optim.lrr is not a known key; did you mean 'optim.lr'? ({c} line 1)"),
        ("optimizer: {lr: 1}", "optimizer is not a known key; did you mean 'optim'? ({c} line 1)"),
        ("betas: [1, 2]", "betas is not a known key; did you mean 'optim.betas'? ({c} line 1)"),
        (
            "model: {kind: gemnet, cutof: 3}",
            "model.cutof is not a known key; did you mean 'model.cutoff'? ({c} line 1)",
        ),
        (
            "model: {kind: schnet, cutoff: 3}",
            "model.cutoff is not a known key; did you mean 'model.quadruplets.cutoff'? ({c} line 1)",
        ),
        (
            "splits: [{path: a, lmit: 3}]",
            "splits[0].lmit is not a known key; did you mean 'splits[0].limit'? ({c} line 1)",
        ),
        (
            "zzzz: 1",
            "zzzz is not a known key; "
            "the keys here are name, model, optim, references, splits, parts, size, weights ({c} line 1)",
        ),
        (
            "parts: 5",
            "parts is 5; it must be text or a section with the keys path, limit or a list, each text or a section "
            "with the keys path, limit or null; quote it to make it text ({c} line 1)",
        ),
        ("parts: {path: a, limit: x}", "parts.limit is 'x'; it must be a whole number or null ({c} line 1)"),
        ("parts: {}", "parts.path is missing; it must be a path ({c} line 1)"),
        ("parts: [a, {limit: 3}]", "parts[1].path is missing; it must be a path ({c} line 1)"),
        (
            "parts: [a, 3]",
            "parts[1] is 3; it must be text or a section with the keys path, limit; quote it to make it text "
            "({c} line 1)",
        ),
        (
            "size: 0",
            "size is 0; it must be a whole number >= 1 or a section with the keys atoms, edges ({c} line 1)",
        ),
        (
            "size: {atom: 10}",
            "size.atom is not a known key; did you mean 'size.atoms'? ({c} line 1)",
        ),
        ("size: {}", "size: a budget is given in one unit ({c} line 1)"),
        ("size: {atoms: 1, edges: 2}", "size: a budget is given in one unit ({c} line 1)"),
    ],
)
def test_a_mistake_is_one_sentence_with_path_value_limit_and_line(
    text: str, expected: str, tmp_path: Path
) -> None:
    assert message_of(text, tmp_path) == expected.replace("{c}", str(tmp_path / "c.yaml"))


def test_all_mistakes_come_in_one_message(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "optim: {amsgrad: 7}\nnam: x")
    path = write(tmp_path, "c.yaml", "includes: [base.yaml]\noptim:\n  lr: -1\nwigths: [1]")
    lines = message(path, "optim.betas=3", "nonsense", "model.blocks=0", "model.kind=gemnet").splitlines()
    assert lines[0] == f"7 mistakes in {path}:"
    assert len(lines) == 8
    text = "\n".join(lines)
    for part in (
        f"({tmp_path}/base.yaml line 1)",
        f"nam is not a known key; did you mean 'name'? ({tmp_path}/base.yaml line 2)",
        f"optim.lr is -1; it must be a number > 0 and <= 1 ({path} line 3)",
        f"wigths is not a known key; did you mean 'weights'? ({path} line 4)",
        "(override optim.betas=3)",
        "override 'nonsense' must have the form section.key=value",
        "model.blocks is 0; it must be a whole number >= 1 (override model.blocks=0)",
    ):
        assert part in text


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(message_of(f"optim: {{lr: {'x' * 5000}}}", tmp_path)) < 250


# ---- mistakes in overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr", "override 'optim.lr' must have the form section.key=value"),
        ("=3", "override '=3' must have the form section.key=value"),
        ("optim..lr=3", "override 'optim..lr=3' must have the form section.key=value"),
        ("optim.lr.x=3", "optim.lr is not a section (override optim.lr.x=3)"),
        ("weights.0=3", "weights is a list, which can only be set as a whole (override weights.0=3)"),
        ("weights=[1", "override weights=[1: is not valid YAML: "),
        ("weights=*x", "override weights=*x: is not valid YAML: "),
        ("model={kind: gemnet, kind: schnet}", "the key 'kind' is given twice"),
        ("includes=[x.yaml]", "includes is not a known key"),
        ("references.3=null", "references.3 is empty; it must be a number (override references.3=null)"),
        ("optim.lr=null", "optim.lr is empty; it must be a number > 0 and <= 1 (override optim.lr=null)"),
        ("optim=null", "optim is empty; it must be a section with the keys"),
        ("weights=null", "weights is empty; it must be a list, each a number (override weights=null)"),
        ("opt.lr=3", "opt is not a known key; did you mean 'optim'? (override opt.lr=3)"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str, tmp_path: Path) -> None:
    found = message_of("optim: {lr: 0.5}\nweights: [1]", tmp_path, override)
    assert expected in found
    assert "\n" not in found


# ---- mistakes in files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; a configuration is a map of keys to values"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b", "holds a list"),
        ("just text", "holds only the value 'just text'"),
        ("a: [1, 2", "is not valid YAML"),
        ("a:\n\t- b", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML: but found another document"),
        ("name: \x00", "is not valid YAML"),
        ("name: a\nname: b", "line 2: the key 'name' is given twice (first: {c} line 1)"),
        ("optim: {lr: 1, lr: 2}", "line 1: the key 'lr' is given twice"),
        ("a: &a {b: *a}", "a value contains itself"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "line 3: YAML merge keys (<<) are not supported; use includes"),
        ("? [1, 2]\n: x", "a key must be text"),
        ("name: !!python/object/apply:os.system ['true']", "the YAML tag"),
        ("name: !!python/name:os.system", "is not valid YAML"),
        ("name: !!set {a, b}", "the YAML tag"),
        ("optim: {warmup: " + "9" * 5000 + "}", "cannot be read as a number"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("includes: [3]", "includes is 3; it must be a list of file names"),
        ("includes: {a: b}", "includes is {'a': 'b'}; it must be a list of file names"),
        ("includes: [none.yaml]", "none.yaml, included by {c}: there is no such file"),
        ("includes: [.]", "is a folder, not a configuration file"),
        ("includes: [c.yaml]", "includes a file that includes it again: {c} -> {c}"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    text: str, expected: str, tmp_path: Path
) -> None:
    found = message_of(text, tmp_path)
    assert expected.replace("{c}", str(tmp_path / "c.yaml")) in found
    assert "c.yaml" in found
    assert "\n" not in found


def test_a_missing_file_a_folder_and_a_binary_file_are_named(tmp_path: Path) -> None:
    assert message(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: there is no such file"
    assert message(tmp_path) == f"{tmp_path}: is a folder, not a configuration file"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80")
    assert message(tmp_path / "binary.yaml") == f"{tmp_path}/binary.yaml: is not a text file in UTF-8"


def test_a_cycle_through_several_files_is_shown(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "includes: [b.yaml]")
    write(tmp_path, "b.yaml", "includes: [a.yaml]")
    path = write(tmp_path, "c.yaml", "includes: [a.yaml]")
    assert f"{path} -> {tmp_path}/a.yaml -> {tmp_path}/b.yaml -> {tmp_path}/a.yaml" in message(path)


def test_every_unusable_include_is_listed(tmp_path: Path) -> None:
    write(tmp_path, "bad.yaml", "- 1")
    found = message_of("includes: [none.yaml, bad.yaml]\nlr: 3", tmp_path, "oops")
    assert "3 mistakes" in found
    assert all(part in found for part in ("none.yaml", "bad.yaml", "'oops'"))
