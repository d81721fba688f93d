"""What a leaf is multiplied with where it is used, in the order of the leaf itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from nnopt_jax.trace.statistics.arrangement import Arrangement
from nnopt_jax.trace.statistics.leaf_part import REPEATED, LeafFactor, PartAxis, leaf_order
from nnopt_jax.typing import Array, Shape

Factors = tuple[LeafFactor, ...]


class Patches(NamedTuple):
    """How a convolution cuts patches out of an image.

    Args:
        order: of the image's axes: batch, channels, window.
        sizes: of the window.
        settings: strides, padding and dilations.
        arranged: the patches, in the order of the leaf.
    """

    order: Shape
    sizes: Shape
    settings: tuple[Any, ...]
    arranged: Arrangement

    def of(self, image: Array) -> Array:
        """Cut them."""
        image = lax.stop_gradient(image).transpose(self.order)
        exact = lax.Precision.HIGHEST  # it copies
        return self.arranged(
            lax.conv_general_dilated_patches(image, self.sizes, *self.settings, precision=exact)
        )


class RowGroups(NamedTuple):
    """Rows that lie group after group; those after the last belong to none.

    Args:
        rows: how many there are.
        arranged: the groups, in the order of the leaf.
    """

    rows: int
    arranged: Arrangement

    def valid(self, sizes: Array) -> Array:
        """Return which rows belong to each of the groups, which have these sizes."""
        ends, row = jnp.cumsum(sizes), jnp.arange(self.rows)[None]
        inside = (row >= (ends - sizes)[:, None]) & (row < ends[:, None])
        return self.arranged(inside) > 0


class Lookup(NamedTuple):
    """Rows that indices choose.

    Args:
        size: how many there are.
        entry: the position of their index in what the second operand holds.
        clips: whether an index out of bounds is that of the nearest row, and not of none.
        arranged: the rows, in the order of the leaf.
    """

    size: int
    entry: int | None
    clips: bool
    arranged: Arrangement

    def counts(self, indices: Array) -> Array:
        """Return how often each row was asked for."""
        asked = indices[..., self.entry].reshape(-1)
        if self.clips:
            asked = jnp.clip(asked, 0, self.size - 1)
        asked = jnp.where((asked < 0) | (asked >= self.size), self.size, asked)  # in no row
        found = jnp.zeros(self.size, jnp.int32).at[asked].add(1, mode="drop")
        return self.arranged(found)[0]


@dataclasses.dataclass(frozen=True)
class ProductUse:
    """One product or lookup of a leaf.

    It is known before the program runs; `on` gives it the arrays to measure. Those that it returns
    are float32 and have the axes (batch, groups, rows, ...).

    Args:
        operands: those that the leaf is multiplied with, or looked up by.
        factors: all that the operand has of the leaf, groups apart from the rest of their axis.
        batch: factors of the leaf each entry of which has inputs of its own.
        groups: of a grouped convolution.
        channels: what of the leaf the axes of `inputs` after the rows are.
        taps: of the window of a convolution.
        outs: what of the leaf the axes of `outputs` after the rows are; groups are among them.
        arranged: how inputs are made of the operand.
        patch: how patches are made of it, where they are not the inputs.
        row_groups: which rows belong to each entry of the batch; None for all.
        lookup: how rows are counted, where the use is a lookup.
        placed: how outputs are made of the outcome.
        no_outputs: why the products of the leaf alone are not known.
        arrays: the operands of the step, and its outcome.
    """

    operands: tuple[int, ...] = ()
    factors: Factors = ()
    batch: Factors = ()
    groups: Factors = ()
    channels: Factors = ()
    taps: Factors = ()
    outs: Factors = ()
    arranged: Arrangement | None = None
    patch: Patches | None = None
    row_groups: RowGroups | None = None
    lookup: Lookup | None = None
    placed: Arrangement | None = None
    no_outputs: str = ""
    arrays: tuple[Array, ...] = ()

    def on(self, arrays: Sequence[Array]) -> ProductUse:
        """Return the use of these operands, which has this outcome."""
        return dataclasses.replace(self, arrays=tuple(arrays))

    @property
    def source(self) -> Hashable:
        """How inputs are made of the operands; equal where they are made alike."""
        return self.arranged, self.patch, self.row_groups, self.lookup

    @property
    def contracted(self) -> tuple[int, ...]:
        """Axes of the leaf that are summed over, or looked up."""
        return tuple(sorted({factor.axis for factor in (*self.channels, *self.taps)}))

    def inputs(self) -> Array | None:
        """What the leaf is multiplied with; None of a lookup."""
        return self._arranged(self.arranged, self.operands[0])

    def patches(self) -> Array | None:
        """The same with a single axis after the rows: all that is summed over, as in the leaf."""
        if self.patch is not None:
            return _flat(self.patch.of(self.arrays[self.operands[0]]), self.channels + self.taps)
        x = self.inputs()
        return None if x is None else _flat(x, self.channels)

    def outputs(self) -> Array | None:
        """The products; None where those of the leaf alone are not known."""
        return self._arranged(self.placed, -1)

    def counts(self) -> Array | None:
        """Of a lookup, how often each entry was asked for."""
        return None if self.lookup is None else self.lookup.counts(self.arrays[1])

    def valid(self) -> Array | None:
        """Which rows belong to each entry of the batch: (batch, rows); None for all."""
        if self.row_groups is None:
            return None
        return self.row_groups.valid(self.arrays[self.operands[-1]])

    def masked(self, x: Array, fill: float) -> Array:
        """Put a number in the place of rows that belong to other entries of the batch.

        Args:
            x: of the axes (batch, rows, ...).
            fill: the number.
        """
        valid = self.valid()
        if valid is None:
            return x
        return jnp.where(jnp.expand_dims(valid, tuple(range(valid.ndim, x.ndim))), x, fill)

    def _arranged(self, order: Arrangement | None, which: int) -> Array | None:
        if order is None:
            return None
        x = order(self.arrays[which])
        if self.row_groups is None:
            return x
        return jnp.broadcast_to(x, (*(factor.size for factor in self.batch), *x.shape))


def _flat(x: Array, factors: Factors) -> Array:
    """An array whose last axes are made one."""
    return x.reshape(*x.shape[: x.ndim - len(factors)], -1)


def in_leaf_order(axes: Iterable[PartAxis]) -> Factors:
    """Return what axes of an array have of a leaf.

    Args:
        axes: where the leaf lies along each.
    """
    factors = [f for axis in axes for f in axis.factors if f.axis != REPEATED]
    return tuple(factors[i] for i in leaf_order(factors))
