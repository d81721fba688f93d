"""Integer codes of three values, packed five to a byte."""

from __future__ import annotations

import math
from typing import Self

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import node, static, summary
from nnopt_jax.arrays.words import Words
from nnopt_jax.ops.bit_packing import pack_ternary, unpack_ternary


@node
class Trits(Words):
    """Integers `low`, `low + 1` and `low + 2` in 1.6 bits each.

    The codes lie in `uint8` words along the last axis (`layout="rows"`) where that axis needs no
    padding, so that the other axes can be sharded, and as one flat run otherwise.

    Args:
        words: uint8, `(..., ceil(n / 5))`.
        low: the integer that code 0 stands for.
        shape: shape of the integers.
        layout: `"rows"` or `"flat"`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Trits
        >>> packed = Trits.of(jnp.array([-1, 1, 0, 0, -1]))
        >>> packed.words.size, packed.materialize()
        (1, Array([-1,  1,  0,  0, -1], dtype=int32))
    """

    words: jax.Array
    low: int = static(default=-1)
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    layout: str = static(default="flat")

    @classmethod
    def of(cls, codes: jax.Array, low: int = -1) -> Self:
        """Packs integers (of any dtype, floats holding integers included)."""
        shape = codes.shape
        layout = "rows" if shape and shape[-1] and shape[-1] % 5 == 0 else "flat"
        unsigned = codes.astype(jnp.int32) - low
        rows = unsigned if layout == "rows" else unsigned.ravel()
        return cls(pack_ternary(rows), low, shape, layout)

    @property
    def high(self) -> int:
        """The greatest of the three integers."""
        return self.low + 2

    def _unpack(self, count: int) -> jax.Array:
        return unpack_ternary(self.words, count)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The words must be exactly those that the shape needs."""
        if self.layout not in ("rows", "flat"):
            return [f"has layout {self.layout!r}"]
        rows = self.shape if self.layout == "rows" else (math.prod(self.shape),)
        wanted = (*rows[:-1], -(-rows[-1] // 5))
        if self.words.shape == wanted and self.words.dtype == jnp.uint8:
            return []
        return [f"of shape {self.shape} needs uint8 words {wanted}, has {summary(self.words)}"]

    def outline(self) -> str:
        """`1.6-bit[300,100]`."""
        return f"1.6-bit[{','.join(map(str, self.shape))}]"
