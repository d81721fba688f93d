"""Layers of a model: selecting, copying, stacking and unstacking for another depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.settings import Settings, is_whole
from nnopt_jax.transfer.structure.place import INDEX, layers_at, with_layers
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Params

How = Literal["first", "last", "even", "ends", "stack"]


def layer_map(source: int, target: int, how: How) -> tuple[int, ...]:
    r"""Return the source layer for each layer of a model of another depth.

    $$ \text{even: } \lfloor i s / t \rfloor \quad
       \text{ends: } \Big\lfloor \frac{i (s - 1)}{t - 1} + \tfrac12 \Big\rfloor \quad
       \text{stack: } i \bmod s $$

    Args:
        source: the number of layers of the source, `s`.
        target: the number of layers of the target, `t`.
        how: `"first"` or `"last"`: the first or last layers; `"even"`: every k-th layer of a deeper
            model, or each layer repeated in place (interpolation); `"ends"`: evenly from the first
            to the last; `"stack"`: all layers, repeatedly.

    Returns:
        The `t` numbers of source layers, for `select_layers` and `deepen`.

    Raises:
        ValueRangeError: a number is not a count, or `how` needs more layers than there are.

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
    """Select layers of a model: fewer, more, or in another order.

    Args:
        params: dictionaries, lists and tuples of arrays or packed parameters.
        layers: the path of the layers: `"encoder/layers_{index}"` for separate layers
            (`"blocks/{index}"` in a list), `"encoder/layers"` for a stack, as `jax.lax.scan` takes
            it.
        chosen: the number of the source layer for each new layer, such as `layer_map` returns.

    Returns:
        Parameters with these layers, otherwise unchanged. Leaves of separate layers stay packed.

    Raises:
        SelectionError: there are no layers.
        ValueRangeError: a number is not that of a layer.

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
    _check_chosen(name, "chosen", chosen, len(found))
    return with_layers(name, params, layers, _copy_repeated([found[number] for number in chosen]))


def stack_layers(params: Params, layers: str, into: str) -> Params:
    """Stack separate layers in one tree with a leading axis, bit for bit.

    Args:
        params: dictionaries, lists and tuples of arrays, or packed parameters to be materialized.
        layers: the path of the layers: `"encoder/layers_{index}"`, or `"blocks/{index}"` in a list.
        into: the path of the stack, in the same container: `"encoder/layers"`, or `"blocks"`.

    Returns:
        The parameters, as `jax.lax.scan` takes them.

    Raises:
        SelectionError: there are no layers, or the new path is occupied.
        ShapeError: layers differ; all differences are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"layers_0": {"w": jnp.zeros(2)}, "layers_1": {"w": jnp.ones(2)}}
        >>> nnopt.transfer.stack_layers(params, "layers_{index}", "layers")
        {'layers': {'w': Array([[0., 0.],
               [1., 1.]], dtype=float32)}}
    """
    return _change_form("transfer.stack_layers", params, layers, into, indexed=True)


def unstack_layers(params: Params, layers: str, into: str) -> Params:
    """Split a stack into separate layers, bit for bit; the inverse of `stack_layers`.

    Args:
        params: dictionaries, lists and tuples of arrays or packed parameters.
        layers: the path of the stack: `"encoder/layers"`.
        into: the path of the layers, in the same container: `"encoder/layers_{index}"`; a name of
            `{index}` alone, as in `"encoder/layers/{index}"`, makes a list.

    Returns:
        The parameters.

    Raises:
        SelectionError: there is no stack, or a new path is occupied.
        ShapeError: leaves differ in their leading axis.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"layers": {"w": jnp.array([[0.0], [1.0]])}}
        >>> nnopt.transfer.unstack_layers(params, "layers", "layers/{index}")
        {'layers': [{'w': Array([0.], dtype=float32)}, {'w': Array([1.], dtype=float32)}]}
    """
    return _change_form("transfer.unstack_layers", params, layers, into, indexed=False)


def deepen(
    params: Params, layers: str, sources: Sequence[int], *, zero: Where | Sequence[Where]
) -> Params:
    r"""Add copies of residual blocks whose last projections are zero.

    $$ x + W_\text{out} f(x) = x \quad\text{where}\quad W_\text{out} = 0 $$

    The network computes exactly the same as before; the first training step changes the new
    projections, and the second one the weights before them.

    Args:
        params: dictionaries, lists and tuples of arrays or packed parameters.
        layers: the path of the blocks, see `select_layers`.
        sources: the number of the source block for each new block, such as `layer_map` returns. The
            first block with a given source is that block; others are copies.
        zero: the leaves of a block that add to the residual stream, weights and biases, as
            selectors of paths within a block: `["attention/out/**", "mlp/down/**"]`.

    Returns:
        Parameters with a block for each source.

    Raises:
        SelectionError: there are no layers, or a selector does not match a leaf of a new block.
        ValueRangeError: `sources` omits a block, or changes the order of blocks.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"blocks": [{"up": jnp.ones(1), "down": jnp.ones(1)}]}
        >>> nnopt.transfer.deepen(params, "blocks/{index}", (0, 0), zero="down")["blocks"][1]
        {'down': Array([0.], dtype=float32), 'up': Array([1.], dtype=float32)}

    References:
        Chen et al. 2016, Net2Net, arXiv:1511.05641, section 2.3 (deeper by identities).
        Gong et al. 2019, Efficient Training of BERT by Progressively Stacking, section 3.
        Du et al. 2024, Stacking Your Transformers, arXiv:2405.15319.
    """
    name = "transfer.deepen"
    found = layers_at(name, params, layers)
    _check_chosen(name, "sources", sources, len(found))
    old = list(dict.fromkeys(sources))
    if old != list(range(len(found))):
        raise ValueRangeError(
            f"{name}: sources={tuple(sources)!r} bring the {len(found)} blocks as {old}; all must "
            "come, in their order. select_layers leaves blocks out."
        )
    rules: list[Any] = list(zero) if isinstance(zero, list | tuple) else [zero]
    blocks = _copy_repeated([found[number] for number in sources])
    for place, number in enumerate(sources):
        if number in sources[:place]:
            leaves = flatten(blocks[place], is_node)
            paths = {path for rule in rules for path in resolve(rule, leaves, name)}
            zeros = {p: jnp.zeros_like(materialize(x)) for p, x in leaves.items() if p in paths}
            blocks[place] = unflatten(blocks[place], leaves | zeros, is_node)
    return with_layers(name, params, layers, blocks)


def _copy_repeated(layers: list[Any]) -> list[Any]:
    """Copy the arrays of repeated layers, so that no two layers share a buffer."""
    seen: set[int] = set()
    made = []
    for layer in layers:
        made.append(jax.tree.map(_copy, layer) if id(layer) in seen else layer)
        seen.add(id(layer))
    return made


def _copy(leaf: Any) -> Any:
    """Copy an array; return a shape unchanged."""
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)


def _check_chosen(who: str, name: str, chosen: Sequence[int], count: int) -> None:
    """Raise if no layer is chosen, or a number is not that of a layer."""
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


def _change_form(who: str, params: Params, layers: str, into: str, *, indexed: bool) -> Params:
    """Convert layers from numbered to stacked form, or back, and move them to another path."""
    for name, place, wanted in (("layers", layers, indexed), ("into", into, not indexed)):
        if not isinstance(place, str) or (INDEX in place) is not wanted:
            form = f"'layers_{INDEX}', where layers lie apart" if wanted else "'layers', a stack"
            raise ValueRangeError(f"{who}: {name}={place!r}; give e.g. {form}.")
    return with_layers(who, params, layers, layers_at(who, params, layers), into)
