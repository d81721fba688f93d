"""A function of one shape of batches, read once, and the step that adds what a batch shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node, show
from nnopt_jax.errors import StatisticsError
from nnopt_jax.trace.jaxpr import Equation, Program
from nnopt_jax.trace.statistics.meeting import Meeting
from nnopt_jax.trace.statistics.statistics import Statistic
from nnopt_jax.trace.statistics.uses import Site, viewed
from nnopt_jax.trace.statistics.view import Place, View
from nnopt_jax.trace.statistics.walk import Extras, walk
from nnopt_jax.trace.traced import is_array
from nnopt_jax.typing import Array

SLOPES = ("gradient", "fisher")
"""Statistics of the slope of a loss."""

Totals = dict[tuple[str, str, int], Any]
"""States by statistic, path and use; `WHOLE` for what belongs to the leaf and no single use."""

WHOLE = -1
BATCHES = ("batches", "", WHOLE)


@dataclasses.dataclass(frozen=True)
class Gauges:
    """Measures at every use.

    Args:
        sites: the uses.
        statistics: by name.
    """

    sites: Mapping[Place, Site]
    statistics: Mapping[str, Statistic]

    def met(
        self, view: View, equation: Equation, place: Place, rule: Place, what: Meeting | str
    ) -> Extras:
        """What one use shows."""
        site = self.sites[place]
        if isinstance(what, str):
            return {}
        return {(name, *site.key): self.statistics[name].show(what) for name in site.states}

    def nothing(self, place: Place) -> Extras:
        """Of all uses in a part of the program, what changes nothing when added."""
        inside = (site for at, site in self.sites.items() if at[: len(place)] == place)
        return {
            (name, *site.key): self._start(name, site, len(place))
            for site in inside
            for name in site.states
        }

    def _start(self, name: str, site: Site, depth: int) -> Any:
        lengths = site.lengths(depth)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*lengths, *x.shape), x.dtype), site.states[name]
        )
        return self.statistics[name].start(shapes)

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Adds up what was gathered twice."""
        twice = sorted(one.keys() & other)
        both = {key: self.statistics[key[0]].add(one[key], other[key]) for key in twice}
        return one | other | both

    def split(self, extras: Extras, depth: int) -> tuple[Extras, Extras]:
        """What belongs to the layers that the scan goes over, and what to all its steps."""
        over = {
            site.key
            for site in self.sites.values()
            if any(level.depth == depth and level.dim for level in site.levels)
        }
        each = {key: state for key, state in extras.items() if key[1:] in over}
        return each, {key: state for key, state in extras.items() if key[1:] not in over}


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is known of a function of one shape of batches.

    Args:
        program: of the parameters and a batch.
        names: for each of its inputs the path of the leaf, where it is one to follow.
        gauges: what is measured where.
        slopes: which statistics of the slope are wanted.
        shapes: of the leaves that are followed, by path.
    """

    program: Program
    names: Sequence[str | None]
    gauges: Gauges
    slopes: tuple[str, ...]
    shapes: Mapping[str, Any]

    @property
    def followed(self) -> dict[Place, Site]:
        """The uses that have a slope: of those inside one derivative rule the first."""
        found: dict[Any, Place] = {}
        for place, site in self.gauges.sites.items():
            found.setdefault((site.use.path, site.rule) if site.rule else place, place)
        return {place: self.gauges.sites[place] for place in found.values()}

    def start(self) -> Totals:
        """Totals of no batch."""
        totals = {**self.gauges.nothing(()), BATCHES: jnp.zeros((), jnp.int32)}
        for name in self.slopes:
            keys = [site.key for site in self.followed.values()]
            keys += [(path, WHOLE) for path in self.shapes] if name == "fisher" else []
            totals |= {(name, *key): jnp.zeros(self.shapes[key[0]].shape) for key in keys}
        return totals

    def step(self, totals: Totals, params: Any, batch: Any) -> Totals:
        """Adds what one batch shows."""
        leaves = jax.tree.leaves(((params, batch), {}), is_leaf=is_node)
        arrays = [show(x) for x in leaves if is_node(x) or is_array(x)]
        found = self._slopes(arrays) if self.slopes else walk(
            self.program, viewed(arrays, self.names), self.gauges
        )[1]  # fmt: skip
        slopes = {key: totals[key] + x for key, x in found.items() if key[0] in self.slopes}
        rest = {key: x for key, x in found.items() if key[0] not in self.slopes}
        seen = {key: x for key, x in totals.items() if key[0] in self.gauges.statistics}
        return {**self.gauges.merge(seen, rest), **slopes, BATCHES: totals[BATCHES] + 1}

    def _slopes(self, arrays: Sequence[Array]) -> Extras:
        """Every use has a copy of its leaf, and the loss is differentiated at the copies."""
        copies = {
            place: arrays[self.names.index(site.use.path)] for place, site in self.followed.items()
        }

        def loss(copies: dict[Place, Array]) -> tuple[Array, Extras]:
            values = [
                value if not isinstance(value, View) else dataclasses.replace(
                    value, copies={at: x for at, x in copies.items() if at in own[value.path]}
                )
                for value in viewed(arrays, self.names)
            ]  # fmt: skip
            (out,), extras = walk(self.program, values, self.gauges)
            return out.at(()) if isinstance(out, View) else out, extras

        own = {path: set() for path in self.shapes}
        for place, site in self.followed.items():
            own[site.use.path].add(place)
        slopes, extras = jax.grad(loss, has_aux=True)(copies)
        slopes = {at: x.astype(jnp.float32) for at, x in slopes.items()}
        for name in self.slopes:
            power = jnp.square if name == "fisher" else (lambda x: x)
            extras |= {(name, *self.followed[at].key): power(x) for at, x in slopes.items()}
        if "fisher" in self.slopes:
            for path, places in own.items():
                whole = sum((slopes[at] for at in places), jnp.zeros(self.shapes[path].shape))
                extras[("fisher", path, WHOLE)] = jnp.square(whole)
        return extras


def require_scalar(program: Program, slopes: Sequence[str]) -> None:
    """Wants a loss where its slope is asked for.

    Raises:
        StatisticsError: the function gives something else.
    """
    outs = [str(out.aval.str_short()) for out in program.jaxpr.outvars]
    floats = [jnp.issubdtype(out.aval.dtype, jnp.floating) for out in program.jaxpr.outvars]
    shapes = [out.aval.shape for out in program.jaxpr.outvars]
    if slopes and (shapes != [()] or not floats[0]):
        raise StatisticsError(
            f"graph.observe: {' and '.join(map(repr, slopes))} need a loss, and the function "
            f"returns {', '.join(outs) or 'nothing'}; give one that returns a single float, "
            "loss(params, batch)."
        )
