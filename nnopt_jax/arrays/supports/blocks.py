"""A mask that keeps or drops whole blocks."""

from __future__ import annotations

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, field_specs, is_node, node, show, static, summary
from nnopt_jax.arrays.bits import Bits
from nnopt_jax.arrays.supports.base import Support
from nnopt_jax.arrays.supports.gaps import Gaps
from nnopt_jax.ops.grid import expand


@node
class Blocks(Support):
    """A mask over blocks of the last axes: one entry for each block.

    Args:
        kept: `Bits` of width 1 or `Gaps`, of the shape of the grid of blocks.
        shape: shape of the mask.
        sizes: entries of a block along each of the last axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Blocks
        >>> mask = jnp.array([[True, True, False, False], [True, True, False, False]])
        >>> blocks = Blocks.of(mask, (2, 2))
        >>> blocks, blocks.kept.materialize()
        (2x2 blocks 1-bit[1,2], Array([[1, 0]], dtype=int32))

    References:
        Narang et al. 2017, Block-Sparse Recurrent Neural Networks; SciPy's `bsr_array`.
    """

    kept: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    sizes: tuple[int, ...] = static(default=())

    @classmethod
    def of(cls, mask: jax.Array, sizes: tuple[int, ...]) -> Blocks:
        """Encodes a mask of whole blocks: bits under `jax.jit`, else gaps where those are fewer."""
        grid = any_in_block(mask, sizes)
        few = not isinstance(mask, Tracer) and Gaps.cost(np.asarray(grid)) < Bits.cost(
            grid.shape, 1
        )
        kept = Gaps.of(grid) if few else Bits.of(grid, 1)
        return cls(kept, tuple(mask.shape), tuple(sizes))

    @staticmethod
    def cost(mask: np.ndarray, sizes: tuple[int, ...]) -> int:
        """Bits of what `of` makes of a mask of whole blocks, a size given for every axis."""
        grid = mask[tuple(slice(None, None, size) for size in sizes)]
        return min(Gaps.cost(grid), Bits.cost(grid.shape, 1))

    @property
    def most(self) -> int:
        """All elements of as many blocks as can be kept."""
        blocks = self.kept.most if isinstance(self.kept, Support) else self.kept.size
        return blocks * int(np.prod(self.sizes))

    def materialize(self) -> jax.Array:
        """The bool mask."""
        return expand(show(self.kept).astype(bool), self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Blocks must divide the mask, and have one entry each."""
        found = self.kept.problems(self.kept.shape) if is_node(self.kept) else []
        if text := misfit(self.shape, self.sizes):
            return [*found, text]
        if not isinstance(self.kept, (Bits, Gaps)) or self.kept.shape != _grid(
            self.shape, self.sizes
        ):
            found.append(f"of shape {self.shape} has {self.outline()}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Blocks:
        """Bits lie like the mask, a block where its elements were."""
        return self.replace(kept=field_specs(self.kept, spec, mesh))

    def outline(self) -> str:
        """`4x4 blocks 1-bit[75,25]`."""
        return f"{'x'.join(map(str, self.sizes))} blocks {summary(self.kept)}"


def misfit(shape: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
    """Why blocks of these sizes do not fit a mask of this shape; None if they do.

    Example:
        >>> misfit((6, 8), (4, 4))
        'blocks of (4, 4) do not divide the last axes of shape (6, 8)'
    """
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        return f"{sizes!r} are no sizes of blocks"
    if len(shape) < len(sizes):
        return f"blocks of {sizes} need {len(sizes)} axes, shape {shape} has less"
    last = shape[len(shape) - len(sizes) :]
    if any(size % part for size, part in zip(last, sizes, strict=True)):
        return f"blocks of {sizes} do not divide the last axes of shape {shape}"
    return None


def any_in_block(mask: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Whether any element of each block is kept.

    Example:
        >>> import jax.numpy as jnp
        >>> any_in_block(jnp.array([True, False, False, False]), (2,))
        Array([ True, False], dtype=bool)
    """
    split, inside = list(mask.shape[: mask.ndim - len(sizes)]), []
    for count, part in zip(_grid(mask.shape, sizes)[len(split) :], sizes, strict=True):
        split += [count, part]
        inside.append(len(split) - 1)
    return mask.reshape(split).any(tuple(inside))


def _grid(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The number of blocks along each axis."""
    parts = (*(1 for _ in range(len(shape) - len(sizes))), *sizes)
    return tuple(size // part for size, part in zip(shape, parts, strict=True))
