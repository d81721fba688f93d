"""The uses of a program's leaves, and what is known of the states that are kept for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node
from nnopt_jax.trace.abstract_walk import Location, Walk
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.statistics.leaf_domain import LeafDomain, NotedUse
from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.leaf_part import LeafPart
from nnopt_jax.trace.statistics.leaf_uses import LeafUse, LeafUses, leaf_use, leaf_uses
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.traced import Traced, is_array
from nnopt_jax.tree.paths import flatten

Key = tuple[str, int]
"""How results name a use: by the path of the leaf and the number of the use."""


@dataclasses.dataclass(frozen=True)
class UseSite:
    """A use, and what is known of the states that are kept for it.

    Args:
        use: for the table.
        noted: where it is, and of what.
        layout: of its states.
        states: for each statistic the shapes of the state of one use, without the axes of scans.
        owners: for each statistic the use that the state is kept for: this one, or an earlier one
            that has the same input.
    """

    use: LeafUse
    noted: NotedUse
    layout: LeafLayout
    states: Mapping[str, Any]
    owners: Mapping[str, Key]

    @property
    def key(self) -> Key:
        """How results name it."""
        return self.use.path, self.use.number

    @property
    def owned(self) -> tuple[str, ...]:
        """Statistics whose states are kept for this use."""
        return tuple(name for name, owner in self.owners.items() if owner == self.key)

    def shapes(self, name: str, depth: int) -> Any:
        """Those of the state of a statistic, with an axis for each scan deeper than a location."""
        scans = self.noted.part.scans
        lengths = tuple(level.length for level in scans if level.depth > depth)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lengths, *x.shape), x.dtype), self.states[name]
        )


def numbered(
    uses: Mapping[Location, NotedUse],
    leaves: Mapping[str, Any],
    statistics: Sequence[Statistic] = (),
) -> dict[Location, UseSite]:
    """Return uses in the order of the program, with their numbers and states.

    Args:
        uses: by location.
        leaves: arrays or shapes, by path.
        statistics: those whose states are kept.
    """
    counts: dict[str, int] = {}
    known: dict[Hashable, tuple[Key, Any]] = {}
    found = {}
    for location, noted in sorted(uses.items(), key=lambda item: item[0]):
        shape, part = tuple(leaves[noted.part.path].shape), noted.part
        row = leaf_use(shape, part, noted.equation, noted.product, noted.reason)
        row = row._replace(number=counts.setdefault(part.path, 0))
        counts[part.path] += 1
        states, owners = {}, {}
        for one in () if noted.reason else statistics:
            source = (one.name, noted.source if one.of_inputs else location)
            if source not in known:
                known[source] = (part.path, row.number), _state(noted, one)
            owner, state = known[source]
            if state is not None:
                owners[one.name], states[one.name] = owner, state
        layout = LeafLayout(shape, part, noted.product)
        found[location] = UseSite(row, noted, layout, states, owners)
    return found


def _state(noted: NotedUse, statistic: Statistic) -> Any:
    """The shapes of the state that a use has, without the axes of scans."""
    avals = [x.aval for x in (*noted.equation.invars, *noted.equation.outvars)]
    return jax.eval_shape(
        lambda *arrays: statistic.show(noted.product.on(arrays)),
        *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals),
    )


def uses_of(given: Traced, params: Any, table: Table = TABLE) -> LeafUses:
    """Find which steps of a function use each of its float parameters; nothing is computed.

    Args:
        given: the function.
        params: its parameters, shapes in place of arrays.
        table: where primitives are described.
    """
    leaves = float_leaves(params)
    sites = numbered(followed(given, leaves, table).uses, leaves)
    return leaf_uses((site.use for site in sites.values()), list(leaves))


def followed(given: Traced, chosen: Mapping[str, Any], table: Table = TABLE) -> LeafDomain:
    """Follow leaves through a program, and return what was noted.

    Args:
        given: what was traced.
        chosen: the leaves, by path.
        table: where primitives are described.
    """
    domain = LeafDomain()
    inputs = [
        domain.fresh(() if path is None else (LeafPart.whole(path, chosen[path].shape),))
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
