"""Statistics that the new links of a stage judge weights by, measured before its first step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax

from nnopt_jax.recipe.data import batches
from nnopt_jax.recipe.phases import Carry, Phase
from nnopt_jax.recipe.setup import Setup
from nnopt_jax.trace import graph


def measure(setup: Setup, phase: Phase, carry: Carry) -> Mapping[str, Any]:
    """Averages what `Transform.needs` names over the first training batches of a stage.

    Args:
        setup: what `prepare` returned.
        phase: the stage that is about to begin.
        carry: as the stage before left it.

    Returns:
        What `tx.init(params, stats=...)` takes: of the parameters as the earlier links show them;
        empty where no new link needs any.
    """
    made = len(carry.state)
    names = phase.needs(made)
    if not names:
        return {}

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = setup.model.apply(params, carry.extra, x, train=False, key=None)
        return setup.loss(logits, y)

    feed = batches(setup.data.train, setup.recipe.batch_size, setup.order, start=phase.first)
    some = itertools.islice(feed, phase.stage.statistics)
    params, given = phase.shown(carry), [(batch.x, batch.y) for batch in some]
    return graph(loss, params, *given[0]).observe(params, given, names)
