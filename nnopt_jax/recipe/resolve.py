"""From names to callables, and from a `Call` to what it returns."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from nnopt_jax import registry
from nnopt_jax.errors import NnoptError, Problems, RecipeError, SelectionError, nearest
from nnopt_jax.recipe.schema import Call, Link, Recipe

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")

# What the run itself passes, where a callable asks for it by name.
PASSED = ("rngs", "key")
_ANYTHING = inspect.Parameter.VAR_KEYWORD
_ANY = (inspect.Parameter.VAR_POSITIONAL, _ANYTHING)


def find(source: str, key: str) -> Callable[..., Any]:
    """Imports `package.module:callable`.

    Args:
        source: the name.
        key: where the recipe says it, for errors.

    Returns:
        The callable.

    Raises:
        RecipeError: the module or the attribute is not there, the import fails, or what is found
            cannot be called.

    Example:
        >>> from nnopt_jax.recipe.resolve import find
        >>> find("math:sqrtt", "loss")
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: loss: module math has no 'sqrtt'. Did you mean sqrt, isqrt?
    """  # noqa: E501 - printed by the doctest
    name, _, attribute = source.partition(":")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and name.startswith(error.name):
            raise RecipeError(
                f"recipe: {key}: there is no module {error.name!r}. Write package.module:callable; "
                "the working directory is searched first."
            ) from error
        raise RecipeError(
            f"recipe: {key}: importing {name} failed: {type(error).__name__}: {error}"
        ) from error
    found: Any = module
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


def method(name: str, key: str) -> Callable[..., Any]:
    """Finds a transform: registered, or one's own as `package.module:callable`.

    Raises:
        RecipeError: there is none of that name.

    Example:
        >>> from nnopt_jax.recipe.resolve import method
        >>> method("pruning.magnitude", "stages.0.transforms.0").__name__
        'magnitude'
    """
    if ":" in name:
        return find(name, key)
    try:
        return registry.get(name).load()
    except SelectionError as error:
        raise RecipeError(f"recipe: {key}: {str(error).removeprefix('registry: ')}") from error


def call(
    what: Call, key: str, steps: int | None = None, passed: Mapping[str, Any] | None = None
) -> Any:
    """Calls what a recipe names.

    Args:
        what: the callable's name and its arguments; inner calls are made first.
        key: where the recipe says it, for errors.
        steps: steps of the stage, which percentages are shares of.
        passed: what the run offers; each is given where the callable has a parameter of that name.

    Returns:
        What the callable returns.

    Raises:
        RecipeError: the name or an argument is wrong, or the callable raises.

    Example:
        >>> from nnopt_jax.recipe import Call
        >>> from nnopt_jax.recipe.resolve import call
        >>> call(Call("builtins:dict", {"decay_steps": "70%"}), "optimizer", steps=1000)
        {'decay_steps': 700}
    """
    return _invoke(find(what.source, key), what.kwargs, key, steps, passed or {})


def transform(link: Link, key: str, steps: int) -> Any:
    """Makes the transform of a link; see `call`.

    Example:
        >>> from nnopt_jax.recipe import Link
        >>> from nnopt_jax.recipe.resolve import transform
        >>> transform(Link("pruning.magnitude", {"sparsity": 0.9}), "demo", 10).name
        'pruning.magnitude'
    """
    return _invoke(method(link.method, key), link.kwargs, f"{key}.{link.method}", steps, {})


def _invoke(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    key: str,
    steps: int | None,
    passed: Mapping[str, Any],
) -> Any:
    problems = Problems("recipe")
    check_signature(function, kwargs, key, problems)
    problems.raise_as(RecipeError)
    offered = {name: value for name, value in passed.items() if name in _parameters(function)}
    arguments = {name: _argument(value, f"{key}.{name}", steps) for name, value in kwargs.items()}
    try:
        return function(**offered, **arguments)
    except NnoptError:
        raise
    except Exception as error:
        raise RecipeError(
            f"recipe: {key}: {function.__name__} raised {type(error).__name__}: {error}"
        ) from error


def _argument(value: Any, key: str, steps: int | None) -> Any:
    if isinstance(value, Call):
        return call(value, key, steps)
    if isinstance(value, Mapping):
        return {name: _argument(item, f"{key}.{name}", steps) for name, item in value.items()}
    if isinstance(value, list):
        return [_argument(item, f"{key}.{i}", steps) for i, item in enumerate(value)]
    share = _SHARE.fullmatch(value) if isinstance(value, str) else None
    if share is None:
        return value
    if steps is None:
        raise RecipeError(f"recipe: {key}: {value} is a share of a stage's steps; give a number.")
    return max(1, round(float(share[1]) / 100 * steps))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        found = inspect.signature(function).parameters
        # A metaclass, as NNX has, may take anything and hand it on; the constructor tells more.
        if inspect.isclass(function) and all(p.kind in _ANY for p in found.values()):
            own = list(inspect.signature(function.__init__).parameters.items())[1:]
            return dict(own)
        return found
    except (TypeError, ValueError):  # some builtins tell nothing
        return {}


def check_signature(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    key: str,
    problems: Problems,
    given: int = 0,
) -> None:
    """Adds a problem for each argument the callable does not take, or lacks.

    Args:
        function: the callable.
        kwargs: what the recipe passes.
        key: where the recipe says it.
        problems: where problems go.
        given: how many positional arguments the run passes before these.

    Example:
        >>> from nnopt_jax.errors import Problems
        >>> from nnopt_jax.recipe.resolve import check_signature, find
        >>> problems = Problems("demo")
        >>> check_signature(find("optax:adam", ""), {"learning_rat": 0.5}, "optimizer", problems)
        >>> for text in problems.found:
        ...     print(text)
        optimizer.learning_rat: unknown key. Did you mean learning_rate?
        optimizer.learning_rate: missing
    """
    parameters = list(_parameters(function).values())
    fixed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    named = {p.name: p for p in parameters[given:] if p.kind not in (*fixed, _ANYTHING)}
    if parameters and all(p.kind is not _ANYTHING for p in parameters):
        for name in kwargs:
            if name not in named:
                known = [other for other in named if other not in PASSED]
                problems.add(f"{key}.{name}", f"unknown key.{nearest(name, known)}")
    for name, parameter in named.items():
        required = parameter.default is inspect.Parameter.empty
        if required and name not in kwargs and name not in PASSED:
            problems.add(f"{key}.{name}", "missing")


def check(recipe: Recipe) -> None:
    """Imports everything a recipe names and checks the arguments, before anything runs.

    Raises:
        RecipeError: every problem, with its key path.

    Example:
        >>> from nnopt_jax.recipe.load import build
        >>> from nnopt_jax.recipe.resolve import check
        >>> raw = {"name": "a", "stages": [{"name": "train", "epochs": 1}]}
        >>> check(build(raw | {"model": "no_such:f", "data": "math:pi"}))
        Traceback (most recent call last):
        nnopt_jax.errors.RecipeError: recipe: 2 problems
        ...
    """
    problems = Problems("recipe")
    for key in ("model", "data", "optimizer"):
        _check_call(getattr(recipe, key), key, problems)
    for key in ("loss", "metric", "augment"):  # the run gives their first two arguments
        if (what := getattr(recipe, key)) is not None:
            _check_call(what, key, problems, given=2)
    if recipe.distill is not None:
        _check_call(recipe.distill.loss, "distill.loss", problems, given=2)
    for i, stage in enumerate(recipe.stages):
        if stage.optimizer is not None:
            _check_call(stage.optimizer, f"stages.{i}.optimizer", problems)
        for j, link in enumerate(stage.transforms):
            key = f"stages.{i}.transforms.{j}"
            _check_one(lambda k=key, m=link.method: method(m, k), link.kwargs,
                       f"{key}.{link.method}", problems)  # fmt: skip
    problems.raise_as(RecipeError)


def _check_call(what: Call, key: str, problems: Problems, given: int = 0) -> None:
    _check_one(lambda: find(what.source, key), what.kwargs, key, problems, given)


def _check_one(
    finder: Callable[[], Any],
    kwargs: Mapping[str, Any],
    key: str,
    problems: Problems,
    given: int = 0,
) -> None:
    try:
        function = finder()
    except RecipeError as error:
        problems.add("", str(error).removeprefix("recipe: "))
        return
    check_signature(function, kwargs, key, problems, given)
    for name, value in kwargs.items():
        if isinstance(value, Call):
            _check_call(value, f"{key}.{name}", problems)
