"""Rules of primitives that exchange entries between the devices of a mesh, inside `shard_map`."""

from __future__ import annotations

from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives.draft import Draft, axes
from nnopt_jax.trace.primitives.identities import paired_rule
from nnopt_jax.trace.primitives.primitive_rule import Kind, MakeRule, Rule


def _mesh_axes(equation: Equation) -> tuple[str, ...]:
    k = equation.params
    names = k.get("axes", k.get("axis_name", ()))
    return tuple(names) if isinstance(names, tuple | list | frozenset) else (names,)


def _combined(equation: Equation) -> Rule:
    """Return the rule of a collective that combines entries at the same index of all devices."""
    absorbs = tuple(range(len(equation.outvars)))
    return paired_rule(equation, Kind.REDUCTION, mesh=_mesh_axes(equation), absorbs=absorbs)


def _exchanged(equation: Equation) -> Rule:
    """Return the rule of a collective that moves entries between devices, on the named axes."""
    draft, k = Draft(equation), equation.params
    shape, target = draft.operand_shapes[0], draft.outcome_shapes[0]
    changed = {
        k[key]
        for key in ("all_gather_dimension", "scatter_dimension", "split_axis", "concat_axis")
        if key in k
    }
    factors = draft.factors(shape)
    kept = factors if len(shape) == len(target) else [None] * len(target)
    after = [
        draft.factor(n) if f is None or a in changed else f
        for a, (f, n) in enumerate(zip(kept, target, strict=True))
    ]
    whole = {*factors} ^ {*after}
    return draft.rule(
        Kind.MOVEMENT, [axes(factors)], [axes(after)], whole=frozenset(whole),
        mesh=_mesh_axes(equation),
    )  # fmt: skip


MESH_EXCHANGES: dict[str, MakeRule] = {
    "psum psum_invariant pmax pmin": _combined,
    "all_gather all_gather_invariant all_to_all ppermute reduce_scatter pbroadcast": _exchanged,
}
"""Rules of collectives; `Rule.mesh` names the axes of the mesh."""
