"""`--set stages.prune.epochs=3`: changes to a recipe as it was read, before it is checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nnopt_jax.errors import Problems, RecipeError, nearest
from nnopt_jax.recipe.yaml import parse


def override(raw: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Returns the recipe with some values replaced.

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
        >>> from nnopt_jax.recipe.overrides import override
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
            raw = _put(raw, path.split("."), parse(text, f"--set {path}"))
        except RecipeError as error:
            problems.add(f"--set {path}", str(error))
    problems.raise_as(RecipeError)
    return raw


def _put(at: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(at, list):
        index, rest = _element(at, path)
        return [*at[:index], _put(at[index], rest, value), *at[index + 1 :]]
    if isinstance(at, str) and ":" in at:
        at = {"source": at}
    if at is None:
        at = {}
    if not isinstance(at, dict):
        raise RecipeError(f"{at!r} has no {path[0]!r} inside it")
    key, rest = _key(at, path)
    return at | {key: _put(at.get(key), rest, value)}


def _key(at: dict[str, Any], path: list[str]) -> tuple[str, list[str]]:
    """The key a path begins with; names of methods have a dot of their own."""
    joined = (".".join(path[:length]) for length in range(1, len(path) + 1))
    length = next((i for i, key in enumerate(joined, 1) if key in at), 1)
    return ".".join(path[:length]), path[length:]


def _element(at: list[Any], path: list[str]) -> tuple[int, list[str]]:
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
