"""A statistic: pure functions of states, which are pytrees of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.product_use import ProductUse


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What is measured, as pure functions of states; a state is a pytree of arrays.

    Args:
        name: what it is called.
        show: returns the state of one use, its arrays with the axes (batch, ...); None where the
            use has nothing of the kind.
        start: the state before the first, of shapes: what adding changes nothing.
        add: joins two states.
        finish: the result of a state, in the order of the leaf.
        labels: names of what two products must have in common for the states of their uses to be
            joined, beside the batch.
        check: what is wrong with a shape of states, if anything.
        of_inputs: whether `show` looks at nothing but inputs, so that uses that have the same
            input share one state.

    Example:
        >>> from nnopt_jax.trace import input_gram
        >>> input_gram(block=64).name
        'input_gram'
    """

    name: str
    show: Callable[[ProductUse], Any]
    start: Callable[[Any], Any]
    add: Callable[[Any, Any], Any]
    finish: Callable[[Any, LeafLayout], Any]
    labels: tuple[str, ...] = ()
    check: Callable[[Any], str] = lambda state: ""
    of_inputs: bool = False


def rows_axis(use: ProductUse) -> int:
    """The axis of rows in the inputs."""
    return len(use.batch) + len(use.groups)


def all_axes(use: ProductUse) -> tuple[int, ...]:
    """All axes but the batch."""
    first = len(use.batch)
    return tuple(range(first, first + len(use.groups) + 1 + len(use.channels)))


def filled(shapes: Any, value: float) -> Any:
    """Return arrays of some shapes that hold one number."""
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)


def zeros(shapes: Any) -> Any:
    """Return arrays of some shapes that hold zeros."""
    return filled(shapes, 0.0)
