"""Parameters that stay as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.transform.base import Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.paths import flatten
from nnopt_jax.tree.select import Where, resolve

_NAME = "transfer.freeze"


@recorded
def freeze(where: Where = "**") -> Transform:
    """Keeps parameters from training: no gradient, no optimizer state, no weight decay.

    `nnopt.trainable` has None in their places. What other transforms learn trains on.

    Args:
        where: which leaves; default: all.

    Returns:
        The transform. It shows every leaf as it is.

    Raises:
        SelectionError: by `init`, where no leaf is selected.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"body": jnp.ones(2), "head": jnp.ones(3)}
        >>> tx = nnopt.transfer.freeze("body")
        >>> nnopt.trainable(tx, params, tx.init(params)).params
        {'body': None, 'head': Array([1., 1., 1.], dtype=float32)}

    References:
        Yosinski et al. 2014, How transferable are features in deep neural networks?, section 2.
    """

    def build(binding: Binding) -> Transform:
        tx = wrapping(
            _NAME,
            where,
            init=lambda leaves, start: ({}, dict.fromkeys(leaves)),
            encode=lambda leaves, state, train: {},
            binding=binding,
        )
        return freezing(tx, where)

    return bindable(build)


def freezing(tx: Transform, where: Where | None) -> Transform:
    """Return a transform that also keeps parameters from training.

    Args:
        tx: the transform.
        where: which parameters; None for none.

    Example:
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.transfer.parameter.adapters.frozen import freezing
        >>> tx = freezing(nnopt.compression.codebook(4), "a")
        >>> tx.frozen({"a": 1, "b": 2})
        frozenset({'a'})
    """
    return dataclasses.replace(tx, frozen=lambda params: frozen_paths(where, params, tx.name))


def frozen_paths(where: Where | None, params: Any, who: str) -> frozenset[str]:
    """The paths that a rule freezes; none where there is no rule.

    Example:
        >>> sorted(frozen_paths("a/*", {"a": {"b": 1, "c": 2}, "d": 3}, "demo"))
        ['a/b', 'a/c']
    """
    if where is None:
        return frozenset()
    return frozenset(resolve(where, flatten(params, is_node), who))
