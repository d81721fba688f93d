"""Execution of a program on arrays and packed leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, move
from nnopt_jax.arrays.nodes import is_spec
from nnopt_jax.errors import ShapeError
from nnopt_jax.trace.control import CONTROL, Inside, Slices
from nnopt_jax.trace.jaxpr import Equation, Program, bind, evaluate, primitives
from nnopt_jax.trace.packed.packed_leaf import Deferred, PackedLeaf, as_array, is_leaf, unpack
from nnopt_jax.trace.packed.packed_steps import step
from nnopt_jax.trace.primitives import TABLE, Flow, Table
from nnopt_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True)
class InsidePacked(Inside):
    """An interpreter of a step's inner programs on arrays and packed leaves.

    Args:
        equation: the step.
        compute: a function that runs a program.
        record: a function of a leaf, the step that uses it, and the reason why it is materialized
            there.
    """

    equation: Equation
    compute: Callable[[Program, Sequence[Any]], list[Any]]
    record: Callable[[PackedLeaf, Equation, str], None]

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Any]:
        """Compute an inner program, whose outputs may be packed leaves."""
        return self.compute(program, values), ()

    def arrays(self, values: Sequence[Any]) -> list[Array]:
        """Materialize packed leaves that a loop carries or an inner program returns."""
        for value in values:
            if is_leaf(value):
                self.record(value, self.equation, "a program inside gives or carries arrays")
        return [as_array(value) for value in values]

    def slices(self, value: Any) -> Slices:
        """Return the slices of a packed leaf, as packed leaves if all its arrays can be sliced."""
        if not is_leaf(value):
            return Slices(value, lambda part: part)
        try:
            return slices_of(value)
        except CannotStayPacked as reason:
            self.record(value, self.equation, str(reason))
            return self.slices(unpack(value))

    def cut(self, value: Any, spec: PartitionSpec, mesh: Any) -> tuple[Any, Any]:
        """Shard each array of a packed leaf; materialize the leaf if one cannot be sharded."""
        if not is_leaf(value):
            return value, spec
        node = value.node
        if isinstance(node, Deferred):  # its step belongs to the mesh that it was traced under
            self.record(value, self.equation, "it is computed before it is cut")
            return as_array(value), spec
        specs = node.specs(spec, mesh)
        whole = node.specs(spec)  # without a mesh, no axis is dropped for an indivisible size
        same = jax.tree.leaves(specs, is_leaf=is_spec) == jax.tree.leaves(whole, is_leaf=is_spec)
        if same and node.follows_parts:
            return value, PackedLeaf(specs, value.path)
        self.record(value, self.equation, "one of its fields cannot be cut")
        return as_array(value), spec


def slices_of(leaf: PackedLeaf) -> Slices:
    """Return the slices of a stack, of which the scan slices each array by itself.

    Raises:
        CannotStayPacked: an array of the node has no slice of its own for each layer.
    """
    stacks: list[Array] = []

    def first(stack: Array) -> Array:
        stacks.append(stack)
        return stack[0]

    move(leaf.node, _Layer(leaf.shape, first), leaf.shape)

    def take(parts: list[Array]) -> PackedLeaf:
        # Fields are moved in the same order each time.
        left = iter(parts)
        node = move(leaf.node, _Layer(leaf.shape, lambda _: next(left)), leaf.shape)
        return PackedLeaf(node, leaf.path)

    return Slices(stacks, take)


class _Layer(NamedTuple):
    """One slice of a stack along its first axis, in the form of a movement.

    Args:
        stack: the shape of the stack.
        take: a function that returns the slice of an array of the node.
    """

    stack: Shape
    take: Callable[[Array], Array]
    axes: Shape = ()
    fills: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the slice."""
        return self.stack[1:]

    @property
    def kept(self) -> int:
        """The number of axes that stay."""
        return len(self.stack) - 1

    def apply(self, x: Array, shape: Shape, fill: float = 0) -> Array | None:
        """Return the slice of an array; None if one entry serves several layers, but not all."""
        del fill
        if x.shape[0] == shape[0]:
            return self.take(x)
        return x[0] if x.shape[0] == 1 else None


Record = Callable[[PackedLeaf, Equation, str], None]
"""A function `record(leaf, step, why)`, where `why` is empty if the leaf stayed packed."""


def run(program: Program, values: Sequence[Any], record: Record, table: Table = TABLE) -> list[Any]:
    """Compute a program on arrays and packed leaves.

    Args:
        program: the traced program.
        values: arrays and `PackedLeaf`s, one for each input.
        record: a function to call for each use of a leaf.
        table: the rules of the primitives.

    Returns:
        Arrays, and a `PackedLeaf` for each output that is an unchanged or moved leaf.
    """
    return evaluate(
        program, values, lambda _, equation, given: compute_step(equation, given, record, table)
    )


def compute_step(
    equation: Equation, values: list[Any], record: Record, table: Table = TABLE
) -> list[Any]:
    """Compute one step on arrays and packed leaves.

    Args:
        equation: the step.
        values: its operands.
        record: a function to call for each leaf among them.
        table: the rules of the primitives.

    Returns:
        For each outcome an array, or a `PackedLeaf` if it stays packed.
    """
    packed = [value for value in values if is_leaf(value)]
    if not packed:
        if _is_scalar_constant(equation, values):
            # Rules must be able to read a fill value or a scale factor, even under `jax.jit`.
            with jax.ensure_compile_time_eval():
                return bind(equation, values)
        return bind(equation, values)
    if equation.primitive in CONTROL:
        values = compute_before_loop(equation, values, record, table)
        inside = InsidePacked(
            equation, lambda program, given: run(program, given, record, table), record
        )
        return CONTROL[equation.primitive](equation, values, inside)[0]
    try:
        with equation.ctx.manager:  # the mesh that it was traced under
            found = step(equation, values, table)
    except CannotStayPacked as reason:
        for leaf in packed:
            record(leaf, equation, str(reason))
        if reason.instead is not None:
            return [*reason.instead] if isinstance(reason.instead, tuple) else [reason.instead]
        return bind(equation, [as_array(value) for value in values])
    for leaf in packed:
        record(leaf, equation, "")
    _check_shapes(equation, packed, found)
    return found


def _check_shapes(equation: Equation, packed: list[Any], found: list[Any]) -> None:
    """Raise if the hook of a node returned a value of another shape than the step has."""
    for value, variable in zip(found, equation.outvars, strict=True):
        shape, wanted = tuple(value.shape), tuple(variable.aval.shape)
        if shape != wanted:
            forms = " and ".join(dict.fromkeys(leaf.form for leaf in packed))
            raise ShapeError(
                f"on_packed: {packed[0].path}: {equation.primitive.name} of {forms} has shape "
                f"{shape}, and {wanted} is wanted; mend the hook of that node."
            )


def compute_before_loop(
    equation: Equation, values: list[Any], record: Record, table: Table
) -> list[Any]:
    """Compute deferred steps before a loop, which would compute them in every iteration."""
    programs = table.programs_of(equation)
    if programs is None or programs.flow is not Flow.LOOP:
        return values
    found = list(values)
    for at, value in enumerate(values):
        if at not in programs.sliced and is_leaf(value) and isinstance(value.node, Deferred):
            record(value, equation, "a loop would compute it in every iteration")
            found[at] = as_array(value)
    return found


def _is_scalar_constant(equation: Equation, values: list[Any]) -> bool:
    """Return whether a step casts a scalar constant of the program."""
    cast = equation.primitive is primitives.convert_element_type_p
    return cast and not isinstance(values[0], Tracer) and np.ndim(values[0]) == 0
