"""The definition of a statistic by pure functions of states."""

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
    """A statistic, as pure functions of states; a state is a pytree of arrays.

    Args:
        name: its name.
        show: returns the state of one use, with arrays of the axes (batch, ...); None if the use
            does not have this statistic.
        start: returns the initial state from shapes; adding it changes nothing.
        add: adds two states.
        finish: returns the result of a state, in the order of the leaf.
        labels: names of the properties, beside the batch, that two products must share for the
            states of their uses to be added.
        check: returns an error text if the shapes of states do not fit; else an empty string.
        of_inputs: whether `show` depends on nothing but inputs, so that uses with the same
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
    """Return the axis of rows in the inputs."""
    return len(use.batch) + len(use.groups)


def all_axes(use: ProductUse) -> tuple[int, ...]:
    """Return all axes of the inputs but those of the batch."""
    first = len(use.batch)
    return tuple(range(first, first + len(use.groups) + 1 + len(use.channels)))


def filled(shapes: Any, value: float) -> Any:
    """Return arrays of some shapes, filled with a number."""
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)


def zeros(shapes: Any) -> Any:
    """Return arrays of some shapes, filled with zeros."""
    return filled(shapes, 0.0)
