"""A mask as relative indices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.base import Field, node, show, static, summary
from nnopt_jax.arrays.bits import Bits
from nnopt_jax.arrays.supports.base import Support


@node
class Gaps(Support):
    """A mask as relative indices: how many masked elements lie before each kept one.

    A gap of `2^width - 1` stands for that many masked elements and no kept one, so that long
    gaps are sums. Stands for a bool array.

    Args:
        codes: `Bits` (or an integer array) of the gaps, in flat order.
        shape: shape of the mask.
        width: bits of a gap.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Gaps
        >>> gaps = Gaps.of(jnp.array([False, True, False, False, False, True]), width=2)
        >>> gaps.codes.materialize(), gaps.materialize()
        (Array([1, 3, 0], dtype=int32), Array([False,  True, False, False, False,  True], dtype=bool))

    References:
        Han et al. 2016, Deep Compression, section 2 (relative indices; they pad with zeros).
    """  # noqa: E501 - printed by the doctest

    codes: Field
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    width: int = static(default=8)

    @classmethod
    def of(cls, mask: jax.Array, width: int | None = None) -> Gaps:
        """Encodes a concrete mask; the number of codes depends on it, and the best width too."""
        between = _gaps(np.asarray(mask))
        width = _best_width(between) if width is None else width
        escape = 2**width - 1
        codes = np.full(_codes(between, width), escape, np.int32)
        codes[np.cumsum(between // escape + 1) - 1] = between % escape
        return cls(Bits.of(codes, width), tuple(mask.shape), width)

    @staticmethod
    def cost(mask: np.ndarray) -> int:
        """Bits of what `of` makes of a mask, in the best width."""
        between = _gaps(mask)
        width = _best_width(between)
        return Bits.cost((_codes(between, width),), width)

    @property
    def most(self) -> int:
        """No more than there are codes."""
        return self.codes.size

    def materialize(self) -> jax.Array:
        """The bool mask."""
        codes = show(self.codes).astype(jnp.int32)
        kept = codes != 2**self.width - 1
        position = jnp.cumsum(codes + kept.astype(jnp.int32)) - 1
        size = math.prod(self.shape)
        flat = jnp.zeros(size, bool).at[jnp.where(kept, position, size)].set(True, mode="drop")
        return flat.reshape(self.shape)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The codes must be a flat run of integers."""
        codes = super().problems(shape)
        if self.codes.ndim != 1 or not 1 <= self.width <= 16:
            codes.append(f"has codes {self.codes!r} of width {self.width!r}")
        return codes

    def outline(self) -> str:
        """`gaps 5-bit[8000]`."""
        return f"gaps {summary(self.codes)}"


def _gaps(mask: np.ndarray) -> np.ndarray:
    """Masked elements before each kept one, in flat order."""
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def _best_width(between: np.ndarray) -> int:
    """The width of 2 to 8 bits that needs the fewest bits; 1 bit would be a bit an element."""
    costs = {width: _codes(between, width) * width for width in range(2, 9)}
    return min(costs, key=costs.__getitem__)


def _codes(between: np.ndarray, width: int) -> int:
    """How many codes gaps take, those included that stand for no kept element."""
    return int((between // (2**width - 1) + 1).sum())
