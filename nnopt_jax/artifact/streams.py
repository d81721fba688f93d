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

from nnopt_jax.arrays import Sparse, SparseLayout, is_node
from nnopt_jax.arrays.packed_integers import PackedIntegers
from nnopt_jax.artifact.codec import MOST_ALPHABET

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
        """Return the arrays by number, from the symbols; the inverse of `symbols`."""
        raise NotImplementedError

    def center(self, arrays: Arrays) -> int:
        """Return the first symbol that stands for a non-negative value."""
        zero = 0
        if self.owner is not None:
            zero = jax.tree.map(lambda slot: arrays[slot.index], self.owner).zero_code()
        return int(np.clip(zero - self.low, 0, self.alphabet - 1))


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
    """The integer codes of `PackedIntegers`."""

    def __init__(self, packed: PackedIntegers, owner: Any) -> None:
        (words,) = jax.tree.leaves(packed)
        self.packed, self.owner, self.shape = packed, owner, packed.shape
        self.covers, self.low, self.alphabet = (words.index,), packed.low, packed.alphabet

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Unpack the codes."""
        return self.packed.host_unpack(arrays[self.covers[0]])

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Pack the codes."""
        return {self.covers[0]: self.packed.host_pack(symbols)}


class LayoutMask(Stream):
    """The mask that a sparse layout stands for."""

    def __init__(self, layout: SparseLayout, indices: Sequence[Stream]) -> None:
        self.layout, self.indices, self.shape = layout, indices, layout.shape
        self.covers = tuple(index for stream in indices for index in stream.covers)

    def symbols(self, arrays: Arrays) -> np.ndarray:
        """Return the mask, as zeros and ones."""
        mask = self.layout.host_mask(*(stream.symbols(arrays) for stream in self.indices))
        return mask.astype(np.uint8)

    def arrays(self, symbols: np.ndarray) -> dict[int, np.ndarray]:
        """Return the arrays of the indices."""
        found = self.layout.host_indices(symbols)
        pairs = zip(self.indices, found, strict=True)
        return {at: array for stream, x in pairs for at, array in stream.arrays(x).items()}


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
        alone = (slots[index] for index in stream.covers) if number in apart else ()
        streams += [_array_stream(slot, None) for slot in alone] or [stream]
    return streams


def _visit(field: Any, owner: Any) -> Iterator[Stream]:
    if stream := _stream(field, owner):
        yield stream
    elif isinstance(field, Sparse):
        yield from _visit_sparse(field)
    else:
        for name, inner in field.fields():
            yield from _visit(inner, field if name in field.ELEMENTWISE else None)


def _visit_sparse(field: Sparse) -> Iterator[Stream]:
    support = _stream(field.support, None)
    if support is None:
        # One code stands for many elements, so coding the codes is better than coding each element.
        yield from _visit(field.support, None)
        yield from _visit(field.values, None)
        return
    codes = list(_elements(field.values, None))
    if len(codes) == 1 and not any(isinstance(x, PlainArray) for x in (support, *codes)):
        kept = KeptCodes(support, codes[0])
        support = kept if kept.alphabet <= MOST_ALPHABET else support
    yield support
    for stream in _visit(field.values, None):
        if not set(stream.covers) & set(support.covers):
            yield stream


def _elements(field: Any, owner: Any) -> Iterator[Stream]:
    """Yield the streams of the fields that hold the kept elements."""
    if stream := _stream(field, owner):
        yield stream
    else:
        for name in field.ELEMENTWISE:
            yield from _elements(getattr(field, name), field)


def _stream(field: Any, owner: Any) -> Stream | None:
    """Return the one stream that covers a field; None if its own fields have streams."""
    if isinstance(field, PackedIntegers):
        return PackedCodes(field, owner)
    if isinstance(field, SparseLayout) and field.INDICES:
        each = [_stream(getattr(field, name), None) for name in field.INDICES]
        indices = [stream for stream in each if stream and not isinstance(stream, PlainArray)]
        return LayoutMask(field, indices) if len(indices) == len(each) else None
    return _array_stream(field, owner) if isinstance(field, ArraySlot) else None


def _array_stream(field: ArraySlot, owner: Any) -> Stream:
    small = jnp.issubdtype(field.dtype, jnp.integer) and field.itemsize <= 2
    native = np.dtype(field.dtype).kind in "iu"  # not int4, whose NumPy dtype is opaque
    is_small = field.dtype == np.bool_ or (small and native)
    return SmallIntegers(field, owner) if is_small else PlainArray(field)
