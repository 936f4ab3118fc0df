"""Sentences about what is wrong in a configuration: path, value, what is allowed, what was meant."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ocpgem.config.schema import UNIONS, all_paths, fields_at, models_at, union_parts
from ocpgem.config.section import ContradictionError
from ocpgem.config.tree import Path, Tree

_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (PurePath, "a path"),
    (str, "text"),
)
_OTHER_KINDS = (
    *("extra_forbidden", "missing", "union_tag_invalid", "union_tag_not_found"),
    *("value_error", "assertion_error"),
)
_CONSTRAINTS = (
    ("gt", "> {}"),
    ("ge", ">= {}"),
    ("lt", "< {}"),
    ("le", "<= {}"),
    ("multiple_of", "a multiple of {}"),
    ("min_length", "of length at least {}"),
    ("max_length", "of length at most {}"),
    ("pattern", "matching {}"),
)


@dataclass(frozen=True)
class Mistake:
    """A line about what is wrong, and the values that it is about.

    is_contradiction: the values are right by themselves; is_refusal: the value is refused as a whole.
    """

    line: str
    paths: tuple[Path, ...]
    is_contradiction: bool = False
    is_refusal: bool = False

    def concerns(self, others: Sequence[Path]) -> bool:
        """Whether it is about one of `others`, a part of it or a section that holds it."""
        return any(path[: len(other)] == other[: len(path)] for path in self.paths for other in others)


def explain(error: ValidationError, tree: Tree, schema: type[BaseModel]) -> list[Mistake]:
    """Return each mistake pydantic found in `tree`, in the order of the file."""
    found: dict[Path, list[Mistake]] = {}
    for detail in error.errors():
        path = _path_in(tree, detail)
        here = found.setdefault(path, [])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ContradictionError):
            here += [_contradiction(keys, sentence, path, tree) for keys, sentence in cause.found]
            continue
        # An unknown key may be any key of its section, misspelt.
        about = path[:-1] if detail["type"] == "extra_forbidden" else path
        is_refusal = detail["type"] not in _OTHER_KINDS and detail["loc"][-1:] != ("[key]",)
        mistake = Mistake(_sentence(detail, path, tree, schema), (about,), is_refusal=is_refusal)
        if mistake not in here:
            here.append(mistake)
    return [mistake for path in found for mistake in _without_echoes(path, found)]


def _without_echoes(path: Path, found: Mapping[Path, Sequence[Mistake]]) -> list[Mistake]:
    """Return the mistakes at `path` once: each branch of a union refuses a value, and some look into it first."""
    refusals = [mistake for mistake in found[path] if mistake.is_refusal]
    others = [mistake for mistake in found[path] if not mistake.is_refusal]
    looked_into = any(mistake.is_contradiction for mistake in others) or any(
        len(inner) > len(path) and inner[: len(path)] == path for inner in found
    )
    if not refusals or looked_into:
        return others
    return [max(refusals, key=lambda mistake: len(mistake.line)), *others]  # the longest has a hint


def _contradiction(keys: Sequence[str], sentence: str, section: Path, tree: Tree) -> Mistake:
    paths = tuple((*section, *key.split(".")) for key in keys)
    given = [value.origin for value in map(tree.given, paths) if value is not None]
    if not given and section:
        given = [tree.at(section).origin]
    origins = " and ".join(dict.fromkeys(given))
    name = "" if not section or sentence.startswith(_dotted(section)) else f"{_dotted(section)}: "
    return Mistake(f"{name}{sentence}" + (f" ({origins})" if origins else ""), paths, is_contradiction=True)


def refuse_booleans_for_numbers(tree: Tree, schema: type[BaseModel]) -> list[str]:
    """Return a line for each true or false in the place of a number, which pydantic takes for 1 and 0."""
    lines = []
    for path, value in tree.leaves():
        fields = list(fields_at(schema, path, tree)) if isinstance(value.content, bool) else []
        parts = [part for field in fields for part in union_parts(field.annotation) if part is not type(None)]
        if parts and all(part in (int, float) for part in parts):
            shown = f"{_dotted(path)} is {_shown(value.content)}"
            lines.append(f"{shown}; it must be {_allowed(fields)} ({value.origin})")
    return lines


def _path_in(tree: Tree, detail: ErrorDetails) -> Path:
    """Drop from pydantic's location what is no key of the file, such as the branch of a union."""
    path: list[str | int] = []
    here: Tree | None = tree
    missing = detail["type"] == "missing"
    for position, key in enumerate(detail["loc"]):
        last = position == len(detail["loc"]) - 1
        inner = here.child(key) if here is not None else None
        if inner is not None or (missing and last):
            path.append(key)
            here = inner
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _sentence(detail: ErrorDetails, path: Path, tree: Tree, schema: type[BaseModel]) -> str:
    kind, name = detail["type"], _dotted(path)
    value = tree.at(path)
    source = f" ({value.origin})"
    fields = list(fields_at(schema, path, tree))
    allowed = _allowed(fields)
    if detail["loc"][-1:] == ("[key]",):
        reason = str(detail.get("ctx", {}).get("error", "")) or detail["msg"][:1].lower() + detail["msg"][1:]
        return f"{_shown(path[-1])} is not possible as a key of {_dotted(path[:-1])}: {reason}{source}"
    if kind == "extra_forbidden":
        return f"{name} is not a known key{_suggestion(path, tree, schema)}{source}"
    if kind == "union_tag_invalid":
        allowed = f"one of {detail['ctx']['expected_tags']}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{name} is missing; it must be {allowed or 'given'}{source}"
    if kind in ("value_error", "assertion_error"):
        message = str(detail["ctx"]["error"]).rstrip(".")
        if not path:
            return message
        if message.startswith(name):
            return f"{message}{source}"
        shown = "" if isinstance(value.content, dict) else f" is {_shown(value.plain())}"
        return f"{name}{shown}: {message}{source}"
    hint = (
        "; quote it to make it text"
        if kind == "string_type" and not isinstance(value.content, dict | list | None)
        else ""
    )
    is_what = "is empty" if value.content is None else f"is {_shown(value.plain())}"
    return f"{name} {is_what}; it must be {allowed or detail['msg']}{hint}{source}"


