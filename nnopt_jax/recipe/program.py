"""What a network computes, written down beside what it has learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe.data import Data
from nnopt_jax.transfer import Structure, capture
from nnopt_jax.typing import Params


def in_file(params: Params, extra: Mapping[str, Any]) -> Any:
    """The tree that the file of a run holds.

    Args:
        params: dense or packed.
        extra: other variables; random streams are of training alone, and stay out.

    Returns:
        The parameters, or `{"params": ..., ...}` where there are other variables.

    Example:
        >>> from nnopt_jax.recipe.program import in_file
        >>> in_file(1, {"rngs": 2}), in_file(1, {"batch_stats": 3})
        (1, {'params': 1, 'batch_stats': 3})
    """
    others = {name: tree for name, tree in extra.items() if name != "rngs"}
    return {"params": params, **others} if others else params


def structure(model: Model, data: Data) -> Structure:
    """Captures a fresh network as it is in use, for batches of any size.

    Args:
        model: the network; its parameters show how leaves begin.
        data: gives the shape and dtype of the inputs.

    Returns:
        The structure of what `in_file` makes.

    Raises:
        RecipeError: the network cannot be written as a program.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.interop.flax import adapt
        >>> from nnopt_jax.recipe.data import Data, Split
        >>> split = Split(jnp.ones((4, 3)), jnp.ones(4))
        >>> model = adapt(({"w": jnp.ones(3)}, lambda params, x: x @ params["w"]), None, None)
        >>> structure(model, Data(split, None, split)).parameters
        {'w': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    streams = {name: tree for name, tree in model.extra.items() if name == "rngs"}
    whole = bool(set(model.extra) - set(streams))

    def apply(tree: Any, x: Any) -> Any:
        params, others = (tree["params"], tree) if whole else (tree, {})
        extra = streams | {name: others[name] for name in others if name != "params"}
        return model.apply(params, extra, x, train=False, key=None)[0]

    x = data.train.x
    sample = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    try:
        return capture(apply, in_file(model.params, model.extra), sample, shapes=["b, ..."])
    except Exception as error:
        raise RecipeError(
            f"recipe: program: the model cannot be written as a program for batches of any size: "
            f"{type(error).__name__}: {error}"
        ) from error
