"""Functions of parameters, on packed parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from nnopt_jax.arrays.base import is_node
from nnopt_jax.errors import CompositionError
from nnopt_jax.trace.jaxpr import Equation, abstract, line
from nnopt_jax.trace.leaf import Leaf, is_leaf
from nnopt_jax.trace.report import PackedReport, Use
from nnopt_jax.trace.walk import run
from nnopt_jax.tree.paths import path_string


@dataclasses.dataclass(frozen=True, eq=False)
class OnPacked:
    """What `on_packed` returns.

    Args:
        function: of arrays.
        strict: whether a leaf that is made dense is an error.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.on_packed(len).strict
        False
    """

    function: Callable[..., Any]
    strict: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function; packed leaves may be anywhere in the arguments.

        Raises:
            CompositionError: a leaf was made dense, and `strict` forbids it.
        """
        if not self.strict:  # nobody asks, and lines take time to find
            return _run(self.function, args, kwargs, lambda *_: None)
        uses: dict[Use, None] = {}
        found = _run(self.function, args, kwargs, functools.partial(_note, uses))
        _require_packed(uses)
        return found

    def report(self, *args: Any, **kwargs: Any) -> PackedReport:
        """Says what becomes of each packed leaf, from shapes alone.

        Args:
            *args: as for the function; `jax.ShapeDtypeStruct` will do in place of arrays.
            **kwargs: likewise.
        """
        uses: dict[Use, None] = {}
        leaves, tree = jax.tree.flatten((args, kwargs))
        kept = [_is_array(x) for x in leaves]

        def again(*arrays: Any) -> Any:
            args, kwargs = jax.tree.unflatten(tree, _refilled(leaves, kept, arrays))
            _run(self.function, args, kwargs, functools.partial(_note, uses))

        jax.eval_shape(again, *(x for x, keep in zip(leaves, kept, strict=True) if keep))
        return PackedReport(tuple(uses))


def on_packed(function: Callable[..., Any], *, strict: bool = False) -> OnPacked:
    """Makes a function of arrays one of packed leaves, too.

    The function is traced when it is called, and computed step by step: a matrix product with a
    quantized kernel multiplies its codes, a lookup in an embedding makes the rows dense that it
    finds, what is moved stays packed. Where there is no such way the leaf is made dense, and
    `report` says so. Nothing of it is kept: write `jax.jit(on_packed(function))`, once.

    Args:
        function: any that JAX can trace, of any arguments. Packed leaves are arrays of their
            logical shapes and dtypes inside; other arguments come as they are. A packed leaf that
            the function closes over is none of its arguments, and stays what it is.
        strict: makes a leaf that is made dense an error.

    Returns:
        The `OnPacked`, a function of the same arguments. What comes out as it came in, or but
        moved, comes out packed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"w": jnp.eye(4)}
        >>> packed = tx.pack(params, tx.init(params))
        >>> jax.jit(nnopt.on_packed(lambda params, x: x @ params["w"]))(packed, jnp.arange(4.0))
        Array([0., 1., 2., 3.], dtype=float32)
    """
    if not callable(function):
        raise CompositionError(f"on_packed: {function!r} is no function.")
    return OnPacked(function, strict)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _refilled(leaves: Sequence[Any], traced: Sequence[bool], arrays: Iterable[Any]) -> list[Any]:
    """Leaves with arrays in place of those that are traced."""
    left = iter(arrays)
    return [next(left) if is_traced else x for x, is_traced in zip(leaves, traced, strict=True)]


def _run(function: Callable[..., Any], args: Any, kwargs: Any, seen: Any) -> Any:
    with_paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=is_node)
    values = [Leaf(x, _path(path)) if is_node(x) else x for path, x in with_paths]
    traced = [is_leaf(x) or _is_array(x) for x in values]

    def flat(*arrays: Any) -> Any:
        args, kwargs = jax.tree.unflatten(tree, _refilled(values, traced, arrays))
        return function(*args, **kwargs)

    given = [x for x, keep in zip(values, traced, strict=True) if keep]
    program, shapes = jax.make_jaxpr(flat, return_shape=True)(
        *(abstract(x) if is_leaf(x) else x for x in given)
    )
    found = run(program, given, seen)
    found = [x.node if is_leaf(x) else x for x in found]
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _path(keys: tuple[Any, ...]) -> str:
    """Of the first argument the path inside of it, of others their number or name before it."""
    kind, which, *rest = keys
    inside = path_string(tuple(rest))
    named = getattr(which, "key", None) or f"argument {which.idx + 1}"
    first = kind.idx == 0 and which.idx == 0
    return inside if first and inside else f"{named}/{inside}".rstrip("/")


def _note(uses: dict[Use, None], leaf: Leaf, equation: Equation, reason: str) -> None:
    size = math.prod(leaf.shape) * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize
    form, name = type(leaf.node).__name__, equation.primitive.name
    uses[Use(leaf.path, name, form, reason, size if reason else 0, line(equation))] = None


def _require_packed(uses: dict[Use, None]) -> None:
    lost = [use for use in uses if use.reason]
    if lost:
        told = "\n".join(
            f"  {use.path}: {use.form} meets {use.primitive} at {use.line or 'some line'}: "
            f"{use.reason}"
            for use in lost
        )
        raise CompositionError(f"on_packed: {len(lost)} packed leaves are made dense\n{told}")
