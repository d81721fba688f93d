"""The resolver: imports the callables that a recipe names, and calls them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nnopt_jax import registry
from nnopt_jax.errors import NnoptError, Problems, RecipeError, SelectionError, nearest
from nnopt_jax.recipe.schema import Call, Recipe, TransformCall

__all__ = ["bind", "call", "check", "check_signature", "find"]

# Arguments that the run itself passes to callables that have a parameter of this name.
PASSED = ("rngs", "key")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_ANYTHING = inspect.Parameter.VAR_KEYWORD
_ANY = (inspect.Parameter.VAR_POSITIONAL, _ANYTHING)


def find(source: str, key: str) -> Callable[..., Any]:
    """Import `package.module:callable`, or look up a registered method.

    Args:
        source: the name; one without a colon is looked up in `nnopt_jax.registry`.
        key: its key path in the recipe, for errors.

    Returns:
        The callable.

    Raises:
        RecipeError: the module or the attribute does not exist, the import fails, or the attribute
            is not callable.

    Example:
        >>> from nnopt_jax.recipe.resolver import find
        >>> find("pruning.magnitude", "stages.0.transforms.0").__name__
        'magnitude'
        >>> find("math:sqrtt", "loss")
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: loss: module math has no 'sqrtt'. Did you mean sqrt, isqrt?
    """  # noqa: E501 - printed by the doctest
    name, colon, attribute = source.partition(":")
    if not colon:
        try:
            return registry.get(source).load()
        except SelectionError as error:
            raise RecipeError(f"recipe: {key}: {str(error).removeprefix('registry: ')}") from error
    try:
        found: Any = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and name.startswith(error.name):
            raise RecipeError(
                f"recipe: {key}: there is no module {error.name!r}.{_new_name(error.name)} Write "
                "package.module:callable; the working directory is searched first."
            ) from error
        raise RecipeError(
            f"recipe: {key}: importing {name} failed: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [other for other in dir(found) if not other.startswith("_")]
            raise RecipeError(
                f"recipe: {key}: module {name} has no {attribute!r}.{nearest(part, public)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise RecipeError(f"recipe: {key}: {source} is a {type(found).__name__}, not a callable.")
    return found


def _new_name(module: str) -> str:
    """Return a sentence with the new name of a renamed module; empty for any other module."""
    package, _, name = module.rpartition(".")
    try:
        getattr(importlib.import_module(package or name), name)
    except (ImportError, AttributeError) as error:
        return f" {error}." if " is now " in str(error) else ""
    return ""


def call(
    what: Call | TransformCall,
    key: str,
    steps: int | None = None,
    passed: Mapping[str, Any] | None = None,
) -> Any:
    """Call the callable that a recipe names, with the arguments of the recipe.

    Args:
        what: the call: a name and arguments, of which inner calls are made first.
        key: where the recipe says it, for errors.
        steps: the number of steps of the stage, which percentages refer to.
        passed: values that the run offers; each is passed if the callable has a parameter of its
            name.

    Returns:
        The result of the call.

    Raises:
        RecipeError: the name or an argument is wrong, or the callable raises.

    Example:
        >>> from nnopt_jax.recipe import Call, TransformCall
        >>> from nnopt_jax.recipe.resolver import call
        >>> call(Call("builtins:dict", {"decay_steps": "70%"}), "optimizer", steps=1000)
        {'decay_steps': 700}
        >>> call(TransformCall("pruning.magnitude", {"sparsity": 0.9}), "transforms.0").name
        'pruning.magnitude'
    """
    function, key = _target(what, key)
    problems = Problems("recipe")
    check_signature(function, what.kwargs, key, problems)
    problems.raise_as(RecipeError)
    asked = _parameters(function)
    offered = {name: value for name, value in (passed or {}).items() if name in asked}
    arguments = {n: _argument(value, f"{key}.{n}", steps) for n, value in what.kwargs.items()}
    try:
        return function(**offered, **arguments)
    except NnoptError:
        raise
    except Exception as error:
        raise RecipeError(
            f"recipe: {key}: {function.__name__} raised {type(error).__name__}: {error}"
        ) from error


def bind(what: Call, key: str) -> Callable[..., Any]:
    """Return a function of two arguments, with the arguments of the recipe bound."""
    function = find(what.source, key)
    return lambda left, right: function(left, right, **what.kwargs)


def _target(what: Call | TransformCall, key: str) -> tuple[Callable[..., Any], str]:
    """Return the callable, and the key path of its arguments."""
    if isinstance(what, Call):
        return find(what.source, key), key
    return find(what.method, key), f"{key}.{what.method}"


def _argument(value: Any, key: str, steps: int | None) -> Any:
    if isinstance(value, Call):
        return call(value, key, steps)
    if isinstance(value, Mapping):
        return {name: _argument(item, f"{key}.{name}", steps) for name, item in value.items()}
    if isinstance(value, list):
        return [_argument(item, f"{key}.{i}", steps) for i, item in enumerate(value)]
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if percent is None:
        return value
    if steps is None:
        raise RecipeError(
            f"recipe: {key}: {value} is a fraction of a stage's steps; give a number."
        )
    return max(1, round(float(percent[1]) / 100 * steps))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        found = inspect.signature(function).parameters
        # The signature of a metaclass, as in NNX, may accept anything; that of the constructor is
        # precise.
        if inspect.isclass(function) and all(p.kind in _ANY for p in found.values()):
            return dict(list(inspect.signature(function.__init__).parameters.items())[1:])
        return found
    except (TypeError, ValueError):  # some builtins do not have a signature
        return {}


def check_signature(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    key: str,
    problems: Problems,
    given: int = 0,
) -> None:
    """Add a problem for each unknown and each missing argument of a callable.

    Args:
        function: the callable.
        kwargs: the arguments in the recipe.
        key: the key path in the recipe.
        problems: the list to which problems are added.
        given: the number of positional arguments that the run passes first.

    Example:
        >>> from nnopt_jax.errors import Problems
        >>> from nnopt_jax.recipe.resolver import check_signature, find
        >>> problems = Problems("demo")
        >>> check_signature(find("optax:adam", ""), {"learning_rat": 0.5}, "optimizer", problems)
        >>> for text in problems.found:
        ...     print(text)
        optimizer.learning_rat: unknown key. Did you mean learning_rate?
        optimizer.learning_rate: missing
    """
    parameters = list(_parameters(function).values())
    fixed = (inspect.Parameter.POSITIONAL_ONLY, *_ANY)
    named = {p.name: p for p in parameters[given:] if p.kind not in fixed}
    if parameters and all(p.kind is not _ANYTHING for p in parameters):
        known = [name for name in named if name not in PASSED]
        for name in kwargs:
            if name not in named:
                problems.add(f"{key}.{name}", f"unknown key.{nearest(name, known)}")
    for name, parameter in named.items():
        required = parameter.default is inspect.Parameter.empty
        if required and name not in kwargs and name not in PASSED:
            problems.add(f"{key}.{name}", "missing")


def check(recipe: Recipe) -> None:
    """Import all callables that a recipe names, and check their arguments.

    Raises:
        RecipeError: there are problems; all are listed with key paths.

    Example:
        >>> from nnopt_jax.recipe.reader import build
        >>> from nnopt_jax.recipe.resolver import check
        >>> raw = {"name": "a", "stages": [{"name": "train", "epochs": 1}]}
        >>> check(build(raw | {"model": "no_such:f", "data": "math:pi"}))
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: 2 problems
        ...
    """
    problems = Problems("recipe")
    for key, what, given in _calls(recipe):
        _check_call(what, key, problems, given)
    problems.raise_as(RecipeError)


def _calls(recipe: Recipe) -> Iterator[tuple[str, Call | TransformCall, int]]:
    """Yield every call with its key path and the number of arguments that the run passes."""
    for key in ("model", "data", "optimizer"):
        yield key, getattr(recipe, key), 0
    for key in ("loss", "metric", "augment"):
        if (what := getattr(recipe, key)) is not None:
            yield key, what, 2
    if recipe.distill is not None:
        yield "distill.loss", recipe.distill.loss, 2
    for i, stage in enumerate(recipe.stages):
        if stage.optimizer is not None:
            yield f"stages.{i}.optimizer", stage.optimizer, 0
        for j, what in enumerate(stage.transforms):
            yield f"stages.{i}.transforms.{j}", what, 0


def _check_call(what: Call | TransformCall, key: str, problems: Problems, given: int) -> None:
    try:
        function, key = _target(what, key)
    except RecipeError as error:
        problems.add("", str(error).removeprefix("recipe: "))
        return
    check_signature(function, what.kwargs, key, problems, given)
    for name, value in what.kwargs.items():
        if isinstance(value, Call):
            _check_call(value, f"{key}.{name}", problems, 0)
