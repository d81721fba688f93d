"""What removed units would hold, where the model with zeros in their place counts it.

After a bias, say, the removed features of a layer normalization are all the same number, which is
not zero; a sum over features counts it as often as there are such features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from nnopt_jax.trace.coupling.elementwise import ELEMENTWISE
from nnopt_jax.trace.coupling.reading import Reading, Smaller, Step, resized, sizes
from nnopt_jax.trace.coupling.value import Left
from nnopt_jax.trace.jaxpr import bind, primitives, read
from nnopt_jax.typing import Array

FOLLOWED = (
    *ELEMENTWISE,
    primitives.broadcast_in_dim_p,
    primitives.transpose_p,
    primitives.squeeze_p,
    primitives.reduce_sum_p,
    primitives.dot_general_p,
    primitives.jit_p,
)
"""Steps through which this can be computed."""


class Frame(NamedTuple):
    """A program that runs: its values so far, and where its inputs came from.

    Args:
        reading: the program.
        values: of its variables.
        steps: what made each variable.
        origins: of inputs of inlined programs: the frame and the variable there.
        inner: frames of inlined programs, by the step that holds them.
    """

    reading: Reading
    values: dict[Any, Any]
    steps: dict[Any, Step]
    origins: dict[Any, tuple[Frame, Any]]
    inner: dict[int, Frame]


class Ghosts(NamedTuple):
    """Computes what a variable holds at one removed element, backwards from where that counts.

    Args:
        running: says what is left of axes.
    """

    running: Smaller

    def of(self, frame: Frame, variable: Any, axis: int) -> Array:
        """An array of the shape of a variable, of size 1 along the axis.

        Args:
            frame: the program of the variable.
            variable: what it would hold there is the same for all removed units.
            axis: where units are removed.
        """
        if variable in frame.origins:
            return self.of(*frame.origins[variable], axis)
        step = frame.steps[variable]
        equation, primitive = step.equation, step.equation.primitive
        which = equation.outvars.index(variable)
        if primitive is primitives.jit_p:
            inner = frame.inner[id(step)]
            return self.of(inner, inner.reading.program.jaxpr.outvars[which], axis)
        if primitive is primitives.broadcast_in_dim_p:
            return self._repeated(frame, step, axis)
        given = [read(frame.values, x) for x in equation.invars]
        for at, own in _origins(step, axis):
            given[at] = self.operand(frame, step, at, own)
        return bind(equation, given)[which]

    def operand(self, frame: Frame, step: Step, at: int, axis: int) -> Array:
        """Likewise of an operand of a step, by its number."""
        variable, value = step.equation.invars[at], step.ins[at]
        x = read(frame.values, variable)
        if len(value.axes[axis]) == 1:  # repeated along it
            return x
        left = value.remains(axis)
        if isinstance(left, Left):
            return self.of(frame, variable, axis)
        return jnp.full_like(lax.slice_in_dim(x, 0, 1, 1, axis), left)

    def _repeated(self, frame: Frame, step: Step, axis: int) -> Array:
        (variable,), out = step.equation.invars, step.outs[0]
        targets = step.equation.params["broadcast_dimensions"]
        shape = list(sizes(out, self.running))
        shape[axis] = 1
        x = read(frame.values, variable)
        if axis in targets and len(step.ins[0].axes[targets.index(axis)]) != 1:
            x = self.operand(frame, step, 0, targets.index(axis))
        return resized(step, [x], self.running, shape=tuple(shape))[0]


def _origins(step: Step, axis: int) -> list[tuple[int, int]]:
    """Which axes of which operands an axis of the outcome is."""
    k, primitive = step.equation.params, step.equation.primitive
    ranks = [len(value.axes) for value in step.ins]
    if primitive is primitives.transpose_p:
        return [(0, k["permutation"][axis])]
    if primitive in (primitives.squeeze_p, primitives.reduce_sum_p):
        gone = k["dimensions" if primitive is primitives.squeeze_p else "axes"]
        return [(0, [x for x in range(ranks[0]) if x not in gone][axis])]
    if primitive is primitives.dot_general_p:
        (ours, theirs), (our_batch, their_batch) = k["dimension_numbers"]
        free = [(0, x) for x in range(ranks[0]) if x not in (*ours, *our_batch)]
        free += [(1, x) for x in range(ranks[1]) if x not in (*theirs, *their_batch)]
        batch = [[(0, a), (1, b)] for a, b in zip(our_batch, their_batch, strict=True)]
        return [*batch, *([x] for x in free)][axis]
    rank = len(step.outs[0].axes)
    return [(at, axis) for at, own in enumerate(ranks) if own == rank]
