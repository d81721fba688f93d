"""Integer codes of 1 to 16 bits, really packed."""

from __future__ import annotations

import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.base import Field, is_node, node, static, store_field, summary
from nnopt_jax.arrays.trits import Trits
from nnopt_jax.arrays.words import Words
from nnopt_jax.ops.bit_packing import host_pack_bits, pack_bits, packed_size, unpack_bits


@node
class Bits(Words):
    """Integers `low .. low + 2^width - 1` in `width` bits each.

    The codes lie in `uint8` words along the last axis (`layout="rows"`) where that axis needs no
    padding, so that the other axes can be sharded, and as one flat run otherwise.

    Args:
        words: uint8, `(..., ceil(n * width / 8))`.
        width: bits of one code.
        low: the integer that code 0 stands for.
        shape: shape of the integers.
        layout: `"rows"` or `"flat"`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Bits
        >>> packed = Bits.of(jnp.array([-2, 1, 0, -1]), width=2, low=-2)
        >>> packed.words.size, packed.materialize()
        (1, Array([-2,  1,  0, -1], dtype=int32))
    """

    words: jax.Array
    width: int = static(default=8)
    low: int = static(default=0)
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    layout: str = static(default="flat")

    @classmethod
    def of(cls, codes: jax.Array | np.ndarray, width: int, low: int = 0) -> Self:
        """Packs integers (of any dtype, floats holding integers included); NumPy's on the host."""
        shape = tuple(codes.shape)
        layout = "rows" if shape and shape[-1] and shape[-1] % 8 == 0 else "flat"
        unsigned = codes.astype(np.int32) - low
        rows = unsigned if layout == "rows" else unsigned.ravel()
        if isinstance(rows, np.ndarray):
            return cls(jnp.asarray(host_pack_bits(rows, width)), width, low, shape, layout)
        return cls(pack_bits(rows, width), width, low, shape, layout)

    @staticmethod
    def cost(shape: tuple[int, ...], width: int) -> int:
        """Bits of the words that `of` makes of integers of this shape."""
        if shape and shape[-1] and shape[-1] % 8 == 0:
            return 8 * math.prod(shape[:-1]) * packed_size(shape[-1], width)
        return 8 * packed_size(math.prod(shape), width)

    @property
    def high(self) -> int:
        """The greatest integer that the width has room for."""
        return self.low + 2**self.width - 1

    def _unpack(self, count: int) -> jax.Array:
        return unpack_bits(self.words, self.width, count)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """The words must be exactly those that the shape needs."""
        rows, count = self.shape[:-1], self.shape[-1] if self.layout == "rows" else 0
        if self.layout == "flat":
            rows, count = (), math.prod(self.shape)
        if not 1 <= self.width <= 16 or self.layout not in ("rows", "flat"):
            return [f"has width {self.width!r} and layout {self.layout!r}"]
        wanted = (*rows, packed_size(count, self.width))
        if self.words.shape == wanted and self.words.dtype == jnp.uint8:
            return []
        return [f"of shape {self.shape} needs uint8 words {wanted}, has {summary(self.words)}"]

    def outline(self) -> str:
        """`4-bit[300,100]`."""
        return f"{self.width}-bit[{','.join(map(str, self.shape))}]"


def width_for(count: int) -> int:
    """Bits needed to tell `count` things apart, at least 1.

    Example:
        >>> from nnopt_jax.arrays.bits import width_for
        >>> width_for(1), width_for(16), width_for(17)
        (1, 4, 5)
    """
    return max(1, (count - 1).bit_length())


def store_codes(codes: Field, low: int, high: int) -> Field:
    """The storage form of codes of `low .. high`: nodes by their own `store`, arrays packed."""
    return store_field(codes) if is_node(codes) else pack_integers(codes, low, high)


def pack_integers(codes: jax.Array, low: int, high: int) -> jax.Array | Bits | Trits:
    """Stores integers of `low .. high` in the smallest form.

    Three values lie five to a byte, others of seven bits and less are packed; eight and sixteen
    bits lie in arrays of their own dtype, which hardware reads directly.

    Args:
        codes: integers of any dtype, floats holding integers included.
        low: the least value.
        high: the greatest value.

    Returns:
        `Trits`, `Bits`, or an array of int8, uint8, int16 or uint16.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.bits import pack_integers
        >>> pack_integers(jnp.array([3.0, -8.0]), -8, 7), pack_integers(jnp.array([9]), 0, 255)
        (4-bit[2], Array([9], dtype=uint8))
    """
    if high - low == 2:
        return Trits.of(codes, low)
    width = width_for(high - low + 1)
    if width < 8:
        return Bits.of(codes, width, low)
    bits = 8 if width == 8 else 16
    return codes.astype(jnp.dtype(f"int{bits}" if low < 0 else f"uint{bits}"))
