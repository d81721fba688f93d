"""The uses of a program's leaves, found in an abstract run, and the states kept for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node, show
from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.statistics.batch_mesh import mesh_of, replicating
from nnopt_jax.trace.statistics.followed_array import FollowedArray, LeafPart
from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.leaf_uses import LeafUse, LeafUses, leaf_use, leaf_uses
from nnopt_jax.trace.statistics.leaf_walk import Extras, UsedAt, walk_leaves
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.value_numbers import ValueNumbers
from nnopt_jax.trace.traced import Traced, is_array
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array, Shape

Key = tuple[str, int]
"""How results name a use: by the path of the leaf and the number of the use."""


@dataclasses.dataclass(frozen=True)
class UseSite:
    """A use, and what is known of the states that are kept for it.

    Args:
        use: for the table.
        layout: of its states.
        rule: location of the outermost call with a derivative rule around it, if any.
        states: for each statistic the shapes of the state of one use, without the axes of scans.
        input: what it is multiplied with: uses of equal inputs share their states.
        owners: for each statistic the use that the state is kept for: this one, or an earlier one
            that has the same input.
        no_outputs: why its outputs are not known.
        is_lookup: whether indices choose rows of the leaf.
    """

    use: LeafUse
    layout: LeafLayout
    rule: Location
    states: Mapping[str, Any]
    input: Hashable = None
    owners: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    no_outputs: str = ""
    is_lookup: bool = False

    @property
    def key(self) -> Key:
        """How results name it."""
        return self.use.path, self.use.number

    @property
    def owned(self) -> tuple[str, ...]:
        """Statistics whose states are kept for this use."""
        return tuple(name for name, owner in self.owners.items() if owner == self.key)

    def lengths(self, depth: int) -> tuple[int, ...]:
        """Of the scans along the leaf that lie deeper than a location."""
        return tuple(level.length for level in self.layout.scans if level.depth > depth)


@dataclasses.dataclass
class UseNotes:
    """Takes note of uses, in an abstract run.

    Args:
        shapes: of the leaves, by path.
        statistics: those whose states are kept.
        table: where primitives are described.
    """

    shapes: Mapping[str, Shape]
    statistics: Sequence[Statistic]
    table: Table = TABLE
    sites: dict[Location, UseSite] = dataclasses.field(default_factory=dict)
    numbers: ValueNumbers = dataclasses.field(default_factory=ValueNumbers)
    states: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def use(
        self, part: LeafPart, at: UsedAt, use: ProductUse | str, arrays: Sequence[Any]
    ) -> Extras:
        """Note one use; a program inside of a scan may be run more than once."""
        shape = self.shapes[part.path]
        product = ProductUse() if isinstance(use, str) else use
        layout = LeafLayout.of(shape, part, product)
        states, source = {}, None
        if not isinstance(use, str):
            depths = tuple(level.depth for level in layout.scans)
            operands = tuple(self.numbers.of(arrays[i]) for i in use.operands)
            source = at.scope, operands, use.source, depths
            states = {one.name: self._state(one, use, source) for one in self.statistics}
        states = {name: state for name, state in states.items() if state is not None}
        self.sites[at.location] = UseSite(
            leaf_use(shape, part, at, use), layout, at.rule, states, source,
            no_outputs=product.no_outputs, is_lookup=product.counts is not None,
        )  # fmt: skip
        return {}

    def _state(self, statistic: Statistic, use: ProductUse, source: Hashable) -> Any:
        """The shapes of a state; of one input they are found once."""
        key = statistic.name, source
        if not statistic.of_inputs or key not in self.states:
            self.states[key] = jax.eval_shape(lambda: statistic.show(use))
        return self.states[key]

    def computed(
        self, equation: Equation, operands: Sequence[Any], outcomes: Sequence[Any]
    ) -> None:
        """Note what was computed, to know equal inputs."""
        if self.statistics:
            self.numbers.add(equation, operands, outcomes)

    def nothing(self, location: Location) -> Extras:
        """Nothing is gathered."""
        return {}

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Nothing is gathered."""
        return {}

    def split(self, extras: Extras, depth: int) -> tuple[Extras, Extras]:
        """Nothing is gathered."""
        return {}, {}

    def numbered(self) -> dict[Location, UseSite]:
        """Return the sites in the order of the program, with numbers and owners."""
        counts: dict[str, int] = {}
        owners: dict[Hashable, Key] = {}
        shared = {one.name for one in self.statistics if one.of_inputs}
        found = {}
        for location in sorted(self.sites):
            site = self.sites[location]
            number = counts.get(site.use.path, 0)
            counts[site.use.path] = number + 1
            site = dataclasses.replace(site, use=site.use._replace(number=number))
            mine = {
                name: owners.setdefault((name, site.input), site.key)
                if name in shared
                else site.key
                for name in site.states
            }
            found[location] = dataclasses.replace(site, owners=mine)
        return found


def followed(values: Sequence[Any], names: Sequence[str | None]) -> list[Any]:
    """Return the inputs of a program: leaves that have a name are followed, others are arrays.

    Args:
        values: arrays and packed leaves.
        names: for each of them the path of the leaf, where it is one to follow.
    """
    arrays = [show(value) for value in values]
    return [
        x if name is None else FollowedArray(x, {}, (LeafPart.whole(name, number, x.shape),))
        for number, (x, name) in enumerate(zip(arrays, names, strict=True))
    ]


def uses_of(given: Traced, params: Any, table: Table = TABLE) -> LeafUses:
    """Find which steps of a function use each of its float parameters; nothing is computed.

    Args:
        given: the function.
        params: its parameters, shapes in place of arrays.
        table: where primitives are described.
    """
    notes: list[UseNotes] = []

    def run(*values: Any) -> Array:
        there = dataclasses.replace(given, values=values)
        notes.append(noted(there, float_leaves(params), (), table))
        return jnp.zeros(())

    jax.eval_shape(replicating(run, mesh_of(given.values), 0), *given.values)
    uses = [site.use for site in notes[-1].numbered().values()]
    return leaf_uses(uses, list(float_leaves(params)))


def noted(
    given: Traced,
    chosen: Mapping[str, Any],
    statistics: Sequence[Statistic],
    table: Table = TABLE,
) -> UseNotes:
    """Run what was traced on shapes, and note the uses of the chosen leaves."""
    shapes = {path: tuple(leaf.shape) for path, leaf in chosen.items()}
    notes = UseNotes(shapes, statistics, table)
    walk_leaves(given.program, followed(given.values, names_of(given, chosen)), notes)
    return notes


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
