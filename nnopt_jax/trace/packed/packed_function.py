"""Functions of arrays that also take packed parameters, and reports on them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import jax

from nnopt_jax.arrays.node_description import check
from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import Tabular, aligned, counted
from nnopt_jax.errors import CompositionError
from nnopt_jax.trace.jaxpr import Equation, line
from nnopt_jax.trace.packed.packed_leaf import Deferred, PackedLeaf, as_array, is_leaf
from nnopt_jax.trace.packed.packed_run import run
from nnopt_jax.trace.primitives import TABLE, Table
from nnopt_jax.trace.traced import check_function, is_array, name_of, refill, trace


class Use(NamedTuple):
    """One use of a packed leaf by a primitive.

    Args:
        path: the path of the leaf.
        primitive: the name of the primitive.
        form: the name of the node's class.
        reason: why the leaf was materialized there; empty if it stayed packed.
        bytes: the size of the materialized array; 0 if the leaf stayed packed.
        line: the user's line, if that is known.

    Example:
        >>> from nnopt_jax.trace import Use
        >>> Use("w", "fft", "Quantized", "no rule for fft", 48, "").bytes
        48
    """

    path: str
    primitive: str
    form: str
    reason: str
    bytes: int
    line: str


@dataclasses.dataclass(frozen=True, repr=False)
class PackedReport(Tabular):
    """A report of the steps that keep leaves packed or materialize them, with reasons.

    Args:
        uses: the uses in the order of the program; equal uses at the same line count once.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"w": jnp.ones((8, 4))}
        >>> packed = tx.pack(params, tx.init(params))
        >>> run = nnopt.on_packed(lambda params, x: x @ jnp.sin(params["w"]) + x @ params["w"])
        >>> print(run.report(packed, jnp.ones(8)))  # doctest: +ELLIPSIS
        leaf  form       used by      becomes  why ...
        w     Quantized  sin          packed ...
        w     Quantized  dot_general  dense    its form ...
        w     Quantized  dot_general  packed ...
    """

    uses: tuple[Use, ...]

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        return f"{counted(len(self.uses), 'use')}, {len(self.materialized)} materialized"

    @property
    def materialized(self) -> tuple[Use, ...]:
        """The uses that materialize a leaf."""
        return tuple(use for use in self.uses if use.reason)

    @property
    def dense(self) -> tuple[Use, ...]:
        """Raise an error that gives the new name, `materialized`."""
        raise AttributeError("PackedReport.dense is now PackedReport.materialized")

    def __str__(self) -> str:
        """Return the table of uses as text."""
        cells = [("leaf", "form", "used by", "becomes", "why", "line", "bytes")]
        for use in self.uses:
            becomes = "dense" if use.reason else "packed"
            cells.append(
                (use.path, use.form, use.primitive, becomes, use.reason, use.line, f"{use.bytes:,}")
            )
        return "\n".join(aligned(cells, numbers=1))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OnPacked(Tabular):
    """A function that takes packed leaves in place of arrays; `on_packed` returns it.

    Args:
        function: a function of arrays.
        strict: whether it is an error to materialize a leaf.
        table: the rules of the primitives.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.on_packed(len).strict
        False
    """

    function: Callable[..., Any]
    strict: bool = False
    table: Table = dataclasses.field(default=TABLE, repr=False)

    takes_expressions: ClassVar[bool] = True
    """`nnopt.value_and_grad` and `nnopt.parallel.train_step` check this attribute of a loss."""

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        return f"{name_of(self.function)}, strict={self.strict}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function; packed leaves may be anywhere in the arguments.

        Raises:
            CompositionError: a leaf was materialized although `strict` is set; or the function
                needs concrete values while it is traced.
            ArtifactError: the parts of a leaf do not fit each other; the message lists all.
        """
        if not self.strict:  # uses are not reported, and source lines are slow to find
            return self._run(args, kwargs, lambda *_: None)
        uses: dict[Use, None] = {}
        found = self._run(args, kwargs, functools.partial(note_use, uses))
        check_uses(uses)
        return found

    def report(self, *args: Any, **kwargs: Any) -> PackedReport:
        """Report which steps keep each leaf packed or materialize it, from shapes alone.

        Args:
            *args: the arguments of the function, as arrays or `jax.ShapeDtypeStruct`s.
            **kwargs: its keyword arguments.
        """
        uses: dict[Use, None] = {}
        leaves, tree = jax.tree.flatten((args, kwargs))
        kept = [is_array(x) for x in leaves]

        def trace_again(*arrays: Any) -> Any:
            args, kwargs = jax.tree.unflatten(tree, refill(leaves, kept, arrays))
            self._run(args, kwargs, functools.partial(note_use, uses))

        # Shapes suffice, so large models are reported without memory for them.
        jax.eval_shape(trace_again, *(x for x, keep in zip(leaves, kept, strict=True) if keep))
        return PackedReport(tuple(uses))

    def _run(self, args: Any, kwargs: Any, record: Any) -> Any:
        function = self.function
        # Without packed leaves, the function runs as it is.
        if not any(is_node(x) for x in jax.tree.leaves((args, kwargs), is_leaf=is_node)):
            return function(*args, **kwargs)
        given = trace(function, args, kwargs)
        nodes = {p: x for p, x in zip(given.paths, given.values, strict=True) if is_node(x)}
        check(nodes, "on_packed")
        values = [
            PackedLeaf(value, path) if is_node(value) else value
            for value, path in zip(given.values, given.paths, strict=True)
        ]
        found = run(given.program, values, record, self.table)
        return given.outcome([_output_of(x, record) for x in found])


