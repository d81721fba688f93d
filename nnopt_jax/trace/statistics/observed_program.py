"""The analyzed function for one shape of batches, and the step that adds the states of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.errors import StatisticsError
from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.jaxpr import Program
from nnopt_jax.trace.statistics.measured_run import Extras, LeafCopies, MeasuredRun, plain
from nnopt_jax.trace.statistics.use_sites import UseSite
from nnopt_jax.trace.traced import is_array
from nnopt_jax.typing import Array

LOSS_STATISTICS = ("gradient", "fisher", "hessian_gradient")
"""Statistics of the derivatives of a loss."""

Totals = dict[tuple[str, str, int], Any]
"""States by statistic, path and use; the use is `WHOLE` for states of a leaf as a whole."""

WHOLE = -1
BATCHES = ("batches", "", WHOLE)


@dataclasses.dataclass(frozen=True)
class ObservedProgram:
    """A function that was analyzed for one shape of batches.

    Args:
        program: its program, of the parameters and a batch.
        floats: for each input of the program its path if it is a float parameter, else None.
        measures: the interpreter that measures at uses.
        of_loss: the names of the statistics of a loss to measure.
        shapes: the shapes of the followed leaves, by path.
    """

    program: Program
    floats: Sequence[str | None]
    measures: MeasuredRun
    of_loss: tuple[str, ...]
    shapes: Mapping[str, Any]

    @property
    def differentiated(self) -> dict[tuple[str, Location], UseSite]:
        """The uses that have a gradient of their own, by path and location of the copy.

        Uses of one leaf in one array, inside of one derivative rule, or after a loop that carries
        it share a gradient, which belongs to the first of them.
        """
        found: dict[tuple[str, Location], UseSite] = {}
        for site in self.measures.sites.values():
            found.setdefault((site.use.path, site.noted.copied), site)
        return found

    def start(self) -> Totals:
        """Return the initial totals."""
        totals = {**self.measures.nothing(), BATCHES: jnp.zeros((), jnp.int32)}
        for name in self.of_loss:
            by_use = name != "hessian_gradient"
            keys = [site.key for site in self.differentiated.values()] if by_use else []
            keys += [(path, WHOLE) for path in self.shapes] if name != "gradient" else []
            totals |= {(name, *key): jnp.zeros(self.shapes[key[0]].shape) for key in keys}
        return totals

    def step(self, totals: Totals, params: Any, batch: Any) -> Totals:
        """Return the totals after one more batch."""
        leaves = jax.tree.leaves(((params, batch), {}), is_leaf=is_node)
        arrays = [materialize(x) for x in leaves if is_node(x) or is_array(x)]
        if {"gradient", "fisher"}.intersection(self.of_loss):
            found = self._slopes(arrays)
        else:
            found = self.measures.run(self.program, arrays, None)[1]
        if "hessian_gradient" in self.of_loss:
            found |= self._curvature(arrays)
        slopes = {key: totals[key] + x for key, x in found.items() if key[0] in self.of_loss}
        rest = {key: x for key, x in found.items() if key[0] not in self.of_loss}
        seen = {key: x for key, x in totals.items() if key[0] in self.measures.statistics}
        return {**self.measures.merge(seen, rest), **slopes, BATCHES: totals[BATCHES] + 1}

    def _slopes(self, arrays: Sequence[Array]) -> Extras:
        """Differentiate the loss at a copy of the leaf for every use, and measure on the way."""
        sites = self.differentiated
        copies = {key: arrays[self.floats.index(key[0])] for key in sites}

        def loss(copies: dict[tuple[str, Location], Array]) -> tuple[Array, Extras]:
            own: dict[str | None, dict[Location, Array]] = {}
            for (path, copied), x in copies.items():
                own.setdefault(path, {})[copied] = x
            values = [
                LeafCopies(x, own[path]) if path in own else x
                for x, path in zip(arrays, self.floats, strict=True)
            ]
            (out,), extras = self.measures.run(self.program, values, None)
            return plain(out), extras

        slopes, extras = jax.grad(loss, has_aux=True)(copies)
        slopes = {key: x.astype(jnp.float32) for key, x in slopes.items()}
        if "gradient" in self.of_loss:
            extras |= {("gradient", *sites[key].key): x for key, x in slopes.items()}
        if "fisher" in self.of_loss:
            extras |= {("fisher", *sites[key].key): jnp.square(x) for key, x in slopes.items()}
            for path, leaf in self.shapes.items():
                mine = [x for key, x in slopes.items() if key[0] == path]
                extras["fisher", path, WHOLE] = jnp.square(sum(mine, jnp.zeros(leaf.shape)))
        return extras

    def _curvature(self, arrays: Sequence[Array]) -> Extras:
        """Return the product of the Hessian and the gradient, over all float parameters."""
        inputs = {path: at for at, path in enumerate(self.floats) if path is not None}

        def loss(floats: dict[str, Array]) -> Array:
            values = list(arrays)
            for path, x in floats.items():
                values[inputs[path]] = x
            return core.jaxpr_as_fun(self.program)(*values)[0]

        floats = {path: arrays[at] for path, at in inputs.items()}
        slope = jax.grad(loss)
        found = jax.jvp(slope, (floats,), (slope(floats),))[1]
        return {
            ("hessian_gradient", path, WHOLE): found[path].astype(jnp.float32)
            for path in self.shapes
        }


def check_scalar(program: Program, of_loss: Sequence[str]) -> None:
    """Raise if statistics of a loss are wanted and the function does not return a loss.

    Raises:
        StatisticsError: the function returns something else.
    """
    outs = [str(out.aval.str_short()) for out in program.jaxpr.outvars]
    floats = [jnp.issubdtype(out.aval.dtype, jnp.floating) for out in program.jaxpr.outvars]
    shapes = [out.aval.shape for out in program.jaxpr.outvars]
    if of_loss and (shapes != [()] or not floats[0]):
        raise StatisticsError(
            f"graph.observe: {' and '.join(map(repr, of_loss))} need a loss, and the function "
            f"returns {', '.join(outs) or 'nothing'}; give one that returns a single float, "
            "loss(params, batch)."
        )
