"""From a YAML file to a checked `Recipe`: every problem is found before anything runs."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnopt_jax.errors import Problems, RecipeError, nearest
from nnopt_jax.recipe import schema
from nnopt_jax.recipe.overrides import override
from nnopt_jax.recipe.yaml import parse
from nnopt_jax.transfer.structure.layers import How


def load(path: str | Path, settings: Iterable[str] = ()) -> schema.Recipe:
    """Reads a recipe file.

    Args:
        path: the YAML file.
        settings: changes, each `key.path=value`; see `override`.

    Returns:
        The recipe. What it names is not imported yet.

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
        raise RecipeError(f"recipe: {path} holds {_told(raw)}, not a mapping of keys to values.")
    return build(override(raw, settings))


def build(raw: Mapping[str, Any]) -> schema.Recipe:
    """Checks a recipe as YAML gives it.

    Args:
        raw: nested dictionaries and lists.

    Returns:
        The recipe.

    Raises:
        RecipeError: see `load`.

    Example:
        >>> from nnopt_jax.recipe.load import build
        >>> build({"name": "a", "model": "m:f", "data": "m:g", "stages": [], "sede": 1})
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: sede: unknown key. Did you mean seed?
    """
    problems = Problems("recipe")
    recipe = _read(schema.Recipe, raw, "", problems)
    if not problems:
        _check(recipe, problems)
    problems.raise_as(RecipeError)
    return recipe


def unbuild(recipe: schema.Recipe) -> dict[str, Any]:
    """The recipe as YAML holds it, defaults written out; `build` undoes it.

    Example:
        >>> from nnopt_jax.recipe.load import build, unbuild
        >>> stages = [{"name": "train", "epochs": 1}]
        >>> raw = {"name": "a", "model": "m:f", "data": "m:g", "stages": stages}
        >>> unbuild(build(raw))["loss"]
        'nnopt_jax.zoo.losses:cross_entropy'
    """
    return _plain(recipe)


def _plain(value: Any) -> Any:
    if isinstance(value, schema.Call):
        kwargs = _plain(value.kwargs)
        return {"source": value.source, **kwargs} if kwargs else value.source
    if isinstance(value, schema.Link):
        return {value.method: _plain(value.kwargs)}
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check(recipe: schema.Recipe, problems: Problems) -> None:
    """What types do not say."""
    for key in ("batch_size", "log_every", "checkpoint_every"):
        if getattr(recipe, key) < 1:
            problems.add(key, f"given {getattr(recipe, key)}, wanted 1 or more")
    if not recipe.name or "/" in recipe.name:
        problems.add("name", f"given {recipe.name!r}, wanted a name that can be that of a folder")
    if not recipe.stages:
        problems.add("stages", "given none, wanted one or more")
    if recipe.distill is not None and not 0 <= recipe.distill.weight <= 1:
        problems.add("distill.weight", f"given {recipe.distill.weight}, wanted one from 0 to 1")
    if recipe.start is not None:
        _check_start(recipe.start, problems)
    names = [stage.name for stage in recipe.stages]
    for i, stage in enumerate(recipe.stages):
        if stage.name in names[:i]:
            problems.add(f"stages.{i}.name", f"{stage.name!r} is the name of an earlier stage")
        if stage.epochs < 1:
            problems.add(f"stages.{i}.epochs", f"given {stage.epochs}, wanted 1 or more")
        if stage.statistics < 1:
            problems.add(f"stages.{i}.statistics", f"given {stage.statistics}, wanted 1 or more")


def _check_start(start: schema.Start, problems: Problems) -> None:
    known = typing.get_args(How)
    if start.how not in known:
        problems.add("start.how", f"given {start.how!r}, wanted one of {', '.join(known)}")
    if start.zero and start.layers is None:
        problems.add("start.zero", "is for new layers; say by start.layers where they are")


def _read(wanted: Any, value: Any, key: str, problems: Problems) -> Any:
    """Converts one value to the type a field declares, or adds a problem."""
    origin, options = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _read(options[0], value, key, problems)
    if origin is tuple:
        if not isinstance(value, list):
            return problems.add(key, f"given {_told(value)}, wanted a list")
        each = enumerate(value)
        return tuple(_read(options[0], item, f"{key}.{i}", problems) for i, item in each)
    if wanted is Any:
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return problems.add(key, f"given {_told(value)}, wanted a mapping")
        return dict(value)
    if wanted is schema.Call:
        return _read_call(value, key, problems)
    if wanted is schema.Link:
        return _read_link(value, key, problems)
    if dataclasses.is_dataclass(wanted):
        return _read_mapping(wanted, value, key, problems)
    return _read_scalar(wanted, value, key, problems)


def _read_scalar(wanted: type, value: Any, key: str, problems: Problems) -> Any:
    if type(value) is wanted:
        return value
    problems.add(key, f"given {_told(value)}, wanted {_TYPES[wanted]}")
    return None


def _read_mapping(wanted: Any, value: Any, key: str, problems: Problems) -> Any:
    if not isinstance(value, Mapping):
        keys = ", ".join(field.name for field in dataclasses.fields(wanted))
        return problems.add(key, f"given {_told(value)}, wanted a mapping with the keys {keys}")
    hints = typing.get_type_hints(wanted)
    fields = {field.name: field for field in dataclasses.fields(wanted)}
    inside = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            problems.add(f"{inside}{name}", f"unknown key.{nearest(str(name), fields)}")
    given = {
        name: _read(hints[name], value[name], f"{inside}{name}", problems)
        for name in fields
        if name in value
    }
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            problems.add(f"{inside}{name}", "missing")
    return None if problems else wanted(**given)


def _read_call(value: Any, key: str, problems: Problems) -> schema.Call | None:
    if isinstance(value, str):
        value = {"source": value}
    source = value.get("source") if isinstance(value, Mapping) else None
    if not isinstance(source, str) or ":" not in source:
        said = _told(value) if source is None else repr(source)
        problems.add(
            key,
            f"given {said}, wanted package.module:callable, or a mapping whose source is one",
        )
        return None
    kwargs = {name: item for name, item in value.items() if name != "source"}
    return schema.Call(source, _read_kwargs(kwargs, key, problems))


def _read_link(value: Any, key: str, problems: Problems) -> schema.Link | None:
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or len(value) != 1:
        problems.add(
            key, f"given {_told(value)}, wanted one method, e.g. - pruning.magnitude: {{...}}"
        )
        return None
    ((method, kwargs),) = value.items()
    if not isinstance(kwargs or {}, Mapping):
        problems.add(f"{key}.{method}", f"given {_told(kwargs)}, wanted a mapping of its settings")
        return None
    return schema.Link(str(method), _read_kwargs(kwargs or {}, f"{key}.{method}", problems))


def _read_kwargs(kwargs: Mapping[str, Any], key: str, problems: Problems) -> dict[str, Any]:
    """Arguments are anything; those with a source are calls themselves."""
    return {str(k): _read_argument(v, f"{key}.{k}", problems) for k, v in kwargs.items()}


def _read_argument(value: Any, key: str, problems: Problems) -> Any:
    if isinstance(value, list):
        return [_read_argument(item, f"{key}.{i}", problems) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "source" in value:
        return _read_call(value, key, problems)
    return _read_kwargs(value, key, problems)


_TYPES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _told(value: Any) -> str:
    """A value as an error shows it."""
    if value is None:
        return "nothing"
    kind = {dict: "a mapping", list: "a list"}.get(type(value))
    return kind or f"{value!r} ({_TYPES.get(type(value), type(value).__name__)})"
