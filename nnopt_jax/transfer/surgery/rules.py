"""Rules for `transfer.graft`: names, layouts, and adaptations of shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.errors import SelectionError, ShapeError
from nnopt_jax.ops import resize
from nnopt_jax.transfer.surgery.leaf_rules import is_lossy_cast
from nnopt_jax.transfer.surgery.rule import (
    Rule,
    joining_rule,
    leafwise_rule,
    selector_text,
    splitting_rule,
)
from nnopt_jax.tree.select import Where, selector
from nnopt_jax.typing import Array

__all__ = [
    "Rule", "adapt", "corner", "drop", "fuse", "grid", "keep", "rename", "reshape", "rows",
    "split", "stack", "transpose", "unstack",
]  # fmt: skip


def rename(pattern: str, template: str) -> Rule:
    r"""Rename leaves of the source to the names of the target.

    Args:
        pattern: a regular expression of whole paths, as `re.fullmatch` takes it.
        template: the new path, with `\1` or `\g<name>` for groups.

    Example:
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.rename(r"layer_(\d)/w", r"blocks/\1/kernel")
        >>> graft({"blocks": [{"kernel": 0.0}]}, {"layer_0": {"w": 7.0}}, [rule]).params
        {'blocks': [{'kernel': Array(7., dtype=float32)}]}
    """
    return splitting_rule(f"rename({pattern!r}, {template!r})", pattern, template)


def drop(where: Where) -> Rule:
    """Drop leaves of the source.

    Args:
        where: which leaves; a glob, `re:` expression, predicate or selector.

    Example:
        >>> from nnopt_jax.transfer import graft, rules
        >>> graft({"a": 0.0}, {"a": 1.0, "b": 2.0}, [rules.drop("b")]).params
        {'a': Array(1., dtype=float32)}
    """
    return leafwise_rule("drop", where, lambda leaf: None)


def keep(where: Where) -> Rule:
    """Keep leaves of the target, such as a new head.

    A leaf of the source with the same name is not used, and the report says so.

    Args:
        where: which leaves of the target.

    Example:
        >>> from nnopt_jax.transfer import graft, rules
        >>> made = graft({"a": 0.0, "head": 5.0}, {"a": 1.0}, [rules.keep("head")])
        >>> made.params["head"]
        5.0
    """
    return Rule(f"keep({selector_text(where)})", keeps=selector(where))


def adapt(where: Where, how: Callable[[Any, Any], Any]) -> Rule:
    """Adapt leaves whose shapes differ.

    Args:
        where: which leaves of the target.
        how: a function `(source array, target array or its shape and dtype) -> array`: one of
            `corner`, `grid`, `rows`, or your own.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.adapt("w", lambda source, target: source[: target.shape[0]])
        >>> graft({"w": jnp.zeros(2)}, {"w": jnp.arange(5.0)}, [rule]).params["w"]
        Array([0., 1.], dtype=float32)
    """
    name = getattr(how, "__name__", repr(how))
    return Rule(f"adapt({selector_text(where)}, {name})", adapts=selector(where), adapt=how)


def transpose(where: Where, axes: Sequence[int] | None = None) -> Rule:
    """Permute the axes of leaves of the source, such as weights of PyTorch.

    Args:
        where: which leaves.
        axes: the order, as `jnp.transpose` takes it; by default reversed.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> made = graft({"w": jnp.zeros((3, 2))}, {"w": jnp.ones((2, 3))}, [rules.transpose("w")])
        >>> made.params["w"].shape
        (3, 2)
    """
    name = "transpose" if axes is None else f"transpose[{axes}]"
    return leafwise_rule(name, where, lambda leaf: jnp.transpose(materialize(leaf), axes))


def reshape(where: Where, shape: int | Sequence[int]) -> Rule:
    """Reshape leaves of the source.

    Args:
        where: which leaves.
        shape: the shape, as `jnp.reshape` takes it; one size may be -1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.reshape("w", (2, 2))
        >>> graft({"w": jnp.zeros((2, 2))}, {"w": jnp.arange(4.0)}, [rule]).params["w"].shape
        (2, 2)
    """
    return leafwise_rule(
        f"reshape[{shape}]", where, lambda leaf: jnp.reshape(materialize(leaf), shape)
    )


def stack(pattern: str, template: str) -> Rule:
    r"""Stack separate layers of the source in one leaf with a leading axis.

    Args:
        pattern: regular expression of whole paths, with a group `(?P<index>\d+)`.
        template: the path of the stack; leaves with the same path are stacked by index.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.stack(r"layer_(?P<index>\d+)/(.*)", r"layers/\2")
        >>> source = {f"layer_{i}": {"w": jnp.full(3, float(i))} for i in range(2)}
        >>> graft({"layers": {"w": jnp.zeros((2, 3))}}, source, [rule]).params["layers"]["w"][:, 0]
        Array([0., 1.], dtype=float32)
    """

    def stacked(layers: dict[str, Any]) -> Any:
        numbers = sorted(layers, key=int)
        if [int(number) for number in numbers] != list(range(len(numbers))):
            raise ShapeError(f"layers {', '.join(numbers)} are not a run from 0; rename them")
        if len({leaf.shape for leaf in layers.values()}) > 1:
            shapes = ", ".join(str(layers[number].shape) for number in numbers)
            raise ShapeError(f"layers of shapes {shapes} cannot be stacked")
        return jnp.stack([materialize(layers[number]) for number in numbers])

    text = f"stack({pattern!r}, {template!r})"
    return joining_rule(text, pattern, template, "index", stacked)


def unstack(pattern: str, template: str) -> Rule:
    r"""Split a leaf with a leading axis of layers into one leaf for each layer.

    Args:
        pattern: regular expression of whole paths.
        template: the path of a layer, with `{index}` for its number and `\1` for groups.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.unstack(r"layers/(.*)", r"layer_{index}/\1")
        >>> target = {f"layer_{i}": {"w": jnp.zeros(3)} for i in range(2)}
        >>> graft(target, {"layers": {"w": jnp.ones((2, 3))}}, [rule]).params["layer_1"]["w"]
        Array([1., 1., 1.], dtype=float32)
    """

    def layers(leaf: Any) -> dict[str, Any]:
        return {str(index): layer for index, layer in enumerate(materialize(leaf))}

    return splitting_rule(
        f"unstack({pattern!r}, {template!r})", pattern, template, layers, "{index}"
    )


def fuse(pattern: str, template: str, order: Sequence[str], axis: int = -1) -> Rule:
    r"""Concatenate separate leaves of the source, such as query, key and value.

    Args:
        pattern: regular expression of whole paths, with a group `(?P<part>...)`.
        template: the path of the concatenated leaf.
        order: the parts, as the group matches them, in the order of concatenation.
        axis: the axis of concatenation.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.fuse(r"(?P<part>[qk])/w", "qk/w", ("q", "k"))
        >>> source = {"q": {"w": jnp.zeros((1, 2))}, "k": {"w": jnp.ones((1, 2))}}
        >>> graft({"qk": {"w": jnp.zeros((1, 4))}}, source, [rule]).params["qk"]["w"]
        Array([[0., 0., 1., 1.]], dtype=float32)
    """
    names = _named(order)

    def fused(parts: dict[str, Any]) -> Any:
        if parts.keys() != set(names):
            raise SelectionError(f"it has parts {sorted(parts)}, the rule names {names}")
        return jnp.concatenate([materialize(parts[name]) for name in names], axis)

    text = f"fuse({pattern!r}, {template!r}, {tuple(names)!r}, axis={axis})"
    return joining_rule(text, pattern, template, "part", fused)


def split(
    pattern: str, template: str, order: Sequence[str], axis: int = -1,
    sizes: Sequence[int] | None = None,
) -> Rule:  # fmt: skip
    r"""Split one leaf of the source into several, such as a fused query, key and value.

    Args:
        pattern: regular expression of whole paths.
        template: the path of a part, with `{part}` for its name and `\1` for groups.
        order: the names of the parts, in their order on the axis.
        axis: the axis to split.
        sizes: the sizes of the parts; by default equal.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.split("qk/w", "{part}/w", ("q", "k"))
        >>> target = {"q": {"w": jnp.zeros((1, 2))}, "k": {"w": jnp.zeros((1, 2))}}
        >>> graft(target, {"qk": {"w": jnp.arange(4.0)[None]}}, [rule]).params["k"]["w"]
        Array([[2., 3.]], dtype=float32)
    """
    names = _named(order)

    def parts(leaf: Any) -> dict[str, Any]:
        length = leaf.shape[axis]
        each = [length // len(names)] * len(names) if sizes is None else list(sizes)
        if len(each) != len(names) or min(each) < 0 or sum(each) != length:
            raise ShapeError(f"a leaf of size {length} along axis {axis} has no parts of {each}")
        ends = [sum(each[: i + 1]) for i in range(len(each) - 1)]
        return dict(zip(names, jnp.split(materialize(leaf), ends, axis), strict=True))

    text = f"split({pattern!r}, {template!r}, {tuple(names)!r}, axis={axis})"
    return splitting_rule(text, pattern, template, parts, "{part}")


def _named(order: Sequence[str]) -> list[str]:
    """Return the names of the parts; raise if the list is empty or repeats a name."""
    names = list(order)
    if not names or not all(isinstance(name, str) for name in names):
        raise SelectionError(f"transfer.rules: order={order!r} holds no names of parts.")
    if len(set(names)) != len(names):
        raise SelectionError(f"transfer.rules: order={order!r} names a part twice.")
    return names


def corner(source: Array, target: Any) -> Array:
    """Copy the source into the leading corner of the target, whose other values are kept.

    Args:
        source: the array to copy.
        target: the array to copy into; if it is only a shape, the rest is zero.

    Returns:
        An array of the target's shape and dtype.

    Raises:
        ShapeError: the numbers of axes differ, or the dtype of the target would lose values.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import rules
        >>> rules.corner(jnp.ones(2), jnp.array([5.0, 6.0, 7.0]))
        Array([1., 1., 7.], dtype=float32)
    """
    if isinstance(target, jax.ShapeDtypeStruct):
        target = jnp.zeros(target.shape, target.dtype)
    if is_lossy_cast(source, target.dtype):
        raise ShapeError(
            f"transfer.rules.corner: values of {source.dtype} would be lost in {target.dtype}; "
            f"give the source as {target.dtype}, x.astype(...)."
        )
    return resize.corner(source, target)


def rows(source: Array, target: Any) -> Array:
    """Fit an embedding to another vocabulary: drop rows, or add rows equal to the mean.

    Args:
        source: `(n, ...)`.
        target: `(m, ...)`, with the same other axes.

    Returns:
        `(m, ...)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import rules
        >>> rules.rows(jnp.array([[1.0], [3.0]]), jnp.zeros((3, 1))).ravel()
        Array([1., 3., 2.], dtype=float32)
    """
    return resize.resize_rows(source, target.shape[0])


def grid(sampling: resize.Sampling, extra: int | None = None) -> Callable[[Array, Any], Array]:
    """Return an adapter that interpolates position embeddings on a square grid.

    See `nnopt_jax.ops.resize_grid`.

    Args:
        sampling: `"align_corners"` or `"half_pixel"`.
        extra: the number of tokens before the grid; by default 0 or 1, whichever makes squares.

    Returns:
        A function `(source, target) -> array` of arrays `(..., places, channels)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import rules
        >>> rules.grid("half_pixel")(jnp.ones((5, 3)), jnp.zeros((10, 3))).shape
        (10, 3)
    """
    if sampling not in ("align_corners", "half_pixel"):
        raise ShapeError(
            f"transfer.rules.grid: sampling={sampling!r} is neither 'align_corners' nor "
            "'half_pixel'; the two differ."
        )

    def interpolated(source: Array, target: Any) -> Array:
        return resize.resize_grid(source, target.shape[-2], sampling, extra)

    interpolated.__name__ = f"grid({sampling!r})"
    return interpolated
