"""Conversion of leaves of any kind to arrays that orbax can store, and back, bit for bit."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.node_description import dtype_named
from nnopt_jax.tree.bit_counts import dtype_bits

__all__ = ["StoredLeaf", "decode", "decode_python", "encode", "encode_python", "nonfinite"]

PYTHON = {f"python {kind.__name__}": kind for kind in (bool, int, float, complex, str)}
"""The types of plain Python leaves, which are stored in the manifest, by name."""


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """The kind, dtype and shape of a leaf, in place of the leaf in descriptions of a tree.

    Args:
        kind: `"jax"`, `"numpy"` (an array), `"scalar"` (a NumPy scalar) or `"python"`.
        dtype: the name of the dtype, or of the Python type (`"python int"`).
        shape: the shape of the array.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.stored_leaf import StoredLeaf
        >>> StoredLeaf.of(np.ones(3, np.float16)), StoredLeaf.of(3).dtype
        (StoredLeaf(kind='numpy', dtype='float16', shape=(3,)), 'python int')
    """

    kind: str
    dtype: str
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, x: Any) -> StoredLeaf:
        """Describe a leaf, concrete or abstract.

        Raises:
            TypeError: the leaf is of a kind that cannot be stored.
        """
        if (name := f"python {type(x).__name__}") in PYTHON:
            return cls("python", name)
        if isinstance(x, Tracer):
            raise TypeError("is traced; save outside of jax.jit")
        if isinstance(x, jax.Array) and x.is_deleted():
            raise TypeError("was donated or deleted; save before the step that donates it")
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise TypeError(f"is a {type(x).__name__}; give an array, a number or a string")
        if not (_is_key(x.dtype) or x.dtype == bool or jnp.issubdtype(x.dtype, np.number)):
            raise TypeError(f"has dtype {x.dtype}; give numbers, bool or PRNG keys")
        kinds = {np.ndarray: "numpy", np.generic: "scalar"}
        kind = next((kind for type_, kind in kinds.items() if isinstance(x, type_)), "jax")
        dtype = x.dtype if kind == "jax" else x.dtype.newbyteorder("=")
        return cls(kind, str(dtype), tuple(x.shape))

    @property
    def stored(self) -> bool:
        """Return whether there is an array to store."""
        return self.kind != "python" and 0 not in self.shape


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _narrow(dtype: Any) -> Any:
    """Return int8 or uint8 for an integer dtype of fewer than 8 bits; None for other dtypes."""
    if _is_key(dtype) or not jnp.issubdtype(dtype, jnp.integer) or dtype_bits(dtype) >= 8:
        return None
    return np.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else np.uint8


def encode(x: Any) -> Any:
    """Convert an array leaf to an array of a dtype that orbax stores on every backend.

    PRNG keys become their words, and integers of fewer than 8 bits become bytes.

    Args:
        x: a `jax.Array` of any sharding, or a NumPy array or scalar.

    Returns:
        An array of the same sharding.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.stored_leaf import encode
        >>> encode(jnp.array([1, -2], jnp.int4)).dtype
        dtype('int8')
    """
    if _is_key(x.dtype):
        return jax.random.key_data(x)
    if isinstance(x, np.ndarray | np.generic):
        x = np.asarray(x, x.dtype.newbyteorder("="))
    narrow = _narrow(x.dtype)
    return x if narrow is None else x.astype(narrow)


def decode(leaf: StoredLeaf, stored: Any) -> Any:
    """Restore a leaf from its stored array; the inverse of `encode`.

    Args:
        leaf: the kind, dtype and shape to restore.
        stored: the result of `encode`; None for a leaf of size zero.

    Returns:
        The leaf, with exactly the dtype and shape of `leaf`.

    Raises:
        ValueError: the stored array has another dtype or shape, or needs `jax_enable_x64`.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.stored_leaf import StoredLeaf, decode
        >>> decode(StoredLeaf("jax", "uint4", (2,)), np.array([3, 15], np.uint8))
        Array([3, 15], dtype=uint4)
    """
    dtype = dtype_named(leaf.dtype)
    words = _key_words(dtype) if _is_key(dtype) else ()
    narrow = np.uint32 if words else _narrow(dtype)
    if stored is None:
        stored = np.zeros((*leaf.shape, *words), narrow or dtype)
    if stored.shape != (*leaf.shape, *words) or stored.dtype != np.dtype(narrow or dtype):
        raise ValueError(f"holds {stored.dtype}{list(stored.shape)} in place of {leaf.dtype}")
    if leaf.kind in ("numpy", "scalar"):
        array = np.asarray(stored).astype(dtype, copy=False)
        return array if leaf.kind == "numpy" else array[()]
    if jax.dtypes.canonicalize_dtype(stored.dtype) != stored.dtype:
        raise ValueError(f"is {leaf.dtype}; set jax_enable_x64 as it was when this was saved")
    if words:
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=_key_implementation(dtype))
    array = jnp.asarray(stored)
    return array if narrow is None else array.astype(dtype)


def _key_words(dtype: Any) -> tuple[int, ...]:
    return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).shape


def _key_implementation(dtype: Any) -> str:
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    of = {jax.eval_shape(lambda n=name: jax.random.key(0, impl=n)).dtype: name for name in names}
    return of[dtype]


def encode_python(x: Any) -> Any:
    """Return a plain Python leaf as JSON, with floats as hexadecimal bytes."""
    if isinstance(x, float):
        return struct.pack("<d", x).hex()
    if isinstance(x, complex):
        return struct.pack("<dd", x.real, x.imag).hex()
    return x


def decode_python(leaf: StoredLeaf, value: Any) -> Any:
    """Restore a plain Python leaf from JSON; the inverse of `encode_python`."""
    kind = PYTHON[leaf.dtype]
    if kind is float:
        return struct.unpack("<d", bytes.fromhex(value))[0]
    return complex(*struct.unpack("<dd", bytes.fromhex(value))) if kind is complex else value


def nonfinite(x: Any) -> str:
    """Return a phrase with the number of nonfinite values; empty if all values are finite.

    An infinite scalar is allowed, because a running minimum starts with one.

    Args:
        x: NumPy or JAX array of any dtype, or a number; anything else is allowed.

    Returns:
        "" or a phrase such as "holds 3 NaN and 1 infinite of 6".

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.stored_leaf import nonfinite
        >>> nonfinite(np.array([1.0, np.nan])), nonfinite(np.float32(np.inf))
        ('holds 1 NaN and 0 infinite of 2', '')
    """
    x = np.asarray(x) if isinstance(x, float | complex) else x
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, np.inexact):
        return ""
    whole = isinstance(x, jax.Array) and not x.is_fully_addressable
    values, xp = (x, jnp) if whole else (np.asarray(x), np)
    if not jnp.issubdtype(x.dtype, np.complexfloating) and x.dtype.itemsize == 1:
        values = values.astype(np.float32)
    finite = int(xp.count_nonzero(xp.isfinite(values)))
    if finite == values.size:
        return ""
    nan = int(xp.isnan(values).sum())
    infinite = values.size - finite - nan
    if nan or (infinite and values.ndim):
        return f"holds {nan} NaN and {infinite} infinite of {values.size}"
    return ""
