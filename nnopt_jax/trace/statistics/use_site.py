"""One use of a leaf, and what is known of the states that are kept for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.statistics.leaf_layout import LeafLayout
from nnopt_jax.trace.statistics.leaf_part import LeafPart
from nnopt_jax.trace.statistics.leaf_uses import LeafUse
from nnopt_jax.trace.statistics.product_use import ProductUse
from nnopt_jax.trace.statistics.statistic import Statistic

Key = tuple[str, int]
"""How results name a use: by the path of the leaf and the number of the use."""


@dataclasses.dataclass(frozen=True)
class UseSite:
    """A use, and what is known of the states that are kept for it.

    Args:
        use: for the table.
        part: the leaf as it lies there.
        copied: where its copy of the leaf was made, which its gradient is taken at.
        product: what the leaf is multiplied with; None where nothing can be measured.
        layout: of its states, likewise.
        states: for each statistic the shapes of the state of one use, without the axes of scans.
        source: what it is multiplied with: uses of equal inputs share their states.
        owners: for each statistic the use that the state is kept for: this one, or an earlier one
            that has the same input.
    """

    use: LeafUse
    part: LeafPart
    copied: Location
    product: ProductUse | None = None
    layout: LeafLayout | None = None
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: Hashable = None
    owners: Mapping[str, Key] = dataclasses.field(default_factory=dict)

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
        scans = self.layout.scans if self.layout is not None else ()
        return tuple(level.length for level in scans if level.depth > depth)


def numbered(
    sites: Mapping[Location, UseSite], statistics: Sequence[Statistic]
) -> dict[Location, UseSite]:
    """Return sites in the order of the program, with their numbers and owners.

    Args:
        sites: by location.
        statistics: those whose states are kept.
    """
    counts: dict[str, int] = {}
    owners: dict[Hashable, Key] = {}
    shared = {one.name for one in statistics if one.of_inputs}
    found = {}
    for location in sorted(sites):
        site = sites[location]
        number = counts.get(site.use.path, 0)
        counts[site.use.path] = number + 1
        site = dataclasses.replace(site, use=site.use._replace(number=number))
        mine = {
            name: owners.setdefault((name, site.source), site.key) if name in shared else site.key
            for name in site.states
        }
        found[location] = dataclasses.replace(site, owners=mine)
    return found
