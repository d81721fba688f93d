"""A network that begins with the layers of another one."""

from __future__ import annotations

from nnopt_jax.errors import NnoptError, RecipeError
from nnopt_jax.interop.flax import Model
from nnopt_jax.recipe.schema import Start
from nnopt_jax.transfer import deepen, graft, layer_map, select_layers
from nnopt_jax.transfer.structure.place import layers_at
from nnopt_jax.typing import Params


def started(start: Start, source: Params, model: Model) -> Model:
    """Puts the parameters of another network into a fresh one.

    Args:
        start: what the recipe says.
        source: the parameters of the run that it names.
        model: the network as it would begin otherwise; says how many layers there shall be.

    Returns:
        The network with those parameters; its other variables as they were.

    Raises:
        RecipeError: there are no such layers, or what is chosen does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.recipe.schema import Start
        >>> params = {f"block_{i}": {"w": jnp.full(1, float(i))} for i in range(4)}
        >>> fresh = Model({"block_0": {"w": jnp.ones(1)}, "block_1": {"w": jnp.ones(1)}}, {}, None)
        >>> started(Start("runs/deep", "block_{index}"), params, fresh).params["block_1"]["w"]
        Array([2.], dtype=float32)
    """
    try:
        if start.layers is not None:
            source = _chosen(start, source, model)
        return model._replace(params=graft(model.params, source).params)
    except NnoptError as error:
        raise RecipeError(f"recipe: start: {error}") from error


def _chosen(start: Start, source: Params, model: Model) -> Params:
    """The source, at the depth of the model."""
    place = str(start.layers)
    there, wanted = (len(layers_at("layers", tree, place)) for tree in (source, model.params))
    numbers = layer_map(there, wanted, start.how)  # pyright: ignore[reportArgumentType]
    if start.zero:
        return deepen(source, place, numbers, zero=start.zero)
    return select_layers(source, place, numbers)