def on_packed(
    function: Callable[..., Any], *, strict: bool = False, table: Table = TABLE
) -> OnPacked:
    """Return a function of arrays that also takes packed leaves.

    Each call traces the function and computes it step by step: a matrix product with a quantized
    kernel multiplies its codes, a lookup in an embedding dequantizes only the requested rows, and a
    transpose or slice of a leaf stays packed. Other steps materialize the leaf, and `report` lists
    them. Compile the function once with `jax.jit(on_packed(function))`, since each call traces it
    again.

    Args:
        function: any function that JAX can trace. Inside of it, packed leaves are arrays of their
            logical shapes and dtypes; other arguments are passed unchanged. A packed leaf that the
            function closes over is not an argument, and stays a node.
        strict: whether it is an error to materialize a leaf.
        table: the rules of the primitives; `TABLE.with_rule(...)` adds a rule of your own.

    Returns:
        A function of the same arguments. A leaf that it returns unchanged, or only moved, stays
        packed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx, params = nnopt.quantization.uniform(8), {"w": jnp.eye(4)}
        >>> packed = tx.pack(params, tx.init(params))
        >>> jax.jit(nnopt.on_packed(lambda params, x: x @ params["w"]))(packed, jnp.arange(4.0))
        Array([0., 1., 2., 3.], dtype=float32)
    """
    check_function("on_packed", function)
    return OnPacked(function, strict, table)


def _output_of(value: Any, record: Any) -> Any:
    """Return an output of the program as a node if it is packed, else as an array."""
    if not is_leaf(value):
        return value
    if not isinstance(value.node, Deferred):
        return value.node
    record(value, value.node.equation, "its outcome is returned")
    return as_array(value)


def note_use(uses: dict[Use, None], leaf: PackedLeaf, equation: Equation, reason: str) -> None:
    """Note the use of a leaf by a step; equal uses count once."""
    size = math.prod(leaf.shape) * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize
    name = equation.primitive.name
    uses[Use(leaf.path, name, leaf.form, reason, size if reason else 0, line(equation))] = None


def check_uses(uses: Iterable[Use]) -> None:
    """Raise if a leaf was materialized, for `strict`."""
    lost = [use for use in uses if use.reason]
    if lost:
        text = "\n".join(
            f"  {use.path}: {use.form} in {use.primitive} at {use.line or 'some line'}: "
            f"{use.reason}"
            for use in lost
        )
        many = "1 packed leaf is" if len(lost) == 1 else f"{len(lost)} packed leaves are"
        raise CompositionError(f"on_packed: {many} materialized\n{text}")
