"""Gathers of split parameters at their use: one layer at a time, and again in the backward pass."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from nnopt_jax.arrays.hooks import CannotStayPacked, map_fields
from nnopt_jax.arrays.nodes import Field, is_node, materialize
from nnopt_jax.errors import NnoptError
from nnopt_jax.parallel.meshes import constrain
from nnopt_jax.parallel.shard_specs import Shards
from nnopt_jax.parallel.split_leaf import SplitLeaf, gather, is_split, split_leaves, spreads_after
from nnopt_jax.trace.control import CONTROL, Inside, Slices
from nnopt_jax.trace.jaxpr import (
    Equation,
    Program,
    advance,
    environment,
    evaluate,
    is_variable,
    primitives,
    read,
)
from nnopt_jax.trace.packed.packed_function import OnPacked, Use, check_uses, note_use
from nnopt_jax.trace.packed.packed_leaf import PackedLeaf, is_leaf
from nnopt_jax.trace.packed.packed_run import (
    InsidePacked,
    compute_before_loop,
    compute_step,
    slices_of,
)
from nnopt_jax.trace.primitives import Flow, Kind, Table
from nnopt_jax.trace.primitives.primitive_names import ragged_dot_general_p
from nnopt_jax.trace.traced import is_array, name_of, trace
from nnopt_jax.transform.training import wrapped
from nnopt_jax.tree.paths import flatten
from nnopt_jax.typing import Array

Policy = Callable[..., Any]
"""A policy of `jax.checkpoint`."""


@dataclasses.dataclass(frozen=True)
class GatheringRun(Inside):
    """An interpreter of programs that gathers each split parameter where a step uses it.

    Args:
        mesh: the devices.
        record: a function to call for each use of a packed leaf.
        table: the rules of the primitives.
        policy: what the backward pass does not recompute; None to recompute gathers alone, or
            what a `jax.checkpoint` around recomputes.
        multiplies_codes: whether products multiply the codes of packed leaves; otherwise they
            decode them, since the rows of integer products do not stay split over devices.
        is_differentiated: whether a gradient is taken.
        is_recomputed: whether the step is inside of a `jax.checkpoint`, which gathers again.
        in_loop: whether the step is inside of a loop.
        equation: the step whose inner programs run.
    """

    mesh: Mesh
    record: Callable[[PackedLeaf, Equation, str], None]
    table: Table
    policy: Policy | None
    multiplies_codes: bool
    is_differentiated: bool
    is_recomputed: bool = False
    in_loop: bool = False
    equation: Equation = None

    def evaluate(self, program: Program, values: Sequence[Any]) -> list[Any]:
        """Compute a program on arrays, packed leaves and split leaves."""
        if self.policy is None:
            return evaluate(program, values, self._compute)
        known = environment(program, values)
        for stretch in _stretches(program, self._has_own_memory):
            if stretch.is_alone:
                advance(known, stretch.equations, self._compute)
            else:
                found = self._compute_again(stretch, [known[x] for x in stretch.inputs])
                known.update(zip(stretch.outputs, found, strict=True))
        return [read(known, x) for x in program.jaxpr.outvars]

    def _compute_again(self, stretch: _Stretch, values: Sequence[Any]) -> list[Any]:
        """Compute equations that the backward pass recomputes, as far as the policy says so."""
        inside = dataclasses.replace(self, policy=None, is_recomputed=True)

        def compute(*given: Any) -> list[Any]:
            own = dict(zip(stretch.inputs, given, strict=True))
            advance(own, stretch.equations, inside._compute)
            return [own[x] for x in stretch.outputs]

        return jax.checkpoint(compute, policy=self.policy, prevent_cse=not self.in_loop)(*values)

    def _has_own_memory(self, equation: Equation) -> bool:
        """Return whether an equation contains loops, or chooses itself what is recomputed."""
        if equation.primitive is primitives.remat_p:
            return True
        programs = self.table.programs_of(equation)
        if programs is None or programs.own_derivative:
            return False
        return programs.flow is Flow.LOOP or any(
            self._has_own_memory(step)
            for inner in programs.inner
            for step in inner.program.jaxpr.eqns
        )

    def _compute(self, number: int, equation: Equation, values: list[Any]) -> Sequence[Any]:
        del number
        enters = self.policy is not None and self._has_own_memory(equation)
        if not enters and not any(map(is_split, values)):
            return compute_step(equation, values, self.record, self.table)
        if equation.primitive in _ENTERED:
            return self._enter(equation, values)
        found = self._on_shards(equation, values)
        return self._use(equation, values) if found is None else [found]

    def _enter(self, equation: Equation, values: list[Any]) -> list[Any]:
        """Run the inner programs of a step, which gather what they use."""
        programs = self.table.programs_of(equation)
        is_loop = programs is not None and programs.flow is Flow.LOOP
        if programs is not None and is_loop:
            # A loop would gather them in every iteration.
            values = [
                x if at in programs.sliced else self._gathered(x) for at, x in enumerate(values)
            ]
            values = compute_before_loop(equation, values, self.record, self.table)
        inside = dataclasses.replace(self, equation=equation, in_loop=self.in_loop or is_loop)
        if equation.primitive is primitives.remat_p:
            inside = dataclasses.replace(inside, policy=None, is_recomputed=True)
        return CONTROL[equation.primitive](equation, values, inside)[0]

    def _on_shards(self, equation: Equation, values: list[Any]) -> Any:
        """Return the outcome of a step of one parameter that needs no gather yet, or None."""
        leaf = next(x for x in values if is_split(x))
        others = [x for x in values if x is not leaf]
        if any(is_split(x) or is_leaf(x) or jnp.ndim(x) for x in others):
            return None
        rule = self.table.rule_of(equation)
        if len(rule.outcomes) != 1 or self.table.programs_of(equation) is not None:
            return None
        if not leaf.steps and not is_node(leaf.value):
            operands = [leaf.value if x is leaf else x for x in values]
            if rule.kind is Kind.REDUCTION:
                return compute_step(equation, operands, self.record, self.table)[0]
            if (spreads := spreads_after(leaf, rule)) is not None:
                (value,) = compute_step(equation, operands, self.record, self.table)
                return dataclasses.replace(leaf, value=value, spreads=spreads)
        waits = rule.kind in (Kind.ELEMENTWISE, Kind.MOVEMENT) or rule.is_identity
        if not waits or sum(map(is_variable, equation.invars)) > 1:
            return None
        return dataclasses.replace(leaf, steps=(*leaf.steps, equation))

    def _use(self, equation: Equation, values: list[Any]) -> Sequence[Any]:
        """Gather operands for one step; keep none of them for the backward pass."""
        traced = [at for at, x in enumerate(values) if _is_traced(x)]

        def compute(*given: Any) -> Sequence[Any]:
            operands = dict(enumerate(values)) | dict(zip(traced, given, strict=True))
            gathered = [self._gathered(x) for x in operands.values()]
            if equation.primitive in _PRODUCTS and not self.multiplies_codes:
                gathered = [_decode(x) if is_leaf(x) else x for x in gathered]
            return compute_step(equation, gathered, self.record, self.table)

        if self.is_differentiated and not self.is_recomputed:
            compute = jax.checkpoint(compute, prevent_cse=not self.in_loop)
        return compute(*(values[at] for at in traced))

    def _gathered(self, value: Any) -> Any:
        """Return a value of the program as an array or packed leaf that any step can use."""
        if not is_split(value):
            return value
        arrays, tree = jax.tree.flatten(value.value)
        arrays = [
            gather(x, spread, self.mesh) for x, spread in zip(arrays, value.spreads, strict=True)
        ]
        found = jax.tree.unflatten(tree, arrays)
        found = PackedLeaf(found, value.path) if is_node(found) else found
        for equation in value.steps:
            operands = [found if is_variable(x) else x.val for x in equation.invars]
            (found,) = compute_step(equation, operands, self.record, self.table)
        return found

    @property
    def _packed(self) -> InsidePacked:
        """The interpreter of leaves that are gathered already."""
        return InsidePacked(self.equation, self.evaluate, self.record)

    def run(self, program: Program, values: Sequence[Any], at: int = 0) -> tuple[list[Any], Any]:
        """Compute an inner program, whose outputs may be leaves."""
        return self.evaluate(program, values), ()

    def arrays(self, values: Sequence[Any]) -> list[Array]:
        """Gather and materialize leaves that a loop carries or an inner program returns."""
        return self._packed.arrays([self._gathered(value) for value in values])

    def slices(self, value: Any) -> Slices:
        """Return slices of a stack that are split as the stack is, to be gathered one by one."""
        if not is_split(value):
            return self._packed.slices(value)
        layers = [spread and spread.layer() for spread in value.spreads]
        if value.steps or None in layers:
            return self._packed.slices(self._gathered(value))
        if not is_node(value.value):
            return Slices(value.value, lambda part: SplitLeaf(part, value.path, tuple(layers)))
        of_array = dict(zip(map(id, jax.tree.leaves(value.value)), layers, strict=True))
        try:
            below = slices_of(PackedLeaf(value.value, value.path))
            known = [of_array[id(stack)] for stack in below.arrays]
        except (CannotStayPacked, KeyError):  # an array was computed, and its specs are not known
            return self._packed.slices(self._gathered(value))

        def take(parts: Any) -> SplitLeaf:
            node = below.take(parts).node
            of_part = dict(zip(map(id, parts), known, strict=True))
            found = tuple(of_part.get(id(x)) for x in jax.tree.leaves(node))
            return SplitLeaf(node, value.path, found)

        return Slices(below.arrays, take)

    def cut(self, value: Any, spec: PartitionSpec, mesh: Any) -> tuple[Any, Any]:
        """Return an input of a `shard_map`, gathered."""
        return self._packed.cut(self._gathered(value), spec, mesh)


_PRODUCTS = {
    primitives.dot_general_p,
    primitives.conv_general_dilated_p,
    ragged_dot_general_p,
}


def _decode(leaf: PackedLeaf) -> PackedLeaf | Array:
    """Materialize the terms and factors of a leaf, which products multiply one by one."""
    found = _decode_factors(leaf.node)
    return PackedLeaf(found, leaf.path) if is_node(found) else found


def _decode_factors(field: Field) -> Field:
    if not is_node(field) or not field.FACTORS:
        return materialize(field)
    return map_fields(field, field.FACTORS, _decode_factors)


_ENTERED = {
    primitives.jit_p,
    primitives.remat_p,
    primitives.scan_p,
    primitives.while_p,
    primitives.cond_p,
}
"""The steps whose inner programs gather for themselves."""


def _is_traced(x: Any) -> bool:
    return is_split(x) or is_leaf(x) or isinstance(x, Tracer)


class _Stretch(NamedTuple):
    """Equations of a program that are recomputed together, or one that is computed alone."""

    equations: list[Equation]
    inputs: list[Any]
    outputs: list[Any]
    is_alone: bool


def _stretches(program: Program, alone: Callable[[Equation], bool]) -> list[_Stretch]:
    """Cut a program before and after each equation that is computed alone."""
    parts: list[tuple[bool, list[Equation]]] = [(False, [])]
    for equation in program.jaxpr.eqns:
        if alone(equation):
            parts += [(True, [equation]), (False, [])]
        else:
            parts[-1][1].append(equation)
    needed = {x for x in program.jaxpr.outvars if is_variable(x)}
    found = []
    for is_alone, part in reversed(parts):
        # Dictionaries keep the order of the program.
        made = {x: None for equation in part for x in equation.outvars}
        given = {x: None for equation in part for x in equation.invars if is_variable(x)}
        inputs, outputs = [x for x in given if x not in made], [x for x in made if x in needed]
        found.append(_Stretch(part, inputs, outputs, is_alone))
        needed = needed | given.keys()
    return [stretch for stretch in reversed(found) if stretch.equations]


def gathered_at_use(
    function: Callable[..., Any],
    plan: Shards,
    *,
    policy: Policy | None = None,
    is_differentiated: bool = False,
) -> Callable[..., Any]:
    """Return a function of split parameters that gathers each of them where it is used.

    A stack of layers is gathered one layer at a time inside of the scan that goes over it. Packed
    leaves are gathered packed; lookups decode the rows that they need, and products multiply codes
    if the function is an `nnopt.on_packed`, else decoded weights. Where the model does not itself
    recompute, the backward pass gathers and decodes again instead of keeping the results.

    Args:
        function: a function `function(params, *args)` of arrays that JAX can trace.
        plan: the plan of the parameters.
        policy: a policy of `jax.checkpoint` for what the model does not itself recompute; None to
            recompute gathers alone.
        is_differentiated: whether a gradient is taken.

    Returns:
        A function of the same arguments, whose parameters are arrays and nodes that are split as
        the plan says.
    """
    own = _on_packed(function)
    packed = own or OnPacked(function)

    def run(params: Any, *args: Any) -> Any:
        leaves = flatten(params, is_node)
        split = split_leaves(leaves, plan)
        if policy is None and not split:
            return function(params, *args)
        given = trace(function, (params, *args), {}, table=packed.table)
        paths = iter(path for path, x in leaves.items() if is_node(x) or is_array(x))
        values = []
        for value, name, argument in zip(given.values, given.paths, given.arguments, strict=True):
            found = split.get(next(paths)) if argument == 0 else None
            whole = PackedLeaf(value, name) if is_node(value) else value
            values.append(found or whole)
        uses: dict[Use, None] = {}
        record = functools.partial(note_use, uses) if packed.strict else lambda *_: None
        inside = GatheringRun(
            plan.devices, record, packed.table, policy, own is not None, is_differentiated
        )
        try:
            found = inside.arrays(inside.evaluate(given.program, values))
        except NnoptError:
            raise
        except Exception as error:
            warnings.warn(
                f"parallel: parameters are gathered in front of {name_of(function)}, not where it "
                f"uses them, because a step of it cannot be moved: {type(error).__name__}: {error}",
                stacklevel=2,
            )
            whole = constrain(materialize(params), plan.devices, plan.logical_used)
            return function(whole, *args)
        check_uses(uses)
        return given.outcome(found)

    return run


def _on_packed(function: Any) -> OnPacked | None:
    """Return the `nnopt.on_packed` inside of a function, if there is one."""
    return next((layer for layer in wrapped(function) if isinstance(layer, OnPacked)), None)
