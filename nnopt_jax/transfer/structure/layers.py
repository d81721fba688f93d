"""Layers taken from a model of another depth, stacked and unstacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.settings import Settings, is_whole
from nnopt_jax.transfer.structure.place import INDEX, layers_at, with_layers
from nnopt_jax.typing import Params

How = Literal["first", "last", "even", "ends", "stack"]


def layer_map(source: int, target: int, how: How) -> tuple[int, ...]:
    r"""Says which layer of one depth each layer of another depth comes from.

    $$ \text{even: } \lfloor i s / t \rfloor \quad
       \text{ends: } \Big\lfloor \frac{i (s - 1)}{t - 1} + \tfrac12 \Big\rfloor \quad
       \text{stack: } i \bmod s $$

    Args:
        source: layers there are, `s`.
        target: layers there shall be, `t`.
        how: `"first"` or `"last"` of them; `"even"`: every k-th of a deeper model, or each one
            repeated in its place (interpolation); `"ends"`: evenly, from the first to the last;
            `"stack"`: all of them, over and over.

    Returns:
        `t` numbers of layers, for `select_layers` and `deepen`.

    Raises:
        ValueRangeError: a number is not a count, or `first` and `last` are to give more than all.

    Example:
        >>> from nnopt_jax.transfer import layer_map
        >>> layer_map(12, 6, "even"), layer_map(2, 4, "even"), layer_map(2, 4, "stack")
        ((0, 2, 4, 6, 8, 10), (0, 0, 1, 1), (0, 1, 0, 1))

    References:
        Sanh et al. 2019, DistilBERT, arXiv:1910.01108, section 2 (every second layer).
        Du et al. 2024, Stacking Your Transformers, arXiv:2405.15319, section 3 (stack and
        interpolation).
    """
    settings = Settings("transfer.layer_map")
    settings.integer("source", source, 1)
    settings.integer("target", target, 1)
    settings.choice("how", how, ("first", "last", "even", "ends", "stack"))
    settings.done()
    if how in ("first", "last") and target > source:
        settings.wrong("target", target, f"is more than the {source} layers there are; "
                                         "how='stack' or 'even' repeats them.")  # fmt: skip
    settings.done()
    steps = max(target - 1, 1)
    of = {
        "first": lambda i: i,
        "last": lambda i: source - target + i,
        "even": lambda i: i * source // target,
        "ends": lambda i: (2 * i * (source - 1) + steps) // (2 * steps),
        "stack": lambda i: i % source,
    }[how]
    return tuple(of(i) for i in range(target))


def select_layers(params: Params, layers: str, chosen: Sequence[int]) -> Params:
    """Makes a model of other layers: fewer, more, in another order.

    Args:
        params: dictionaries, lists and tuples of arrays or expressions.
        layers: where they are: `"encoder/layers_{index}"` where they lie apart (`"blocks/{index}"`
            in a list), `"encoder/layers"` where they are stacked, as `jax.lax.scan` reads them.
        chosen: for each layer there shall be, the number of the one it comes from; `layer_map`
            makes such.

    Returns:
        Parameters with so many layers, all else as it was. Expressions stay packed where layers
        lie apart.

    Raises:
        SelectionError: no layers are there.
        ValueRangeError: there is no layer of such a number.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"layers": {"w": jnp.array([0.0, 1.0, 2.0, 3.0])}, "head": jnp.ones(1)}
        >>> chosen = nnopt.transfer.layer_map(4, 2, "even")
        >>> nnopt.transfer.select_layers(params, "layers", chosen)["layers"]["w"]
        Array([0., 2.], dtype=float32)
    """
    name = "transfer.select_layers"
    found = layers_at(name, params, layers)
    check_chosen(name, "chosen", chosen, len(found))
    return with_layers(name, params, layers, apart([found[number] for number in chosen]))


def stack_layers(params: Params, layers: str, into: str) -> Params:
    """Puts layers that lie apart into one tree with a leading axis, bit for bit.

    Args:
        params: dictionaries, lists and tuples of arrays or expressions; the latter are spread out.
        layers: where they are: `"encoder/layers_{index}"`, or `"blocks/{index}"` in a list.
        into: where they go, in the same container: `"encoder/layers"`, or `"blocks"`.

    Returns:
        The parameters, as `jax.lax.scan` reads them.

    Raises:
        SelectionError: no layers are there, or something is where they go.
        ShapeError: layers are not alike; all differences are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"layers_0": {"w": jnp.zeros(2)}, "layers_1": {"w": jnp.ones(2)}}
        >>> nnopt.transfer.stack_layers(params, "layers_{index}", "layers")
        {'layers': {'w': Array([[0., 0.],
               [1., 1.]], dtype=float32)}}
    """
    name = "transfer.stack_layers"
    _require(name, "layers", layers, indexed=True)
    _require(name, "into", into, indexed=False)
    return with_layers(name, params, layers, layers_at(name, params, layers), into)


def unstack_layers(params: Params, layers: str, into: str) -> Params:
    """Undoes `stack_layers`, bit for bit.

    Args:
        params: dictionaries, lists and tuples of arrays or expressions.
        layers: where the stack is: `"encoder/layers"`.
        into: where layers go, in the same container: `"encoder/layers_{index}"`; a name that is
            `{index}` alone, as in `"encoder/layers/{index}"`, makes a list.

    Returns:
        The parameters.

    Raises:
        SelectionError: no stack is there, or something is where layers go.
        ShapeError: leaves differ in their leading axis.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"layers": {"w": jnp.array([[0.0], [1.0]])}}
        >>> nnopt.transfer.unstack_layers(params, "layers", "layers/{index}")
        {'layers': [{'w': Array([0.], dtype=float32)}, {'w': Array([1.], dtype=float32)}]}
    """
    name = "transfer.unstack_layers"
    _require(name, "layers", layers, indexed=False)
    _require(name, "into", into, indexed=True)
    return with_layers(name, params, layers, layers_at(name, params, layers), into)


def apart(layers: list[Any]) -> list[Any]:
    """Layers with arrays of their own where one occurs twice, so that each may be donated."""
    seen: set[int] = set()
    made = []
    for layer in layers:
        made.append(jax.tree.map(_copy, layer) if id(layer) in seen else layer)
        seen.add(id(layer))
    return made


def _copy(leaf: Any) -> Any:
    """An array of its own; a shape has no memory to share."""
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)


def check_chosen(who: str, name: str, chosen: Sequence[int], count: int) -> None:
    """Wants numbers of layers, at least one.

    Raises:
        ValueRangeError: there are others.
    """
    settings = Settings(who)
    if not isinstance(chosen, Sequence | np.ndarray):
        settings.wrong(name, chosen, "is not a sequence of numbers; give e.g. [0, 2].")
        settings.done()
    if not len(chosen):
        settings.wrong(name, chosen, "chooses no layer.")
    for number in chosen:
        if not is_whole(number) or not 0 <= number < count:
            settings.wrong(name, number, f"is not a layer of {count}, which are 0 to {count - 1}.")
    settings.done()


def _require(who: str, name: str, place: str, *, indexed: bool) -> None:
    if not isinstance(place, str) or (INDEX in place) is not indexed:
        wanted = f"'layers_{INDEX}', where layers lie apart" if indexed else "'layers', a stack"
        raise ValueRangeError(f"{who}: {name}={place!r}; give e.g. {wanted}.")
