"""What a leaf is multiplied with where it is used, in the order of the leaf itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nnopt_jax.trace.jaxpr import Equation, primitives
from nnopt_jax.trace.primitives import Kind, Rule, Start, factors_of
from nnopt_jax.trace.probed import ragged_dot_general_p
from nnopt_jax.trace.statistics.arrangement import Arrangement, AxesOfLeaf
from nnopt_jax.trace.statistics.followed_array import (
    REPEATED,
    LeafFactor,
    LeafPart,
    PartAxis,
    leaf_order,
)
from nnopt_jax.typing import Array

Factors = tuple[LeafFactor, ...]


@dataclasses.dataclass(frozen=True)
class ProductUse:
    """One product or lookup of a leaf. Arrays are float32: (batch, groups, rows, ...).

    Args:
        operands: those that the leaf is multiplied with, or looked up by.
        source: how `inputs` are made of these operands; equal where they are made alike.
        contracted: axes of the leaf that are summed over, or looked up.
        batch: factors of the leaf each entry of which has inputs of its own.
        groups: of a grouped convolution.
        channels: what of the leaf the axes of `inputs` after the rows are.
        outs: what of the leaf the axes of `outputs` after the rows are; groups are among them.
        inputs: what the leaf is multiplied with.
        patches: the same with a single axis after the rows: all that is summed over, in the order
            of the leaf.
        outputs: the products.
        counts: of a lookup, how often each entry was asked for.
        valid: (batch, rows), which rows belong to each entry of the batch; None for all.
        no_outputs: why the products of the leaf alone are not known.
    """

    operands: tuple[int, ...] = ()
    source: Hashable = None
    contracted: tuple[int, ...] = ()
    batch: Factors = ()
    groups: Factors = ()
    channels: Factors = ()
    outs: Factors = ()
    inputs: Callable[[], Array] | None = None
    patches: Callable[[], Array] | None = None
    outputs: Callable[[], Array] | None = None
    counts: Callable[[], Array] | None = None
    valid: Callable[[], Array] | None = None
    no_outputs: str = ""

    def masked(self, x: Array, fill: float) -> Array:
        """Put a number in the place of rows that belong to other entries of the batch.

        Args:
            x: of the axes (batch, rows, ...).
            fill: the number.
        """
        if self.valid is None:
            return x
        valid = self.valid()
        return jnp.where(jnp.expand_dims(valid, tuple(range(valid.ndim, x.ndim))), x, fill)


@dataclasses.dataclass(frozen=True)
class ProductStep:
    """A step that uses a leaf.

    Args:
        equation: the step.
        rule: its rule.
        operand: which of its operands holds the leaf.
        part: the leaf as it lies there.
        values: the arrays of all operands.
        out: the outcome.
    """

    equation: Equation
    rule: Rule
    operand: int
    part: LeafPart
    values: Sequence[Array]
    out: Array

    def read(self) -> ProductUse | str:
        """Return what can be measured, or why nothing can."""
        read = _READ.get(self.equation.primitive, product_of)
        name = self.equation.primitive.name
        if self.rule.kind in (Kind.CONTRACTION, Kind.LOOKUP):
            return read(self)
        if self.rule.kind is Kind.OPAQUE:
            return f"no rule follows it through {name}"
        if self.rule.kind in (Kind.REDUCTION, Kind.ORDERED):
            return f"{name} combines its own entries"
        if self.rule.kind is Kind.UPDATE:
            return f"{name} changes some of its entries"
        return f"{name} sums over none of it"

    def repeats(self, dims: Sequence[int]) -> bool:
        """Whether the leaf is repeated along some axes of its operand."""
        return any(self.part.axes[d].repeats for d in dims)

    def outputs(self, contracted: Sequence[int], arranged: Arrangement, x: Array) -> dict[str, Any]:
        """The outputs, unless what is summed over has other entries beside the leaf's."""
        shape = self.rule.operand_shapes[self.operand]
        if any(self.part.axes[d].count != shape[d] for d in contracted):
            return {"no_outputs": "its products are added to those of what lies beside it"}
        return {"outputs": lambda: arranged(x)}


