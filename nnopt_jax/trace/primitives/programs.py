"""Inner programs of equations, such as loop bodies, and where their inputs come from."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from nnopt_jax.trace.jaxpr import Equation, Program, closed, scan_sizes


class Flow(enum.Enum):
    """The control flow by which an equation runs its programs."""

    CALL = "call"
    """One program runs once."""
    LOOP = "loop"
    """One program runs repeatedly (`scan`), or a test and a body alternate (`while`)."""
    BRANCH = "branch"
    """The first operand chooses which of several programs runs."""


class Inner(NamedTuple):
    """An inner program of an equation, with the sources of its inputs and outputs.

    Args:
        program: the program.
        inputs: for each input of the program the operand of the equation that it comes from.
        outputs: for each output of the program the outcome of the equation that it becomes; empty
            for the test of a loop.
    """

    program: Program
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


MeshCut = tuple[tuple[str, ...], ...]
"""The mesh axes that shard each axis of an array."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The inner programs of one equation, and the control flow that runs them.

    Args:
        flow: the control flow of the programs.
        inner: the programs: the called one, every branch, the body, or the test and the body.
        times: the number of iterations of a loop; None if that is not known (`while`).
        carried: pairs of an operand and an outcome: the operand is the input of the first
            iteration, the output of each iteration is the input of the next, and the last output is
            the outcome.
        sliced: operands that are sliced on axis 0, one entry for each iteration.
        stacked: outcomes that stack the outputs of all iterations on axis 0.
        mesh: the mesh of a `shard_map`, whose devices each run the program; else None.
        operand_cuts: for each operand the mesh axes that shard its axes; empty without a mesh.
        outcome_cuts: the same for each outcome.
        own_derivative: whether the equation has a custom derivative rule, which may use every
            operand and every outcome of its program.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax import lax
        >>> from nnopt_jax.trace.primitives import programs_of
        >>> turn = lambda total, x: (total + x, total)
        >>> found = programs_of(
        ...     jax.make_jaxpr(lambda x: lax.scan(turn, x[0], x))(jnp.ones((5, 3))).jaxpr.eqns[-1]
        ... )
        >>> found.flow, found.times, found.carried, found.sliced, found.stacked
        (<Flow.LOOP: 'loop'>, 5, ((0, 0),), (1,), (1,))
    """

    flow: Flow
    inner: tuple[Inner, ...]
    times: int | None = 1
    carried: tuple[tuple[int, int], ...] = ()
    sliced: tuple[int, ...] = ()
    stacked: tuple[int, ...] = ()
    mesh: Any = None
    operand_cuts: tuple[MeshCut, ...] = ()
    outcome_cuts: tuple[MeshCut, ...] = ()
    own_derivative: bool = False

    @property
    def body(self) -> Inner:
        """The program that is called, or the body of a loop."""
        return self.inner[-1]

    @property
    def chooses(self) -> tuple[int, ...]:
        """The operands that choose a branch."""
        return (0,) if self.flow is Flow.BRANCH else ()


MakePrograms = Callable[[Equation], Programs]


def _call(*keys: str, own_derivative: bool = False) -> MakePrograms:
    """Return a function that takes the called program from the first of the named parameters."""

    def make(equation: Equation) -> Programs:
        key = next(key for key in keys if key in equation.params)
        inner = _whole(equation, equation.params[key])
        return Programs(Flow.CALL, (inner,), own_derivative=own_derivative)

    return make


def _whole(equation: Equation, program: Any) -> Inner:
    """Return an inner program that takes all operands of its equation and returns all outcomes."""
    counts = len(equation.invars), len(equation.outvars)
    return Inner(closed(program), *(tuple(range(count)) for count in counts))


def _scan(equation: Equation) -> Programs:
    consts, count = scan_sizes(equation)
    # Operands are constants, carry and scanned arrays; outcomes are carry and stacked arrays.
    first = consts + count
    return Programs(
        Flow.LOOP,
        (_whole(equation, equation.params["jaxpr"]),),
        times=equation.params["length"],
        carried=tuple((consts + i, i) for i in range(count)),
        sliced=tuple(range(first, len(equation.invars))),
        stacked=tuple(range(count, len(equation.outvars))),
    )


def _while(equation: Equation) -> Programs:
    k, count = equation.params, len(equation.outvars)
    # Operands are constants of the test, constants of the body, and the carry.
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    carry = range(bodies, bodies + count)
    return Programs(
        Flow.LOOP,
        (
            Inner(closed(k["cond_jaxpr"]), (*range(tests), *carry), ()),
            Inner(closed(k["body_jaxpr"]), (*range(tests, bodies), *carry), tuple(range(count))),
        ),
        times=None,
        carried=tuple((bodies + i, i) for i in range(count)),
    )


def _cond(equation: Equation) -> Programs:
    # Operand 0 is the number of the branch; all branches take the others.
    inputs, outputs = range(1, len(equation.invars)), range(len(equation.outvars))
    return Programs(
        Flow.BRANCH,
        tuple(
            Inner(closed(branch), tuple(inputs), tuple(outputs))
            for branch in equation.params["branches"]
        ),
    )


def _shard_map(equation: Equation) -> Programs:
    k = equation.params
    return Programs(
        Flow.CALL,
        (_whole(equation, k["jaxpr"]),),
        mesh=k["mesh"],
        operand_cuts=tuple(map(_cut, k["in_specs"], equation.invars)),
        outcome_cuts=tuple(map(_cut, k["out_specs"], equation.outvars)),
    )


def _cut(spec: Any, variable: Any) -> MeshCut:
    """Return the mesh axes of each axis of an array; a spec may omit the last axes."""
    names = [() if x is None else (x,) if isinstance(x, str) else tuple(x) for x in spec]
    return (*names, *[()] * (len(variable.aval.shape) - len(names)))


PROGRAMS: dict[str, MakePrograms] = {
    "jit remat closed_call call core_call composite": _call("jaxpr", "call_jaxpr"),
    "custom_jvp_call custom_vjp_call": _call("call_jaxpr", own_derivative=True),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
"""The functions that find the inner programs of an equation, by names of primitives.

An exported call is not among them: it contains compiled code but no program.
"""
