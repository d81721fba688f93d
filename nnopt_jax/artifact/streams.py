"""What an expression is made of, as streams of symbols that neighbors can tell something about.

A stream covers one or more arrays of a tree. It is made from the abstract tree alone, so that
whoever reads a file knows the streams before the first of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
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
from nnopt_jax.artifact.packing import gaps, mask_of
from nnopt_jax.ops.bit_packing import (
    host_pack_bits,
    host_pack_ternary,
    host_unpack_bits,
    host_unpack_ternary,
)

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one array in a tree.

    Args:
        index: its number in the order of the leaves.
        shape: its shape.
        dtype: its dtype.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any


def _index(slot: Any) -> int:
    """Number of an array; trees of slots hold them where arrays are declared."""
    return slot.index


class Stream:
    """One run of symbols, and the arrays it stands for.

    Args:
        about: the node whose codes these are, which knows where zero lies; or None.
    """

    covers: tuple[int, ...]
    shape: tuple[int, ...]
    alphabet: int
    low: int = 0
    about: Any = None

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """The symbols of the arrays, of the stream's shape."""
        raise NotImplementedError

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Undoes `symbols`: the arrays by number."""
        raise NotImplementedError

    def center(self, arrays: Arrays) -> int:
        """The first symbol that stands for a value of zero or more."""
        return int(np.clip(_zero(self.about, arrays) - self.low, 0, self.alphabet - 1))


def _zero(about: Any, arrays: Arrays) -> int:
    """The code that stands for zero."""
    if isinstance(about, Codebook) and isinstance(about.table, Slot):
        table = arrays[about.table.index]  # of several tables, what they have in the mean
        return round((table < 0).sum() * table.shape[-1] / max(table.size, 1))
    if isinstance(about, LookupQuantized):
        return sum(level < 0 for level in about.levels)
    if (
        isinstance(about, Quantized)
        and isinstance(about.zero, Slot)
        and math.prod(about.zero.shape)
    ):
        return round(float(arrays[about.zero.index].astype(np.float64).mean()))
    return 0


class Plain(Stream):
    """An array whose bytes say nothing about each other's meaning: floats, long integers."""

    def __init__(self, slot: Slot) -> None:
        self.slot, self.covers = slot, (slot.index,)


class Integers(Stream):
    """An array of small integers or truth values."""

    def __init__(self, slot: Slot, about: Any) -> None:
        self.slot, self.covers, self.about = slot, (slot.index,), about
        self.shape = slot.shape
        size = np.dtype(slot.dtype).itemsize
        self.alphabet = 2 if slot.dtype == np.bool_ else 1 << 8 * size
        self.low = -self.alphabet // 2 if np.dtype(slot.dtype).kind == "i" else 0

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """The integers, counted from the least their type holds."""
        array = arrays[self.slot.index]
        if not self.low:
            return array
        unsigned = np.dtype(f"u{array.dtype.itemsize}")
        return array.view(unsigned) ^ unsigned.type(-self.low)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """The integers in their own type."""
        unsigned = np.dtype(f"u{self.slot.dtype.itemsize}")
        flipped = symbols.astype(unsigned) ^ unsigned.type(-self.low)
        return {self.slot.index: flipped.view(self.slot.dtype)}


class Packed(Stream):
    """The codes of `Bits`."""

    def __init__(self, bits: Bits, about: Any) -> None:
        self.bits, self.about = bits, about
        self.covers = (_index(bits.words),)
        self.shape, self.alphabet, self.low = bits.shape, 1 << bits.width, bits.low

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """The codes, unpacked."""
        bits, words = self.bits, arrays[self.covers[0]]
        size = self.shape[-1] if bits.layout == "rows" else math.prod(self.shape)
        return host_unpack_bits(words, bits.width, size).reshape(self.shape)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """The words."""
        rows = symbols if self.bits.layout == "rows" else symbols.ravel()
        return {self.covers[0]: host_pack_bits(rows, self.bits.width)}


class Ternary(Stream):
    """The codes of `PackedTernary`."""

    alphabet = 3

    def __init__(self, trits: PackedTernary, about: Any) -> None:
        self.trits, self.about = trits, about
        self.covers = (_index(trits.words),)
        self.shape, self.low = trits.shape, trits.low

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """The codes, unpacked."""
        size = self.shape[-1] if self.trits.layout == "rows" else math.prod(self.shape)
        return host_unpack_ternary(arrays[self.covers[0]], size).reshape(self.shape)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """The words."""
        rows = symbols if self.trits.layout == "rows" else symbols.ravel()
        return {self.covers[0]: host_pack_ternary(rows)}


class Gapped(Stream):
    """The mask that `DeltaIndex` stands for."""

    alphabet = 2

    def __init__(self, support: DeltaIndex, codes: Stream) -> None:
        self.support, self.codes = support, codes
        self.covers, self.shape = self.codes.covers, support.shape

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """The mask, as zeros and ones."""
        codes = self.codes.symbols(arrays)
        mask = mask_of(codes, self.support.width, math.prod(self.shape))
        return mask.reshape(self.shape).astype(np.uint8)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """The words of the gaps."""
        return self.codes.arrays(gaps(symbols.ravel(), self.support.width))


