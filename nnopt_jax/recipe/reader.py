"""The YAML reader and writer of recipes, which reports all wrong keys before anything runs.

It reads YAML as people expect: `1e-3` is a number, and a duplicate key is an error.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nnopt_jax.errors import Problems, RecipeError, nearest
from nnopt_jax.recipe.schema import Call, Recipe, TransformCall
from nnopt_jax.transfer.structure.layers import How

__all__ = ["build", "dump", "load", "override", "parse", "unbuild"]

_TYPES: dict[Any, str] = {
    **{str: "a string", int: "a whole number", float: "a number", bool: "true or false"},
    **{dict: "a mapping", Mapping: "a mapping", list: "a list", tuple: "a list"},
}


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads `1e-3` as a number, unlike YAML 1.1, and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping; a duplicate key is an error."""
        known: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportArgumentType]
            if key in known:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            known.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 demands a dot and a sign of the exponent, and so reads 1e-3 as a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse(text: str, where: str) -> Any:
    """Parse one YAML document.

    Args:
        text: the document.
        where: the file or option that it comes from, for errors.

    Returns:
        Plain dictionaries, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: the text is not YAML, or has a duplicate key.

    Example:
        >>> from nnopt_jax.recipe.reader import parse
        >>> parse("{learning_rate: 1e-3, decay_steps: 70%}", "demo")
        {'learning_rate': 0.001, 'decay_steps': '70%'}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"recipe: {where} is not YAML: {reason}") from error


def dump(document: Any) -> str:
    """Return a document as YAML, in the order of its keys.

    Example:
        >>> from nnopt_jax.recipe.reader import dump
        >>> print(dump({"name": "demo", "sizes": [1, 2]}))
        name: demo
        sizes: [1, 2]
    """
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)


def load(path: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file.
        settings: overrides, each `key.path=value`; see `override`.

    Returns:
        The recipe; the modules that it names are not imported yet.

    Raises:
        RecipeError: the file does not exist or is not YAML, a key is unknown or missing, or a value
            has the wrong type; all problems are reported together, with key paths.

    Example:
        >>> from nnopt_jax.recipe import load
        >>> load("nowhere.yaml")
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: cannot read nowhere.yaml: No such file or directory
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"recipe: cannot read {path}: {reason}") from error
    raw = parse(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(
            f"recipe: {path} holds {_describe(raw)}, not a mapping of keys to values."
        )
    return build(override(raw, settings))


def override(raw: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Replace values of a recipe before it is checked.

    The parts of a key path are separated by dots. An element of a list is named by its position,
    its `name`, or, for a transform, its method. `data.dir` turns `data: package.module:callable`
    into a mapping.

    Args:
        raw: the recipe as read from YAML.
        settings: `key.path=value`, each value read as YAML.

    Returns:
        A new mapping.

    Raises:
        RecipeError: a setting has no `=`, or its path does not exist; all problems are reported
            together.

    Example:
        >>> from nnopt_jax.recipe.reader import override
        >>> override({"stages": [{"name": "prune", "epochs": 9}]}, ["stages.prune.epochs=2"])
        {'stages': [{'name': 'prune', 'epochs': 2}]}
    """
    problems = Problems("recipe")
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            problems.add(f"--set {setting}", "write KEY=VALUE, e.g. --set batch_size=64")
            continue
        try:
            raw = _replace(raw, path.split("."), parse(text, f"--set {path}"))
        except RecipeError as error:
            problems.add(f"--set {path}", str(error))
    problems.raise_as(RecipeError)
    return raw


