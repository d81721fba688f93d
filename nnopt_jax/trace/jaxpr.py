"""Access to the traced programs of JAX (jaxprs) in all supported versions."""

from __future__ import annotations

import pathlib
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives as primitives

from nnopt_jax.tree.devices import is_explicit

_CORE: Any = core  # the types differ between versions of JAX

Program = Any
"""A traced function: a closed jaxpr."""

Equation = Any
"""One step of a program: a primitive with its operands and outcomes."""


def closed(program: Any) -> Program:
    """Return a program as a closed jaxpr; the programs of `remat` are not closed."""
    return program if isinstance(program, _CORE.ClosedJaxpr) else _CORE.ClosedJaxpr(program, ())


def is_variable(x: Any) -> bool:
    """Return whether an operand is a variable rather than a literal."""
    return not isinstance(x, core.Literal)


def read(environment: dict[Any, Any], variable: Any) -> Any:
    """Look up the value of a variable, or return the value of a literal."""
    return environment[variable] if is_variable(variable) else variable.val


def evaluate(
    program: Program,
    values: Sequence[Any],
    compute: Callable[[int, Equation, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Run the equations of a program one after another, and return the program's outputs.

    Args:
        program: the traced program.
        values: its inputs.
        compute: a function of the number of a step, the step and its operands that returns the
            outcomes.

    Example:
        >>> program = jax.make_jaxpr(lambda x: -(x + 1))(2)
        >>> evaluate(program, [2], lambda number, equation, given: bind(equation, given))
        [Array(-3, dtype=int32, weak_type=True)]
    """
    known = environment(program, values)
    advance(known, program.jaxpr.eqns, compute)
    return [read(known, x) for x in program.jaxpr.outvars]


def environment(program: Program, values: Sequence[Any]) -> dict[Any, Any]:
    """Return the values of a program's constants and inputs, by variable."""
    known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    return known | dict(zip(program.jaxpr.invars, values, strict=True))


def advance(
    known: dict[Any, Any],
    equations: Sequence[Equation],
    compute: Callable[[int, Equation, list[Any]], Sequence[Any]],
) -> None:
    """Run equations one after another, and add their outcomes to the known values.

    Args:
        known: the values of variables.
        equations: the equations.
        compute: see `evaluate`.
    """
    for number, equation in enumerate(equations):
        found = compute(number, equation, [read(known, x) for x in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))


def bind(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Compute one equation under the mesh and settings that it was traced under."""
    given = equation.primitive.get_bind_params(equation.params)
    # In jax 0.10 inner programs are separate from the settings of the step.
    functions, settings = given if isinstance(given, tuple) else ((), given)
    with equation.ctx.manager:
        found = equation.primitive.bind(*functions, *values, **settings)
    return list(found) if equation.primitive.multiple_results else [found]


def scan_sizes(equation: Equation) -> tuple[int, int]:
    """Return how many inputs of a scan are constants, and how many are carried."""
    settings = equation.params
    if "num_consts" in settings:  # before jax 0.11
        return settings["num_consts"], settings["num_carry"]
    consts, carry, _ = settings["ft_in"].unpack()
    return len(consts), len(carry)


_INSTALLED = tuple(
    str(pathlib.Path(sysconfig.get_path(key)).resolve()) for key in ("purelib", "platlib", "stdlib")
)
_OURS = str(pathlib.Path(__file__).resolve().parents[1])


def line(equation: Equation) -> str:
    """Return the line of user code that a step comes from, `file.py:12 (function)`, or "".

    This is the innermost line of the traceback that is outside of installed packages.
    """
    trace = getattr(equation.source_info, "traceback", None)
    for frame in trace.frames if trace is not None else ():
        if _is_users(frame.file_name):
            return _place_of(frame.file_name, frame.line_num, frame.function_name)
    return ""


def line_of(error: BaseException) -> str:
    """Return the line of user code that raised an error, `file.py:12 (function)`, or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return _place_of(frame.filename, frame.lineno, frame.name)
    return ""


def _is_users(file: str) -> bool:
    # Frozen modules belong to the interpreter.
    return not file.startswith((*_INSTALLED, _OURS, "<frozen"))


def _place_of(file: str, number: int | None, name: str) -> str:
    return f"{pathlib.Path(file).name}:{number} ({name})"


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a packed leaf, and its sharding on Explicit mesh axes."""
    if any(isinstance(leaf, jax.Array) and is_explicit(leaf) for leaf in jax.tree.leaves(x)):
        # A trace derives the sharding of the dense array from those of the fields.
        return jax.eval_shape(lambda x: x.materialize(), x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
