"""The graph of a recipe's model, to which the recipe's transforms are bound."""

from __future__ import annotations

from typing import Any

import jax

from nnopt_jax.interop.flax import Model
from nnopt_jax.trace import Graph, graph


def model_graph(model: Model, inputs: Any) -> Graph:
    """Trace what a model computes in use, for batches like those of its data.

    Args:
        model: the network.
        inputs: a batch, or its shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.flax import adapt
        >>> model = adapt(({"w": jnp.ones((3, 2))}, lambda params, x: x @ params["w"]), None, None)
        >>> model_graph(model, jnp.ones((4, 3))).axes["w"]
        Axes(0, 1)
    """

    def apply(params: Any, x: jax.Array) -> Any:
        return model.apply(params, model.extra, x, train=False, key=None)[0]

    return graph(apply, model.params, inputs)
