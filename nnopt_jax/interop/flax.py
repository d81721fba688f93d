"""Networks as parameters and a function: Flax Linen, Flax NNX, or a plain pair."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen, nnx
from flax.traverse_util import unflatten_dict

from nnopt_jax.errors import RecipeError
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import ArrayLike, Key, Params, PyTree


class FlaxModel(NamedTuple):
    """A network as plain data and one function.

    Args:
        params: the trained parameters: nested dictionaries of arrays, with equal names in Linen and
            NNX.
        extra: other variables by collection, such as the running means of batch normalization;
            empty for most networks. The collection `"rngs"` is used only in training.
        apply: a function `(params, extra, x, *, train, key) -> (output, extra)`; `key` is for
            dropout.

    Example:
        >>> from nnopt_jax.interop.flax import adapt
        >>> model = adapt(({"w": 2.0}, lambda params, x: params["w"] * x), None, None)
        >>> model.apply(model.params, model.extra, 3.0)
        (6.0, {})
    """

    params: Params
    extra: Mapping[str, PyTree]
    apply: Callable[..., tuple[Any, Mapping[str, PyTree]]]

    def __repr__(self) -> str:
        """Return the number of parameters, and the collections of other variables."""
        size = sum(np.size(leaf) for leaf in flatten(self.params).values())
        others = ", ".join(self.extra) or "none"
        return f"FlaxModel({size:,} parameters; other variables: {others})"


def adapt(made: Any, sample: Any, key: Key | None) -> FlaxModel:
    """Convert the result of a factory to a `FlaxModel`.

    Args:
        made: an unbound `flax.linen.Module`, an `nnx.Module`, or a pair `(params, apply)` with
            `apply(params, x) -> output`.
        sample: a batch of inputs, (b, ...), to initialize a Linen module with.
        key: the key of the initial parameters of a Linen module.

    Returns:
        The model.

    Raises:
        RecipeError: `made` is not one of the three.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen
        >>> from nnopt_jax.interop.flax import adapt
        >>> model = adapt(linen.Dense(3), jnp.ones((1, 2)), jax.random.key(0))
        >>> {name: leaf.shape for name, leaf in sorted(model.params.items())}
        {'bias': (3,), 'kernel': (2, 3)}
    """
    if isinstance(made, linen.Module):
        return _of_linen(made, sample, key)
    if isinstance(made, nnx.Module):
        return _of_nnx(made)
    if isinstance(made, tuple) and len(made) == 2 and callable(made[1]):
        params, function = made
        return FlaxModel(params, {}, lambda p, e, x, **_: (function(p, x), e))
    raise RecipeError(
        f"interop.flax.adapt: {type(made).__name__} is not a model. Return a flax.linen.Module, an "
        "nnx.Module, or (params, apply) with apply(params, x)."
    )


def _of_linen(module: linen.Module, sample: Any, key: Key | None) -> FlaxModel:
    accepted = inspect.signature(type(module).__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        """Return the training flag under the name, and with the sign, that the module uses."""
        flags = {"train": train, "training": train, "deterministic": not train}
        return {name: value for name, value in flags.items() if name in accepted}

    variables = dict(module.init({} if key is None else key, sample, **mode(False)))
    params = variables.pop("params", {})

    def apply(p: Params, extra: Any, x: ArrayLike, *, train: bool = False, key: Any = None) -> Any:
        rngs = {} if key is None else {"dropout": key}
        every = {"params": p, **extra}
        if not train or not extra:
            return module.apply(every, x, rngs=rngs, **mode(train)), extra
        return module.apply(every, x, rngs=rngs, mutable=list(extra), **mode(train))

    return FlaxModel(params, variables, apply)


def _of_nnx(module: nnx.Module) -> FlaxModel:
    graph, *parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
    names = ("params", "rngs", "state")
    held = {name: part for name, part in zip(names, parts, strict=True) if len(part)}
    plain = {name: unflatten_dict(flatten(part), sep="/") for name, part in held.items()}

    def apply(p: Params, extra: Any, x: ArrayLike, *, train: bool = False, key: Any = None) -> Any:
        del key  # NNX keeps its own random streams, in `rngs`
        filled = [
            _with_leaves(part, {"params": p, **extra}.get(name, {}))
            for name, part in zip(names, parts, strict=True)
        ]
        live = nnx.merge(graph, *filled)
        (live.train if train else live.eval)()
        out = live(x)
        if not train or not extra:
            return out, extra
        _, *after = nnx.split(live, nnx.Param, nnx.RngState, ...)
        moved = dict(zip(names, after, strict=True))
        return out, {name: unflatten_dict(flatten(moved[name]), sep="/") for name in extra}

    return FlaxModel(plain.pop("params", {}), plain, apply)


def _with_leaves(state: nnx.State, nested: Mapping[str, Any]) -> nnx.State:
    """Return the state with other leaves, matched by path because NNX orders them differently."""
    leaves = flatten(nested)
    return unflatten(state, {path: leaves[path] for path in flatten(state)})
