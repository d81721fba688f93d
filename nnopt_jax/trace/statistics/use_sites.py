"""The uses of a program's leaves, with the shapes of the states measured at each."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node
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
"""The key of a use in results: the path of the leaf and the number of the use."""


@dataclasses.dataclass(frozen=True)
class UseSite:
    """A use, with the shapes of the states measured at it.

    Args:
        use: its row in the table.
        noted: the use as the walk noted it.
        layout: the layout of its states.
        states: for each statistic the shapes of its state, without the axes of scans.
        owners: for each statistic the use that owns the state: this one, or an earlier one with
            the same input.
    """

    use: LeafUse
    noted: NotedUse
    layout: LeafLayout
    states: Mapping[str, Any]
    owners: Mapping[str, Key]

    @property
    def key(self) -> Key:
        """The key of the use in results."""
        return self.use.path, self.use.number

    @property
    def owned(self) -> tuple[str, ...]:
        """The statistics whose states this use owns."""
        return tuple(name for name, owner in self.owners.items() if owner == self.key)

    def shapes(self, name: str, depth: int) -> Any:
        """Return the shapes of a state, with an axis for each scan deeper than a location."""
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
        uses: the noted uses by location.
        leaves: arrays or shapes, by path.
        statistics: the statistics to measure.
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
    """Return the shapes of the state of a use, without the axes of scans."""
    avals = [x.aval for x in (*noted.equation.invars, *noted.equation.outvars)]
    return jax.eval_shape(
        lambda *arrays: statistic.show(noted.product.on(arrays)),
        *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals),
    )


def uses_of(given: Traced, params: Any, table: Table = TABLE) -> LeafUses:
    """Find the steps of a function that use its float parameters, without computing it.

    Args:
        given: the traced function.
        params: its parameters, with shapes in place of arrays.
        table: the rules of the primitives.
    """
    leaves = float_leaves(params)
    sites = numbered(followed(given, leaves, table).uses, leaves)
    return leaf_uses((site.use for site in sites.values()), list(leaves))


def followed(given: Traced, chosen: Mapping[str, Any], table: Table = TABLE) -> LeafDomain:
    """Follow leaves through a program, and return the domain with its notes.

    Args:
        given: the traced function.
        chosen: the leaves to follow, by path.
        table: the rules of the primitives.
    """
    domain = LeafDomain()
    inputs = [
        domain.fresh(() if path is None else (LeafPart.whole(path, chosen[path].shape),))
        for path in names_of(given, chosen)
    ]
    Walk(domain, table).run(given.program, inputs)
    return domain


def names_of(given: Traced, chosen: Mapping[str, Any]) -> list[str | None]:
    """Return for each input its path if it is one of the chosen parameters, else None."""
    if "" in chosen:  # the parameters are one array
        return ["" if which == 0 else None for which in given.arguments]
    return [
        path if which == 0 and path in chosen else None
        for path, which in zip(given.paths, given.arguments, strict=True)
    ]


def float_leaves(params: Any) -> dict[str, Any]:
    """Return the float leaves of a tree, by path."""
    return {
        path: leaf
        for path, leaf in flatten(params, is_node).items()
        if (is_node(leaf) or is_array(leaf)) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
