"""Parameters that stay split over devices while a program runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from nnopt_jax.arrays.nodes import Field, field_specs, is_node, is_spec
from nnopt_jax.parallel.meshes import constrain
from nnopt_jax.parallel.parameter import without_trailing_none
from nnopt_jax.parallel.shard_specs import Shards
from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives import Kind, OpRule
from nnopt_jax.typing import Array, Shape


class Spread(NamedTuple):
    """The specs of one array between steps, and where it is used."""

    resting: PartitionSpec
    used: PartitionSpec

    def layer(self) -> Spread | None:
        """Return the specs of a slice along the first axis; None if that axis is split."""
        if any(spec and spec[0] is not None for spec in self):
            return None
        return Spread(*(PartitionSpec(*spec[1:]) for spec in self))

    def after(self, rule: OpRule) -> Spread | None:
        """Return the specs after a movement; None if it cuts or merges an axis that is split."""
        specs = [_moved_spec(spec, rule) for spec in self]
        return None if None in specs else Spread(*specs)  # pyright: ignore[reportArgumentType]


def _moved_spec(spec: PartitionSpec, rule: OpRule) -> PartitionSpec | None:
    pair = rule.pair()
    if pair is None:
        return None
    entries: list[Any] = [None] * len(rule.outcome_shapes[0])
    for place, size, names in zip(pair[0], rule.operand_shapes[0], spec, strict=False):
        if names is None:
            continue
        there = [
            axis
            for axis, other in enumerate(pair[1])
            if other.names == place.names and other.covers(rule.outcome_shapes[0][axis], rule.sizes)
        ]
        if len(place.factors) != 1 or not place.covers(size, rule.sizes) or not there:
            return None
        entries[there[0]] = names
    return without_trailing_none(entries)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitLeaf:
    """A parameter of a running program that stays split over devices until a step needs it.

    Args:
        value: array or node.
        path: the path of the parameter.
        spreads: the specs of each of its arrays; None where they are not known.
        steps: the steps of one operand that wait for the gather, first to last.
    """

    value: Field
    path: str = dataclasses.field(metadata={"static": True})
    spreads: tuple[Spread | None, ...] = dataclasses.field(metadata={"static": True})
    steps: tuple[Equation, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def shape(self) -> Shape:
        """The shape of the parameter before the steps that wait."""
        return tuple(self.value.shape)


def is_split(x: Any) -> bool:
    """Return whether a value of a program is a parameter that stays split over devices."""
    return isinstance(x, SplitLeaf)


def gather(x: Array, spread: Spread | None, mesh: Mesh) -> Array:
    """Gather an array for its use; split its gradient as the array is split between steps."""
    if spread is None:
        return x
    # The first one keeps the slices of a stack split until this one is needed, and their gradients
    # split from where they arise.
    return constrain(constrain(x, mesh, spread.resting), mesh, spread.used)


def spreads_after(leaf: SplitLeaf, rule: OpRule) -> tuple[Spread | None, ...] | None:
    """Return the specs of the outcome of a step on shards; None if it needs the whole array."""
    (spread,) = leaf.spreads
    if rule.kind is Kind.ELEMENTWISE:
        return leaf.spreads
    grows = math.prod(rule.outcome_shapes[0]) > math.prod(rule.operand_shapes[0])
    if spread is None or grows or not (rule.kind is Kind.MOVEMENT or rule.is_identity):
        return None
    after = spread.after(rule)
    return None if after is None else (after,)


def split_leaves(leaves: Mapping[str, Any], plan: Shards) -> dict[str, SplitLeaf]:
    """Return the packed parameters, and those that are split otherwise where they are used."""
    trees = (plan.logical, plan.logical_used)
    resting, used = (jax.tree.leaves(specs, is_leaf=is_spec) for specs in trees)
    found = {}
    for (path, leaf), rest, use in zip(leaves.items(), resting, used, strict=True):
        if is_node(leaf):
            specs = jax.tree.leaves(field_specs(leaf, use, plan.devices), is_leaf=is_spec)
            spreads = tuple(
                Spread(plan.split_further(x, spec), spec)
                for x, spec in zip(jax.tree.leaves(leaf), specs, strict=True)
            )
        else:
            spreads = (Spread(rest, use),)
        if is_node(leaf) or any(spread.resting != spread.used for spread in spreads):
            found[path] = SplitLeaf(leaf, path, spreads)
    return found
