"""The uses of a program's leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node
from nnopt_jax.trace.abstract_walk import Walk
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.statistics.leaf_domain import LeafDomain
from nnopt_jax.trace.statistics.leaf_part import LeafPart
from nnopt_jax.trace.statistics.leaf_uses import LeafUses, leaf_uses
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.use_site import numbered
from nnopt_jax.trace.traced import Traced, is_array
from nnopt_jax.tree.paths import flatten


def uses_of(given: Traced, params: Any, table: Table = TABLE) -> LeafUses:
    """Find which steps of a function use each of its float parameters; nothing is computed.

    Args:
        given: the function.
        params: its parameters, shapes in place of arrays.
        table: where primitives are described.
    """
    leaves = float_leaves(params)
    found = followed(given, leaves, (), table)
    return leaf_uses((site.use for site in numbered(found.sites, ()).values()), list(leaves))


def followed(
    given: Traced,
    chosen: Mapping[str, Any],
    statistics: Sequence[Statistic],
    table: Table = TABLE,
) -> LeafDomain:
    """Follow leaves through a program, and return what was noted.

    Args:
        given: what was traced.
        chosen: the leaves, by path.
        statistics: those whose states are kept at uses.
        table: where primitives are described.
    """
    domain = LeafDomain({path: tuple(leaf.shape) for path, leaf in chosen.items()}, statistics)
    inputs = [
        domain.fresh(() if path is None else (LeafPart.whole(path, domain.shapes[path]),))
        for path in names_of(given, chosen)
    ]
    Walk(domain, table).run(given.program, inputs)
    return domain


def names_of(given: Traced, chosen: Mapping[str, Any]) -> list[str | None]:
    """For each input its path, where it is one of the parameters that were chosen."""
    if "" in chosen:  # the parameters are one array
        return ["" if which == 0 else None for which in given.arguments]
    return [
        path if which == 0 and path in chosen else None
        for path, which in zip(given.paths, given.arguments, strict=True)
    ]


def float_leaves(params: Any) -> dict[str, Any]:
    """The float leaves of a tree, by path."""
    return {
        path: leaf
        for path, leaf in flatten(params, is_node).items()
        if (is_node(leaf) or is_array(leaf)) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
