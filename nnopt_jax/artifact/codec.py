"""The entropy coder: encodes an array of symbols in the smallest of several ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from nnopt_jax.artifact import activity_classes, former_rans, line_coding, rans
from nnopt_jax.artifact.byte_io import ByteReader, framed, varint
from nnopt_jax.artifact.line_coding import FittedLines, Sides
from nnopt_jax.errors import ArtifactError, ValueRangeError

MOST_ALPHABET = 1 << 16
_MOST_DECISIONS = 1 << 22
"""The greatest number of bits that a stream may code with contexts; bounds decoding work."""
_LEAST_LARGE = 1 << 12
"""The least length of a stream that is coded with a table of frequencies."""
_MANY_DECISIONS = 1 << 19
_WORTH = 1.01
"""The factor by which contexts must shrink a stream of many decisions to be worth their time."""
_LEAST_GAIN = 0.01
"""The fraction of a stream that neighbors must promise to save."""
_SPLIT = 0.75
"""The positions of a symbol of at least this fraction are coded separately from other symbols."""
_TABLES = 16
"""The greatest number of high bytes whose low bytes get tables of their own."""
_DEPTH = 3
_NO_SIDES: Sides = (None, None)
# The first byte of a stream identifies its codec. The bytes of `line_coding` begin with flags below
# 26, to which `_LINES` is added. `_FORMER_TABLE` and `_FORMER_CLASSED` are read, but not written.
_CONSTANT, _RAW, _FORMER_TABLE, _SPLIT_OFF, _WIDE, _FORMER_CLASSED, _LINES = range(7)
_TABLE, _CLASSED = 32, 33


@dataclasses.dataclass
class Budget:
    """The bits that an encoder may code with contexts, at about a million in two seconds.

    Args:
        promising: the bits of all streams that contexts promise to make smaller.
        others: the bits of all other streams.
        flat: the greatest number of bits of a stream without rows, where contexts gain less.
        classes: whether to compare rows and columns, so that they get tables of their own.
    """

    promising: int
    others: int
    flat: int
    classes: bool = True

    @classmethod
    def of(cls, effort: str) -> Budget:
        """Return the budget of a file for one of `EFFORTS`."""
        return cls(*EFFORTS[effort])

    def take(self, bits: int, *, promising: bool) -> bool:
        """Spend bits of the budget on a stream; return whether they were available.

        Example:
            >>> budget = Budget(promising=100, others=10, flat=0)
            >>> budget.take(20, promising=False), budget.take(60, promising=True), budget.promising
            (False, True, 40)
        """
        left = self.promising if promising else self.others
        if bits > min(left, _MOST_DECISIONS):
            return False
        if promising:
            self.promising -= bits
        else:
            self.others -= bits
        return True


EFFORTS = {
    "fast": (0, 0, 0, False),
    "default": (_MOST_DECISIONS, 1 << 17, 1 << 15),
    "smallest": (1 << 62, 1 << 62, 1 << 15),
}
"""The fields of `Budget` for each effort."""


def encode(
    symbols: np.ndarray,
    alphabet: int,
    *,
    center: int = 0,
    sides: Sides = _NO_SIDES,
    budget: Budget | None = None,
) -> bytes:
    """Encode an array of symbols in few bytes.

    Args:
        symbols: unsigned integers below `alphabet`, of any shape; the last axis of a weight holds
            its outputs.
        alphabet: the number of symbols, 1 to 65536.
        center: the first symbol that stands for a non-negative value.
        sides: side information that the decoder has, too: classes `0 .. 63` of the rows,
            `(prod(shape[:-1]),)`, and of the columns, `(shape[-1],)`, such as the density of an
            earlier mask; each may be None.
        budget: the time for contexts, from which the time of this stream is taken; that of the
            smallest file by default.

    Returns:
        The bytes. They do not include shape and alphabet, which the decoder must know.

    Raises:
        ValueRangeError: a symbol or the alphabet is out of range.

    Example:
        >>> mask = np.arange(9_000).reshape(90, 100) % 7 == 0
        >>> data = encode(mask.astype(np.uint8), 2)
        >>> len(data) < 500, bool((decode(data, mask.shape, 2) == mask).all())
        (True, True)
    """
    symbols = np.asarray(symbols)
    if not 1 <= alphabet <= MOST_ALPHABET:
        raise ValueRangeError(f"codec.encode: alphabet {alphabet} is not one of 1 to 65536.")
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < alphabet:
        raise ValueRangeError(f"codec.encode: symbols reach out of 0 .. {alphabet - 1}.")
    if not symbols.size or symbols.min() == symbols.max():
        return bytes([_CONSTANT]) + varint(int(symbols.flat[0]) if symbols.size else 0)
    budget = budget or Budget.of("smallest")
    counts = rans.count_symbols(symbols)
    raw = 1 + -(-symbols.size * (alphabet - 1).bit_length() // 8)
    modeled, limit = None, math.inf
    decisions = line_coding.decisions(counts, alphabet)
    if lines := _fit_lines(symbols, alphabet, center, sides, counts, decisions, budget):
        modeled = _shift_first(line_coding.encode(lines, sides), _LINES)
        limit = len(modeled) * (_WORTH if decisions >= _MANY_DECISIONS else 1)
    large = None
    if symbols.size >= _LEAST_LARGE and rans.entropy(counts) < min(limit, raw):
        large = _encode_large(symbols, alphabet, center, counts, budget)
    best = large if large and len(large) < raw else None
    if modeled is not None and limit < (len(best) if best else raw):
        return modeled
    return best or bytes([_RAW]) + _pack(symbols.ravel(), alphabet)


def _fit_lines(
    symbols: np.ndarray,
    alphabet: int,
    center: int,
    sides: Sides,
    counts: np.ndarray,
    bits: int,
    budget: Budget,
) -> FittedLines | None:
    """Return the lines to code with contexts, and reduce the budget; None if it forbids them."""
    if bits > (_MOST_DECISIONS if symbols.ndim > 1 else budget.flat):
        return None
    is_small = budget.take(bits, promising=False)
    if not is_small and bits > budget.promising:
        return None
    lines = line_coding.fit(symbols, counts, alphabet, center)
    if is_small:
        return lines
    sparse = counts.max() >= line_coding.COMMON * symbols.size
    promising = (sparse and any(side is not None for side in sides)) or (
        lines.gain >= _LEAST_GAIN * 8 * rans.entropy(counts)
    )
    return lines if promising and budget.take(bits, promising=True) else None


def decode(
    data: bytes, shape: tuple[int, ...], alphabet: int, *, sides: Sides = _NO_SIDES
) -> np.ndarray:
    """Decode what `encode` wrote, exactly.

    Memory stays within a few times that of the requested symbols, even for malicious bytes.

    Args:
        data: all bytes, untrusted.
        shape: shape of the symbols.
        alphabet: as given to `encode`.
        sides: as given to `encode`.

    Returns:
        The symbols: uint8, or uint16 above an alphabet of 256.

    Raises:
        ArtifactError: the data are malformed.

    Example:
        >>> decode(encode(np.array([3, 1, 3]), 4), (3,), 4)
        array([3, 1, 3], dtype=uint8)
    """
    symbols = _decode(data, shape, alphabet, sides)
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < alphabet:
        raise ArtifactError(f"malformed: a stream has symbols out of 0 .. {alphabet - 1}.")
    return symbols.astype(_dtype(alphabet)).reshape(shape)


def _shift_first(data: bytes, by: int) -> bytes:
    """Add a number to the first byte, which identifies the codec."""
    return bytes([data[0] + by]) + data[1:]


def _dtype(alphabet: int) -> type[np.unsignedinteger]:
    return np.uint8 if alphabet <= 256 else np.uint16


def _decode(
    data: bytes,
    shape: tuple[int, ...],
    alphabet: int,
    sides: Sides = _NO_SIDES,
    depth: int = _DEPTH,
) -> np.ndarray:
    reader, size = ByteReader(data), math.prod(shape)
    way = reader.byte()
    if way == _CONSTANT:
        symbol = reader.varint(alphabet - 1)
        reader.end()
        return np.full(size, symbol, _dtype(alphabet))
    if not size or alphabet < 2:
        raise ArtifactError("malformed: a stream that can only be constant is not.")
    if way == _RAW:
        return _unpack(reader.rest(), size, alphabet)
    if _LINES <= way < _TABLE:
        return line_coding.decode(
            _shift_first(data, -_LINES), shape, alphabet, sides, _MOST_DECISIONS
        )
    if way > _CLASSED:
        raise ArtifactError(
            f"load: a stream has codec {way}, this library reads 0 to {_CLASSED}. Read the file "
            "with the version of nnopt_jax that wrote it."
        )
    if not depth:  # the depth of nested streams, of which an encoder uses three at most
        raise ArtifactError("malformed: streams are nested too deeply.")
    if way == _SPLIT_OFF:
        return _decode_split(reader, shape, alphabet, depth - 1)
    if way == _WIDE:
        return _decode_wide(reader, size, alphabet, depth - 1)
    return _decode_tables(reader, shape, alphabet, way, depth - 1)


def _pack(symbols: np.ndarray, alphabet: int) -> bytes:
    """Pack symbols in bits, the lowest bit first."""
    width = (alphabet - 1).bit_length()
    if width in (8, 16):
        return symbols.astype(f"<u{width // 8}").tobytes()
    octets = symbols.astype("<u2")[:, None].view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack(data: bytes, size: int, alphabet: int) -> np.ndarray:
    width = (alphabet - 1).bit_length()
    if len(data) != -(-size * width // 8):
        raise ArtifactError(f"malformed: {len(data)} bytes for {size} symbols of {width} bits.")
    if width in (8, 16):
        return np.frombuffer(data, f"<u{width // 8}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size * width, bitorder="little")
    if width == 1:
        return bits
    octets = np.packbits(bits.reshape(size, width), axis=1, bitorder="little")
    return octets[:, 0] if width <= 8 else octets.view("<u2")[:, 0]


# ---------------------------------------------------------------------- long streams


def _encode_large(
    symbols: np.ndarray, alphabet: int, center: int, counts: np.ndarray, budget: Budget
) -> bytes:
    """Encode a long stream with tables of frequencies; its parts may be streams themselves."""
    top = int(counts.argmax())
    if alphabet > 2 and counts[top] >= _SPLIT * symbols.size:
        there = symbols != top
        others = symbols[there]
        kept = others - (others > top)
        parts = [
            encode(there.astype(np.uint8), 2, budget=budget),
            encode(kept, alphabet - 1, budget=budget),
        ]
        return bytes([_SPLIT_OFF]) + varint(top) + framed(parts)
    low, high = int(counts.nonzero()[0][0]), len(counts) - 1
    if high - low >= rans.MOST_SYMBOLS:
        return bytes([_WIDE]) + _encode_wide(symbols.ravel(), budget)
    span = high - low + 1
    classes, runs = _split_classes(symbols, counts, alphabet, center, budget)
    parts = [encode(side, activity_classes.CLASSES, budget=budget) for side in classes]
    parts.append(rans.encode([run - low for run in runs], span))
    return bytes([_CLASSED if classes else _TABLE]) + varint(low) + varint(span) + framed(parts)


def _split_classes(
    symbols: np.ndarray, counts: np.ndarray, alphabet: int, center: int, budget: Budget
) -> tuple[Sequence[np.ndarray], list[np.ndarray]]:
    """Group rows and columns by activity, if tables of their own make the stream smaller."""
    if symbols.ndim > 1 and budget.classes:
        matrix = symbols.reshape(-1, symbols.shape[-1])
        classes = activity_classes.find_classes(matrix, counts, center)
        runs = [
            activity_classes.gather(matrix, blocks)
            for blocks in activity_classes.class_blocks(*classes)
        ]
        apart = sum(rans.entropy(rans.count_symbols(run)) for run in runs)
        if apart * _WORTH <= rans.entropy(counts):
            return classes, runs
    return (), [symbols.ravel()]


def _decode_tables(
    reader: ByteReader, shape: tuple[int, ...], alphabet: int, way: int, depth: int
) -> np.ndarray:
    """Decode a stream of one table or of classes of tables, which may be `depth` streams deep."""
    low = reader.varint(alphabet - 2)  # the least symbol, and the number of symbols from it on
    span = reader.varint(min(alphabet - low, rans.MOST_SYMBOLS))
    if span < 2:
        raise ArtifactError("malformed: a table of fewer than two symbols.")
    first = _dtype(alphabet)(low)
    decode_runs = rans.decode if way in (_TABLE, _CLASSED) else former_rans.decode
    if way in (_TABLE, _FORMER_TABLE):
        return decode_runs(reader.rest(), [math.prod(shape)], span)[0] + first
    if len(shape) < 2:
        raise ArtifactError("malformed: classes of rows where there are none.")
    matrix = np.empty((math.prod(shape[:-1]), shape[-1]), _dtype(alphabet))
    parts = [(reader.part(), (size,)) for size in matrix.shape]
    classes = [_decode(part, size, activity_classes.CLASSES, depth=depth) for part, size in parts]
    blocks = activity_classes.class_blocks(*classes)
    sizes = [sum(len(rows) * len(columns) for rows, columns in of_class) for of_class in blocks]
    runs = decode_runs(reader.rest(), sizes, span)
    for of_class, run in zip(blocks, runs, strict=True):
        activity_classes.scatter(matrix, of_class, run + first)
    return matrix.ravel()


def _decode_split(
    reader: ByteReader, shape: tuple[int, ...], alphabet: int, depth: int
) -> np.ndarray:
    """Decode a stream of the positions of the most common symbol, and of the other symbols."""
    top = reader.varint(alphabet - 1)
    there = _decode(reader.part(), shape, 2, depth=depth).astype(bool)
    others = _decode(reader.rest(), (int(there.sum()),), alphabet - 1, depth=depth)
    symbols = np.full(there.size, top, _dtype(alphabet))
    symbols[there] = others + (others >= top)
    return symbols


def _encode_wide(symbols: np.ndarray, budget: Budget) -> bytes:
    """Encode 16-bit symbols as high bytes, then low bytes in groups of equal high byte."""
    high, low = (symbols >> 8).astype(np.uint8), (symbols & 255).astype(np.uint8)
    group, count = _groups(high)
    parts = [high, *(low[group == i] for i in range(count))]
    return framed([encode(part, 256, budget=budget) for part in parts])


def _decode_wide(reader: ByteReader, size: int, alphabet: int, depth: int) -> np.ndarray:
    if alphabet <= 256:
        raise ArtifactError("malformed: two bytes a symbol for an alphabet of one.")
    high = _decode(reader.part(), (size,), 256, depth=depth)
    low, (group, count) = np.zeros(size, np.uint8), _groups(high)
    for i, part in enumerate(reader.parts(count)):
        low[group == i] = _decode(part, (int((group == i).sum()),), 256, depth=depth)
    return high.astype(np.uint16) << 8 | low


def _groups(high: np.ndarray) -> tuple[np.ndarray, int]:
    """Group symbols by their high byte: a group for each common byte, and one for all others.

    Returns:
        The group of each symbol, and the number of groups.
    """
    counts = np.bincount(high, minlength=256)
    order = np.argsort(-counts, kind="stable")[:_TABLES]
    common = order[counts[order] >= _LEAST_LARGE]
    table = np.full(256, len(common), np.uint8)
    table[common] = np.arange(len(common))
    return table[high], len(common) + 1
