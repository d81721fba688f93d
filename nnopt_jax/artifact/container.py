"""The body of a file: a description of a tree, a program, and the streams of all arrays."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import is_node
from nnopt_jax.artifact import codec, description
from nnopt_jax.artifact.byte_io import ByteReader, malformed, varint
from nnopt_jax.artifact.description import slot_tree
from nnopt_jax.artifact.line_coding import Profiles
from nnopt_jax.artifact.streams import ArraySlot, PlainArray, Stream, streams_of
from nnopt_jax.errors import ArtifactError
from nnopt_jax.tree.paths import flatten

_WIDE_EXPONENTS = (np.dtype(np.float32), np.dtype(jnp.bfloat16))
_SMALL = 1 << 12
"""Plain arrays with fewer elements than this are coded together."""


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """The streams of a tree in the order of the file.

    Args:
        streams: all streams, in order.
        same: maps the number of a stream to the earlier stream that it repeats.
    """

    streams: list[Stream]
    same: dict[int, int]

    @property
    def coded(self) -> list[Stream]:
        """The streams of symbols, each of which is a part of the file."""
        return [x for _, x in self._first() if not isinstance(x, PlainArray)]

    @property
    def pools(self) -> list[list[ArraySlot]]:
        """Groups of plain arrays that are coded together; each byte plane is a part of the file."""
        pools: dict[tuple[int, int], list[ArraySlot]] = {}
        for number, stream in self._first():
            if isinstance(stream, PlainArray) and stream.slot.size:
                alone = number if stream.slot.size >= _SMALL else -1
                pools.setdefault((stream.slot.itemsize, alone), []).append(stream.slot)
        return [pools[key] for key in sorted(pools)]

    @property
    def has_large_floats(self) -> bool:
        """Whether a pool holds many floats whose exponent has 8 bits."""
        pools = (pool for pool in self.pools if pool[0].size >= _SMALL)
        return any(np.dtype(pool[0].dtype) in _WIDE_EXPONENTS for pool in pools)

    def _first(self) -> Iterator[tuple[int, Stream]]:
        return ((i, stream) for i, stream in enumerate(self.streams) if i not in self.same)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a file, before any array is decoded.

    Args:
        tree: the tree, with `jax.ShapeDtypeStruct` for arrays.
        metadata: JSON that was saved with the tree.
        plan: the streams.
        coded: the bytes of each coded stream, in the order of `plan.coded`.
        planes: for each pool, the bytes of each byte plane.
        rotated: whether floats are rotated by a bit before they are cut in planes.
        program: a serialized program that takes the tree; often empty.
    """

    tree: Any
    metadata: Any
    plan: StreamPlan
    coded: list[bytes]
    planes: list[list[bytes]]
    rotated: bool = False
    program: bytes = b""


def write(tree: Any, metadata: Any = None, program: bytes = b"", effort: str = "default") -> bytes:
    """Encode a tree as the body of a file, in memory.

    Args:
        tree: pytree of arrays and nodes.
        metadata: JSON to save with the tree.
        program: bytes to save with the tree, written before the streams.
        effort: one of `codec.EFFORTS`.

    Returns:
        The body of a file.

    Raises:
        ArtifactError: a leaf is not an array of numbers.
        ValueRangeError: the metadata is not JSON.
        SelectionError: two children of a container have one name.
    """
    streams = io.BytesIO()
    head = write_streams(streams, tree, metadata, program, effort)
    return head + streams.getvalue()


def write_streams(
    out: IO[bytes],
    tree: Any,
    metadata: Any = None,
    program: bytes = b"",
    effort: str = "default",
    progress: Callable[[int], None] = lambda nbytes: None,
) -> bytes:
    """Write the streams of a tree one by one, so that they never lie in memory together.

    Args:
        out: receives the streams.
        tree: pytree of arrays and nodes.
        metadata: JSON to save with the tree.
        program: bytes to save with the tree.
        effort: one of `codec.EFFORTS`.
        progress: called with the bytes of the arrays of each stream, when it is written.

    Returns:
        What comes before the streams in the body of a file; raises like `write`.
    """
    flatten(tree, is_node)  # raises for keys that JAX cannot sort
    tree = description.plain(tree)
    flatten(tree, is_node)  # every leaf must have a name of its own
    description.check_storable(tree)
    arrays = HostArrays(jax.tree.leaves(tree))
    plan, apart = _plan_streams(slot_tree(tree), arrays)
    notes = {"metadata": metadata, "apart": apart, "same": list(plan.same.items())}
    if rotated := plan.has_large_floats:  # in smaller files the note costs more than it saves
        notes["rotated"] = True
    head = description.write_description(tree, notes | {"program": len(program)})
    last: bytes | None = None
    for data, nbytes in _parts(plan, arrays, codec.Budget.of(effort), rotated=rotated):
        if last is not None:
            out.write(varint(len(last)) + last)
        last = data
        progress(nbytes)
    out.write(last or b"")  # as in `framed`, the last part needs no length
    return varint(len(head)) + head + program