def _dotted(path: Path) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".") or "the configuration"


def _shown(value: Any) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(path: Path, tree: Tree, schema: type[BaseModel]) -> str:
    """Name the key that was probably meant: in the same section first, then anywhere in the schema."""
    *section, key = path
    here = list(
        dict.fromkeys(
            name for model in models_at(schema, tuple(section), tree) for name in model.model_fields
        )
    )
    close = difflib.get_close_matches(str(key), here, n=1)
    if close:
        return f"; did you mean '{_dotted((*section, close[0]))}'?"
    by_name: dict[str, list[Path]] = {}
    for candidate in dict.fromkeys(all_paths(schema)):
        if candidate != path:
            by_name.setdefault(str(candidate[-1]), []).append(candidate)
    close = difflib.get_close_matches(str(key), list(by_name), n=1, cutoff=0.75)
    if close:
        return "; did you mean " + " or ".join(f"'{_dotted(found)}'" for found in by_name[close[0]][:3]) + "?"
    return f"; the keys here are {', '.join(here)}" if here else ""


def _allowed(fields: Sequence[FieldInfo]) -> str:
    """Say what values a path takes; `fields` are the alternatives that the branches of a union offer."""
    if fields and all(get_origin(field.annotation) is Literal for field in fields):
        return _choices(
            list(dict.fromkeys(value for field in fields for value in get_args(field.annotation)))
        )
    return " or ".join(dict.fromkeys(_describe(field.annotation, field.metadata) for field in fields))


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say in words what values an annotation takes."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _describe(inner, [*metadata, *more])
    limits = _limits(metadata)
    if get_origin(annotation) in UNIONS:
        parts = [part for part in get_args(annotation) if part is not type(None)]
        text = " or ".join(dict.fromkeys(_describe(part) for part in parts)) + limits
        return text + " or null" if len(parts) < len(get_args(annotation)) else text
    return _describe_one(annotation) + limits


def _describe_one(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _choices(args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a map" + (f" to {_describe(args[1])}" if len(args) == 2 else "")
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: " + ", ".join(_describe(arg) for arg in args)
    if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and args:
        return f"a list, each {_describe(args[0])}"
    if not isinstance(annotation, type):
        return "something else"
    if issubclass(annotation, BaseModel):
        return f"a section with the keys {', '.join(annotation.model_fields)}"
    if issubclass(annotation, enum.Enum):
        return _choices([member.value for member in annotation])
    return next((name for kind, name in _NAMES if issubclass(annotation, kind)), annotation.__name__)


def _choices(values: Sequence[Any]) -> str:
    return ("one of " if len(values) > 1 else "") + ", ".join(repr(value) for value in values)


def _limits(metadata: Sequence[Any]) -> str:
    found = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found.append(_limits(item.metadata))
            continue
        for name, text in _CONSTRAINTS:
            limit = getattr(item, name, None)
            if limit is not None:
                found.append(" " + text.format(limit))
    return " and".join(part for part in found if part)
