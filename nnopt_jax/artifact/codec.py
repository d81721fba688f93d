"""Symbols to few bytes and back: tries the ways there are and keeps the smallest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from nnopt_jax.artifact import classes, planes, rans
from nnopt_jax.artifact.planes import Sides
from nnopt_jax.artifact.wire import Reader, framed, varint
from nnopt_jax.errors import ArtifactError, ValueRangeError

MOST_ALPHABET = 1 << 16
_MOST_DECISIONS = 1 << 22
"""Streams that need more bits than this are coded without contexts, for speed."""
_MOST_FLAT = 1 << 15
"""The same for streams without rows, which tell less about each other."""
_LEAST_LARGE = 1 << 12
"""Streams shorter than this do not repay a table of frequencies."""
_MANY_DECISIONS = 1 << 19
_WORTH = 1.01
"""How much smaller contexts must make a stream of so many decisions to be worth their time."""
_SPLIT = 0.75
"""A symbol of at least this share is coded apart from the others."""
_CLASSES = 16
_DEPTH = 3
_CONSTANT, _RAW, _TABLE, _SPLIT_OFF, _WIDE, _CLASSED, _PLANES = range(7)
# What `planes` writes begins with flags, and these begin at `_PLANES`.


def encode(
    symbols: np.ndarray, alphabet: int, *, center: int = 0, sides: Sides = (None, None)
) -> bytes:
    """Codes an array of symbols in as few bytes as any way it knows needs.

    Args:
        symbols: unsigned integers below `alphabet`, any shape; the last axis of a weight is the
            one its outputs lie along.
        alphabet: 1 to 65536.
        center: for integers that stand for signed values, the first symbol that is not negative.
        sides: classes `0 .. 63` of the rows, `(prod(shape[:-1]),)`, and of the columns,
            `(shape[-1],)`, that whoever decodes can tell beforehand, such as how often the layer
            before computes an output; each may be None.

    Returns:
        The bytes. Shape and alphabet are not among them; whoever decodes must know both.

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
    flat = symbols.ravel()
    quick, modeled, limit = [bytes([_RAW]) + _pack(flat, alphabet)], b"", math.inf
    decisions = planes.decisions(flat, alphabet)
    if decisions <= (_MOST_DECISIONS if symbols.ndim > 1 else _MOST_FLAT):
        modeled = _shifted(planes.encode(symbols, alphabet, center, sides), _PLANES)
        limit = len(modeled) * (_WORTH if decisions >= _MANY_DECISIONS else 1)
    if flat.size >= _LEAST_LARGE and rans.entropy(np.bincount(flat)) < limit:
        quick.append(_encode_large(symbols, alphabet, center))
    best = min(quick, key=len)
    return best if len(best) <= limit else modeled


def decode(
    data: bytes, shape: tuple[int, ...], alphabet: int, *, sides: Sides = (None, None)
) -> np.ndarray:
    """Reads what `encode` wrote, exactly.

    Memory stays within a few times that of the symbols asked for, whatever the bytes say.

    Args:
        data: the bytes, whole.
        shape: shape of the symbols.
        alphabet: as it was given to `encode`.
        sides: as they were given to `encode`.

    Returns:
        The symbols: uint8, or uint16 above an alphabet of 256.

    Raises:
        ArtifactError: the data are malformed.

    Example:
        >>> decode(encode(np.array([3, 1, 3]), 4), (3,), 4)
        array([3, 1, 3], dtype=uint8)
    """
    symbols = _decode(data, shape, alphabet, sides, _DEPTH)
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < alphabet:
        raise ArtifactError(f"malformed: a stream has symbols out of 0 .. {alphabet - 1}.")
    return symbols.astype(_dtype(alphabet)).reshape(shape)


def _shifted(data: bytes, by: int) -> bytes:
    """Adds to the first byte."""
    return bytes([data[0] + by]) + data[1:]


def _dtype(alphabet: int) -> type[np.unsignedinteger]:
    return np.uint8 if alphabet <= 256 else np.uint16


def _decode(
    data: bytes, shape: tuple[int, ...], alphabet: int, sides: Sides, depth: int
) -> np.ndarray:
    reader, size = Reader(data), math.prod(shape)
    method = reader.byte()
    if method == _CONSTANT:
        symbol = reader.varint(alphabet - 1)
        reader.end()
        return np.full(size, symbol, _dtype(alphabet))
    if not size or alphabet < 2:
        raise ArtifactError("malformed: a stream that can only be constant is not.")
    if method == _RAW:
        return _unpack(reader.rest(), size, alphabet)
    if method >= _PLANES:
        return planes.decode(_shifted(data, -_PLANES), shape, alphabet, sides, _MOST_DECISIONS)
    readers: dict[int, Callable[[Reader, tuple[int, ...], int, int], np.ndarray]] = {
        _TABLE: _decode_table,
        _CLASSED: _decode_classes,
        _SPLIT_OFF: _decode_split,
        _WIDE: _decode_wide,
    }
    if method not in readers or not depth:
        raise ArtifactError(f"malformed: a stream is coded in unknown way {method}.")
    return readers[method](reader, shape, alphabet, depth - 1)


def _pack(symbols: np.ndarray, alphabet: int) -> bytes:
    """Plain bits, the lowest first."""
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


