"""One product or lookup of a leaf, with its inputs and outputs in the axis order of the leaf."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from nnopt_jax.trace.statistics.leaf_part import Arrangement, Factors
from nnopt_jax.typing import Array, Shape


class Patches(NamedTuple):
    """The extraction of patches from the image of a convolution.

    Args:
        order: the order of the image's axes: batch, channels, window.
        sizes: the sizes of the window.
        settings: strides, padding and dilations.
        arrangement: arranges the patches in the order of the leaf.
    """

    order: Shape
    sizes: Shape
    settings: tuple[Any, ...]
    arrangement: Arrangement

    def of(self, image: Array) -> Array:
        """Return the patches of an image, arranged in the order of the leaf."""
        image = lax.stop_gradient(image).transpose(self.order)
        exact = lax.Precision.HIGHEST  # this convolution only copies entries
        return self.arrangement(
            lax.conv_general_dilated_patches(image, self.sizes, *self.settings, precision=exact)
        )


class RowGroups(NamedTuple):
    """Consecutive groups of rows, as in a ragged product; rows after the last belong to none.

    Args:
        rows: the number of rows.
        arrangement: arranges the groups in the order of the leaf.
    """

    rows: int
    arrangement: Arrangement

    def valid(self, sizes: Array) -> Array:
        """Return a mask of the rows of each group, from the sizes of the groups."""
        ends, row = jnp.cumsum(sizes), jnp.arange(self.rows)[None]
        inside = (row >= (ends - sizes)[:, None]) & (row < ends[:, None])
        return self.arrangement(inside) > 0


class Lookup(NamedTuple):
    """A lookup of rows by index, as in an embedding.

    Args:
        size: the number of rows.
        entry: the position of the row index on the last axis of the indices.
        clips: whether an index out of bounds counts for the nearest row rather than for none.
        arrangement: arranges the rows in the order of the leaf.
    """

    size: int
    entry: int | None
    clips: bool
    arrangement: Arrangement

    def counts(self, indices: Array) -> Array:
        """Count the lookups of each row."""
        asked = indices[..., self.entry].reshape(-1)
        if self.clips:
            asked = jnp.clip(asked, 0, self.size - 1)
        asked = jnp.where((asked < 0) | (asked >= self.size), self.size, asked)  # counts for no row
        found = jnp.zeros(self.size, jnp.int32).at[asked].add(1, mode="drop")
        return self.arrangement(found)[0]


@dataclasses.dataclass(frozen=True)
class ProductUse:
    """One product or lookup of a leaf, and how to arrange its operands for statistics.

    The use is known before the program runs; `on` adds the arrays to measure. Its methods return
    float32 arrays with the axes (batch, groups, rows, ...).

    Args:
        operands: the operands that the leaf is multiplied with, or looked up by.
        factors: all factors of the leaf in the operand, with groups separate from the rest.
        batch: the factors of the leaf whose entries have their own inputs.
        groups: the factors of the groups of a grouped convolution.
        channels: the factors of the leaf on the axes of `inputs` after the rows.
        taps: the factors of the window of a convolution.
        outs: the factors of the leaf on the axes of `outputs` after the rows, with groups.
        arrangement: arranges the operand into inputs.
        patch: extracts patches for a convolution; None if patches equal inputs.
        row_groups: the rows that belong to each entry of the batch; None for all.
        lookup: counts rows if the use is a lookup; else None.
        output_arrangement: arranges the outcome into outputs.
        no_outputs: why the products of the leaf alone are unknown; empty if they are known.
        arrays: the operands of the step, and its outcome.
    """

    operands: tuple[int, ...] = ()
    factors: Factors = ()
    batch: Factors = ()
    groups: Factors = ()
    channels: Factors = ()
    taps: Factors = ()
    outs: Factors = ()
    arrangement: Arrangement | None = None
    patch: Patches | None = None
    row_groups: RowGroups | None = None
    lookup: Lookup | None = None
    output_arrangement: Arrangement | None = None
    no_outputs: str = ""
    arrays: tuple[Array, ...] = ()

    @property
    def rows_axis(self) -> int:
        """The axis of the inputs that runs over rows."""
        return len(self.batch) + len(self.groups)

    @property
    def unbatched_axes(self) -> tuple[int, ...]:
        """All axes of the inputs except the batch axes."""
        return tuple(range(len(self.batch), self.rows_axis + 1 + len(self.channels)))

    def on(self, arrays: Sequence[Array]) -> ProductUse:
        """Return a copy of this use that holds the operands and the outcome of the step."""
        return dataclasses.replace(self, arrays=tuple(arrays))

    @property
    def source(self) -> Hashable:
        """A hashable key of the conversion from operands to inputs."""
        return self.arrangement, self.patch, self.row_groups, self.lookup

    @property
    def contracted(self) -> tuple[int, ...]:
        """The axes of the leaf that are contracted or looked up."""
        return tuple(sorted({factor.axis for factor in (*self.channels, *self.taps)}))

    def inputs(self) -> Array | None:
        """Return the inputs that the leaf is multiplied with; None for a lookup."""
        return self._arrange(self.arrangement, self.operands[0])

    def patches(self) -> Array | None:
        """Return the inputs with all contracted axes flattened to one, in the order of the leaf."""
        if self.patch is not None:
            return _flat(self.patch.of(self.arrays[self.operands[0]]), self.channels + self.taps)
        x = self.inputs()
        return None if x is None else _flat(x, self.channels)

    def outputs(self) -> Array | None:
        """Return the outputs of the product; None if they include products of other weights."""
        return self._arrange(self.output_arrangement, -1)

    def counts(self) -> Array | None:
        """Count the lookups of each row; None if the use is not a lookup."""
        return None if self.lookup is None else self.lookup.counts(self.arrays[1])

    def valid(self) -> Array | None:
        """Return a mask (batch, rows) of the rows that belong to each batch entry; None for all."""
        if self.row_groups is None:
            return None
        return self.row_groups.valid(self.arrays[self.operands[-1]])

    def masked(self, x: Array, fill: float) -> Array:
        """Replace rows that belong to other entries of the batch by a number.

        Args:
            x: an array with the axes (batch, rows, ...).
            fill: the number.
        """
        valid = self.valid()
        if valid is None:
            return x
        return jnp.where(jnp.expand_dims(valid, tuple(range(valid.ndim, x.ndim))), x, fill)

    def _arrange(self, order: Arrangement | None, which: int) -> Array | None:
        if order is None:
            return None
        x = order(self.arrays[which])
        if self.row_groups is None:
            return x
        # All groups share the array of rows; masks select the rows of each.
        return jnp.broadcast_to(x, (*(factor.size for factor in self.batch), *x.shape))


def _flat(x: Array, factors: Factors) -> Array:
    """Flatten the last axes of an array, one for each factor, to a single axis."""
    return x.reshape(*x.shape[: x.ndim - len(factors)], -1)