class Listed(Stream):
    """The mask that `CSR` stands for."""

    alphabet = 2

    def __init__(self, support: CSR, counts: Stream, columns: Stream) -> None:
        self.counts, self.columns = counts, columns
        self.covers, self.shape = (*counts.covers, *columns.covers), support.shape
        self.matrix = (math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1)

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """The mask, as zeros and ones."""
        table = np.zeros(self.matrix, np.uint8)
        rows = np.repeat(np.arange(self.matrix[0]), self.counts.symbols(arrays))
        table[rows, self.columns.symbols(arrays)] = 1
        return table.reshape(self.shape)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """The words of the counts and of the columns."""
        table = symbols.reshape(self.matrix)
        columns = np.nonzero(table)[1]
        return self.counts.arrays(table.sum(1, dtype=np.int64)) | self.columns.arrays(columns)


class Kept(Stream):
    """A mask and the codes it keeps: symbol 0 where nothing is kept, code + 1 where one is."""

    def __init__(self, support: Stream, codes: Stream) -> None:
        self.support, self.codes = support, codes
        self.covers = (*support.covers, *codes.covers)
        self.shape, self.alphabet = support.shape, codes.alphabet + 1
        self.low, self.about = codes.low - 1, codes.about

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Mask and codes in one."""
        mask = self.support.symbols(arrays) > 0
        symbols = np.zeros(mask.shape, np.uint32)
        symbols[mask] = self.codes.symbols(arrays).astype(np.uint32) + 1
        return symbols

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """The arrays of the support and those of the codes."""
        mask = symbols > 0
        codes = symbols[mask] - 1
        return self.support.arrays(mask.astype(np.uint8)) | self.codes.arrays(codes)


def streams(tree: Any) -> list[Stream]:
    """Lists the streams of a tree whose arrays are `Slot`s, in a fixed order.

    Args:
        tree: pytree of slots and nodes of slots.

    Returns:
        Streams that together cover each slot once.
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: is_node(x) or isinstance(x, Slot))
    return [stream for leaf in leaves for stream in _visit(leaf, None)]


def loose(stream: Stream, slots: Mapping[int, Slot]) -> list[Stream]:
    """The arrays of a stream one by one, where they are not what their node would have made."""
    return [_stream(slots[index], None) for index in stream.covers]


def _visit(field: Any, about: Any) -> Iterator[Stream]:
    if isinstance(field, (Slot, Bits, PackedTernary, DeltaIndex)) or _is_listed(field):
        yield _stream(field, about)
    elif isinstance(field, Sparse):
        yield from _visit_sparse(field)
    else:
        for name, inner in field.fields():
            yield from _visit(inner, field if name in field.ELEMENTWISE else None)


def _visit_sparse(field: Sparse) -> Iterator[Stream]:
    if not (isinstance(field.support, (Bits, DeltaIndex)) or _is_listed(field.support)):
        # One code stands for many elements: it says more than they would, one by one.
        yield from _visit(field.support, None)
        yield from _visit(field.values, None)
        return
    support = _stream(field.support, None)
    elements = list(_elements(field.values, None))
    if len(elements) == 1 and not isinstance(support, Plain) and not isinstance(elements[0], Plain):
        kept = Kept(support, elements[0])
        support = kept if kept.alphabet <= MOST_ALPHABET else support
    yield support
    for stream in _visit(field.values, None):
        if not set(stream.covers) & set(support.covers):
            yield stream


def _is_listed(field: Any) -> bool:
    """Whether a field is `CSR` of few enough columns for a stream of its own."""
    return isinstance(field, CSR) and all(isinstance(x, Bits) for _, x in field.fields())


def _elements(field: Any, about: Any) -> Iterator[Stream]:
    """The streams of the fields that lie like the kept elements."""
    if isinstance(field, (Slot, Bits, PackedTernary)):
        yield _stream(field, about)
    else:
        for name in field.ELEMENTWISE:
            yield from _elements(getattr(field, name), field)


def _stream(field: Any, about: Any) -> Stream:
    if isinstance(field, Bits):
        return Packed(field, about)
    if isinstance(field, PackedTernary):
        return Ternary(field, about)
    if isinstance(field, CSR):
        return Listed(field, _stream(field.counts, None), _stream(field.columns, None))
    if isinstance(field, DeltaIndex):
        codes = _stream(field.codes, None)
        return codes if isinstance(codes, Plain) else Gapped(field, codes)
    small = jnp.issubdtype(field.dtype, jnp.integer) and np.dtype(field.dtype).itemsize <= 2
    whole = np.dtype(field.dtype).kind in "iu"  # not int4, whose NumPy twin is opaque
    return Integers(field, about) if field.dtype == np.bool_ or (small and whole) else Plain(field)
