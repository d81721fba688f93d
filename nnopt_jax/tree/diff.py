"""What two trees do not share, told leaf by leaf."""

from __future__ import annotations

from typing import Any

from nnopt_jax.tree.paths import IsLeaf, flatten


def _signature(leaf: Any) -> str:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return type(leaf).__name__
    return f"{dtype}[{','.join(map(str, shape))}]"


def diff(left: Any, right: Any, is_leaf: IsLeaf | None = None) -> list[str]:
    """Lists the differences in paths, shapes and dtypes of two trees.

    Args:
        left: any pytree of arrays or `jax.ShapeDtypeStruct`.
        right: what it is compared with.
        is_leaf: says which inner nodes count as leaves.

    Returns:
        One line for each difference; empty where the trees agree.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.tree.diff import diff
        >>> for line in diff({"a": jnp.ones(2), "b": 1}, {"a": jnp.ones(3), "c": 1}):
        ...     print(line)
        a: float32[2] against float32[3]
        b: only on the left (int)
        c: only on the right (int)
    """
    ours, theirs = flatten(left, is_leaf), flatten(right, is_leaf)
    lines = []
    for path, leaf in ours.items():
        if path not in theirs:
            lines.append(f"{path}: only on the left ({_signature(leaf)})")
        elif _signature(leaf) != _signature(theirs[path]):
            lines.append(f"{path}: {_signature(leaf)} against {_signature(theirs[path])}")
    lines += [
        f"{path}: only on the right ({_signature(leaf)})"
        for path, leaf in theirs.items()
        if path not in ours
    ]
    return lines
