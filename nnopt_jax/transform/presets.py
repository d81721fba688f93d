"""Decorators of methods, which record arguments for `repr` and document the choices of presets."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nnopt_jax.columns import brief
from nnopt_jax.transform.base import Transform

Preset = TypeVar("Preset", bound=Callable[..., object])
Arguments = ParamSpec("Arguments")


def recorded(method: Callable[Arguments, Transform]) -> Callable[Arguments, Transform]:
    """Record the arguments of a method for the `repr` of the transforms that it makes.

    Args:
        method: a function that returns a transform.

    Returns:
        The method, whose transforms show the call that made them, even after binding.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.pruning.magnitude(0.5, pattern="2:4")
        pruning.magnitude(sparsity=0.5, pattern='2:4')
    """
    name = f"{method.__module__.split('.')[1]}.{method.__name__}"

    @functools.wraps(method)
    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Transform:
        transform = method(*args, **kwargs)
        given = inspect.signature(method).bind(*args, **kwargs).arguments
        settings = ", ".join(f"{key}={brief(value)}" for key, value in given.items())
        return _described(transform, f"{name}({settings})")

    return made


def _described(transform: Transform, text: str) -> Transform:
    """Return a transform with another `repr`, which binding keeps."""
    build = transform.build
    again = None if build is None else lambda binding: _described(build(binding), text)
    return dataclasses.replace(transform, description=text, build=again)


def preset(long_form: Callable[..., object], choices: type) -> Callable[[Preset], Preset]:
    """Show the choices of the long form in the signature of presets that take `**choices`.

    Args:
        long_form: the function that presets call.
        choices: the `TypedDict` of the arguments that they pass on.

    Returns:
        A decorator that changes the signature for `inspect.signature` and `help`, and records
        arguments.

    Example:
        >>> import inspect, nnopt_jax as nnopt
        >>> [*inspect.signature(nnopt.pruning.taylor).parameters][:4]
        ['sparsity', 'power', 'decay', 'where']
    """

    def decorate(function: Preset) -> Preset:
        own, longer = inspect.signature(function), inspect.signature(long_form).parameters
        mine = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        passed = [longer[key] for key in choices.__annotations__ if key not in own.parameters]
        signature = own.replace(parameters=[*mine, *passed])
        function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        return recorded(function)  # pyright: ignore

    return decorate
