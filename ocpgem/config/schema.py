"""What a schema says about a path: its fields, through maps, lists and the branches of unions."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ocpgem.config.tree import Path, Tree

UNIONS = (typing.Union, types.UnionType)


def all_paths(model: type[BaseModel], prefix: Path = (), above: tuple[type, ...] = ()) -> Iterator[Path]:
    """Yield the path of every key a schema knows, outermost first (not through lists, maps or recursion)."""
    inner: list[tuple[Path, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        parts = union_parts(field.annotation)
        inner += [
            ((*prefix, name), part) for part in parts if _is_model(part) and part not in (*above, model)
        ]
    for path, part in inner:
        yield from all_paths(part, path, (*above, model))


def union_parts(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, looking through Annotated; one entry for anything else."""
    if get_origin(annotation) is Annotated:
        return union_parts(get_args(annotation)[0])
    if get_origin(annotation) in UNIONS:
        return [inner for part in get_args(annotation) for inner in union_parts(part)]
    return [annotation]


def fields_at(schema: type[BaseModel], path: Path, tree: Tree) -> Iterator[FieldInfo]:
    """Yield what the schema says about a path: a field, or one per union branch that fits the values."""
    fields = [FieldInfo(annotation=schema)]
    here: Tree | None = tree
    for key in path:
        fields = [inner for field in fields for inner in _step(field, key, here)]
        here = here.child(key) if here is not None else None
    yield from fields


def models_at(schema: type[BaseModel], path: Path, tree: Tree) -> Iterator[type[BaseModel]]:
    """Yield the sections that can stand at a path, given the values there."""
    here = tree.at(path)
    for field in fields_at(schema, path, tree):
        yield from _fitting_models(field, here)


def without_taken_back(tree: Tree, schema: type[BaseModel]) -> Tree:
    """Return `tree` without the names of maps, and without the maps of names, that a null was laid over.

    Elsewhere null is a value, which the schema allows or not.
    """
    taken_back = []
    for path, value in tree.leaves():
        if value.takes_back:
            here, above = (list(fields_at(schema, place, tree)) for place in (path, path[:-1]))
            parts = [part for field in here for part in union_parts(field.annotation)]
            is_value = not parts or type(None) in parts or Any in parts
            if not is_value and any(_is_map(field.annotation) for field in (*here, *above)):
                taken_back.append(path)
    return tree.without(taken_back)


def _is_map(annotation: Any) -> bool:
    origins = [get_origin(part) for part in union_parts(annotation)]
    return any(isinstance(origin, type) and issubclass(origin, Mapping) for origin in origins)


def _step(field: FieldInfo, key: str | int, tree: Tree | None) -> Iterator[FieldInfo]:
    for model in _fitting_models(field, tree):
        if str(key) in model.model_fields:
            yield model.model_fields[str(key)]
    for part in union_parts(field.annotation):
        origin, args = get_origin(part), get_args(part)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2:
            yield FieldInfo.from_annotation(args[1])
        elif (
            isinstance(origin, type)
            and issubclass(origin, Sequence | set | frozenset)
            and args
            and isinstance(key, int)
        ):
            fixed = origin is tuple and not (len(args) == 2 and args[1] is Ellipsis)
            index = key if fixed and key < len(args) else 0
            yield FieldInfo.from_annotation(args[index])


def _fitting_models(field: FieldInfo, tree: Tree | None) -> list[type[BaseModel]]:
    """Return the sections a field can hold; of several, those whose tags agree with the values."""
    models = [part for part in union_parts(field.annotation) if _is_model(part)]
    return [model for model in models if _tags_fit(model, tree)] or models


def _tags_fit(model: type[BaseModel], tree: Tree | None) -> bool:
    """Say whether the values given agree with the model's Literal fields, which tell union branches apart."""
    for name, field in model.model_fields.items():
        given = tree.child(name) if tree is not None else None
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        if given is not None and choices and given.plain() not in choices:
            return False
    return True


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
