"""The rules of the coupling analysis for constants, steps, loops and shards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nnopt_jax.trace.abstract_walk import Domain, Location, Site, Values, Walk
from nnopt_jax.trace.control import is_inlined
from nnopt_jax.trace.coupling.derivatives import Derived, derive
from nnopt_jax.trace.coupling.labels import Labels, LabelSets
from nnopt_jax.trace.coupling.remains import Reason, Residue, Value, common_content
from nnopt_jax.trace.coupling.step_labels import StepLabels
from nnopt_jax.trace.jaxpr import Equation
from nnopt_jax.trace.primitives import TABLE, MeshCut, OpRule, Programs, Table


class Note(NamedTuple):
    """The abstract values of a step's operands and outcomes; None for dead arrays.

    Args:
        rule: the rule of its primitive; None if the step contains programs.
        ins: its operands.
        outs: its outcomes.
        derived: a function that finds the programs of a custom derivative rule.
    """

    rule: OpRule | None
    ins: Values
    outs: Values
    derived: Callable[[], tuple[Derived, ...]] | None = None


@dataclasses.dataclass
class Coupling(Domain[Value]):
    """The analysis that finds which elements of parameters must be removed together.

    Args:
        sets: the labels.
        table: the rules of the primitives.
        notes: the note of each step by location, since loops are walked more than once.
    """

    sets: LabelSets = dataclasses.field(default_factory=LabelSets)
    table: Table = TABLE
    notes: dict[Location, Note] = dataclasses.field(default_factory=dict)

    def constant(self, x: Any) -> Value:
        """Return the value of a constant, which loses elements together with other operands."""
        if isinstance(x, Tracer) or jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):
            return Value.ordered(self.sets, np.shape(x))
        array = np.asarray(x)
        alike = array.size and bool((array == array.flat[0]).all())
        value = Value.fresh(self.sets, array.shape, _number(array.flat[0]) if alike else None)
        # Units with different constants, such as rotary angles, cannot be permuted.
        for axis, labels in enumerate(value.axes):
            if not alike and (array != array.take([0], axis)).any():
                self.sets.mark_ordered(labels)
        return value

    def join(self, one: Value, other: Value) -> Value:
        """Return the value of an array that is one or the other of two, and couple the two."""
        if one.home != other.home:
            # Content is recomputed only in the program that made it, and these have no common one.
            one, other = one.for_program(()), other.for_program(())
        parameter = one.parameter and other.brings_no_units
        for ours, theirs in zip(one.axes, other.axes, strict=True):
            self.sets.join(ours, theirs)
            if parameter:
                self.sets.record_sources(ours, [theirs])
        left = [
            common_content([one.remains_at(a), other.remains_at(a)]) for a in range(len(one.axes))
        ]
        constant = one.constant if one.constant == other.constant else None
        return Value(one.axes, tuple(left), constant, parameter, one.home)

    def is_same(self, one: Value, other: Value) -> bool:
        """Return whether two values have equal content at removed units (`join` coupled them)."""
        return one.remains == other.remains and one.constant == other.constant

    def layer(self, value: Value, site: Site) -> Value:
        """Return the value of one slice of a scanned array; no slice of it can be removed."""
        self.sets.fix(value.axes[0], Reason("a loop iterates over it", site.around))
        return value._replace(axes=value.axes[1:], remains=value.remains[1:])

    def stack(self, value: Value, times: int, site: Site) -> Value:
        """Return the value of a loop's stacked outcomes; no iteration can be removed."""
        turns = self.sets.fixed_labels(times, "iterations of a loop")
        return value._replace(axes=(turns, *value.axes), remains=(Residue.UNKNOWN, *value.remains))

    def part(self, value: Value, cut: MeshCut, mesh: Any, site: Site) -> Value:
        """Return the value of a device's shard, and couple equal positions of all shards."""

        def shard_labels(labels: Labels, devices: int) -> Labels:
            own = labels[: len(labels) // devices]
            # All devices run one program, so their shards must lose the same positions.
            self.sets.join(labels, np.tile(own, devices))
            return own

        return self._over_mesh(value, cut, mesh, shard_labels)

    def whole(self, value: Value, cut: MeshCut, mesh: Any, site: Site) -> Value:
        """Return the value of a sharded array from that of its equal shards."""
        return self._over_mesh(value, cut, mesh, np.tile)

    def _over_mesh(
        self, value: Value, cut: MeshCut, mesh: Any, change: Callable[[Labels, int], Labels]
    ) -> Value:
        axes = []
        for labels, names in zip(value.axes, cut, strict=True):
            # An array axis may be sharded over several mesh axes.
            devices = math.prod(mesh.shape[name] for name in names)
            axes.append(labels if devices == 1 else change(labels, devices))
            if value.parameter:
                self.sets.record_sources(axes[-1], [labels])
        return value._replace(axes=tuple(axes))

    def leave(self, programs: Programs, values: Values, outcomes: Values, site: Site) -> Values:
        """Record a step with inner programs, and analyze its custom derivative rule if any."""
        home = _home(site)
        ins = [None if value is None else value.for_program(home) for value in values]
        walk = Walk(self, self.table)
        derived = derive(walk, site, ins, outcomes) if programs.own_derivative else None
        self.notes[site.location] = Note(None, ins, outcomes, derived)
        return outcomes

    def step(
        self, equation: Equation, rule: OpRule, values: list[Value], site: Site
    ) -> Sequence[Value]:
        """Couple the elements that a step combines, and record and return its outcomes."""
        home = _home(site)
        ins = [value.for_program(home) for value in values]
        outs = StepLabels(self.sets, equation, rule, ins, site).outcomes()
        # A product that consumes such an array consumes the parameters that it is made of.
        parameter = any(x.parameter for x in ins) and all(x.brings_no_units for x in ins)
        for out in outs if parameter else ():
            for labels in out.axes:
                self.sets.record_sources(labels, (x for value in ins for x in value.axes))
        outs = [out._replace(parameter=parameter, home=home) for out in outs]
        self.notes[site.location] = Note(rule, ins, outs)
        return outs


def _home(site: Site) -> Location:
    """Return the location of a step's program; inlined programs belong to the outer one."""
    around = site.around[:-1]
    for depth in reversed(range(len(around))):
        if not is_inlined(around[depth]):
            # Each level of a location is two numbers: the equation and the inner program.
            return site.location[: 2 * depth + 2]
    return ()


def _number(x: Any) -> float | None:
    x = np.asarray(x)
    if x.dtype.kind not in "biuf" and not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    # NaN equals no number, not even itself.
    return None if math.isnan(x) else float(x)