def contents(body: bytes, version: int, max_bytes: int) -> Contents:
    """Read the contents of a body, and raise if it is damaged, unknown or too large.

    Args:
        body: all bytes, untrusted.
        version: the format of the file.
        max_bytes: the greatest number of bytes that the arrays may take in memory.

    Returns:
        The contents.

    Raises:
        ArtifactError: the bytes are malformed, or declare more than `max_bytes`.
    """
    reader = ByteReader(body)
    tree, notes, declared = description.read_description(reader.part(), version)
    size = notes.get("program", 0)
    if type(size) is not int or size < 0:
        raise ArtifactError(f"load: malformed notes (a program of {size!r} bytes).")
    program = reader.take(size)
    if declared > max_bytes:
        raise ArtifactError(
            f"load: the file declares {declared} bytes of arrays, and max_bytes is {max_bytes}. "
            "If you trust the file, pass a larger max_bytes."
        )
    plan = _plan_of(slot_tree(tree), notes)
    coded, sizes = len(plan.coded), [pool[0].itemsize for pool in plan.pools]
    parts = iter(reader.parts(coded + sum(sizes)))
    return Contents(
        tree=tree,
        metadata=notes.get("metadata"),
        plan=plan,
        coded=list(itertools.islice(parts, coded)),
        planes=[list(itertools.islice(parts, size)) for size in sizes],
        rotated=bool(notes.get("rotated")),
        program=program,
    )


def read(found: Contents) -> Any:
    """Decode the arrays of a file, bit for bit.

    Args:
        found: the contents of the file.

    Returns:
        The tree.

    Raises:
        ArtifactError: a stream is malformed.
    """
    with malformed("stream"):
        arrays = _arrays(found)
    leaves, structure = jax.tree.flatten(found.tree)
    slots = jax.tree.leaves(slot_tree(found.tree))
    made = []
    for slot, leaf in zip(slots, leaves, strict=True):
        array = arrays.get(slot.index, np.zeros(slot.shape, slot.dtype))
        if array.shape != slot.shape or array.dtype != slot.dtype:
            raise ArtifactError(f"load: array {slot.index} is not what its description says.")
        made.append(description.from_host(array, leaf))
    return jax.tree.unflatten(structure, made)


def _plan_of(slots: Any, notes: dict[str, Any]) -> StreamPlan:
    """Return the stream plan that the notes of a description determine."""
    with malformed("notes"):
        streams = streams_of(slots, [int(number) for number in notes.get("apart", [])])
        same = {int(number): int(first) for number, first in notes.get("same", [])}
        for number, first in same.items():
            mine, theirs = streams[number].covers, streams[first].covers
            if not 0 <= first < number or len(mine) != len(theirs) or first in same:
                raise ValueError(f"stream {number} repeats {first}")
    return StreamPlan(streams, same)


# ---------------------------------------------------------------------- writing


