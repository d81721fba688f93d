"""The uses of leaves as a table, with the shapes of the states that are measured at each."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import Tabular, aligned, brief_fields, counted, listed
from nnopt_jax.trace.abstract_walk import Location, Walk
from nnopt_jax.trace.jaxpr import line
from nnopt_jax.trace.statistics.leaf_domain import LeafDomain, NotedUse
from nnopt_jax.trace.statistics.leaf_part import REPEATED, LeafPart
from nnopt_jax.trace.statistics.statistic import LeafLayout, Statistic
from nnopt_jax.trace.traced import Traced, is_array
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Shape


class LeafUse(NamedTuple):
    """One use of a leaf by a step of the program, with the roles of the leaf's axes in it.

    Axes are those of the leaf itself, even if the leaf was moved before.

    Args:
        path: the path of the leaf.
        number: the number of the use, in the order of the program.
        primitive: the name of the primitive.
        contracted: axes that are contracted or looked up; a lookup equals a product with a one-hot
            row, which would contract them.
        batch: axes whose entries are used separately: layers of a scan, heads, experts.
        partial: axes that the use covers only in part.
        reason: why the use cannot be measured; empty if it can.
        line: the user's line, if that is known.

    Example:
        >>> from nnopt_jax.trace import LeafUse
        >>> LeafUse("w", 0, "dot_general", (0,), (), (), "", "").contracted
        (0,)
    """

    path: str
    number: int
    primitive: str
    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    partial: tuple[int, ...]
    reason: str
    line: str

    __repr__ = brief_fields


@dataclasses.dataclass(frozen=True, repr=False)
class LeafUses(Tabular, Sequence[LeafUse]):
    """All uses of leaves: a sequence that prints as a table.

    Args:
        uses: the uses in the order of the leaves, and then of the program.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> apply = lambda p, x: x @ p["w"].T.T + p["b"]
        >>> found = nnopt.graph(apply, params, jnp.ones(2)).uses
        >>> found.of("w")[0].contracted, len(found)
        ((0,), 2)
    """

    uses: tuple[LeafUse, ...]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        leaves = len({use.path for use in self.uses})
        return f"{counted(len(self.uses), 'use')} of {counted(leaves, 'leaf', 'leaves')}"

    def __getitem__(self, at: Any) -> Any:
        """Return the use at a position."""
        return self.uses[at]

    def __len__(self) -> int:
        """Return the number of uses."""
        return len(self.uses)

    def of(self, path: str) -> tuple[LeafUse, ...]:
        """Return the uses of one leaf."""
        return tuple(use for use in self.uses if use.path == path)

    def __str__(self) -> str:
        """Return the table as text."""
        header = ("leaf", "use", "used by", "contracted", "batch", "partial", "why not", "line")
        cells: list[tuple[str, ...]] = [header]
        for use in self.uses:
            axes = (listed(which) for which in (use.contracted, use.batch, use.partial))
            cells.append((use.path, str(use.number), use.primitive, *axes, use.reason, use.line))
        return "\n".join(aligned(cells))


def leaf_use(shape: Shape, noted: NotedUse, number: int) -> LeafUse:
    """Return a use of a leaf as a row of the table.

    Args:
        shape: the shape of the leaf.
        noted: the use.
        number: its number among the uses of the leaf.
    """
    part, product = noted.part, noted.product
    outputs = {f.axis for f in product.outs} - {f.axis for f in product.groups}
    batch = {f.axis for f in (*part.scan_factors, *product.batch) if f.axis != REPEATED}
    # An axis on which one entry was selected, such as a layer, is a batch axis.
    batch |= {axis for axis in part.taken if shape[axis] > 1 and axis not in product.contracted}
    return LeafUse(
        part.path, number, noted.equation.primitive.name, product.contracted,
        tuple(sorted(batch - outputs)), _partial(shape, part), noted.reason, line(noted.equation),
    )  # fmt: skip


def _partial(shape: Shape, part: LeafPart) -> tuple[int, ...]:
    counts = [
        math.prod(factor.size for factor in part.factors if factor.axis == axis)
        for axis in range(len(shape))
    ]
    return tuple(axis for axis, n in enumerate(shape) if counts[axis] != n)


def leaf_uses(uses: Iterable[LeafUse], paths: Sequence[str]) -> LeafUses:
    """Return the table of uses, sorted by leaf."""
    order = {path: at for at, path in enumerate(paths)}
    return LeafUses(tuple(sorted(uses, key=lambda use: (order[use.path], use.number))))


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
        """The statistics whose state this use owns, not an earlier use of the same input."""
        return tuple(name for name, owner in self.owners.items() if owner == self.key)

    def shapes(self, name: str, depth: int) -> Any:
        """Return the shapes of a statistic's state, with an axis for each scan below a depth."""
        scans = self.noted.part.scans
        lengths = tuple(level.length for level in scans if level.depth > depth)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lengths, *x.shape), x.dtype), self.states[name]
        )


def number_uses(
    uses: Mapping[Location, NotedUse],
    leaves: Mapping[str, Any],
    statistics: Sequence[Statistic] = (),
) -> dict[Location, UseSite]:
    """Number uses in the order of the program, and find the shapes of their states.

    Args:
        uses: the noted uses by location.
        leaves: arrays or shapes, by path.
        statistics: the statistics to measure.
    """
    counts: collections.Counter[str] = collections.Counter()
    known: dict[Hashable, tuple[Key, Any]] = {}
    found = {}
    for location, noted in sorted(uses.items(), key=lambda item: item[0]):
        shape, part = tuple(leaves[noted.part.path].shape), noted.part
        row = leaf_use(shape, noted, counts[part.path])
        counts[part.path] += 1
        states, owners = {}, {}
        for one in () if noted.reason else statistics:
            # Uses with equal inputs share a state, which the first of them owns.
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
    """Return the shapes of a statistic's state at a use, without the axes of scans."""
    avals = [x.aval for x in (*noted.equation.invars, *noted.equation.outvars)]
    return jax.eval_shape(
        lambda *arrays: statistic.state(noted.product.on(arrays)),
        *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals),
    )


def uses_of(given: Traced, params: Any) -> LeafUses:
    """Find the steps of a function that use its float parameters, without computing it.

    Args:
        given: the traced function.
        params: its parameters, with shapes in place of arrays.
    """
    leaves = float_leaves(params)
    sites = number_uses(follow_leaves(given, leaves).uses, leaves)
    return leaf_uses((site.use for site in sites.values()), list(leaves))


def follow_leaves(given: Traced, chosen: Mapping[str, Any]) -> LeafDomain:
    """Follow leaves through a program, and return the analysis with their uses.

    Args:
        given: the traced function.
        chosen: the leaves to follow, by path.
    """
    domain = LeafDomain()
    inputs = [
        domain.fresh(() if path is None else (LeafPart.whole(path, chosen[path].shape),))
        for path in paths_of(given, chosen)
    ]
    Walk(domain, given.table).run(given.program, inputs)
    return domain


def paths_of(given: Traced, chosen: Mapping[str, Any]) -> list[str | None]:
    """Return for each input of the program its path if it is a chosen parameter, else None."""
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
