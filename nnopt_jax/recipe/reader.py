"""From a YAML file to a checked `Recipe`, and back: every wrong key is found before anything runs.

YAML is read as people expect it: `1e-3` is a number, and a key given twice is an error.
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

_TYPES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where `1e-3` is a string and the last of equal keys wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping; a key that comes twice is an error."""
        known: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportArgumentType]
            if key in known:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            known.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse(text: str, where: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document.
        where: the file or option that it comes from, for the error.

    Returns:
        Plain dictionaries, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: it is not YAML, or holds a key twice.

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
    """Write a document in the order of its keys.

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
        settings: changes, each `key.path=value`; see `override`.

    Returns:
        The recipe. The modules that it names are not imported yet.

    Raises:
        RecipeError: the file is not there or not YAML, a key is unknown or missing, or a value
            has the wrong type; all are reported together, with their key paths.

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
    """Return the recipe with some values replaced, before it is checked.

    A key path is joined by dots. An element of a list is named by its position, its `name`, or,
    for a transform, its method; `data.dir` turns `data: package.module:callable` into a mapping.

    Args:
        raw: the recipe as YAML gives it.
        settings: `key.path=value`, each value read as YAML.

    Returns:
        A new mapping.

    Raises:
        RecipeError: a setting has no `=`, or leads nowhere; all are reported together.

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
            raw = _replaced(raw, path.split("."), parse(text, f"--set {path}"))
        except RecipeError as error:
            problems.add(f"--set {path}", str(error))
    problems.raise_as(RecipeError)
    return raw


def _replaced(at: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(at, list):
        index, rest = _element(at, path)
        return [*at[:index], _replaced(at[index], rest, value), *at[index + 1 :]]
    if isinstance(at, str) and ":" in at:
        at = {"source": at}
    at = {} if at is None else at
    if not isinstance(at, dict):
        raise RecipeError(f"{at!r} has no {path[0]!r} inside it")
    # Names of methods have a dot of their own, so that a key may be several parts of the path.
    joined = (".".join(path[:length]) for length in range(1, len(path) + 1))
    length = next((i for i, key in enumerate(joined, 1) if key in at), 1)
    key = ".".join(path[:length])
    return at | {key: _replaced(at.get(key), path[length:], value)}


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
    """Check a recipe as YAML gives it.

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
    problems = Problems("recipe")
    recipe = _read(Recipe, raw, "", problems)
    if not problems:
        _check(recipe, problems)
    problems.raise_as(RecipeError)
    return recipe


def unbuild(value: Any) -> Any:
    """Return a recipe as YAML holds it, defaults written out; `build` undoes it.

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
    """Check what types do not say."""
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


def _read(wanted: Any, value: Any, key: str, problems: Problems) -> Any:
    """Convert a value to the type that a field declares, or add a problem."""
    origin, options = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _read(options[0], value, key, problems)
    if wanted is Any:
        return value
    if wanted in (Call, TransformCall):
        return (_read_call if wanted is Call else _read_transform)(value, key, problems)
    if origin is tuple:
        if isinstance(value, list):
            each = enumerate(value)
            return tuple(_read(options[0], item, f"{key}.{i}", problems) for i, item in each)
        return problems.add(key, f"given {_describe(value)}, wanted a list")
    if origin is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
        return problems.add(key, f"given {_describe(value)}, wanted a mapping")
    if dataclasses.is_dataclass(wanted):
        return _read_dataclass(wanted, value, key, problems)
    if type(value) is wanted:
        return value
    return problems.add(key, f"given {_describe(value)}, wanted {_TYPES[wanted]}")


def _read_dataclass(wanted: Any, value: Any, key: str, problems: Problems) -> Any:
    fields = {field.name: field for field in dataclasses.fields(wanted)}
    if not isinstance(value, Mapping):
        keys = ", ".join(fields)
        return problems.add(key, f"given {_describe(value)}, wanted a mapping with the keys {keys}")
    hints = typing.get_type_hints(wanted)
    inside = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            problems.add(f"{inside}{name}", f"unknown key.{nearest(str(name), fields)}")
    given = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _read(hints[name], value[name], f"{inside}{name}", problems)
        elif field.default is dataclasses.MISSING:
            problems.add(f"{inside}{name}", "missing")
    return None if problems else wanted(**given)


def _read_call(value: Any, key: str, problems: Problems) -> Call | None:
    value = {"source": value} if isinstance(value, str) else value
    source = value.get("source") if isinstance(value, Mapping) else None
    if isinstance(source, str) and ":" in source:
        kwargs = {name: item for name, item in value.items() if name != "source"}
        return Call(source, _read_kwargs(kwargs, key, problems))
    found = _describe(value) if source is None else repr(source)
    problems.add(
        key, f"given {found}, wanted package.module:callable, or a mapping whose source is one"
    )
    return None


def _read_transform(value: Any, key: str, problems: Problems) -> TransformCall | None:
    value = {value: None} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or len(value) != 1:
        problems.add(
            key, f"given {_describe(value)}, wanted one method, e.g. - pruning.magnitude: {{...}}"
        )
        return None
    ((method, kwargs),) = value.items()
    key = f"{key}.{method}"
    if isinstance(kwargs or {}, Mapping):
        return TransformCall(str(method), _read_kwargs(kwargs or {}, key, problems))
    problems.add(key, f"given {_describe(kwargs)}, wanted a mapping of its settings")
    return None


def _read_kwargs(kwargs: Mapping[str, Any], key: str, problems: Problems) -> dict[str, Any]:
    """Read arguments of any type; mappings with a `source` are calls."""
    return {str(k): _read_argument(v, f"{key}.{k}", problems) for k, v in kwargs.items()}


def _read_argument(value: Any, key: str, problems: Problems) -> Any:
    if isinstance(value, list):
        return [_read_argument(item, f"{key}.{i}", problems) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    return (_read_call if "source" in value else _read_kwargs)(value, key, problems)


def _describe(value: Any) -> str:
    """Return a value as an error shows it."""
    if value is None:
        return "nothing"
    kind = {dict: "a mapping", list: "a list"}.get(type(value))
    return kind or f"{value!r} ({_TYPES.get(type(value), type(value).__name__)})"
