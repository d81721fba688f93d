"""Operations outside of `jax.jit`, in NumPy or as one compiled program for a function.

Outside of `jax.jit`, JAX compiles a program for each operation and each new shape, at some 20 ms
each. A model of fifty shapes would take minutes before its first code.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

compiled = functools.partial(jax.jit, inline=True)
"""Compile a function as a whole; inside of `jax.jit` it is inlined, so that programs stay the same.

Only for functions that were always compiled, or whose results do not depend on fusion: if a product
is added to something, compilers may round once instead of twice, and eager codes would change.
"""


def is_on_host(x: Any) -> bool:
    """Return whether an array is not traced, and lies in host memory as a whole.

    Example:
        >>> is_on_host(np.ones(2)), is_on_host(jax.ShapeDtypeStruct((2,), "float32"))
        (True, False)
    """
    if not isinstance(x, jax.Array):
        return isinstance(x, np.ndarray)
    if isinstance(x, Tracer) or not x.is_fully_addressable:
        return False
    devices = list(x.devices())  # an array on several keeps its sharding, so JAX computes with it
    return len(devices) == 1 and devices[0].platform == "cpu"


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Compute on the processor, where loops over the bytes of files are fastest, if JAX may use it.

    Example:
        >>> with on_host():
        ...     print(jnp.ones(2).devices())
        {CpuDevice(id=0)}
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        warnings.warn(
            "JAX may not use the processor, so that files and checkpoints are read and written "
            f"slowly. Set JAX_PLATFORMS={jax.default_backend()},cpu.",
            stacklevel=2,
        )
        return contextlib.nullcontext()


def to_host(x: Any) -> Any:
    """Return an array in host memory as a NumPy array, and any other one unchanged.

    Example:
        >>> to_host(jnp.arange(2))
        array([0, 1], dtype=int32)
    """
    return np.asarray(x) if is_on_host(x) else x


def like_input(result: Any, x: Any) -> jax.Array:
    """Convert a NumPy result to a JAX array on the device of the input.

    Args:
        result: an array of NumPy, or one of JAX, which is returned unchanged.
        x: the input.

    Example:
        >>> like_input(np.arange(2), jnp.ones(2))
        Array([0, 1], dtype=int32)
    """
    if not isinstance(result, np.ndarray):
        return result
    # An array that JAX may move to other devices stays so.
    return jax.device_put(result, x.sharding if getattr(x, "committed", False) else None)


def to_integers(x: Any, dtype: Any) -> Any:
    """Cast floats that hold integers to an integer dtype; return NumPy for arrays on the host.

    NaN becomes an arbitrary integer without a warning, as in JAX; `pack` refuses it before.

    Example:
        >>> to_integers(jnp.array([2.0, -1.0]), np.int32)
        array([ 2, -1], dtype=int32)
    """
    with np.errstate(invalid="ignore"):
        return to_host(x).astype(dtype)


def count_nonfinite(x: jax.Array) -> int:
    """Return how many values of an array are NaN or infinite.

    Example:
        >>> count_nonfinite(jnp.array([1.0, jnp.inf]))
        1
    """
    if is_on_host(x):
        return x.size - int(np.count_nonzero(np.isfinite(np.asarray(x))))
    return int((~jnp.isfinite(x)).sum())


def count_true(mask: jax.Array) -> int:
    """Return how many entries of a mask are True; raise for a traced one, as `int` does.

    Example:
        >>> count_true(jnp.array([True, False]))
        1
    """
    return int(np.count_nonzero(mask) if is_on_host(mask) else mask.sum())


def kept_places(mask: jax.Array, count: int) -> jax.Array | np.ndarray:
    """Return the flat indices of the first `count` True entries, padded with zeros.

    Args:
        mask: bool of any shape.
        count: the number of places.

    Returns:
        Integers, `(count,)`.

    Example:
        >>> kept_places(jnp.array([[False, True], [True, True]]), 2)
        array([1, 2])
    """
    if not is_on_host(mask):
        return _kept_places(mask, count)
    found = np.flatnonzero(to_host(mask))[:count]
    return np.pad(found, (0, count - len(found)))


@functools.partial(compiled, static_argnums=1)
def _kept_places(mask: jax.Array, count: int) -> jax.Array:
    return jnp.nonzero(mask.ravel(), size=count, fill_value=0)[0]


def take_flat(x: jax.Array, places: jax.Array | np.ndarray) -> jax.Array:
    """Return the values of an array at flat indices.

    Args:
        x: array of any shape.
        places: integers, `(count,)`.

    Returns:
        `(count,)`, on the device of `x`.

    Example:
        >>> take_flat(jnp.array([[5, 6], [7, 8]]), np.array([3, 0]))
        Array([8, 5], dtype=int32)
    """
    if not is_on_host(x):
        return _take_flat(x, places)
    return like_input(to_host(x).ravel()[places], x)


@compiled
def _take_flat(x: jax.Array, places: jax.Array | np.ndarray) -> jax.Array:
    return x.ravel()[places]
