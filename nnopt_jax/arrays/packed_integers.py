"""Packed integer codes: 1 to 16 bits each, or five ternary codes to a byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from nnopt_jax.arrays.hooks import Moves, move
from nnopt_jax.arrays.nodes import (
    Field,
    Node,
    fit_spec,
    is_node,
    node,
    static,
    store_field,
    summary,
)
from nnopt_jax.ops.bit_packing import (
    host_pack_bits,
    host_pack_ternary,
    host_unpack_bits,
    host_unpack_ternary,
    pack_bits,
    pack_ternary,
    packed_size,
    unpack_bits,
    unpack_ternary,
)
from nnopt_jax.ops.eager import is_on_host, like_input, to_integers
from nnopt_jax.typing import Array, Shape


class PackedIntegers(Node):
    """Base of nodes that pack integers in uint8 words, row by row or as one flat sequence.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import Bits
        >>> Bits.of(jnp.zeros((2, 8), int), width=4).layout, Bits.of(jnp.zeros(3, int), 4).layout
        ('rows', 'flat')
    """

    words: jax.Array
    low: int
    layout: str

    @property
    def high(self) -> int:
        """The greatest integer that can be packed."""
        raise NotImplementedError

    @property
    def alphabet(self) -> int:
        """The number of integers that can be packed."""
        return self.high - self.low + 1

    @property
    def _run(self) -> int:
        """The number of integers in each sequence of words."""
        return self.shape[-1] if self.layout == "rows" else math.prod(self.shape)

    def _unpack(self, count: int) -> Array:
        """Unpack `count` integers from each sequence of words, without adding `low`."""
        raise NotImplementedError

    def _host_pack(self, codes: np.ndarray) -> np.ndarray:
        """Pack integers along the last axis, with NumPy, without subtracting `low`."""
        raise NotImplementedError

    def _host_unpack(self, words: np.ndarray, count: int) -> np.ndarray:
        """Unpack `count` integers from each sequence of words, with NumPy, without adding `low`."""
        raise NotImplementedError

    def host_pack(self, codes: np.ndarray) -> np.ndarray:
        """Pack integers of this node's shape, minus `low`, into words, with NumPy."""
        return self._host_pack(codes if self.layout == "rows" else codes.ravel())

    def host_unpack(self, words: np.ndarray) -> np.ndarray:
        """Unpack words to integers of this node's shape, with NumPy."""
        return self._host_unpack(words, self._run).reshape(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the unpacked integers: int32, which represents every code."""
        return jnp.dtype(jnp.int32)

    def materialize(self) -> jax.Array:
        """Unpack the integers to int32."""
        codes = self._unpack(self._run).astype(jnp.int32)
        return codes.reshape(self.shape) + self.low

    @property
    def is_streamed(self) -> bool:
        """Whether sums need no dense array: always, since one or two words hold each integer."""
        return True

    def store(self) -> Self:
        """Return the node itself, which is in storage form already."""
        return self

    def map_elementwise(self, function: Callable[[jax.Array], jax.Array]) -> Field:
        """Apply a function to the unpacked integers; the owner packs the result again."""
        return function(self.materialize())

    def specs(self, spec: PartitionSpec, mesh: jax.sharding.Mesh | None = None) -> Self:
        """Return specs: rows are sharded like the logical array, flat words are replicated."""
        words = fit_spec(spec, self.words.shape, mesh) if self.layout == "rows" else PartitionSpec()
        return self.replace(words=words)

    def move(self, movement: Moves, shape: Shape) -> Field:
        """Move the words if the last axis stays in place; otherwise unpack and move the codes."""
        if self.layout == "rows" and movement.kept >= 1 and not movement.fills:
            words = move(self.words, movement, (*shape[:-1], self.words.shape[-1]))
            return self.replace(words=words, shape=(*words.shape[:-1], shape[-1]))
        kinds = (jnp.iinfo(kind) for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16))
        narrow = next(x.dtype for x in kinds if x.min <= self.low and self.high <= x.max)
        return move(self.materialize().astype(narrow), movement, shape)


@node
class PackedTernary(PackedIntegers):
    """Ternary integers `low`, `low + 1` and `low + 2`, in 1.6 bits each.

    The codes lie in `uint8` words along the last axis (`layout="rows"`) where that axis needs no
    padding, so that the other axes can be sharded, and as one flat run otherwise.

    Args:
        words: uint8, `(..., ceil(n / 5))`.
        low: the integer that code 0 stands for.
        shape: shape of the integers.
        layout: `"rows"` or `"flat"`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays import PackedTernary
        >>> packed = PackedTernary.of(jnp.array([-1, 1, 0, 0, -1]))
        >>> packed.words.size, packed.materialize()
        (1, Array([-1,  1,  0,  0, -1], dtype=int32))
    """

    words: jax.Array
    low: int = static(default=-1)
    shape: tuple[int, ...] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    layout: str = static(default="flat")

    @classmethod
    def of(cls, codes: jax.Array, low: int = -1) -> Self:
        """Pack integers (of any dtype, floats holding integers included)."""
        shape = codes.shape
        layout = "rows" if shape and shape[-1] and shape[-1] % 5 == 0 else "flat"
        unsigned = _unsigned(codes, low, np.dtype("u1"))
        rows: Any = unsigned if layout == "rows" else unsigned.ravel()
        pack = host_pack_ternary if isinstance(rows, np.ndarray) else pack_ternary
        return cls(like_input(pack(rows), codes), low, shape, layout)

    @property
    def high(self) -> int:
        """The greatest of the three integers."""
        return self.low + 2

    def _unpack(self, count: int) -> jax.Array:
        return unpack_ternary(self.words, count)

    def _host_pack(self, codes: np.ndarray) -> np.ndarray:
        return host_pack_ternary(codes)

    def _host_unpack(self, words: np.ndarray, count: int) -> np.ndarray:
        return host_unpack_ternary(words, count)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that there are exactly as many words as the shape needs."""
        if self.layout not in ("rows", "flat"):
            return [f"has layout {self.layout!r}"]
        rows = self.shape if self.layout == "rows" else (math.prod(self.shape),)
        wanted = (*rows[:-1], -(-rows[-1] // 5))
        if self.words.shape == wanted and self.words.dtype == jnp.uint8:
            return []
        return [f"of shape {self.shape} needs uint8 words {wanted}, has {summary(self.words)}"]

    def outline(self) -> str:
        """Return a summary such as `1.6-bit[300,100]`."""
        return f"1.6-bit[{','.join(map(str, self.shape))}]"


@node
class Bits(PackedIntegers):
    """Integers `low .. low + 2^width - 1`, in `width` bits each.

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
        """Pack integers (of any dtype, floats holding integers included)."""
        shape = tuple(codes.shape)
        layout = "rows" if shape and shape[-1] and shape[-1] % 8 == 0 else "flat"
        unsigned = _unsigned(codes, low, np.dtype("u1" if width <= 8 else "u2"))
        rows: Any = unsigned if layout == "rows" else unsigned.ravel()
        pack = host_pack_bits if isinstance(rows, np.ndarray) else pack_bits
        return cls(like_input(pack(rows, width), codes), width, low, shape, layout)

    @staticmethod
    def cost(shape: tuple[int, ...], width: int) -> int:
        """Return the bits that `of` needs for integers of this shape."""
        if shape and shape[-1] and shape[-1] % 8 == 0:
            return 8 * math.prod(shape[:-1]) * packed_size(shape[-1], width)
        return 8 * packed_size(math.prod(shape), width)

    @property
    def high(self) -> int:
        """The greatest integer that the width can hold."""
        return self.low + 2**self.width - 1

    def _unpack(self, count: int) -> jax.Array:
        return unpack_bits(self.words, self.width, count)

    def _host_pack(self, codes: np.ndarray) -> np.ndarray:
        return host_pack_bits(codes, self.width)

    def _host_unpack(self, words: np.ndarray, count: int) -> np.ndarray:
        return host_unpack_bits(words, self.width, count)

    def problems(self, shape: tuple[int, ...]) -> list[str]:
        """Check that there are exactly as many words as the shape needs."""
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
        """Return a summary such as `4-bit[300,100]`."""
        return f"{self.width}-bit[{','.join(map(str, self.shape))}]"


_PIECE = 1 << 20
"""The number of codes that are converted at a time."""


def _unsigned(codes: jax.Array | np.ndarray, low: int, dtype: np.dtype) -> jax.Array | np.ndarray:
    """Subtract the least code from all; on the host by pieces, which takes less memory."""
    if not is_on_host(codes):
        return to_integers(codes, np.int32) - low
    flat = np.asarray(codes).ravel()
    found = np.empty(flat.shape, dtype)
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        found[piece] = to_integers(flat[piece], np.int32) - low
    return found.reshape(codes.shape)


def width_for(count: int) -> int:
    """Return the number of bits that distinguish `count` values, at least 1.

    Example:
        >>> from nnopt_jax.arrays.packed_integers import width_for
        >>> width_for(1), width_for(16), width_for(17)
        (1, 4, 5)
    """
    return max(1, (count - 1).bit_length())


def store_codes(codes: Field, low: int, high: int) -> Field:
    """Return the storage form of codes `low .. high`, given as a node or an array."""
    return store_field(codes) if is_node(codes) else pack_integers(codes, low, high)


def pack_integers(codes: jax.Array, low: int, high: int) -> jax.Array | Bits | PackedTernary:
    """Store integers of `low .. high` in the smallest form.

    Three values are packed five to a byte, and other integers of seven bits or fewer in words.
    Eight and sixteen bits are stored in arrays of that dtype, which hardware reads directly.

    Args:
        codes: integers of any dtype, floats holding integers included.
        low: the least value.
        high: the greatest value.

    Returns:
        `PackedTernary`, `Bits`, or an array of int8, uint8, int16 or uint16.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.packed_integers import pack_integers
        >>> pack_integers(jnp.array([3.0, -8.0]), -8, 7), pack_integers(jnp.array([9]), 0, 255)
        (4-bit[2], Array([9], dtype=uint8))
    """
    if high - low == 2:
        return PackedTernary.of(codes, low)
    width = width_for(high - low + 1)
    if width < 8:
        return Bits.of(codes, width, low)
    bits = 8 if width == 8 else 16
    narrow = jnp.dtype(f"int{bits}" if low < 0 else f"uint{bits}")
    return like_input(to_integers(codes, narrow), codes)
