"""Validation of method settings; all problems are raised as one error."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.errors import Problems, ValueRangeError, nearest

_LEAST, _MOST = float(jnp.finfo(jnp.float32).tiny), float(jnp.finfo(jnp.float32).max)


class Settings:
    """A validator of a method's settings, which collects all problems.

    Every check takes the setting's name and value. None passes if `none=True`.

    Args:
        who: the method's public name.

    Example:
        >>> from nnopt_jax.settings import Settings
        >>> settings = Settings("demo")
        >>> settings.integer("bits", "8", 2, 16)
        >>> settings.choice("mode", "sotf", ("hard", "soft"))
        >>> settings.done()
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: demo: 2 problems
          bits='8' is not a whole number from 2 to 16.
          mode='sotf' is not one of 'hard', 'soft'. Did you mean soft?
    """

    def __init__(self, who: str) -> None:
        self._problems = Problems(who)

    def integer(
        self, name: str, value: Any, low: int, high: int | None = None, *, none: bool = False
    ) -> None:
        """Check that a value is a whole number within bounds; bools are not numbers."""
        if none and value is None:
            return
        top = math.inf if high is None else high
        if not (is_whole(value) and low <= value <= top):
            self.wrong(name, value, f"is not a whole number {_span(low, high)}.")

    def number(
        self,
        name: str,
        value: Any,
        low: float,
        high: float | None = None,
        *,
        above: bool = False,
        none: bool = False,
        array: bool = False,
    ) -> None:
        """Check that a value is a number within bounds, and that float32 can represent it.

        With `above`, the lower bound itself is not allowed. With `array`, an array of one number is
        allowed; if it is traced, its value is not checked.
        """
        if (none and value is None) or (array and is_traced(value)):
            return
        value = single(value) if array else value
        top = math.inf if high is None else high
        if not (_is_number(value) and low <= value <= top) or (above and value == low):
            span = f"above {low:g}" if above else _span(low, high)
            span += f" and at most {high:g}" if above and high is not None else ""
            self.wrong(name, value, f"is not a number {span}.")
        elif value and not _LEAST <= abs(value) <= _MOST:
            # Subnormal floats are not allowed, because devices flush them to 0.
            self.wrong(name, value, "is beyond float32, which goes from "
                                    f"{_LEAST:.3g} to {_MOST:.3g}.")  # fmt: skip

    def share(self, name: str, value: Any, *, schedule: bool = True, array: bool = False) -> None:
        """Check that a value is a fraction from 0 to 1 or, if allowed, a schedule."""
        if (schedule and callable(value)) or (array and is_traced(value)):
            return
        value = single(value) if array else value
        if not (_is_number(value) and 0 <= value <= 1):
            or_schedule = ", nor a schedule" if schedule else ""
            percent = _is_number(value) and 5 <= value <= 100
            hint = f" Give {value / 100:g} for {value:g} %." if percent else ""
            self.wrong(name, value, f"is not a number from 0 to 1{or_schedule}.{hint}")

    def choice(self, name: str, value: Any, known: Sequence[str]) -> None:
        """Check that a value is one of the known strings."""
        if not (isinstance(value, str) and value in known):
            hint = nearest(value, known) if isinstance(value, str) else ""
            hint = hint if hint.startswith(" Did") else ""
            names = ", ".join(map(repr, known))
            self.wrong(name, value, f"is not one of {names}.{hint}")

    def flag(self, name: str, value: Any) -> None:
        """Check that a value is True or False."""
        if not isinstance(value, bool):
            self.wrong(name, value, "is neither True nor False.")

    def floating(self, name: str, value: Any) -> None:
        """Check that a value is a float dtype that JAX has enabled, or the name of one."""
        try:
            dtype = jnp.dtype(value) if value is not None else None  # NumPy reads None as float64.
        except TypeError:
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            self.wrong(name, value, "is not a dtype of floats; give e.g. 'float32' or 'bfloat16'.")
        elif jax.dtypes.canonicalize_dtype(dtype) != dtype:
            self.wrong(name, value, f"is {dtype}, which JAX has turned off; give 'float32', or "
                                    "set jax_enable_x64.")  # fmt: skip

    def wrong(self, name: str, value: Any, text: str) -> None:
        """Add a problem that no other check describes."""
        self._problems.add("", f"{name}={value!r} {text}")

    def done(self) -> None:
        """Raise all problems as one error, if there are any.

        Raises:
            ValueRangeError: there is at least one problem.
        """
        self._problems.raise_as(ValueRangeError)


def takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Return whether the signature of a function accepts these arguments.

    Example:
        >>> takes(lambda path, leaf: True, "path", None), takes(lambda leaf: True, "path", None)
        (True, False)
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Not all builtins have a signature.
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number, of Python or NumPy, but not a bool.

    Example:
        >>> is_whole(3), is_whole(3.0), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_traced(value: Any) -> bool:
    """Return whether a value is a traced scalar, whose number is unknown.

    Example:
        >>> is_traced(3.0), is_traced(jnp.float32(3))
        (False, False)
    """
    return isinstance(value, Tracer) and value.shape == ()


def single(value: Any) -> Any:
    """Return the number in an array of one element; return anything else unchanged.

    Example:
        >>> single(jnp.float32(0.5)), single("a")
        (0.5, 'a')
    """
    known = isinstance(value, jax.Array | np.ndarray | np.generic)
    return value.item() if known and value.shape == () and value.dtype.kind in "biuf" else value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _span(low: float, high: float | None) -> str:
    return f"from {low:g} to {high:g}" if high is not None else f"of {low:g} or more"