def _encode_large(symbols: np.ndarray, alphabet: int, center: int) -> bytes:
    """The way that suits a long stream; its parts may be streams again."""
    counts = np.bincount(symbols.ravel(), minlength=alphabet)
    top = int(counts.argmax())
    if alphabet > 2 and counts[top] >= _SPLIT * symbols.size:
        return bytes([_SPLIT_OFF]) + _encode_split(symbols, alphabet, top)
    low, high = int(symbols.min()), int(symbols.max())
    if high - low >= rans.MOST_SYMBOLS:
        return bytes([_WIDE]) + _encode_wide(symbols.ravel())
    span = high - low + 1
    sides, parts = _classes(symbols, counts, alphabet, center)
    coded = framed(
        [
            *(encode(side, classes.COUNT) for side in sides),
            rans.encode([part - low for part in parts], span),
        ]
    )
    return bytes([_CLASSED if sides else _TABLE]) + varint(low) + varint(span) + coded


def _classes(
    symbols: np.ndarray, counts: np.ndarray, alphabet: int, center: int
) -> tuple[Sequence[np.ndarray], list[np.ndarray]]:
    """Classes of rows and columns with the symbols class by class, or all in one."""
    if symbols.ndim > 1:
        matrix = symbols.reshape(-1, symbols.shape[-1])
        sides = classes.find(matrix, alphabet, center)
        parts = [classes.gather(matrix, block) for block in classes.blocks(*sides)]
        apart = sum(rans.entropy(np.bincount(part)) for part in parts)
        if apart * _WORTH <= rans.entropy(counts):
            return sides, parts
    return (), [symbols.ravel()]


def _decode_table(reader: Reader, shape: tuple[int, ...], alphabet: int, depth: int) -> np.ndarray:
    low, span = _read_span(reader, alphabet)
    (symbols,) = rans.decode(reader.rest(), [math.prod(shape)], span)
    return symbols + _dtype(alphabet)(low)


def _decode_classes(
    reader: Reader, shape: tuple[int, ...], alphabet: int, depth: int
) -> np.ndarray:
    low, span = _read_span(reader, alphabet)
    if len(shape) < 2:
        raise ArtifactError("malformed: classes of rows where there are none.")
    matrix = np.empty((math.prod(shape[:-1]), shape[-1]), _dtype(alphabet))
    sides = [
        _decode(reader.part(), (size,), classes.COUNT, (None, None), depth) for size in matrix.shape
    ]
    blocks = classes.blocks(*sides)
    sizes = [sum(len(rows) * len(columns) for rows, columns in block) for block in blocks]
    parts = rans.decode(reader.rest(), sizes, span)
    for block, part in zip(blocks, parts, strict=True):
        classes.scatter(matrix, block, part + _dtype(alphabet)(low))
    return matrix.ravel()


def _read_span(reader: Reader, alphabet: int) -> tuple[int, int]:
    """The least symbol of a stream, and how many there are from it on."""
    low = reader.varint(alphabet - 2)
    span = reader.varint(min(alphabet - low, rans.MOST_SYMBOLS))
    if span < 2:
        raise ArtifactError("malformed: a table of fewer than two symbols.")
    return low, span


def _encode_split(symbols: np.ndarray, alphabet: int, top: int) -> bytes:
    """Where the most common symbol is not, and what stands there."""
    there = symbols != top
    others = symbols[there]
    others = others - (others > top)
    parts = [encode(there.astype(np.uint8), 2), encode(others, alphabet - 1)]
    return varint(top) + framed(parts)


def _decode_split(reader: Reader, shape: tuple[int, ...], alphabet: int, depth: int) -> np.ndarray:
    top = reader.varint(alphabet - 1)
    there = _decode(reader.part(), shape, 2, (None, None), depth).astype(bool)
    others = _decode(reader.rest(), (int(there.sum()),), alphabet - 1, (None, None), depth)
    symbols = np.full(there.size, top, _dtype(alphabet))
    symbols[there] = others + (others >= top)
    return symbols


def _encode_wide(symbols: np.ndarray) -> bytes:
    """High bytes, then low bytes: apart for each common high byte, and together for the rest."""
    high, low = symbols >> 8, (symbols & 255).astype(np.uint8)
    common = _common(high)
    parts = [encode(high.astype(np.uint8), 256)]
    parts += [encode(low[high == byte], 256) for byte in common]
    parts.append(encode(low[~np.isin(high, common)], 256))
    return framed(parts)


def _decode_wide(reader: Reader, shape: tuple[int, ...], alphabet: int, depth: int) -> np.ndarray:
    size = math.prod(shape)
    if alphabet <= 256:
        raise ArtifactError("malformed: two bytes a symbol for an alphabet of one.")
    high = _decode(reader.part(), (size,), 256, (None, None), depth)
    low = np.zeros(size, np.uint8)
    common = _common(high)
    for byte in common:
        there = high == byte
        low[there] = _decode(reader.part(), (int(there.sum()),), 256, (None, None), depth)
    there = ~np.isin(high, common)
    low[there] = _decode(reader.rest(), (int(there.sum()),), 256, (None, None), depth)
    return high.astype(np.uint16) << 8 | low


def _common(high: np.ndarray) -> np.ndarray:
    """The high bytes whose low bytes repay a table of their own."""
    counts = np.bincount(high, minlength=256)
    order = np.argsort(-counts, kind="stable")[:_CLASSES]
    return order[counts[order] >= _LEAST_LARGE]
