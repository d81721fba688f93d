"""The graph of a recipe's model, to which the recipe's transforms are bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax import trace
from nnopt_jax.interop.flax import Model
from nnopt_jax.transform.binding import ModelGraph

Maker = Callable[..., ModelGraph]
"""`make(apply, params, *inputs) -> Graph`."""


def model_graph(model: Model, inputs: Any, make: Maker | None = None) -> ModelGraph | None:
    """Trace what a model computes in use, for batches like those of its data.

    Args:
        model: the network.
        inputs: a batch, or its shape.
        make: makes the graph; default: `nnopt_jax.trace.graph`.

    Returns:
        The graph; None where this version of the package has no graphs, and transforms then take
        the conventional axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.flax import adapt
        >>> model = adapt((jnp.ones((3, 2)), lambda params, x: x @ params), None, None)
        >>> model_graph(model, jnp.ones((4, 3)), make=lambda apply, *given: apply(*given).shape)
        (4, 2)
    """
    make = getattr(trace, "graph", None) if make is None else make
    if not callable(make):
        return None

    def apply(params: Any, x: jax.Array) -> Any:
        return model.apply(params, model.extra, x, train=False, key=None)[0]

    return make(apply, model.params, inputs)
