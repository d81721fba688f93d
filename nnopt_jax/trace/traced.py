"""Tracing of a function to a program, with a path as the name of each input."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import Tabular, counted
from nnopt_jax.errors import CompositionError
from nnopt_jax.trace.jaxpr import Program, abstract, line_of
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.tree.devices import is_explicit
from nnopt_jax.tree.paths import flatten, path_string

Outputs = Callable[[Any], Any]
"""A function that selects the part of a result that must keep its widths."""


def everything(found: Any) -> Any:
    """Return the whole result of a function, the default of `outputs`."""
    return found


@dataclasses.dataclass(frozen=True, repr=False)
class Traced(Tabular):
    """A traced function: its program, and the names and values of its inputs.

    Args:
        program: the program; a packed leaf is an array in it.
        paths: the path of each input, within the first argument, or after the number or name of
            another argument.
        values: arrays and packed leaves, one for each input.
        arguments: for each input the number of its positional argument, or the keyword.
        structure: the structure of the result.
        outputs: selects the part of the result that must keep its widths.
        table: the rules of the primitives.
    """

    program: Program
    paths: tuple[str, ...]
    values: tuple[Any, ...]
    arguments: tuple[int | str, ...]
    structure: Any
    outputs: Outputs = everything
    table: Table = TABLE

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        steps = counted(len(self.program.jaxpr.eqns), "step")
        return f"{steps}, {counted(len(self.paths), 'input')}"

    def outcome(self, found: Iterable[Any]) -> Any:
        """Rebuild the result of the function from the flat outputs of its program."""
        return jax.tree.unflatten(self.structure, list(found))

    def selected(self, found: Sequence[Any]) -> list[Any]:
        """Return the outputs of the program that `outputs` selects."""
        numbers = self.outcome(range(len(found)))
        return [found[number] for number in jax.tree.leaves(self.outputs(numbers))]

    def with_parameters(self, leaves: Iterable[Any]) -> Traced:
        """Return the traced function with other values for the leaves of its first argument."""
        left = iter(leaves)
        pairs = zip(self.values, self.arguments, strict=True)
        values = tuple(next(left) if which == 0 else value for value, which in pairs)
        return dataclasses.replace(self, values=values)


def trace(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
    outputs: Outputs = everything, table: Table = TABLE,
) -> Traced:  # fmt: skip
    """Trace a function to a program, without computing it.

    Args:
        function: any function that JAX can trace.
        args: its arguments: arrays, `jax.ShapeDtypeStruct`s and packed leaves in any containers;
            other values are passed to the function unchanged.
        kwargs: its keyword arguments, of the same kinds.
        outputs: selects the part of the result that must keep its widths.
        table: the rules of the primitives, for every analysis.

    Raises:
        CompositionError: the function needs concrete values, which tracing does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> found = trace(
        ...     lambda params, x, on: params["w"] * x, ({"w": jnp.ones(2)}, 3.0), {"on": 1}
        ... )
        >>> found.paths, found.arguments, found.program.jaxpr.outvars[0].aval.shape
        (('w',), (0,), (2,))
    """
    with_paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=is_node)
    leaves = [leaf for _, leaf in with_paths]
    # Only arrays and nodes become inputs; numbers, strings and functions stay constants.
    kept = [is_node(leaf) or is_array(leaf) for leaf in leaves]

    def flat(*arrays: Any) -> Any:
        args, kwargs = jax.tree.unflatten(tree, refill(leaves, kept, arrays))
        return function(*args, **kwargs)

    inputs = [(keys, x) for (keys, x), keep in zip(with_paths, kept, strict=True) if keep]
    paths, values = tuple(_path(keys) for keys, _ in inputs), tuple(x for _, x in inputs)
    try:
        program, shapes = jax.make_jaxpr(flat, return_shape=True)(
            *(abstract(x) if is_node(x) else x for x in values)
        )
    except _NEEDS_VALUES as error:
        raise _explain(function, paths, error) from error
    except Exception as error:
        # The error keeps its type, since the caller may catch it.
        error.add_note(_note_of(function, zip(paths, values, strict=True), error))
        raise
    arguments, structure = tuple(_argument(keys) for keys, _ in inputs), jax.tree.structure(shapes)
    return Traced(program, paths, values, arguments, structure, outputs, table)


_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _explain(function: Any, paths: Sequence[str], error: Exception) -> CompositionError:
    """Return an error that names inputs by path, whereas JAX names them by number."""
    # JAX names the inputs of `flat` by position, such as arrays[3].
    numbers = dict.fromkeys(re.findall(r"\barrays\[(\d+)\]", str(error)))
    inputs = ", ".join(paths[int(number)] for number in numbers) or "an input"
    return CompositionError(
        f"{name_of(function)}: {line_of(error) or 'some line'} needs the value of an "
        f"expression that depends on {inputs}, while the function is traced on shapes alone. Use "
        "jnp and lax (jnp.where, lax.cond) there, or give the value as a Python number."
    )


def _note_of(function: Any, given: Iterable[tuple[str, Any]], error: Exception) -> str:
    """Return a note for JAX's error, with the name of the traced function and its packed inputs."""
    leaves = [f"{p} {x.dtype}{list(x.shape)}" for p, x in given if is_node(x)]
    text = f"nnopt_jax: while {name_of(function)} was traced, at {line_of(error) or 'some line'}."
    if not leaves:
        return text
    more = f" and {len(leaves) - _NAMED} more" if len(leaves) > _NAMED else ""
    return f"{text} Packed leaves are plain arrays inside it: {', '.join(leaves[:_NAMED])}{more}."


