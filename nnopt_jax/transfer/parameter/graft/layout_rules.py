"""Rules that lay out the leaves of the source as the target has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.errors import SelectionError, ShapeError
from nnopt_jax.transfer.parameter.graft.rule import (
    Failed,
    Leaves,
    Rule,
    compiled,
    each,
    put,
    tried,
)
from nnopt_jax.tree.select import Where


def transpose(where: Where, axes: Sequence[int] | None = None) -> Rule:
    """Leaves of the source with their axes in another order: weights of PyTorch, say.

    Args:
        where: which.
        axes: the order, as `jnp.transpose` takes it; default: reversed.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> made = graft({"w": jnp.zeros((3, 2))}, {"w": jnp.ones((2, 3))}, [rules.transpose("w")])
        >>> made.params["w"].shape
        (3, 2)
    """
    name = "transpose" if axes is None else f"transpose[{axes}]"
    return each(name, where, lambda leaf: jnp.transpose(materialize(leaf), axes))


def reshape(where: Where, shape: int | Sequence[int]) -> Rule:
    """Leaves of the source in another shape of as many elements.

    Args:
        where: which.
        shape: as `jnp.reshape` takes it, one size may be -1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.reshape("w", (2, 2))
        >>> graft({"w": jnp.zeros((2, 2))}, {"w": jnp.arange(4.0)}, [rule]).params["w"].shape
        (2, 2)
    """
    return each(f"reshape[{shape}]", where, lambda leaf: jnp.reshape(materialize(leaf), shape))


def stack(pattern: str, template: str) -> Rule:
    r"""Layers that lie apart in the source become one leaf with a leading axis.

    Args:
        pattern: regular expression of whole paths, with a group `(?P<index>\d+)`.
        template: the path of the stack; leaves with the same one are stacked by index.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.stack(r"layer_(?P<index>\d+)/(.*)", r"layers/\2")
        >>> source = {f"layer_{i}": {"w": jnp.full(3, float(i))} for i in range(2)}
        >>> graft({"layers": {"w": jnp.zeros((2, 3))}}, source, [rule]).params["layers"]["w"][:, 0]
        Array([0., 1.], dtype=float32)
    """

    def stacked(layers: Leaves) -> Any:
        numbers = sorted(layers, key=int)
        if [int(number) for number in numbers] != list(range(len(numbers))):
            raise ShapeError(f"layers {', '.join(numbers)} are no run from 0; rename them")
        if len({leaf.shape for leaf in layers.values()}) > 1:
            shapes = ", ".join(str(layers[number].shape) for number in numbers)
            raise ShapeError(f"layers of shapes {shapes} cannot be stacked")
        return jnp.stack([materialize(layers[number]) for number in numbers])

    text = f"stack({pattern!r}, {template!r})"
    return _joining(text, pattern, template, "index", stacked)


def unstack(pattern: str, template: str) -> Rule:
    r"""A leaf with a leading axis of layers becomes one leaf for each.

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

    def layers(leaf: Any) -> Leaves:
        return {str(index): layer for index, layer in enumerate(materialize(leaf))}

    return _spreading(f"unstack({pattern!r}, {template!r})", pattern, template, "{index}", layers)


def fuse(pattern: str, template: str, order: Sequence[str], axis: int = -1) -> Rule:
    r"""Leaves that lie apart in the source become one: query, key and value, say.

    Args:
        pattern: regular expression of whole paths, with a group `(?P<part>...)`.
        template: the path of the whole.
        order: the parts, as the group finds them, in the order in which they lie.
        axis: along which they are put together.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.fuse(r"(?P<part>[qk])/w", "qk/w", ("q", "k"))
        >>> source = {"q": {"w": jnp.zeros((1, 2))}, "k": {"w": jnp.ones((1, 2))}}
        >>> graft({"qk": {"w": jnp.zeros((1, 4))}}, source, [rule]).params["qk"]["w"]
        Array([[0., 0., 1., 1.]], dtype=float32)
    """
    names = _named(order)

    def fused(parts: Leaves) -> Any:
        if parts.keys() != set(names):
            raise SelectionError(f"it has parts {sorted(parts)}, the rule names {names}")
        return jnp.concatenate([materialize(parts[name]) for name in names], axis)

    text = f"fuse({pattern!r}, {template!r}, {tuple(names)!r}, axis={axis})"
    return _joining(text, pattern, template, "part", fused)


def split(
    pattern: str, template: str, order: Sequence[str], axis: int = -1,
    sizes: Sequence[int] | None = None,
) -> Rule:  # fmt: skip
    r"""One leaf of the source becomes several: a fused query, key and value, say.

    Args:
        pattern: regular expression of whole paths.
        template: the path of a part, with `{part}` for its name and `\1` for groups.
        order: the names of the parts, in the order in which they lie.
        axis: along which they lie.
        sizes: of the parts; default: equal.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.split("qk/w", "{part}/w", ("q", "k"))
        >>> target = {"q": {"w": jnp.zeros((1, 2))}, "k": {"w": jnp.zeros((1, 2))}}
        >>> graft(target, {"qk": {"w": jnp.arange(4.0)[None]}}, [rule]).params["k"]["w"]
        Array([[2., 3.]], dtype=float32)
    """
    names = _named(order)

    def parts(leaf: Any) -> Leaves:
        length = leaf.shape[axis]
        each = [length // len(names)] * len(names) if sizes is None else list(sizes)
        if len(each) != len(names) or min(each) < 0 or sum(each) != length:
            raise ShapeError(f"a leaf of size {length} along axis {axis} has no parts of {each}")
        ends = [sum(each[: i + 1]) for i in range(len(each) - 1)]
        return dict(zip(names, jnp.split(materialize(leaf), ends, axis), strict=True))

    text = f"split({pattern!r}, {template!r}, {tuple(names)!r}, axis={axis})"
    return _spreading(text, pattern, template, "{part}", parts)


def _named(order: Sequence[str]) -> list[str]:
    """The names of parts: at least one, and none of them twice."""
    names = list(order)
    if not names or not all(isinstance(name, str) for name in names):
        raise SelectionError(f"transfer.rules: order={order!r} holds no names of parts.")
    if len(set(names)) != len(names):
        raise SelectionError(f"transfer.rules: order={order!r} names a part twice.")
    return names


def _spreading(
    text: str, pattern: str, template: str, slot: str, parts: Callable[[Any], Leaves]
) -> Rule:
    """A rule that makes several leaves of one; the slot of the template takes their names."""
    expression = compiled(pattern, template)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            if found is None:
                put(made, path, leaf, failed)
                continue
            hits += 1
            name = found.expand(template.replace(slot, "\0"))
            for part, array in (tried(failed, path, text, parts, leaf) or {}).items():
                put(made, name.replace("\0", part), array, failed)
        return made, hits

    return Rule(text, change)


def _joining(
    text: str, pattern: str, template: str, group: str, whole: Callable[[Leaves], Any]
) -> Rule:
    """A rule that makes one leaf of several; the group of the pattern tells them apart."""
    expression = compiled(pattern, template, group)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made: Leaves = {}
        parts: dict[str, Leaves] = {}
        hits = 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            if found is None:
                put(made, path, leaf, failed)
                continue
            hits += 1
            name, place = found[group], found.expand(template)
            if name in parts.setdefault(place, {}):
                failed[place] = (
                    f"{text}: two leaves of the source are {group} {name!r}; make the template "
                    "tell them apart"
                )
            parts[place][name] = leaf
        for path, found in parts.items():
            array = None if path in failed else tried(failed, path, text, whole, found)
            put(made, path, array, failed)
        return made, hits

    return Rule(text, change)
