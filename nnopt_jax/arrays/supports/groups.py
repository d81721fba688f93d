"""A mask that keeps n of every m."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.base import Field, field_specs, is_node, node, show, static, summary
from nnopt_jax.arrays.bits import Bits, width_for
from nnopt_jax.arrays.supports.base import Support
from nnopt_jax.ops.masks import (
    MOST_CHOICES,
    group_axis,
    join_groups,
    split_groups,
    subset_of_rank,
    subset_rank,
)

_LOW = 16  # bits that `Bits` holds at most


@node
class Groups(Support):
    r"""A mask that keeps `n` of every `m` along the axis before the last: which ones, as a number.

    .. math:: \lceil \log_2 \tbinom{m}{n} \rceil \text{ bits for } m \text{ elements}

    A number in order of all choices takes fewer bits than the `n` places (2:4 takes 3 against 4).

    Args:
        codes: `Bits`, `(..., a / m, b)` for a mask `(..., a, b)`: the number of each group's
            choice, its lowest 16 bits.
        high: `Bits` of the bits above those, where there are more than 65,536 choices.
        shape: shape of the mask.
        n: elements kept of each group.
        m: elements of a group.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Groups
        >>> kept = Groups.of(jnp.array([False, True, False, True, True, True, False, False]), 2, 4)
        >>> kept, kept.codes.materialize()
        (2:4 3-bit[2], Array([4, 0], dtype=int32))

    References:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks (2:4, as places); Knuth, The
        Art of Computer Programming 4A, section 7.2.1.3 (the numbers).
    """

    codes: Field
    high: Field = None
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    n: int = static(default=2)
    m: int = static(default=4)

    @classmethod
    def of(cls, mask: jax.Array, n: int, m: int) -> Groups:
        """Encodes a mask that keeps `n` of every `m`; works under `jax.jit`, which believes it."""
        rank = subset_rank(split_groups(mask, m), n)
        width = width_for(math.comb(m, n))
        if width <= _LOW:
            return cls(Bits.of(rank, width), None, tuple(mask.shape), n, m)
        low, high = rank & jnp.uint32(2**_LOW - 1), rank >> _LOW
        return cls(Bits.of(low, _LOW), Bits.of(high, width - _LOW), tuple(mask.shape), n, m)

    @staticmethod
    def cost(shape: tuple[int, ...], n: int, m: int) -> int:
        """Bits of what `of` makes of a mask of this shape."""
        width, grid = width_for(math.comb(m, n)), _grid(shape, m)
        high = Bits.cost(grid, width - _LOW) if width > _LOW else 0
        return Bits.cost(grid, min(width, _LOW)) + high

    @property
    def most(self) -> int:
        """Exactly so many."""
        return self.size // self.m * self.n

    @property
    def least(self) -> int:
        """Exactly so many."""
        return self.most

    def materialize(self) -> jax.Array:
        """The bool mask."""
        rank = show(self.codes).astype(jnp.uint32)
        if self.high is not None:
            rank = rank | show(self.high).astype(jnp.uint32) << _LOW
        return join_groups(subset_of_rank(rank, self.n, self.m), self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Groups must divide the mask, and have one code each."""
        found = [text for _, field in self.fields() if is_node(field)
                 for text in field.problems(field.shape)]  # fmt: skip
        if text := misfit(self.shape, self.n, self.m):
            return [*found, text]
        grid = _grid(self.shape, self.m)
        wide = width_for(math.comb(self.m, self.n)) > _LOW
        codes = [self.codes] if self.high is None else [self.codes, self.high]
        if len(codes) != 1 + wide or any(field.shape != grid for field in codes):
            found.append(f"of shape {self.shape} has {self.outline()}")
        return found

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Groups:
        """The codes lie like the mask, a group where its elements were."""
        fields = {name: field_specs(field, spec, mesh) for name, field in self.fields()}
        return self.replace(**fields)

    def outline(self) -> str:
        """`2:4 3-bit[196,300]`."""
        inner = " ".join(summary(field) for _, field in self.fields())
        return f"{self.n}:{self.m} {inner}"


def _grid(shape: tuple[int, ...], m: int) -> tuple[int, ...]:
    """The shape of the groups."""
    axis = group_axis(shape)
    return (*shape[:axis], shape[axis] // m, *shape[axis + 1 :])


def misfit(shape: tuple[int, ...], n: int, m: int) -> str | None:
    """Why a mask of this shape cannot keep `n` of every `m`, or not as numbers; None if it can.

    Example:
        >>> misfit((6, 8), 2, 4)
        'groups of 4 do not divide axis 0 of shape (6, 8)'
    """
    if not 0 < n <= m or math.comb(m, n) > MOST_CHOICES:
        return f"{n}:{m} is no pattern of at most 2^31 choices"
    axis = group_axis(shape)
    if not shape or shape[axis] % m:
        return f"groups of {m} do not divide axis {axis} of shape {shape}"
    return None
