"""Execution of a program with measurements at the uses of leaves, and totals over batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.trace.abstract_walk import Location
from nnopt_jax.trace.control import CONTROL, Inside
from nnopt_jax.trace.jaxpr import Equation, Program, bind, evaluate
from nnopt_jax.trace.statistics.leaf_domain import LeafStep
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.use_sites import UseSite
from nnopt_jax.trace.traced import is_array
from nnopt_jax.typing import Array

Extras = dict[Any, Any]
"""The states of statistics, by name of the statistic, path of the leaf and number of the use."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafCopies:
    """An array that holds leaves, and a copy for each use, so that each has its own gradient.

    Args:
        x: the array.
        copies: a copy of the array for each use, by the location of the copy.
    """

    x: Array
    copies: dict[Location, Array]


def plain_array(value: Any, copied: Location = ()) -> Any:
    """Return a value of the program as a plain array: the array itself or one copy.

    Args:
        value: an array, or the copies of one.
        copied: the location of the copy.
    """
    return value.copies.get(copied, value.x) if isinstance(value, LeafCopies) else value


@dataclasses.dataclass(frozen=True)
class MeasuredRun(Inside):
    """An interpreter of programs that measures statistics at the uses of leaves.

    Args:
        sites: the uses of leaves.
        steps: the steps whose operands hold leaves.
        statistics: the statistics by name.
        location: the location of the step.
    """

    sites: Mapping[Location, UseSite]
    steps: Mapping[Location, LeafStep]
    statistics: Mapping[str, Statistic]
    location: Location = ()

    def run(
        self, program: Program, values: Sequence[Any], at: int | None = 0
    ) -> tuple[list[Any], Extras]:
        """Compute a program, and measure at the uses in it; outputs may hold leaves.

        Args:
            program: the traced program.
            values: arrays and `LeafCopies`, one for each input.
            at: the number of the program inside of the step; None for the outermost program.

        Returns:
            The outputs, and the measured states.
        """
        around = self._location_of(at)
        extras: Extras = {}

        def compute(number: int, equation: Equation, given: list[Any]) -> list[Any]:
            step = dataclasses.replace(self, location=(*around, number))
            found, more = step._compute(equation, given)
            extras.update(more)
            return found

        return evaluate(program, values, compute), extras

    def _compute(self, equation: Equation, values: Sequence[Any]) -> tuple[list[Any], Extras]:
        step = self.steps.get(self.location)
        # No operand holds a leaf, so that copies do not matter.
        if step is None:
            return bind(equation, [plain_array(value) for value in values]), {}
        values = [
            plain_array(value, step.copied[at]) if at in step.copied else value
            for at, value in enumerate(values)
        ]
        if equation.primitive in CONTROL:
            return CONTROL[equation.primitive](equation, values, self)
        found = bind_copies(equation, values)
        arrays = [plain_array(value) for value in (*values, *found)]
        extras = {
            (name, *site.key): self.statistics[name].state(site.noted.product.on(arrays))
            for site in map(self.sites.__getitem__, step.uses)
            for name in site.owned
        }
        return found, extras

    def _location_of(self, at: int | None) -> Location:
        """Return the location of this step, or that of its inner program number `at`."""
        return self.location if at is None else (*self.location, at)

    def _sites(self, location: Location) -> list[UseSite]:
        depth = len(location)
        return [site for where, site in self.sites.items() if where[:depth] == location]

    def arrays(self, values: Sequence[Any]) -> list[Any]:
        """Return values as plain arrays: the copies that belong to the step."""
        return [plain_array(value, self.location) for value in values]

    def initial_extras(self, at: int | None = None) -> Extras:
        """Return the initial states of all uses inside of the step, or of one of its programs."""
        location = self._location_of(at)
        return {
            (name, *site.key): self.statistics[name].start(site.shapes(name, len(location)))
            for site in self._sites(location)
            for name in site.owned
        }

    def merge(self, one: Extras, other: Extras) -> Extras:
        """Merge the states of two runs, adding the states that both have."""
        twice = sorted(one.keys() & other)
        both = {key: self.statistics[key[0]].add(one[key], other[key]) for key in twice}
        return one | other | both

    def split(self, extras: Extras) -> tuple[Extras, Extras]:
        """Split states into those with an entry for each iteration of a scan, and others."""
        depth = len(self.location)
        over = {
            site.key
            for site in self._sites(self.location)
            if any(level.depth == depth for level in site.noted.part.scans)
        }
        each = {key: state for key, state in extras.items() if key[1:] in over}
        return each, {key: state for key, state in extras.items() if key[1:] not in over}


