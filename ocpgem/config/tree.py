"""YAML as a tree of values that know which file and line, or which override, they came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ocpgem.errors import ConfigError

# YAML 1.2's core schema: `1e-4` is a number; `no`, `12:30` and `2026-01-01` are text (YAML 1.1 disagrees).
_IMPLICIT = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)

Path = tuple[str | int, ...]
_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's rules for plain scalars."""

    yaml_implicit_resolvers: _Resolvers = {}  # noqa: RUF012  (PyYAML's own declaration)


class _Dumper(yaml.SafeDumper):
    """The safe dumper with the same rules, so that text that looks like a number is quoted."""

    yaml_implicit_resolvers: _Resolvers = {}  # noqa: RUF012  (PyYAML's own declaration)

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out in full."""
        return True


for _kind in (_Loader, _Dumper):
    for _tag, _pattern, _first in _IMPLICIT:
        _kind.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


@dataclass(frozen=True)
class Tree:
    """A configuration value: a map of trees, a list of trees, or a scalar; `origin` says where it stands.

    takes_back: a null that was laid over another value.
    """

    content: Any
    origin: str
    takes_back: bool = False

    def plain(self) -> Any:
        """Return the value without origins."""
        if isinstance(self.content, dict):
            return {key: value.plain() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [value.plain() for value in self.content]
        return self.content

    def merged(self, later: Tree) -> Tree:
        """Return this tree with `later` laid over it: maps merge, everything else is replaced."""
        if not (isinstance(self.content, dict) and isinstance(later.content, dict)):
            takes_back = later.content is None and (self.content is not None or self.takes_back)
            return replace(later, takes_back=takes_back or later.takes_back)
        content = dict(self.content)
        for key, value in later.content.items():
            content[key] = content[key].merged(value) if key in content else value
        return Tree(content, later.origin)

    def child(self, key: str | int) -> Tree | None:
        """Return the value at a key or a list position, None where there is none."""
        if isinstance(self.content, dict):
            found = self.content.get(str(key))
            return found if isinstance(found, Tree) else None
        if isinstance(self.content, list) and isinstance(key, int) and 0 <= key < len(self.content):
            return self.content[key]
        return None

    def at(self, path: Path) -> Tree:
        """Return the value at `path`, or the innermost one that contains it."""
        here = self
        for key in path:
            inner = here.child(key)
            if inner is None:
                break
            here = inner
        return here

    def given(self, path: Path) -> Tree | None:
        """Return the value that settles `path`: itself, a word that stands for a section above it, or None."""
        here = self
        for key in path:
            if not isinstance(here.content, dict | list):
                break
            inner = here.child(key)
            if inner is None:
                return None
            here = inner
        return here

    def leaves(self, prefix: Path = ()) -> Iterator[tuple[Path, Tree]]:
        """Yield every scalar with its path."""
        if isinstance(self.content, dict | list):
            items = self.content.items() if isinstance(self.content, dict) else enumerate(self.content)
            for key, value in items:
                yield from value.leaves((*prefix, key))
        else:
            yield prefix, self

    def without(self, paths: Iterable[Path]) -> Tree:
        """Return this tree without the values at `paths`; a list is left out as a whole."""
        rest = self
        for path in paths:
            rest = rest._without(path)
        return rest

    def _without(self, path: Path) -> Tree:
        inner = self.child(path[0]) if path and isinstance(self.content, dict) else None
        if inner is None:
            return self
        content = dict(self.content)
        if len(path) > 1 and isinstance(inner.content, dict):
            content[str(path[0])] = inner._without(path[1:])
        else:
            del content[str(path[0])]
        return Tree(content, self.origin)


def read_tree(text: str, where: str) -> Tree:
    """Parse a YAML document whose top level is a map; raises ConfigError naming `where` and the line."""
    tree = _parse(text, where, lines=True)
    if not isinstance(tree.content, dict):
        kind = "is empty" if tree.content is None else f"holds {_kind_of(tree.content)}"
        raise ConfigError(f"{where}: {kind}; a configuration is a map of keys to values")
    return tree


def parse_value(text: str, origin: str) -> Tree:
    """Parse the value of an override; raises ConfigError naming `origin`."""
    return _parse(text, origin, lines=False)


def dump_yaml(value: Any) -> str:
    """Write plain maps, lists and scalars as YAML that `read_tree` reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _parse(text: str, where: str, lines: bool) -> Tree:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            builder = _Builder(loader, where, lines)
            tree = Tree(None, where) if node is None else builder.build(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not valid YAML: {_yaml_reason(error, lines)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None
    if builder.mistakes:
        raise ConfigError("; ".join(builder.mistakes))
    return tree


class _Builder:
    """Turns YAML nodes into trees and collects what the YAML standard forbids but PyYAML lets pass."""

    def __init__(self, loader: _Loader, where: str, lines: bool) -> None:
        self.loader = loader
        self.where = where
        self.lines = lines
        self.mistakes: list[str] = []
        self.open_nodes: set[int] = set()

    def build(self, node: yaml.Node) -> Tree:
        """Return the tree of a node."""
        origin = self._origin(node)
        if isinstance(node, yaml.ScalarNode):
            return Tree(self._scalar(node), origin)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.mistakes.append(f"{origin}: the YAML tag {node.tag} is not allowed")
            return Tree(None, origin)
        if id(node) in self.open_nodes:
            self.mistakes.append(f"{origin}: a value contains itself")
            return Tree(None, origin)
        self.open_nodes.add(id(node))
        if isinstance(node, yaml.MappingNode):
            content: dict[str, Tree] | list[Tree] = self._map(node)
        else:
            content = [self.build(item) for item in node.value]
        self.open_nodes.discard(id(node))
        return Tree(content, origin)

    def _map(self, node: yaml.MappingNode) -> dict[str, Tree]:
        content: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            origin = self._origin(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(f"{origin}: a key must be text")
            elif key_node.tag == "tag:yaml.org,2002:merge" or key_node.value == "<<":
                self.mistakes.append(f"{origin}: YAML merge keys (<<) are not supported; use includes")
            elif key_node.value in content:
                first = content[key_node.value].origin
                self.mistakes.append(f"{origin}: the key '{key_node.value}' is given twice (first: {first})")
            else:
                content[key_node.value] = Tree(self.build(value_node).content, origin)
        return content

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError:
            self.mistakes.append(f"{self._origin(node)}: {node.value[:40]!r} cannot be read as a number")
            return None

    def _origin(self, node: yaml.Node) -> str:
        return f"{self.where} line {node.start_mark.line + 1}" if self.lines else self.where


def _yaml_reason(error: yaml.YAMLError, lines: bool) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return f"{reason} (line {mark.line + 1})" if mark is not None and lines else str(reason)


def _kind_of(content: Any) -> str:
    return "a list" if isinstance(content, list) else f"only the value {str(content)[:40]!r}"