def product_of(step: ProductStep) -> ProductUse | str:
    """Read a product whose operands have one factor along each axis."""
    rule, at, part = step.rule, step.operand, step.part
    ours, theirs = ([_factor(dim) for dim in rule.operands[i]] for i in (at, 1 - at))
    kept = [_factor(dim) for dim in rule.outcomes[0]]
    if None in (*ours, *theirs, *kept) or len(rule.data) != 2:
        return f"{step.equation.primitive.name} is not a plain product"
    own = [d for d, f in enumerate(ours) if f in rule.reduced]
    if not own:
        return "an outer product sums over none of it"
    if step.repeats(own):
        return "it is repeated along what is summed over"
    batch = [d for d, f in enumerate(ours) if f in theirs and d not in own]
    free = [d for d in range(len(ours)) if d not in own and d not in batch]
    channels = [(theirs.index(ours[d]), part.axes[d]) for d in own]
    along = [(theirs.index(ours[d]), part.axes[d]) for d in batch]
    arranged = Arrangement.of(along, channels)
    outs = [(kept.index(ours[d]), part.axes[d]) for d in free]
    placed = Arrangement.of([(kept.index(ours[d]), part.axes[d]) for d in batch], outs)
    x = step.values[1 - at]
    return ProductUse(
        (1 - at,), arranged, _axes(channels), _sorted(along),
        channels=_sorted(channels), outs=_sorted(outs), inputs=lambda: arranged(x),
        patches=lambda: _flat(arranged(x), len(_sorted(channels))),
        **step.outputs(own, placed, step.out),
    )  # fmt: skip


def _grouped_rows(step: ProductStep) -> ProductUse | str:
    """Read a product of groups of rows, each with a matrix of its own: experts."""
    rule, part, values = step.rule, step.part, step.values
    ours = [_factor(dim) for dim in rule.operands[1]]
    rows = factors_of(rule.operands[0]) - rule.reduced
    plain = ours.count(None) == len(rows) == values[2].ndim == 1 and len(rule.operands) == len(
        _RAGGED
    )
    if step.operand != 1 or not plain or rows.intersection(ours):
        return "ragged_dot_general has no rows for each of its matrices"
    which = ours.index(None)
    (d,) = (d for d, f in enumerate(ours) if f in rule.reduced)
    outer = [i for i in range(len(ours)) if i not in (which, d)]
    if step.repeats([d, which]):
        return "it is repeated along what is summed over"
    left, kept = ([_factor(dim) for dim in dims] for dims in (rule.operands[0], rule.outcomes[0]))
    channels, group = [(left.index(ours[d]), part.axes[d])], [(0, part.axes[which])]
    outs = [(kept.index(ours[i]), part.axes[i]) for i in outer]
    arranged, placed = Arrangement.of((), channels), Arrangement.of((), outs)
    shared, picked = _sorted(group), Arrangement.of(group, ())

    def valid() -> Array:
        """Rows lie group after group, and those after the last belong to none."""
        ends = jnp.cumsum(values[2])
        row = jnp.arange(values[0].shape[left.index(*rows)])[None]
        inside = (row >= (ends - values[2])[:, None]) & (row < ends[:, None])
        return picked(inside) > 0

    def for_each(x: Array) -> Array:
        return jnp.broadcast_to(x, (*(f.size for f in shared), *x.shape))

    found = step.outputs([d], placed, step.out)
    if "outputs" in found:
        found["outputs"] = lambda: for_each(placed(step.out))
    return ProductUse(
        (0, 2), (arranged, picked), _axes(channels), shared,
        channels=_sorted(channels), outs=_sorted(outs), valid=valid,
        inputs=lambda: for_each(arranged(values[0])),
        patches=lambda: for_each(_flat(arranged(values[0]), len(_sorted(channels)))),
        **found,
    )  # fmt: skip