class HostArrays(Sequence[np.ndarray]):
    """The leaves of a tree as NumPy arrays, taken from their devices when they are needed.

    Args:
        leaves: arrays of JAX or NumPy.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        self._leaves = leaves
        # One stream covers a few arrays, and asks for each of them several times.
        self._array = functools.lru_cache(maxsize=4)(
            lambda index: description.to_host(leaves[index])
        )

    def __getitem__(self, index: Any) -> Any:
        """Return the array of one leaf."""
        return self._array(index)

    def __len__(self) -> int:
        return len(self._leaves)


def _plan_streams(slots: Any, arrays: Sequence[np.ndarray]) -> tuple[StreamPlan, list[int]]:
    """Return the streams, and the numbers of those whose arrays must be coded separately."""
    apart = [i for i, stream in enumerate(streams_of(slots)) if not _rebuilds(stream, arrays)]
    streams = streams_of(slots, apart)
    return StreamPlan(streams, _repeats(streams, arrays)), apart


def _rebuilds(stream: Stream, arrays: Sequence[np.ndarray]) -> bool:
    """Return whether decoding the symbols of a stream gives back its arrays bit for bit."""
    if isinstance(stream, PlainArray):
        return True
    try:
        again = stream.arrays(stream.symbols(arrays))
    except (ValueError, IndexError):  # a mask that keeps more or fewer values than the node holds
        return False
    pairs = ((arrays[i], again[i]) for i in stream.covers)
    return all(
        (x.dtype, x.shape) == (y.dtype, y.shape) and np.array_equal(_octets(x), _octets(y))
        for x, y in pairs
    )


def _identity(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, hashlib.sha256(_octets(array).data).digest()


def _repeats(streams: Sequence[Stream], arrays: Sequence[np.ndarray]) -> dict[int, int]:
    """Return pairs of a stream and the earlier stream with equal arrays."""
    first: dict[Any, int] = {}
    same = {}
    for number, stream in enumerate(streams):
        key = (type(stream), *(_identity(arrays[index]) for index in stream.covers))
        if first.setdefault(key, number) < number:
            same[number] = first[key]
    return same


def _parts(
    plan: StreamPlan, arrays: Sequence[np.ndarray], budget: codec.Budget, *, rotated: bool
) -> Iterator[tuple[bytes, int]]:
    """Yield the parts of a file, with the bytes of the arrays that each completes."""
    profiles = Profiles()
    for stream in plan.coded:
        data = _encode(stream, arrays, profiles, budget)
        yield data, sum(arrays[index].nbytes for index in stream.covers)
    for pool in plan.pools:
        leaves = (arrays[slot.index] for slot in pool)
        planes = np.concatenate([_octets(_rotated(x) if rotated else x) for x in leaves]).T
        for plane in planes:
            yield codec.encode(plane, 256, budget=budget), plane.size


def _encode(
    stream: Stream, arrays: Sequence[np.ndarray], profiles: Profiles, budget: codec.Budget
) -> bytes:
    symbols = stream.symbols(arrays)
    mask = symbols > 0
    number = profiles.best(mask)
    sides = profiles.classes(number, stream.shape)
    data = codec.encode(
        symbols, stream.alphabet, center=stream.center(arrays), sides=sides, budget=budget
    )
    profiles.note(mask)
    return varint(number) + data


def _octets(array: np.ndarray) -> np.ndarray:
    """Return the bytes of the elements, `(size, itemsize)`, the lowest first."""
    flat = np.ascontiguousarray(array).reshape(-1, 1)
    return flat.view(np.uint8) if flat.size else np.zeros((0, array.dtype.itemsize), np.uint8)


def _rotated(array: np.ndarray, bits: int = 1) -> np.ndarray:
    """Rotate floats by one bit, so that the exponent of 8 bits is a byte of its own.

    The sign becomes the lowest bit of the mantissa, and neither has structure; of the exponent, few
    values occur.
    """
    if array.dtype not in _WIDE_EXPONENTS:
        return array
    words = np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")
    return words << bits | words >> (8 * array.itemsize - bits)


# ---------------------------------------------------------------------- reading


def _arrays(found: Contents) -> dict[int, np.ndarray]:
    plan, profiles = found.plan, Profiles()
    arrays: dict[int, np.ndarray] = {}
    for stream, part in zip(plan.coded, found.coded, strict=True):
        arrays |= _decode(stream, part, profiles)
    for pool, planes in zip(plan.pools, found.planes, strict=True):
        arrays |= _decode_pool(pool, planes, rotated=found.rotated)
    for number, first in plan.same.items():
        # Empty arrays are not written, so there is nothing to repeat.
        pairs = zip(plan.streams[number].covers, plan.streams[first].covers, strict=True)
        arrays |= {here: arrays[there] for here, there in pairs if there in arrays}
    return arrays


def _decode(stream: Stream, data: bytes, profiles: Profiles) -> dict[int, np.ndarray]:
    reader = ByteReader(data)
    sides = profiles.classes(reader.varint(), stream.shape)
    symbols = codec.decode(reader.rest(), stream.shape, stream.alphabet, sides=sides)
    profiles.note(symbols > 0)
    return stream.arrays(symbols)


def _decode_pool(
    pool: list[ArraySlot], planes: list[bytes], *, rotated: bool
) -> dict[int, np.ndarray]:
    sizes = [slot.size for slot in pool]
    octets = np.stack([codec.decode(plane, (sum(sizes),), 256) for plane in planes], axis=1)
    arrays = {}
    for slot, part in zip(pool, np.split(octets, np.cumsum(sizes)[:-1]), strict=True):
        flat = part.copy().view(slot.dtype)
        if rotated:
            flat = _rotated(flat, 8 * slot.itemsize - 1).view(slot.dtype)
        arrays[slot.index] = flat.reshape(slot.shape)
    return arrays
