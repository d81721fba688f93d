"""Decorators that record a method's arguments for `repr`, and complete a preset's signature."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from nnopt_jax.columns import brief
from nnopt_jax.errors import nearest
from nnopt_jax.transform.base import Transform

Preset = TypeVar("Preset", bound=Callable[..., object])
Arguments = ParamSpec("Arguments")

_FORMER_ARGUMENTS = {"scope": "allocation"}  # of `pruning.structured`


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
    signature = inspect.signature(method)

    @functools.wraps(method)
    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Transform:
        _check_names(name, signature, kwargs)
        transform = method(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        settings = ", ".join(f"{key}={brief(value)}" for key, value in given.items())
        return _described(transform, f"{name}({settings})")

    return made


def _check_names(caller: str, signature: inspect.Signature, given: Mapping[str, object]) -> None:
    """Raise if an argument is unknown, with its new name or the nearest names.

    Raises:
        TypeError: as for any function; the error of a preset would name the long form.
    """
    known = signature.parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for key in given:
        if key not in known:
            new = _FORMER_ARGUMENTS.get(key)
            hint = f" It is now {new}=." if new in known else nearest(key, known)
            raise TypeError(f"{caller}: has no argument {key}=.{hint}")


def _described(transform: Transform, text: str) -> Transform:
    """Return a transform with another `repr`, which binding keeps."""
    build = transform.build
    again = None if build is None else lambda binding: _described(build(binding), text)
    return dataclasses.replace(transform, description=text, build=again)


def preset(long_form: Callable[..., object], choices: type) -> Callable[[Preset], Preset]:
    """Return a decorator that lists the arguments behind `**choices` in a preset's signature.

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