_NAMED = 8
"""The greatest number of leaves that a note names."""


def name_of(function: Any) -> str:
    """Return the name of a function, or of the class of a callable object."""
    return getattr(function, "__name__", type(function).__name__)


def check_function(caller: str, function: Any) -> None:
    """Raise if an argument is not a function.

    Raises:
        CompositionError: the argument is not callable.

    Example:
        >>> check_function("demo", {"w": 1})
        Traceback (most recent call last):
        nnopt_jax.errors.CompositionError: demo: dict is not a function; it comes before parameters.
    """
    if not callable(function):
        raise CompositionError(
            f"{caller}: {type(function).__name__} is not a function; it comes before parameters."
        )


def is_array(x: Any) -> bool:
    """Return whether tracing treats a value as an array, which excludes Python numbers."""
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def arrays_of(tree: Any) -> dict[str, Any]:
    """Return the arrays and packed leaves of a tree, by path."""
    return {p: x for p, x in flatten(tree, is_node).items() if is_node(x) or is_array(x)}


def shapes_of(tree: Any) -> Any:
    """Replace the arrays and packed leaves of a tree by shapes, which keep explicit shardings.

    Args:
        tree: any tree; leaves of other kinds stay as they are.

    Example:
        >>> shapes_of({"w": np.ones((2, 3), np.float32), "name": "relu"})
        {'name': 'relu', 'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(_shape, tree, is_leaf=is_node)


def _shape(x: Any) -> Any:
    if is_node(x):
        return abstract(x)
    if not is_array(x) or isinstance(x, jax.ShapeDtypeStruct):
        return x
    if isinstance(x, np.ndarray):  # as JAX converts it: without x64, float64 becomes float32
        return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
    weak = getattr(x, "weak_type", False)
    if is_explicit(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding, weak_type=weak)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)


def refill(leaves: Sequence[Any], kept: Sequence[bool], arrays: Iterable[Any]) -> list[Any]:
    """Replace the leaves that are marked as kept by the given arrays, in order."""
    left = iter(arrays)
    return [next(left) if keep else x for x, keep in zip(leaves, kept, strict=True)]


def _argument(keys: tuple[Any, ...]) -> int | str:
    return keys[1].idx if keys[0].idx == 0 else keys[1].key


def _path(keys: tuple[Any, ...]) -> str:
    inside, which = path_string(tuple(keys[2:])), _argument(keys)
    # Parameters have the paths that `where` selects; other arguments are named first.
    if which == 0 and inside:
        return inside
    named = which if isinstance(which, str) else f"argument {which + 1}"
    return f"{named}/{inside}".rstrip("/")
