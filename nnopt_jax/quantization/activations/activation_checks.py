"""Checks of the arguments of activation quantizers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.transform.validation import described
from nnopt_jax.typing import Array


def floats(who: str, x: Any, name: str = "x") -> Array:
    """Return activations as an array; raise if they are not floats.

    The rounded values of an integer array would be cast back to integers.

    Raises:
        ValueRangeError: the argument is of another kind.

    Example:
        >>> floats("demo", [1, 2])
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: quantization.demo: x is int32[2]; give floats.
    """
    try:
        array = None if x is None else jnp.asarray(x)
    except (TypeError, ValueError):
        array = None
    if array is None or not jnp.issubdtype(array.dtype, jnp.floating):
        found = described(x if array is None else array)
        raise ValueRangeError(f"quantization.{who}: {name} is {found}; give floats.")
    return array


def check_kind(who: str, state: Any, kind: type, by: str) -> None:
    """Check that a state has the given type, and name the function that makes it.

    Raises:
        ValueRangeError: the argument is of another kind.

    Example:
        >>> check_kind("demo", 1.0, tuple, "update_range")
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: quantization.demo: state is the float 1.0; give what \
update_range returned, tuple.start() at first.
    """
    if not isinstance(state, kind):
        raise ValueRangeError(
            f"quantization.{who}: state is {described(state)}; give what {by} returned, "
            f"{kind.__name__}.start() at first."
        )
