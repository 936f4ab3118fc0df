"""Reading a configuration: files, the files they include and overrides, merged, validated and reported on.

The schema is a tree of `Section` models. Maps merge, lists replace, later wins; null takes back a name of a map.
Each mistake is reported with its dotted path, its value, what is allowed, and the file and line (or override) it
came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ocpgem.config.messages import Mistake, explain, refuse_booleans_for_numbers
from ocpgem.config.schema import without_taken_back
from ocpgem.config.section import Section
from ocpgem.config.tree import Tree, dump_yaml, parse_value, read_tree
from ocpgem.errors import ConfigError

INCLUDES = "includes"
SchemaT = TypeVar("SchemaT", bound=Section)


def load_config(path: str | Path, overrides: Sequence[str], schema: type[SchemaT]) -> SchemaT:
    """Read a configuration file and the files it includes, apply the overrides and validate against `schema`.

    An override is `dotted.path=value`; the value is YAML, so `optim.betas=[0.9, 0.95]` and `name=null` work,
    and sections on the way that do not exist yet are made. `data.val.NAME=null` takes a name of a map back that a
    file has given, `data.val=null` all of them. Raises ConfigError with one line for each mistake.
    """
    files = _Files()
    tree = files.read(Path(path))
    mistakes = list(files.mistakes)
    if tree is None:
        raise _error(mistakes, str(path))
    for text in overrides:
        try:
            tree = tree.merged(_parse_override(text, tree))
        except ConfigError as error:
            mistakes.append(str(error))
    if files.mistakes:  # a part is missing, so what validation would say could mislead
        raise _error(mistakes, str(path))
    return _validate(without_taken_back(tree, schema), schema, str(path), mistakes)


def parse_config(text: str, schema: type[SchemaT], where: str) -> SchemaT:
    """Validate YAML text without includes (as stored in a checkpoint); `where` names it in messages."""
    return _validate(_without_includes(text, where), schema, where, [])


def dump_config(config: Section) -> str:
    """Write a configuration, defaults included, as YAML that loads back to an equal object."""
    return dump_yaml(config.model_dump(mode="json"))


@dataclass(frozen=True)
class _Include:
    """A file on the way from the first file to the one being read."""

    path: Path
    shown: str


class _Files:
    """Reads a file with its includes and collects what is wrong with any of them."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def read(self, path: Path, chain: tuple[_Include, ...] = ()) -> Tree | None:
        """Return the merged contents of `path` and its includes, or None if `path` itself cannot be read."""
        shown = os.path.normpath(path)
        link = _Include(path.resolve(), shown)
        if link.path in [seen.path for seen in chain]:
            loop = " -> ".join([seen.shown for seen in chain] + [shown])
            self.mistakes.append(f"{chain[-1].shown} includes a file that includes it again: {loop}")
            return None
        try:
            own = read_tree(_read_text(path, shown, chain), shown)
        except ConfigError as error:
            self.mistakes.append(str(error))
            return None
        names = own.content.pop(INCLUDES, None)
        merged = Tree({}, shown)
        for name in self._include_names(names):
            included = self.read(path.parent / name, (*chain, link))
            if included is not None:
                merged = merged.merged(included)
        return merged.merged(own)

    def _include_names(self, names: Tree | None) -> Iterator[str]:
        if names is None:
            return
        items = names.content if isinstance(names.content, list) else [names]
        for item in items:
            if isinstance(item.content, str) and item.content:
                yield item.content
            else:
                self.mistakes.append(
                    f"{INCLUDES} is {item.plain()!r}; it must be a list of file names ({item.origin})"
                )


def _read_text(path: Path, shown: str, chain: tuple[_Include, ...]) -> str:
    by = f", included by {chain[-1].shown}" if chain else ""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{shown}{by}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{shown}{by}: is a folder, not a configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown}{by}: is not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{shown}{by}: cannot be read ({reason})") from None


def _without_includes(text: str, where: str) -> Tree:
    tree = read_tree(text, where)
    if INCLUDES in tree.content:
        raise ConfigError(f"{where}: {INCLUDES} are not possible here; give the complete configuration")
    return tree


def _parse_override(text: str, tree: Tree) -> Tree:
    """Turn `a.b=1` into a tree with that one value; a path through what is no section is refused."""
    origin = f"override {text}"
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"override {text!r} must have the form section.key=value")
    here: Tree | None = tree
    origins = []  # an override that sets a value of a section is not where that section stands
    for depth, key in enumerate(keys[:-1], start=1):
        origins.append(here.origin if here is not None else origin)
        here = here.content.get(key) if here is not None else None
        if here is not None and here.content is None:
            here = None
        if here is not None and not isinstance(here.content, dict):
            kind = (
                "a list, which can only be set as a whole"
                if isinstance(here.content, list)
                else "not a section"
            )
            raise ConfigError(f"{'.'.join(keys[:depth])} is {kind} (override {text})")
    origins.append(here.origin if here is not None else origin)
    result = parse_value(value, origin)
    for key, place in zip(reversed(keys), reversed(origins), strict=True):
        result = Tree({key: result}, place)
    return result


def _validate(tree: Tree, schema: type[SchemaT], where: str, mistakes: list[str]) -> SchemaT:
    mistakes = mistakes + refuse_booleans_for_numbers(tree, schema)
    try:
        config = schema.model_validate(tree.plain())
    except ValidationError as error:
        found = explain(error, tree, schema)
    else:
        found = []
    mistakes += [mistake.line for mistake in found + _hidden_contradictions(found, tree, schema)]
    if mistakes:
        raise _error(mistakes, where)
    return config


def _hidden_contradictions(found: list[Mistake], tree: Tree, schema: type[SchemaT]) -> list[Mistake]:
    """Return the contradictions that pydantic does not come to, because values have other mistakes.

    It asks a section for them once every value in it is right. So it is asked again without the wrong values, as
    often as that shows it more of them; what concerns a value that was left out is not known and not said.
    """
    hidden = []
    left_out = [path for mistake in found for path in mistake.paths]
    while (rest := tree.without(left_out)) != tree:
        try:
            schema.model_validate(rest.plain())
        except ValidationError as error:
            more = [mistake for mistake in explain(error, rest, schema) if mistake.is_contradiction]
        else:
            break
        hidden += [mistake for mistake in more if not mistake.concerns(left_out)]
        left_out += [path for mistake in more for path in mistake.paths]
        tree = rest
    return hidden


def _error(mistakes: list[str], where: str) -> ConfigError:
    if len(mistakes) == 1:
        return ConfigError(mistakes[0])
    return ConfigError(
        f"{len(mistakes)} mistakes in {where}:\n" + "\n".join(f"  {line}" for line in mistakes)
    )
