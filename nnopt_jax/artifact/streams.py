"""Streams: the arrays of packed parameters as sequences of similar symbols.

A stream covers one or more arrays of a tree. Streams depend on the abstract tree alone, so that the
decoder of a file knows all streams before it reads the first one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import (
    CSR,
    Bits,
    Codebook,
    DeltaIndex,
    LookupQuantized,
    PackedTernary,
    Quantized,
    Sparse,
    is_node,
)
from nnopt_jax.artifact.codec import MOST_ALPHABET
from nnopt_jax.errors import ArtifactError
from nnopt_jax.ops import bit_packing

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArraySlot:
    """The position, shape and dtype of one array in a tree.

    Args:
        index: its position among the leaves.
        shape: its shape.
        dtype: its dtype.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """The number of bytes of an element."""
        return np.dtype(self.dtype).itemsize


class Stream:
    """A sequence of symbols, and the arrays it stands for.

    Args:
        owner: the node that the codes belong to, which determines the code of zero; or None.
    """

    covers: tuple[int, ...]
    shape: tuple[int, ...]
    alphabet: int = 2
    low: int = 0
    owner: Any = None

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Return the symbols of the arrays, in the stream's shape."""
        raise NotImplementedError

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Invert `symbols`: return the arrays by number."""
        raise NotImplementedError

    def center(self, arrays: Arrays) -> int:
        """Return the first symbol that stands for a non-negative value."""
        return int(np.clip(_zero(self.owner, arrays) - self.low, 0, self.alphabet - 1))


def _zero(owner: Any, arrays: Arrays) -> int:
    """Return the code that stands for zero."""
    if isinstance(owner, Codebook) and isinstance(owner.table, ArraySlot):
        table = arrays[owner.table.index]  # the mean over the tables, if there are several
        return round((table < 0).sum() * table.shape[-1] / max(table.size, 1))
    if isinstance(owner, LookupQuantized):
        return sum(level < 0 for level in owner.levels)
    if isinstance(owner, Quantized) and isinstance(owner.zero, ArraySlot) and owner.zero.size:
        return round(float(arrays[owner.zero.index].astype(np.float64).mean()))
    return 0


class PlainArray(Stream):
    """An array that is coded byte by byte: floats and long integers."""

    def __init__(self, slot: ArraySlot) -> None:
        self.slot, self.covers = slot, (slot.index,)


class SmallIntegers(Stream):
    """An array of booleans or of integers of at most 16 bits."""

    def __init__(self, slot: ArraySlot, owner: Any) -> None:
        self.slot, self.covers, self.owner, self.shape = slot, (slot.index,), owner, slot.shape
        if slot.dtype != np.bool_:
            self.alphabet = 1 << 8 * slot.itemsize
        self.low = -self.alphabet // 2 if np.dtype(slot.dtype).kind == "i" else 0
        self.unsigned = np.dtype(f"u{slot.itemsize}")

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Return the integers, counted from the least one of their dtype."""
        array = arrays[self.slot.index]
        return array.view(self.unsigned) ^ self.unsigned.type(-self.low) if self.low else array

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Return the integers in their own dtype."""
        flipped = symbols.astype(self.unsigned) ^ self.unsigned.type(-self.low)
        return {self.slot.index: flipped.view(self.slot.dtype)}


class PackedCodes(Stream):
    """The integer codes of `Bits` or `PackedTernary`."""

    def __init__(self, packed: Any, owner: Any) -> None:
        self.covers, self.shape, self.low = (packed.words.index,), packed.shape, packed.low
        self.owner, self.by_row = owner, packed.layout == "rows"
        self.width = packed.width if isinstance(packed, Bits) else None
        self.alphabet = 3 if self.width is None else 1 << self.width

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Unpack the codes."""
        words = arrays[self.covers[0]]
        size = self.shape[-1] if self.by_row else math.prod(self.shape)
        if self.width is None:
            return bit_packing.host_unpack_ternary(words, size).reshape(self.shape)
        return bit_packing.host_unpack_bits(words, self.width, size).reshape(self.shape)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Pack the codes."""
        codes = symbols if self.by_row else symbols.ravel()
        if self.width is None:
            return {self.covers[0]: bit_packing.host_pack_ternary(codes)}
        return {self.covers[0]: bit_packing.host_pack_bits(codes, self.width)}


class DeltaMask(Stream):
    """The mask that a `DeltaIndex` stands for."""

    def __init__(self, support: DeltaIndex, codes: Stream) -> None:
        self.codes, self.covers, self.shape = codes, codes.covers, support.shape
        self.width = support.width

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Return the mask, as zeros and ones."""
        mask = delta_mask(self.codes.symbols(arrays), self.width, math.prod(self.shape))
        return mask.reshape(self.shape).astype(np.uint8)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Return the words of the deltas."""
        return self.codes.arrays(delta_codes(symbols.ravel(), self.width))


class CSRMask(Stream):
    """The mask that `CSR` stands for."""

    def __init__(self, support: CSR, counts: Stream, columns: Stream) -> None:
        self.counts, self.columns = counts, columns
        self.covers, self.shape = (*counts.covers, *columns.covers), support.shape
        self.matrix = (math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1)

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Return the mask, as zeros and ones."""
        table = np.zeros(self.matrix, np.uint8)
        rows = np.repeat(np.arange(self.matrix[0]), self.counts.symbols(arrays))
        table[rows, self.columns.symbols(arrays)] = 1
        return table.reshape(self.shape)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Return the words of the counts and of the columns."""
        table = symbols.reshape(self.matrix)
        columns = np.nonzero(table)[1]
        return self.counts.arrays(table.sum(1, dtype=np.int64)) | self.columns.arrays(columns)


class KeptCodes(Stream):
    """A mask and the codes it keeps: symbol 0 for masked entries, code + 1 for others."""

    def __init__(self, support: Stream, codes: Stream) -> None:
        self.support, self.codes = support, codes
        self.covers = (*support.covers, *codes.covers)
        self.shape, self.alphabet = support.shape, codes.alphabet + 1
        self.low, self.owner = codes.low - 1, codes.owner

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Return the symbols that combine mask and codes."""
        mask = self.support.symbols(arrays) > 0
        symbols = np.zeros(mask.shape, np.uint32)
        symbols[mask] = self.codes.symbols(arrays).astype(np.uint32) + 1
        return symbols

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Return the arrays of the sparse layout and those of the codes."""
        mask = symbols > 0
        codes = self.codes.arrays(symbols[mask] - 1)
        return self.support.arrays(mask.astype(np.uint8)) | codes


def streams_of(tree: Any, separate: Sequence[int] = ()) -> list[Stream]:
    """List the streams of a tree of `ArraySlot`s, in a fixed order.

    Args:
        tree: pytree of slots, and of nodes whose arrays are slots.
        separate: the numbers of streams to replace by one stream for each array, because the
            symbols would not restore these arrays bit for bit.

    Returns:
        Streams that together cover each slot exactly once.
    """
    slots, apart = jax.tree.leaves(tree), set(separate)
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: is_node(x) or isinstance(x, ArraySlot))
    streams: list[Stream] = []
    for number, stream in enumerate(stream for leaf in leaves for stream in _visit(leaf, None)):
        alone = [_stream(slots[index], None) for index in stream.covers if number in apart]
        streams += alone or [stream]
    return streams


def _visit(field: Any, owner: Any) -> Iterator[Stream]:
    if isinstance(field, (ArraySlot, Bits, PackedTernary)) or _is_mask(field):
        yield _stream(field, owner)
    elif isinstance(field, Sparse):
        yield from _visit_sparse(field)
    else:
        for name, inner in field.fields():
            yield from _visit(inner, field if name in field.ELEMENTWISE else None)


def _visit_sparse(field: Sparse) -> Iterator[Stream]:
    if not isinstance(field.support, Bits) and not _is_mask(field.support):
        # One code stands for many elements, so coding the codes is better than coding each element.
        yield from _visit(field.support, None)
        yield from _visit(field.values, None)
        return
    support = _stream(field.support, None)
    codes = list(_elements(field.values, None))
    if len(codes) == 1 and not any(isinstance(x, PlainArray) for x in (support, *codes)):
        kept = KeptCodes(support, codes[0])
        support = kept if kept.alphabet <= MOST_ALPHABET else support
    yield support
    for stream in _visit(field.values, None):
        if not set(stream.covers) & set(support.covers):
            yield stream


def _is_mask(field: Any) -> bool:
    """Return whether a field is a mask layout that a stream of its mask can represent."""
    packed = isinstance(field, CSR) and all(isinstance(x, Bits) for _, x in field.fields())
    return packed or isinstance(field, DeltaIndex)


def _elements(field: Any, owner: Any) -> Iterator[Stream]:
    """Yield the streams of the fields that hold the kept elements."""
    if isinstance(field, (ArraySlot, Bits, PackedTernary)):
        yield _stream(field, owner)
    else:
        for name in field.ELEMENTWISE:
            yield from _elements(getattr(field, name), field)


def _stream(field: Any, owner: Any) -> Stream:
    if isinstance(field, (Bits, PackedTernary)):
        return PackedCodes(field, owner)
    if isinstance(field, CSR):
        return CSRMask(field, _stream(field.counts, None), _stream(field.columns, None))
    if isinstance(field, DeltaIndex):
        codes = _stream(field.codes, None)
        return codes if isinstance(codes, PlainArray) else DeltaMask(field, codes)
    small = jnp.issubdtype(field.dtype, jnp.integer) and field.itemsize <= 2
    native = np.dtype(field.dtype).kind in "iu"  # not int4, whose NumPy dtype is opaque
    is_small = field.dtype == np.bool_ or (small and native)
    return SmallIntegers(field, owner) if is_small else PlainArray(field)


def delta_codes(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the codes of a `DeltaIndex`: the number of masked elements before each kept one.

    The code `2^width - 1` means that the run of masked elements continues.

    Example:
        >>> delta_codes(np.array([False, True, False, False, False, True]), 2)
        array([1, 3, 0])
    """
    escape = 2**width - 1
    between = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    codes = np.full(int((between // escape + 1).sum()), escape, np.int64)
    codes[np.cumsum(between // escape + 1) - 1] = between % escape
    return codes


def delta_mask(codes: np.ndarray, width: int, size: int) -> np.ndarray:
    """Invert `delta_codes`; return a flat mask.

    Raises:
        ArtifactError: the codes reach beyond the mask.

    Example:
        >>> delta_mask(np.array([1, 3, 0]), 2, 6).nonzero()[0]
        array([1, 5])
    """
    codes = codes.astype(np.int64)
    kept = codes != 2**width - 1
    places = (np.cumsum(codes + kept) - 1)[kept]
    if places.size and places[-1] >= size:
        raise ArtifactError(f"malformed: deltas reach {places[-1]} in a mask of {size}.")
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask
