"""Sparse layouts of patterns: n of every m entries (N:M), and whole blocks (BSR)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.index_layouts import DeltaIndex, SparseLayout
from nnopt_jax.arrays.nodes import Field, field_specs, materialize, node, static, summary
from nnopt_jax.arrays.packed_integers import Bits, width_for
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import (
    MOST_CHOICES,
    group_axis,
    join_groups,
    split_groups,
    subset_of_rank,
    subset_rank,
)

_LOW = 16  # the greatest width of `Bits`


@node
class NMIndex(SparseLayout):
    r"""A mask that keeps `n` of every `m` entries along the axis before the last.

    $$ \lceil \log_2 \tbinom{m}{n} \rceil \text{ bits for } m \text{ elements} $$

    Each group stores the number of its choice in the list of all choices, which takes fewer bits
    than its `n` positions (3 bits rather than 4 for 2:4).

    Args:
        codes: `Bits`, `(..., a / m, b)` for a mask `(..., a, b)`: the lowest 16 bits of the number
            of each group's choice.
        high: `Bits` of the higher bits, if there are more than 65,536 choices.
        shape: shape of the mask.
        n: kept elements of a group.
        m: elements of a group.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import NMIndex
        >>> kept = NMIndex.of(jnp.array([False, True, False, True, True, True, False, False]), 2, 4)
        >>> kept, kept.codes.materialize()
        (2:4 3-bit[2], Array([4, 0], dtype=int32))

    References:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks (2:4, by positions); Knuth, The
        Art of Computer Programming 4A, section 7.2.1.3 (numbers of combinations).
    """

    codes: Field
    high: Field = None
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    n: int = static(default=2)
    m: int = static(default=4)

    @classmethod
    def of(cls, mask: jax.Array, n: int, m: int) -> NMIndex:
        """Encode a mask that keeps `n` of every `m`; under `jax.jit` the pattern is not checked."""
        rank = subset_rank(split_groups(mask, m), n)
        width = width_for(math.comb(m, n))
        if width <= _LOW:
            return cls(Bits.of(rank, width), None, tuple(mask.shape), n, m)
        low, high = rank & jnp.uint32(2**_LOW - 1), rank >> _LOW
        return cls(Bits.of(low, _LOW), Bits.of(high, width - _LOW), tuple(mask.shape), n, m)

    @staticmethod
    def cost(shape: tuple[int, ...], n: int, m: int) -> int:
        """Return the bits that `of` needs for a mask of this shape."""
        width, grid = width_for(math.comb(m, n)), _group_grid(shape, m)
        high = Bits.cost(grid, width - _LOW) if width > _LOW else 0
        return Bits.cost(grid, min(width, _LOW)) + high

    @property
    def most(self) -> int:
        """The number of kept elements, which is fixed."""
        return self.size // self.m * self.n

    @property
    def least(self) -> int:
        """The number of kept elements, which is fixed."""
        return self.most

    def materialize(self) -> jax.Array:
        """Return the bool mask."""
        rank = materialize(self.codes).astype(jnp.uint32)
        if self.high is not None:
            rank = rank | materialize(self.high).astype(jnp.uint32) << _LOW
        return join_groups(subset_of_rank(rank, self.n, self.m), self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that groups divide the mask and have one code each."""
        found = self.inner_problems()
        if text := n_of_m_misfit(self.shape, self.n, self.m):
            return [*found, text]
        grid = _group_grid(self.shape, self.m)
        wide = width_for(math.comb(self.m, self.n)) > _LOW
        codes = [self.codes] if self.high is None else [self.codes, self.high]
        if len(codes) != 1 + wide or any(field.shape != grid for field in codes):
            found.append(f"of shape {self.shape} has {self.outline()}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> NMIndex:
        """Shard the codes like the mask, since each lies at the position of its group."""
        fields = {name: field_specs(field, spec, mesh) for name, field in self.fields()}
        return self.replace(**fields)

    def outline(self) -> str:
        """Return a summary such as `2:4 3-bit[196,300]`."""
        inner = " ".join(summary(field) for _, field in self.fields())
        return f"{self.n}:{self.m} {inner}"


def _group_grid(shape: tuple[int, ...], m: int) -> tuple[int, ...]:
    """Return the number of groups along each axis."""
    axis = group_axis(shape)
    return (*shape[:axis], shape[axis] // m, *shape[axis + 1 :])


def n_of_m_misfit(shape: tuple[int, ...], n: int, m: int) -> str | None:
    """Return why a mask of this shape cannot be stored as `n` of every `m`; None if it can.

    Example:
        >>> n_of_m_misfit((6, 8), 2, 4)
        'groups of 4 do not divide axis 0 of shape (6, 8)'
    """
    if not 0 < n <= m or math.comb(m, n) > MOST_CHOICES:
        return f"{n}:{m} is not a pattern of at most 2^31 choices"
    axis = group_axis(shape)
    if not shape or shape[axis] % m:
        return f"groups of {m} do not divide axis {axis} of shape {shape}"
    return None


@node
class BSR(SparseLayout):
    """A mask of whole blocks on the last axes, with one entry for each block.

    Args:
        kept: `Bits` of width 1 or `DeltaIndex`, of the shape of the grid of blocks.
        shape: shape of the mask.
        sizes: entries of a block along each of the last axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import BSR
        >>> mask = jnp.array([[True, True, False, False], [True, True, False, False]])
        >>> blocks = BSR.of(mask, (2, 2))
        >>> blocks, blocks.kept.materialize()
        (2x2 blocks 1-bit[1,2], Array([[1, 0]], dtype=int32))

    References:
        Narang et al. 2017, Block-Sparse Recurrent Neural Networks; SciPy's `bsr_array`.
    """

    kept: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    sizes: tuple[int, ...] = static(default=())

    @classmethod
    def of(cls, mask: jax.Array, sizes: tuple[int, ...]) -> BSR:
        """Encode a mask of whole blocks, under `jax.jit` as bits, else in the smaller layout."""
        grid = any_in_block(mask, sizes)
        few = not isinstance(mask, Tracer) and DeltaIndex.cost(np.asarray(grid)) < Bits.cost(
            grid.shape, 1
        )
        kept = DeltaIndex.of(grid) if few else Bits.of(grid, 1)
        return cls(kept, tuple(mask.shape), tuple(sizes))

    @staticmethod
    def cost(mask: np.ndarray, sizes: tuple[int, ...]) -> int:
        """Return the bits that `of` needs for a mask of whole blocks."""
        grid = mask[tuple(slice(None, None, size) for size in sizes)]
        return min(DeltaIndex.cost(grid), Bits.cost(grid.shape, 1))

    @property
    def most(self) -> int:
        """The greatest number of kept elements, if the layout marks as many blocks as it can."""
        blocks = self.kept.most if isinstance(self.kept, SparseLayout) else self.kept.size
        return blocks * int(np.prod(self.sizes))

    def materialize(self) -> jax.Array:
        """Return the bool mask."""
        return expand(materialize(self.kept).astype(bool), self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that blocks divide the mask and have one entry each."""
        found = self.inner_problems()
        if text := block_misfit(self.shape, self.sizes):
            return [*found, text]
        if not isinstance(self.kept, (Bits, DeltaIndex)) or self.kept.shape != _block_grid(
            self.shape, self.sizes
        ):
            found.append(f"of shape {self.shape} has {self.outline()}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> BSR:
        """Shard the bits like the mask, since each lies at the position of its block."""
        return self.replace(kept=field_specs(self.kept, spec, mesh))

    def outline(self) -> str:
        """Return a summary such as `4x4 blocks 1-bit[75,25]`."""
        return f"{'x'.join(map(str, self.sizes))} blocks {summary(self.kept)}"


def block_misfit(shape: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
    """Return why blocks of these sizes do not fit a mask of this shape; None if they do.

    Example:
        >>> block_misfit((6, 8), (4, 4))
        'blocks of (4, 4) do not divide the last axes of shape (6, 8)'
    """
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        return f"{sizes!r} are not block sizes"
    if len(shape) < len(sizes):
        return f"blocks of {sizes} need {len(sizes)} axes, shape {shape} has fewer"
    last = shape[len(shape) - len(sizes) :]
    if any(size % part for size, part in zip(last, sizes, strict=True)):
        return f"blocks of {sizes} do not divide the last axes of shape {shape}"
    return None


def any_in_block(mask: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Return whether any element of each block is kept.

    Example:
        >>> import jax.numpy as jnp
        >>> any_in_block(jnp.array([True, False, False, False]), (2,))
        Array([ True, False], dtype=bool)
    """
    split, inside = list(mask.shape[: mask.ndim - len(sizes)]), []
    for count, part in zip(_block_grid(mask.shape, sizes)[len(split) :], sizes, strict=True):
        split += [count, part]
        inside.append(len(split) - 1)
    return mask.reshape(split).any(tuple(inside))


def _block_grid(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of blocks along each axis."""
    parts = (*(1 for _ in range(len(shape) - len(sizes))), *sizes)
    return tuple(size // part for size, part in zip(shape, parts, strict=True))
