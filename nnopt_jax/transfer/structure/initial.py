"""Initializers of leaves: estimated from values or named by the user."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import Problems, ValueRangeError, nearest
from nnopt_jax.tree.select import resolve
from nnopt_jax.typing import Key

Initializer = dict[str, Any]
"""An initializer as JSON: `{"name": ..., **arguments}`."""

NAMED = tuple(
    name
    for name in dir(jax.nn.initializers)
    if name[0].islower() and name not in ("zeros", "ones", "constant")
)
"""The factories of `jax.nn.initializers`, which may be named as the initializer of a leaf."""


def estimate_initializer(leaf: Any) -> Initializer:
    """Estimate an initializer from the values of a leaf.

    Args:
        leaf: an array or a packed parameter.

    Returns:
        `zeros`, `ones`, `constant` (value), `measured` (mean and standard deviation of floats),
        or `unknown`.

    Example:
        >>> estimate_initializer(jnp.ones(3)), estimate_initializer(jnp.array([1.0, 3.0]))
        ({'name': 'ones'}, {'name': 'measured', 'mean': 2.0, 'std': 1.0})
    """
    unreal = (jax.dtypes.prng_key, jnp.complexfloating)
    if isinstance(leaf, jax.ShapeDtypeStruct) or any(
        jnp.issubdtype(leaf.dtype, kind) for kind in unreal
    ):
        return {"name": "unknown"}
    values = np.asarray(jax.jit(materialize)(leaf) if is_node(leaf) else leaf)
    first = values.ravel()[0].item() if values.size else 0
    if not values.size or (values == values.ravel()[0]).all():
        short = {0: "zeros", 1: "ones"}.get(first)
        if short or math.isfinite(first):
            return {"name": short} if short else {"name": "constant", "value": first}
    if jnp.issubdtype(values.dtype, jnp.floating):
        wide = values.astype(np.float64)
        mean, std = float(wide.mean()), float(wide.std())
        if math.isfinite(std):
            return {"name": "measured", "mean": mean, "std": std}
    return {"name": "unknown"}


def leaf_initializers(
    who: str, leaves: Mapping[str, Any], given: Mapping[str, str | Mapping[str, Any]] | None
) -> dict[str, Initializer]:
    """Return the initializer of each leaf, set by the user or estimated from its values.

    Args:
        who: the caller, for errors.
        leaves: arrays, packed parameters or shapes by path.
        given: for each glob or `re:` expression, the name of a factory of `jax.nn.initializers`, or
            a mapping of its name and arguments, JSON; later ones take precedence.

    Returns:
        The initializers by path.

    Raises:
        SelectionError: a rule selects no leaf.
        ValueRangeError: the initializer does not exist, or cannot make such a leaf.

    Example:
        >>> leaf_initializers("demo", {"w": jnp.zeros((2, 2))}, {"w": "lecun_normal"})
        {'w': {'name': 'lecun_normal'}}
    """
    named: dict[str, Initializer] = {}
    problems = Problems(who)
    for where, start in (given or {}).items():
        try:
            entry = {"name": start} if isinstance(start, str) else dict(start)
            entry = json.loads(json.dumps(entry, allow_nan=False))
        except (TypeError, ValueError) as error:
            problems.add("", f"initializers[{where!r}]={start!r} is neither a name nor a mapping "
                             f"that JSON can say ({error})")  # fmt: skip
            continue
        name = entry.get("name")
        if name not in (*NAMED, "zeros", "ones", "constant"):
            problems.add("", f"initializers[{where!r}]={start!r} is not one of jax.nn.initializers."
                             f"{nearest(str(name), NAMED)}")  # fmt: skip
            continue
        for path in resolve(where, leaves, who):
            try:
                jax.eval_shape(lambda e=entry, p=path: draw_leaf(jax.random.key(0), e, leaves[p]))
            except (TypeError, ValueError, LookupError) as error:
                problems.add(path, f"initializers[{where!r}]={start!r} cannot make it ({error!r})")
            named[path] = entry
    problems.raise_as(ValueRangeError)
    return {path: named.get(path) or estimate_initializer(leaf) for path, leaf in leaves.items()}


def draw_leaf(key: Key, start: Initializer, like: Any) -> jax.Array:
    """Draw the initial value of a leaf.

    Args:
        key: the key of this leaf.
        start: the initializer.
        like: an array or a shape with its shape and dtype.

    Returns:
        The leaf.

    Example:
        >>> like = jax.ShapeDtypeStruct((2,), "float32")
        >>> draw_leaf(jax.random.key(0), {"name": "constant", "value": 3.0}, like)
        Array([3., 3.], dtype=float32)
    """
    arguments = {name: value for name, value in start.items() if name != "name"}
    shape, dtype = like.shape, jnp.dtype(like.dtype)
    match start["name"]:
        case "zeros" | "ones" as name:
            return getattr(jnp, name)(shape, dtype)
        case "constant":
            return jnp.full(shape, arguments["value"], dtype)
        case "measured":
            noise = jax.random.normal(key, shape, jnp.float32)
            return (arguments["mean"] + arguments["std"] * noise).astype(dtype)
        case name if name in NAMED:
            return getattr(jax.nn.initializers, name)(**arguments)(key, shape, dtype)
    raise ValueRangeError(f"{start['name']!r} is not an initializer")


def leaf_key(key: Key, path: str) -> Key:
    """Return the PRNG key of a leaf, derived from its path and the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def initializer_text(start: Initializer) -> str:
    """Return a short description of an initializer, for a table.

    Example:
        >>> initializer_text({"name": "measured", "mean": 0.0, "std": 0.0357123})
        'mean 0, std 0.0357'
    """
    if start["name"] == "measured":
        return f"mean {start['mean']:.3g}, std {start['std']:.3g}"
    rest = ", ".join(f"{name}={value}" for name, value in start.items() if name != "name")
    return start["name"] + (f"({rest})" if rest else "")
