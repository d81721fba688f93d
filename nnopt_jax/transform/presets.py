"""Presets: functions that pass their choices on to a longer form."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

Preset = TypeVar("Preset", bound=Callable[..., object])


def preset(long_form: Callable[..., object], choices: type) -> Callable[[Preset], Preset]:
    """Show the choices of the long form in the signature of presets that take `**choices`.

    Args:
        long_form: the function that presets call.
        choices: the `TypedDict` of the arguments that they pass on.

    Returns:
        A decorator, which changes nothing but what `inspect.signature` and `help` show.

    Example:
        >>> import inspect, nnopt_jax as nnopt
        >>> [*inspect.signature(nnopt.pruning.taylor).parameters][:4]
        ['sparsity', 'power', 'decay', 'where']
    """

    def decorate(function: Preset) -> Preset:
        own, longer = inspect.signature(function), inspect.signature(long_form).parameters
        mine = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        passed = [longer[key] for key in choices.__annotations__ if key not in own.parameters]
        shown = own.replace(parameters=[*mine, *passed])
        function.__signature__ = shown  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return decorate
