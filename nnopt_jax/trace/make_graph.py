"""Creation of the graph of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnopt_jax.trace.coupling.analysis import Outputs
from nnopt_jax.trace.model_graph import Graph
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.traced import require_function, shapes_of, traced
from nnopt_jax.typing import Params


def everything(found: Any) -> Any:
    """Return the whole result of a function: the default of `outputs`."""
    return found


def graph(
    apply: Callable[..., Any],
    params: Params,
    *args: Any,
    outputs: Outputs = everything,
    table: Table = TABLE,
    **kwargs: Any,
) -> Graph:
    """Trace a function of parameters once, on shapes, for every analysis of it.

    Args:
        apply: `apply(params, *args, **kwargs)`, any function that JAX can trace: a Flax, Equinox
            or Haiku model, a plain function, or a loss.
        params: a tree of arrays, packed leaves or `jax.ShapeDtypeStruct`s. Leaves of other kinds
            (the functions of an Equinox module) reach `apply` as they are.
        *args: its further arguments; for arrays, shapes and dtypes are enough.
        outputs: selects the part of the result that must keep its widths when units are removed;
            running statistics beside it may shrink with their layers.
        table: the rules of the primitives; to add your own, give
            `nnopt_jax.trace.primitives.TABLE.with_rule(primitive, make_rule)`.
        **kwargs: its keyword arguments.

    Returns:
        The `Graph`. It holds the function and the shapes, but no arrays.

    Raises:
        CompositionError: `apply` is not a function, or needs concrete values while it is traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"up": jnp.ones((8, 16)), "bias": jnp.ones(16), "down": jnp.ones((16, 4))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
        >>> graph = nnopt.graph(apply, params, jnp.ones(8))
        >>> graph.axes["up"], graph.coupled.names
        (Axes(0, 1), ('up:1',))
    """
    require_function("graph", apply)
    params, args, kwargs = shapes_of((params, args, kwargs))
    given = traced(apply, (params, *args), kwargs)
    return Graph(apply, given, params, args, kwargs, outputs, table)
