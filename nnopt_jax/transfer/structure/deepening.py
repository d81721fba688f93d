"""A deeper network that computes the same: new residual blocks that add nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.transfer.structure.layers import apart, check_chosen
from nnopt_jax.transfer.structure.place import layers_at, with_layers
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Params

_NAME = "transfer.deepen"


def deepen(
    params: Params, layers: str, sources: Sequence[int], *, zero: Where | Sequence[Where]
) -> Params:
    r"""Adds residual blocks that are copies of others, their last projections zero.

    $$ x + W_\text{out} f(x) = x \quad\text{where}\quad W_\text{out} = 0 $$

    The network computes what it did, exactly; the new projections move with the first step, and
    what is before them with the second.

    Args:
        params: dictionaries, lists and tuples of arrays or expressions.
        layers: where the blocks are, as for `select_layers`.
        sources: for each block there shall be, the number of the one it comes from, as `layer_map`
            makes them: the first to come from a block is that block, others are new.
        zero: which leaves of a block write to the residual stream, weights and biases: selectors
            of paths within a block, `["attention/out/**", "mlp/down/**"]`.

    Returns:
        Parameters with so many blocks.

    Raises:
        SelectionError: no layers are there, or a selector meets no leaf of a new block.
        ValueRangeError: `sources` leave a block out, or change their order.

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
    found = layers_at(_NAME, params, layers)
    check_chosen(_NAME, "sources", sources, len(found))
    old = list(dict.fromkeys(sources))
    if old != list(range(len(found))):
        raise ValueRangeError(
            f"{_NAME}: sources={tuple(sources)!r} bring the {len(found)} blocks as {old}; all must "
            "come, in their order. select_layers leaves blocks out."
        )
    rules = list(zero) if isinstance(zero, list | tuple) else [zero]
    first = {number: place for place, number in reversed(list(enumerate(sources)))}
    made = [
        block if first[number] == place else _silent(block, rules)
        for place, (number, block) in enumerate(
            zip(sources, apart([found[number] for number in sources]), strict=True)
        )
    ]
    return with_layers(_NAME, params, layers, made)


def _silent(block: Any, rules: list[Any]) -> Any:
    """A copy of a block whose last projections are zero."""
    leaves = flatten(block, is_node)
    paths = {path for rule in rules for path in resolve(rule, leaves, _NAME)}
    zeros = {path: jnp.zeros_like(materialize(leaves[path])) for path in leaves if path in paths}
    return unflatten(block, leaves | zeros, is_node)