def _convolution(step: ProductStep) -> ProductUse | str:
    k, axes = step.equation.params, step.part.axes
    numbers, count = k["dimension_numbers"], k["feature_group_count"]
    outer, inner, *window = numbers.rhs_spec
    if step.operand == 0:
        return "it is the image of a convolution"
    if k["batch_group_count"] != 1:
        return "the rows of its images are in groups"
    if step.repeats((inner, *window)):
        return "it is repeated along what is summed over"
    groups: list[tuple[int, PartAxis]] = []
    outs = [(1, axes[outer])]
    if count > 1:
        size = step.rule.operand_shapes[1][outer]
        if len(axes[outer].factors) != 1 or axes[outer].count != size or step.repeats([outer]):
            return "its groups lie across axes"
        (whole,) = axes[outer].factors
        each = size // count
        # Numbered from the other end where the axis is reversed, as the factor itself is.
        group = whole._replace(stride=whole.stride * each, size=count, step=1)
        groups = [(1, PartAxis(0, (group,)))]
        within = whole._replace(size=each)
        outs = [(1, PartAxis(0, (group._replace(step=each), within)))]
    image, sizes = step.values[0].transpose(numbers.lhs_spec), [
        step.rule.operand_shapes[1][d] for d in window
    ]  # fmt: skip
    shift = len(groups)
    channel = [(1 + shift, axes[inner])]
    taps = [*channel, *((2 + shift + i, axes[d]) for i, d in enumerate(window))]
    images, patches = (Arrangement.of(groups, each) for each in (channel, taps))

    def grouped(x: Array, *parts: int) -> Array:
        """(rows, groups where there are some, channels, window, positions)."""
        first = (count, -1) if groups else (-1,)
        return x.reshape(x.shape[0], *first, *parts, *x.shape[2:])

    def cut() -> Array:
        found = lax.conv_general_dilated_patches(
            lax.stop_gradient(image), sizes, k["window_strides"], k["padding"],
            k["lhs_dilation"], k["rhs_dilation"], precision=lax.Precision.HIGHEST,  # it copies
        )  # fmt: skip
        return _flat(patches(grouped(found, *sizes)), len(_sorted(taps)))

    settings = (
        "window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count"
    )  # fmt: skip
    return ProductUse(
        (0,), (images, patches, numbers.lhs_spec, tuple(sizes), *(k[name] for name in settings)),
        _axes(taps), groups=_sorted(groups), channels=_sorted(channel), outs=_sorted(outs),
        inputs=lambda: images(grouped(image)), patches=cut,
        **step.outputs(
            (inner, *window), Arrangement.of((), outs), step.out.transpose(numbers.out_spec)
        ),
    )  # fmt: skip


def _lookup(step: ProductStep) -> ProductUse | str:
    k, shape = step.equation.params, step.rule.operand_shapes[0]
    if step.operand != 0:
        return "it is the index of a lookup"
    starts = [dim[0].start for dim in step.rule.operands[0]]
    chosen = {d: start.entry for d, start in enumerate(starts) if isinstance(start, Start)}
    whole = all(k["slice_sizes"][d] == (1 if d in chosen else n) for d, n in enumerate(shape))
    if len(chosen) != 1 or not whole:
        return "it is looked up along several axes"
    ((axis, entry),) = chosen.items()
    if step.repeats([axis]) or step.part.axes[axis].is_constant:
        return "it is repeated along what is looked up"
    size, along = shape[axis], [(1, step.part.axes[axis])]
    arranged, clips = Arrangement.of((), along), k["mode"] == lax.GatherScatterMode.CLIP

    def counts() -> Array:
        asked = step.values[1][..., entry].reshape(-1)
        if clips:
            asked = jnp.clip(asked, 0, size - 1)
        asked = jnp.where((asked < 0) | (asked >= size), size, asked)  # in no row
        found = jnp.zeros(size, jnp.int32).at[asked].add(1, mode="drop")
        return arranged(found[None])[0]

    source = arranged, size, entry, clips
    return ProductUse((1,), source, _axes(along), channels=_sorted(along), counts=counts)


_RAGGED = ("rows", "matrices", "sizes of groups")
"""Operands of a product of groups of rows."""

_READ: dict[Any, Callable[[ProductStep], ProductUse | str]] = {
    primitives.conv_general_dilated_p: _convolution,
    primitives.gather_p: _lookup,
    ragged_dot_general_p: _grouped_rows,
}


def _factor(dim: Any) -> int | None:
    """The factor that alone makes up a dimension; None where it is made otherwise."""
    if len(dim) != 1 or isinstance(dim[0].start, Start) or len(dim[0].factors) != 1:
        return None
    ((factor, stride),) = dim[0].factors
    return factor if (stride, dim[0].start, dim[0].holes) == (1, 0, 1) else None


def _flat(x: Array, count: int) -> Array:
    """An array whose last axes are made one."""
    return x.reshape(*x.shape[: x.ndim - count], -1)


def _sorted(axes: AxesOfLeaf) -> Factors:
    factors = [f for _, place in axes for f in place.factors if f.axis != REPEATED]
    return tuple(factors[i] for i in leaf_order(factors))


def _axes(axes: AxesOfLeaf) -> tuple[int, ...]:
    return tuple(sorted({factor.axis for factor in _sorted(axes)}))
