"""How leaves begin: measured, or named by the author, and drawn anew without the model's code."""

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

Start = dict[str, Any]
"""`{"name": ..., **arguments}`, JSON."""

NAMED = tuple(
    name
    for name in dir(jax.nn.initializers)
    if name[0].islower() and name not in ("zeros", "ones", "constant")
)
"""What a leaf may be said to begin as: the factories of `jax.nn.initializers`."""


def measured(leaf: Any) -> Start:
    """Tells from the values of a leaf how one like it begins.

    Args:
        leaf: an array or an expression.

    Returns:
        `zeros`, `ones`, `constant` (value), `measured` (mean and standard deviation of floats),
        or `unknown`.

    Example:
        >>> measured(jnp.ones(3)), measured(jnp.array([1.0, 3.0]))
        ({'name': 'ones'}, {'name': 'measured', 'mean': 2.0, 'std': 1.0})
    """
    if isinstance(leaf, jax.ShapeDtypeStruct) or not _is_real(leaf.dtype):
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


def _is_real(dtype: Any) -> bool:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return False
    return not jnp.issubdtype(dtype, jnp.complexfloating)


def starts(
    who: str, leaves: Mapping[str, Any], given: Mapping[str, str | Mapping[str, Any]] | None
) -> dict[str, Start]:
    """How each leaf begins: as it is told, else as it is measured.

    Args:
        who: the function that asks, for errors.
        leaves: arrays, expressions or shapes by path.
        given: by glob or `re:`, the name of a factory of `jax.nn.initializers`, or a mapping of
            its name and arguments, JSON; later ones win.

    Returns:
        By path.

    Raises:
        SelectionError: a rule meets no leaf.
        ValueRangeError: there is no such initializer, or it cannot make such a leaf.

    Example:
        >>> starts("demo", {"w": jnp.zeros((2, 2))}, {"w": "lecun_normal"})
        {'w': {'name': 'lecun_normal'}}
    """
    told: dict[str, Start] = {}
    problems = Problems(who)
    for where, start in (given or {}).items():
        try:
            entry = json.loads(json.dumps(_entry(start), allow_nan=False))
        except (TypeError, ValueError) as error:
            problems.add("", f"initializers[{where!r}]={start!r} is neither a name nor a mapping "
                             f"that JSON can say ({error})")  # fmt: skip
            continue
        name = entry.get("name")
        if name not in (*NAMED, "zeros", "ones", "constant"):
            problems.add("", f"initializers[{where!r}]={start!r} is none of jax.nn.initializers."
                             f"{nearest(str(name), NAMED)}")  # fmt: skip
            continue
        for path in resolve(where, leaves, who):
            try:
                jax.eval_shape(lambda e=entry, p=path: drawn(jax.random.key(0), e, leaves[p]))
            except (TypeError, ValueError, LookupError) as error:
                problems.add(path, f"initializers[{where!r}]={start!r} cannot make it ({error!r})")
            told[path] = entry
    problems.raise_as(ValueRangeError)
    return {path: told.get(path) or measured(leaf) for path, leaf in leaves.items()}


def _entry(start: Any) -> Start:
    return {"name": start} if isinstance(start, str) else dict(start)


def drawn(key: Key, start: Start, like: Any) -> jax.Array:
    """Makes a leaf.

    Args:
        key: of this leaf.
        start: how it begins.
        like: has its shape and dtype.

    Returns:
        The leaf.

    Example:
        >>> like = jax.ShapeDtypeStruct((2,), "float32")
        >>> drawn(jax.random.key(0), {"name": "constant", "value": 3.0}, like)
        Array([3., 3.], dtype=float32)
    """
    arguments = {name: value for name, value in start.items() if name != "name"}
    shape, dtype = like.shape, jnp.dtype(like.dtype)
    match start["name"]:
        case "zeros":
            return jnp.zeros(shape, dtype)
        case "ones":
            return jnp.ones(shape, dtype)
        case "constant":
            return jnp.full(shape, arguments["value"], dtype)
        case "measured":
            noise = jax.random.normal(key, shape, jnp.float32)
            return (arguments["mean"] + arguments["std"] * noise).astype(dtype)
        case name if name in NAMED:
            return getattr(jax.nn.initializers, name)(**arguments)(key, shape, dtype)
    raise ValueRangeError(f"{start['name']!r} is not an initializer")


def key_of(key: Key, path: str) -> Key:
    """A key for each leaf, by its path, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def said(start: Start) -> str:
    """A few words for a table.

    Example:
        >>> said({"name": "measured", "mean": 0.0, "std": 0.0357123})
        'mean 0, std 0.0357'
    """
    if start["name"] == "measured":
        return f"mean {start['mean']:.3g}, std {start['std']:.3g}"
    rest = ", ".join(f"{name}={value}" for name, value in start.items() if name != "name")
    return start["name"] + (f"({rest})" if rest else "")