def bind_copies(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Compute a step on its operands, and again on each set of their copies.

    Args:
        equation: the step.
        values: its operands.
    """
    found = bind(equation, [plain_array(value) for value in values])
    # A gradient at one copy needs the outcome that is computed from that copy alone.
    keys = [key for value in values if isinstance(value, LeafCopies) for key in value.copies]
    copies = {
        key: bind(equation, [plain_array(x, key) for x in values]) for key in dict.fromkeys(keys)
    }
    if not copies:
        return found
    return [
        LeafCopies(x, {key: outs[at] for key, outs in copies.items()}) for at, x in enumerate(found)
    ]


OF_LOSS = ("gradient", "fisher", "hessian_gradient")
"""The names of the statistics that need derivatives of a loss."""

Totals = dict[tuple[str, str, int], Any]
"""The states of statistics by name, path and use; `WHOLE` stands for the leaf as a whole."""

WHOLE = -1
BATCHES = ("batches", "", WHOLE)


@dataclasses.dataclass(frozen=True)
class ObservedProgram:
    """The program of a function for one shape of batches, with the uses to measure.

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
    def gradient_sites(self) -> dict[tuple[str, Location], UseSite]:
        """The uses whose gradients are computed separately, by path and location of the copy.

        Uses of one leaf in one array, inside of one derivative rule, or after a loop that carries
        it, share a gradient, which belongs to the first of them.
        """
        found: dict[tuple[str, Location], UseSite] = {}
        for site in self.measures.sites.values():
            found.setdefault((site.use.path, site.noted.copied), site)
        return found

    def start(self) -> Totals:
        """Return the initial totals of all statistics."""
        totals = {**self.measures.initial_extras(), BATCHES: jnp.zeros((), jnp.int32)}
        for name in self.of_loss:
            # Hessian products are of the leaf as a whole, and gradients of single uses alone.
            by_use = name != "hessian_gradient"
            keys = [site.key for site in self.gradient_sites.values()] if by_use else []
            keys += [(path, WHOLE) for path in self.shapes] if name != "gradient" else []
            totals |= {(name, *key): jnp.zeros(self.shapes[key[0]].shape) for key in keys}
        return totals

    def step(self, totals: Totals, params: Any, batch: Any) -> Totals:
        """Return the totals of all statistics after one more batch."""
        leaves = jax.tree.leaves(((params, batch), {}), is_leaf=is_node)
        arrays = [materialize(x) for x in leaves if is_node(x) or is_array(x)]
        if {"gradient", "fisher"}.intersection(self.of_loss):
            found = self._gradients(arrays)
        else:
            found = self.measures.run(self.program, arrays, None)[1]
        if "hessian_gradient" in self.of_loss:
            found |= self._hessian_gradient(arrays)
        slopes = {key: totals[key] + x for key, x in found.items() if key[0] in self.of_loss}
        rest = {key: x for key, x in found.items() if key[0] not in self.of_loss}
        seen = {key: x for key, x in totals.items() if key[0] in self.measures.statistics}
        return {**self.measures.merge(seen, rest), **slopes, BATCHES: totals[BATCHES] + 1}

    def _gradients(self, arrays: Sequence[Array]) -> Extras:
        """Differentiate the loss at a separate copy of the leaf for each use; measure the uses."""
        sites = self.gradient_sites
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
            return plain_array(out), extras

        slopes, extras = jax.grad(loss, has_aux=True)(copies)
        slopes = {key: x.astype(jnp.float32) for key, x in slopes.items()}
        if "gradient" in self.of_loss:
            extras |= {("gradient", *sites[key].key): x for key, x in slopes.items()}
        if "fisher" in self.of_loss:
            extras |= {("fisher", *sites[key].key): jnp.square(x) for key, x in slopes.items()}
            for path, leaf in self.shapes.items():
                # The gradient of a leaf is the sum over its uses; squares of uses do not add up.
                mine = [x for key, x in slopes.items() if key[0] == path]
                extras["fisher", path, WHOLE] = jnp.square(sum(mine, jnp.zeros(leaf.shape)))
        return extras

    def _hessian_gradient(self, arrays: Sequence[Array]) -> Extras:
        """Return the product of the loss's Hessian and gradient, over all float parameters."""
        inputs = {path: at for at, path in enumerate(self.floats) if path is not None}

        def loss(floats: dict[str, Array]) -> Array:
            values = list(arrays)
            for path, x in floats.items():
                values[inputs[path]] = x
            return core.jaxpr_as_fun(self.program)(*values)[0]

        floats = {path: arrays[at] for path, at in inputs.items()}
        slope = jax.grad(loss)
        # Forward over reverse mode gives the product without the Hessian (Pearlmutter 1994).
        found = jax.jvp(slope, (floats,), (slope(floats),))[1]
        return {
            ("hessian_gradient", path, WHOLE): found[path].astype(jnp.float32)
            for path in self.shapes
        }
