"""All that the trace asks of JAX's own representation of programs, in one place."""

from __future__ import annotations

import pathlib
import sysconfig
import traceback
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives as primitives

from nnopt_jax.tree.explicit import is_explicit

_CORE: Any = core  # its types are not the same ones in all versions

Program = Any
"""A traced function, a closed jaxpr."""

Equation = Any
"""One step of a program: a primitive, what it takes, what it gives."""


def closed(program: Any) -> Program:
    """A program with its constants; those of `remat` come without."""
    return program if isinstance(program, _CORE.ClosedJaxpr) else _CORE.ClosedJaxpr(program, ())


def is_variable(x: Any) -> bool:
    """Whether an operand is a name of a value, and not a number in its place."""
    return not isinstance(x, core.Literal)


def read(environment: dict[Any, Any], variable: Any) -> Any:
    """The value of a variable, or of a number that stands in its place."""
    return environment[variable] if is_variable(variable) else variable.val


def bind(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Computes one step as it was traced, under the mesh and settings that it was traced under."""
    given = equation.primitive.get_bind_params(equation.params)
    # Programs inside of the step come apart from its settings in jax 0.10.
    functions, settings = given if isinstance(given, tuple) else ((), given)
    with equation.ctx.manager:
        found = equation.primitive.bind(*functions, *values, **settings)
    return list(found) if equation.primitive.multiple_results else [found]


def scanned(equation: Equation) -> tuple[int, int]:
    """Of the inputs of a scan how many are the same for all steps, and how many are carried."""
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
    """`file.py:12 (function)`: the user's own line that made a step; empty where it is not known.

    Of the lines that led to it the innermost one that is of no installed package.
    """
    trace = getattr(equation.source_info, "traceback", None)
    for frame in trace.frames if trace is not None else ():
        if _is_users(frame.file_name):
            return _told(frame.file_name, frame.line_num, frame.function_name)
    return ""


def line_of(error: BaseException) -> str:
    """Likewise, of the user's line that an error came out of."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return _told(frame.filename, frame.lineno, frame.name)
    return ""


def _is_users(file: str) -> bool:
    return not file.startswith((*_INSTALLED, _OURS, "<frozen"))


def _told(file: str, number: int | None, name: str) -> str:
    return f"{pathlib.Path(file).name}:{number} ({name})"


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """What a traced function sees of a packed leaf; over Explicit axes of a mesh, how it lies."""
    if any(isinstance(leaf, jax.Array) and is_explicit(leaf) for leaf in jax.tree.leaves(x)):
        return jax.eval_shape(lambda x: x.materialize(), x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
