"""The body of a file: a description of a tree, a program, and the streams of all arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from nnopt_jax.arrays import is_node
from nnopt_jax.artifact import codec, description
from nnopt_jax.artifact.byte_io import ByteReader, framed, malformed, varint
from nnopt_jax.artifact.description import slot_tree
from nnopt_jax.artifact.line_coding import Profiles
from nnopt_jax.artifact.streams import ArraySlot, PlainArray, Stream, streams_of
from nnopt_jax.errors import ArtifactError
from nnopt_jax.tree.paths import flatten

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
        program: a serialized program that takes the tree; often empty.
    """

    tree: Any
    metadata: Any
    plan: StreamPlan
    coded: list[bytes]
    planes: list[list[bytes]]
    program: bytes = b""


def write(tree: Any, metadata: Any = None, program: bytes = b"") -> bytes:
    """Encode a tree as the body of a file.

    Args:
        tree: pytree of arrays and nodes.
        metadata: JSON to save with the tree.
        program: bytes to save with the tree, written before the streams.

    Returns:
        The body of a file.

    Raises:
        ArtifactError: a leaf is not an array of numbers.
        ValueRangeError: the metadata is not JSON.
        SelectionError: two children of a container have one name.
    """
    flatten(tree, is_node)  # raises for keys that JAX cannot sort
    tree = description.plain(tree)
    flatten(tree, is_node)  # every leaf must have a name of its own
    description.check_storable(tree)
    arrays = [description.to_host(leaf) for leaf in jax.tree.leaves(tree)]
    slots = slot_tree(tree)
    apart = [i for i, stream in enumerate(streams_of(slots)) if not _rebuilds(stream, arrays)]
    streams = streams_of(slots, apart)
    plan = StreamPlan(streams, _repeats(streams, arrays))
    notes = {"metadata": metadata, "apart": apart, "same": list(plan.same.items())}
    head = description.write_description(tree, notes | {"program": len(program)})
    profiles = Profiles()
    parts = [_encode(stream, arrays, profiles) for stream in plan.coded]
    for pool in plan.pools:
        planes = np.concatenate([_octets(arrays[slot.index]) for slot in pool]).T
        parts += [codec.encode(plane, 256) for plane in planes]
    return varint(len(head)) + head + program + framed(parts)


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
    """Return the plan of streams that the notes of a file imply."""
    with malformed("notes"):
        streams = streams_of(slots, [int(number) for number in notes.get("apart", [])])
        same = {int(number): int(first) for number, first in notes.get("same", [])}
        for number, first in same.items():
            mine, theirs = streams[number].covers, streams[first].covers
            if not 0 <= first < number or len(mine) != len(theirs) or first in same:
                raise ValueError(f"stream {number} repeats {first}")
    return StreamPlan(streams, same)


# ---------------------------------------------------------------------- writing


def _rebuilds(stream: Stream, arrays: Sequence[np.ndarray]) -> bool:
    """Return whether the symbols of a stream restore its arrays bit for bit."""
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
    """Return the streams whose arrays equal those of an earlier stream, with that stream."""
    first: dict[Any, int] = {}
    same = {}
    for number, stream in enumerate(streams):
        key = (type(stream), *(_identity(arrays[index]) for index in stream.covers))
        if first.setdefault(key, number) < number:
            same[number] = first[key]
    return same


def _encode(stream: Stream, arrays: Sequence[np.ndarray], profiles: Profiles) -> bytes:
    symbols = stream.symbols(arrays)
    number = profiles.best(symbols > 0)
    sides = profiles.classes(number, stream.shape)
    data = codec.encode(symbols, stream.alphabet, center=stream.center(arrays), sides=sides)
    profiles.note(symbols > 0)
    return varint(number) + data


def _octets(array: np.ndarray) -> np.ndarray:
    """Return the bytes of the elements, `(size, itemsize)`, the lowest first."""
    flat = np.ascontiguousarray(array).reshape(-1, 1)
    return flat.view(np.uint8) if flat.size else np.zeros((0, array.dtype.itemsize), np.uint8)


# ---------------------------------------------------------------------- reading


def _arrays(found: Contents) -> dict[int, np.ndarray]:
    plan, profiles = found.plan, Profiles()
    arrays: dict[int, np.ndarray] = {}
    for stream, part in zip(plan.coded, found.coded, strict=True):
        arrays |= _decode(stream, part, profiles)
    for pool, planes in zip(plan.pools, found.planes, strict=True):
        arrays |= _decode_pool(pool, planes)
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


def _decode_pool(pool: list[ArraySlot], planes: list[bytes]) -> dict[int, np.ndarray]:
    sizes = [slot.size for slot in pool]
    octets = np.stack([codec.decode(plane, (sum(sizes),), 256) for plane in planes], axis=1)
    return {
        slot.index: part.copy().view(slot.dtype).reshape(slot.shape)
        for slot, part in zip(pool, np.split(octets, np.cumsum(sizes)[:-1]), strict=True)
    }
