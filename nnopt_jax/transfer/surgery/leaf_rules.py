"""The leaves of the models of a graft, and checks of casts between their dtypes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.errors import Problems
from nnopt_jax.transfer.surgery.rule import Leaves
from nnopt_jax.transform.validation import described
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Params

_KINDS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def numeric_leaves(tree: Params, whose: str, problems: Problems) -> Leaves:
    """Return the leaves of a tree by path; add a problem for each leaf without numbers."""
    leaves = flatten(tree, is_node)
    for path, leaf in leaves.items():
        if is_node(leaf) or isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            continue
        leaves[path] = np.asarray(leaf)
        if _kind(leaves[path].dtype) is None:
            problems.add(
                path, f"of the {whose} is {described(leaf)}; give numbers, or leave it out"
            )
    return leaves


def source_leaves(tree: Params, problems: Problems) -> Leaves:
    """Return the source's leaves by path as arrays; add a problem for each abstract leaf."""
    leaves = numeric_leaves(tree, "source", problems)
    for path, leaf in leaves.items():
        if any(isinstance(part, jax.ShapeDtypeStruct) for part in jax.tree.leaves(leaf)):
            problems.add(path, "of the source is abstract; give arrays, or leave it out")
        elif isinstance(leaf, np.ndarray) and _kind(leaf.dtype) is not None:
            if is_lossy_cast(leaf, canonical_dtype(leaf.dtype)):
                problems.add(path, f"of the source is {leaf.dtype}, and some of its numbers are "
                                   f"beyond {canonical_dtype(leaf.dtype)}; set jax_enable_x64, or "
                                   "leave it out")  # fmt: skip
            leaves[path] = jnp.asarray(leaf)
    return leaves


def canonical_dtype(dtype: Any) -> Any:
    """Return the canonical dtype of JAX, such as float32 for float64 without 64-bit mode."""
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)


def is_lossy_cast(x: Any, dtype: Any) -> bool:
    """Return whether a cast loses more than the rounding of floats does.

    Args:
        x: a NumPy or JAX array.
        dtype: the dtype of the cast.

    Returns:
        True for a cast to a poorer kind (in the order keys, complex numbers, floats, integers,
        booleans), and for integers that are, or under `jax.jit` may be, beyond the range of the
        dtype.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.transfer.surgery.leaf_rules import is_lossy_cast
        >>> is_lossy_cast(np.array([1.0]), np.int8), is_lossy_cast(np.array([300]), np.int8)
        (True, True)
        >>> is_lossy_cast(np.array([3]), np.int8), is_lossy_cast(np.array([1.1]), np.float16)
        (False, False)
    """
    given, wanted = _kind(x.dtype), _kind(dtype)
    if given is None or wanted is None:
        return x.dtype != dtype
    if given != wanted or _KINDS[given] is not jnp.integer:
        return given > wanted
    mine, other = jnp.iinfo(x.dtype), jnp.iinfo(dtype)
    if (other.min <= mine.min and mine.max <= other.max) or not x.size:
        return False
    return isinstance(x, Tracer) or int(x.min()) < other.min or int(x.max()) > other.max


def _kind(dtype: Any) -> int | None:
    """Return the rank of a dtype (bool, integer, float, complex); None for any other dtype."""
    found = (place for place, kind in enumerate(_KINDS) if jnp.issubdtype(dtype, kind))
    return next(found, None)