def _replace(at: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(at, list):
        index, rest = _element(at, path)
        return [*at[:index], _replace(at[index], rest, value), *at[index + 1 :]]
    if isinstance(at, str) and ":" in at:
        at = {"source": at}
    at = {} if at is None else at
    if not isinstance(at, dict):
        raise RecipeError(f"{at!r} has no {path[0]!r} inside it")
    # Method names contain a dot, so that one key may be several parts of the path.
    joined = (".".join(path[:length]) for length in range(1, len(path) + 1))
    length = next((i for i, key in enumerate(joined, 1) if key in at), 1)
    key = ".".join(path[:length])
    return at | {key: _replace(at.get(key), path[length:], value)}


def _element(at: list[Any], path: list[str]) -> tuple[int, list[str]]:
    """Return the position of the element that a path begins with, and the rest of the path."""
    if path[0].isdecimal() and int(path[0]) < len(at):
        return int(path[0]), path[1:]
    names = []
    for index, item in enumerate(at):
        if isinstance(item, dict) and "name" in item:
            names.append(str(item["name"]))
            if item["name"] == path[0]:
                return index, path[1:]
        elif isinstance(item, dict) and len(item) == 1:
            names.append(str(*item))
            if ".".join(path).startswith(f"{names[-1]}."):
                return index, path
    raise RecipeError(f"no element {path[0]!r} among the {len(at)} there.{nearest(path[0], names)}")


def build(raw: Mapping[str, Any]) -> Recipe:
    """Check a recipe as read from YAML, and convert it to a `Recipe`.

    Args:
        raw: nested dictionaries and lists.

    Returns:
        The recipe.

    Raises:
        RecipeError: see `load`.

    Example:
        >>> from nnopt_jax.recipe.reader import build
        >>> build({"name": "a", "model": "m:f", "data": "m:g", "stages": [], "sede": 1})
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: sede: unknown key. Did you mean seed?
    """
    reader = _Reader()
    recipe = reader.read(Recipe, raw, "")
    if not reader.problems:
        _check(recipe, reader.problems)
    reader.problems.raise_as(RecipeError)
    return recipe


def unbuild(value: Any) -> Any:
    """Convert a recipe to YAML's types, defaults included; `build` is the inverse.

    Example:
        >>> from nnopt_jax.recipe.reader import build, unbuild
        >>> stages = [{"name": "train", "epochs": 1}]
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "stages": stages}
        >>> unbuild(build(raw))["loss"]
        'nnopt_jax.zoo.losses:cross_entropy'
    """
    if isinstance(value, Call):
        kwargs = unbuild(value.kwargs)
        return {"source": value.source, **kwargs} if kwargs else value.source
    if isinstance(value, TransformCall):
        return {value.method: unbuild(value.kwargs)}
    if dataclasses.is_dataclass(value):
        return {f.name: unbuild(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: unbuild(item) for key, item in value.items()}
    return [unbuild(item) for item in value] if isinstance(value, list | tuple) else value


def _check(recipe: Recipe, problems: Problems) -> None:
    """Check the constraints that types do not express."""
    counts = {key: getattr(recipe, key) for key in ("batch_size", "log_every", "checkpoint_every")}
    names = [stage.name for stage in recipe.stages]
    for i, stage in enumerate(recipe.stages):
        counts |= {f"stages.{i}.epochs": stage.epochs, f"stages.{i}.statistics": stage.statistics}
        if stage.name in names[:i]:
            problems.add(f"stages.{i}.name", f"{stage.name!r} is the name of an earlier stage")
    for key, count in counts.items():
        if count < 1:
            problems.add(key, f"given {count}, wanted 1 or more")
    if not recipe.name or "/" in recipe.name:
        problems.add("name", f"given {recipe.name!r}, wanted a name that can be that of a folder")
    if not recipe.stages:
        problems.add("stages", "given none, wanted one or more")
    if recipe.distill is not None and not 0 <= recipe.distill.weight <= 1:
        problems.add("distill.weight", f"given {recipe.distill.weight}, wanted one from 0 to 1")
    start = recipe.start
    if start is not None and start.how not in (known := typing.get_args(How)):
        problems.add("start.how", f"given {start.how!r}, wanted one of {', '.join(known)}")
    if start is not None and start.zero and start.layers is None:
        problems.add("start.zero", "is for new layers; say by start.layers where they are")


class _Reader:
    """A converter of plain values to the declared types of fields, which collects problems."""

    def __init__(self) -> None:
        self.problems = Problems("recipe")

    def wrong(self, key: str, value: Any, wanted: str) -> None:
        """Add a problem for a value of the wrong type."""
        self.problems.add(key, f"given {_describe(value)}, wanted {wanted}")

    def read(self, wanted: Any, value: Any, key: str) -> Any:
        """Convert a value to a declared type; return None if it does not fit."""
        origin, options = typing.get_origin(wanted), typing.get_args(wanted)
        if origin in (types.UnionType, typing.Union):
            optional = value is None and type(None) in options
            return None if optional else self.read(options[0], value, key)
        if wanted in (Call, TransformCall):
            return (self.call if wanted is Call else self.transform)(value, key)
        if dataclasses.is_dataclass(wanted):
            return self.dataclass(wanted, value, key)
        if origin is tuple and isinstance(value, list):
            return tuple(self.read(options[0], v, f"{key}.{i}") for i, v in enumerate(value))
        if origin is Mapping and isinstance(value, Mapping):
            return dict(value)
        if wanted is Any or type(value) is wanted:
            return value
        return self.wrong(key, value, _TYPES[origin or wanted])

    def dataclass(self, wanted: Any, value: Any, key: str) -> Any:
        """Convert a mapping to an instance of a dataclass, whose fields are the allowed keys."""
        fields = {field.name: field for field in dataclasses.fields(wanted)}
        if not isinstance(value, Mapping):
            return self.wrong(key, value, f"a mapping with the keys {', '.join(fields)}")
        hints, inside, given = typing.get_type_hints(wanted), f"{key}." if key else "", {}
        for name in value:
            if name not in fields:
                self.problems.add(f"{inside}{name}", f"unknown key.{nearest(str(name), fields)}")
        for name, field in fields.items():
            if name in value:
                given[name] = self.read(hints[name], value[name], f"{inside}{name}")
            elif field.default is dataclasses.MISSING:
                self.problems.add(f"{inside}{name}", "missing")
        return None if self.problems else wanted(**given)

    def call(self, value: Any, key: str) -> Call | None:
        """Convert `package.module:callable`, or a mapping with it as `source`, to a `Call`."""
        kwargs = {"source": value} if isinstance(value, str) else value
        source = kwargs.get("source") if isinstance(kwargs, Mapping) else None
        if isinstance(source, str) and ":" in source:
            return Call(
                source, self.kwargs({k: v for k, v in kwargs.items() if k != "source"}, key)
            )
        found = _describe(value) if source is None else repr(source)
        wanted = "package.module:callable, or a mapping whose source is one"
        return self.problems.add(key, f"given {found}, wanted {wanted}")

    def transform(self, value: Any, key: str) -> TransformCall | None:
        """Convert a method, or a mapping from one method to its settings, to a `TransformCall`."""
        single = {value: None} if isinstance(value, str) else value
        if not isinstance(single, Mapping) or len(single) != 1:
            return self.wrong(key, value, "one method, e.g. - pruning.magnitude: {...}")
        ((method, kwargs),) = single.items()
        key = f"{key}.{method}"
        if not isinstance(kwargs or {}, Mapping):
            return self.wrong(key, kwargs, "a mapping of its settings")
        return TransformCall(str(method), self.kwargs(kwargs or {}, key))

    def kwargs(self, kwargs: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Convert keyword arguments; a mapping with a `source` becomes a `Call`."""
        return {str(name): self.argument(v, f"{key}.{name}") for name, v in kwargs.items()}

    def argument(self, value: Any, key: str) -> Any:
        """Convert the value of one argument, and the values inside it."""
        if isinstance(value, list):
            return [self.argument(item, f"{key}.{i}") for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        return (self.call if "source" in value else self.kwargs)(value, key)


def _describe(value: Any) -> str:
    """Return the text that describes a value in errors."""
    if value is None:
        return "nothing"
    name = _TYPES.get(type(value), type(value).__name__)
    return name if isinstance(value, dict | list) else f"{value!r} ({name})"
