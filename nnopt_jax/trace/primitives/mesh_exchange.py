"""Primitives that exchange entries between the devices of a mesh, inside of `shard_map`."""

from __future__ import annotations

from typing import Any

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.primitive_names import named
from nnopt_jax.trace.primitives.primitive_rule import Kind, Rule


def _mesh_axes(equation: Equation) -> tuple[str, ...]:
    k = equation.params
    names = k.get("axes", k.get("axis_name", ()))
    return tuple(names) if isinstance(names, tuple | list | frozenset) else (names,)


def _combined(equation: Equation) -> Rule:
    """An entry is combined with the entries of other devices at the same index."""
    draft = Draft(equation)
    dims: list[Any] = [axes(draft.factors(shape)) for shape in draft.outcome_shapes]
    count = len(dims)
    return draft.rule(
        Kind.REDUCTION, dims, dims, mesh=_mesh_axes(equation), absorbs=tuple(range(count)),
        sources=tuple((i,) for i in range(count)) if count > 1 else None,
    )  # fmt: skip


def _exchanged(equation: Equation) -> Rule:
    """Entries move along the named axes; where an axis is new, no axis keeps its entries."""
    draft, k = Draft(equation), equation.params
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    changed = {
        k[key]
        for key in ("all_gather_dimension", "scatter_dimension", "split_axis", "concat_axis")
        if key in k
    }
    factors = draft.factors(shape)
    if len(shape) == len(target):
        after = [
            draft.factor(n) if a in changed else f
            for a, (f, n) in enumerate(zip(factors, target, strict=True))
        ]
    else:
        after = draft.factors(target)
    whole = {*factors} ^ {*after}
    return draft.rule(
        Kind.MOVEMENT, [axes(factors)], [axes(after)], whole=frozenset(whole),
        mesh=_mesh_axes(equation),
    )  # fmt: skip


MESH_EXCHANGES = {
    **dict.fromkeys(named("psum psum_invariant pmax pmin"), _combined),
    **dict.fromkeys(
        named("all_gather all_gather_invariant all_to_all ppermute reduce_scatter pbroadcast"),
        _exchanged,
    ),
}
"""Rules of collectives; `Rule.mesh` names the axes of the mesh."""
