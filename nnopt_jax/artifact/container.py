"""A tree as one run of bytes: a description, streams, and a checksum over all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from nnopt_jax.arrays import abstract, check, describe, is_node
from nnopt_jax.artifact import codec, manifest
from nnopt_jax.artifact.envelope import opened, sealed
from nnopt_jax.artifact.leaves import (
    declared_bytes,
    loaded,
    plain,
    require_numbers,
    require_storable,
    slot_tree,
    stored,
    struct,
)
from nnopt_jax.artifact.sides import Profiles
from nnopt_jax.artifact.streams import Plain, Slot, Stream, loose, streams
from nnopt_jax.artifact.wire import Reader, framed, varint
from nnopt_jax.errors import ArtifactError
from nnopt_jax.tree import flatten

_SMALL = 1 << 12
"""Plain arrays of fewer elements than this are coded together."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The streams of a tree, and how they lie in a file.

    Args:
        streams: all of them, in order.
        same: by number of a stream, the earlier one it repeats.
    """

    streams: list[Stream]
    same: dict[int, int]

    @property
    def coded(self) -> list[int]:
        """The streams of symbols, by number; each is a part of the file."""
        return [
            number
            for number, stream in enumerate(self.streams)
            if number not in self.same and not isinstance(stream, Plain)
        ]

    @property
    def pools(self) -> list[list[Slot]]:
        """Plain arrays that are coded together, byte by byte; each byte is a part of the file."""
        pools: dict[tuple[int, int], list[Slot]] = {}
        for number, stream in enumerate(self.streams):
            if isinstance(stream, Plain) and number not in self.same:
                slot = stream.slot
                size = math.prod(slot.shape)
                alone = number if size >= _SMALL else -1
                if size:
                    pools.setdefault((np.dtype(slot.dtype).itemsize, alone), []).append(slot)
        return [pools[key] for key in sorted(pools)]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What bytes hold, with no array decoded yet.

    Args:
        tree: the tree, with `jax.ShapeDtypeStruct` for arrays.
        metadata: what was saved beside it.
        plan: the streams.
        coded: the bytes of each coded stream, in the order of `plan.coded`.
        planes: the bytes of each byte plane, pool by pool.
        program: what computes with the tree, for whoever knows how to read it; mostly empty.
    """

    tree: Any
    metadata: Any
    plan: Plan
    coded: list[bytes]
    planes: list[list[bytes]]
    program: bytes = b""


def write(tree: Any, metadata: Any = None, program: bytes = b"") -> bytes:
    """Writes a tree.

    Args:
        tree: pytree of arrays and nodes.
        metadata: JSON to keep beside it.
        program: bytes that go with it and are not looked into; they come before the streams.

    Returns:
        The bytes of a file.

    Raises:
        ArtifactError: a leaf is no array of numbers.
        ValueRangeError: the metadata is not JSON.
        SelectionError: two children of a container are called alike.
    """
    tree = plain(tree)
    flatten(tree, is_node)  # every leaf must have a name of its own
    require_storable(tree)
    arrays = [stored(leaf) for leaf in jax.tree.leaves(tree)]
    slots = slot_tree(tree)
    apart = [i for i, stream in enumerate(streams(slots)) if not _rebuilds(stream, arrays)]
    listed = _listed(slots, apart)
    plan = Plan(listed, _repeats(listed, arrays))
    notes = {"metadata": metadata, "apart": apart, "same": list(plan.same.items())}
    head = manifest.write(describe(tree), notes | {"program": len(program)})
    parts, profiles = [], Profiles()
    for number in plan.coded:
        parts.append(_encode(listed[number], arrays, profiles))
    for pool in plan.pools:
        planes = np.concatenate([_octets(arrays[slot.index]) for slot in pool]).T
        parts += [codec.encode(plane, 256) for plane in planes]
    return sealed(varint(len(head)) + head + program + framed(parts), with_program=bool(program))


def contents(data: bytes, max_bytes: int) -> Contents:
    """Reads what a file holds, and refuses what is damaged, unknown or too large.

    Args:
        data: the bytes, whole; not trusted.
        max_bytes: the most memory the arrays may take.

    Returns:
        The contents.

    Raises:
        ArtifactError: the bytes are no such file, or declare more than `max_bytes`.
    """
    reader = Reader(opened(data))
    description, notes = manifest.read(reader.part())
    program = reader.take(_program_bytes(notes))
    with _ours("description"):
        tree = abstract(description, struct)
        require_numbers(tree)
        check(tree, "load")
        declared = declared_bytes(tree)
    if declared > max_bytes:
        raise ArtifactError(
            f"load: the file declares {declared} bytes of arrays, and max_bytes is {max_bytes}. "
            "If you trust the file, pass a larger max_bytes."
        )
    plan = _noted(slot_tree(tree), notes)
    sizes = [np.dtype(pool[0].dtype).itemsize for pool in plan.pools]
    count = len(plan.coded) + sum(sizes)
    parts = [reader.part() if left else reader.rest() for left in range(count - 1, -1, -1)]
    reader.end()
    rest = iter(parts[len(plan.coded) :])
    return Contents(
        tree=tree,
        metadata=notes.get("metadata"),
        plan=plan,
        coded=parts[: len(plan.coded)],
        planes=[list(itertools.islice(rest, size)) for size in sizes],
        program=program,
    )


def _program_bytes(notes: dict[str, Any]) -> int:
    size = notes.get("program", 0)
    if type(size) is not int or size < 0:
        raise ArtifactError(f"load: malformed notes (a program of {size!r} bytes).")
    return size


def read(found: Contents) -> Any:
    """Decodes the arrays of a file, bit for bit.

    Args:
        found: its contents.

    Returns:
        The tree.

    Raises:
        ArtifactError: a stream is malformed.
    """
    with _ours("stream"):
        arrays = _arrays(found)
    leaves, structure = jax.tree.flatten(found.tree)
    slots = jax.tree.leaves(slot_tree(found.tree))
    made = []
    for slot, leaf in zip(slots, leaves, strict=True):
        array = arrays.get(slot.index, np.zeros(slot.shape, slot.dtype))
        if array.shape != slot.shape or array.dtype != slot.dtype:
            raise ArtifactError(f"load: array {slot.index} is not what its description says.")
        made.append(loaded(array, leaf))
    return jax.tree.unflatten(structure, made)


@contextlib.contextmanager
def _ours(what: str) -> Iterator[None]:
    """Turns what malformed input trips over into the error that says so."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"load: malformed {what} ({error!r}).") from error


def _arrays(found: Contents) -> dict[int, np.ndarray]:
    plan, profiles = found.plan, Profiles()
    arrays: dict[int, np.ndarray] = {}
    for number, part in zip(plan.coded, found.coded, strict=True):
        arrays |= _decode(plan.streams[number], part, profiles)
    for pool, planes in zip(plan.pools, found.planes, strict=True):
        arrays |= _decode_pool(pool, planes)
    for number, first in plan.same.items():
        mine, theirs = plan.streams[number].covers, plan.streams[first].covers
        # Of empty arrays nothing is written, so none is there to be repeated.
        pairs = zip(mine, theirs, strict=True)
        arrays |= {here: arrays[there] for here, there in pairs if there in arrays}
    return arrays


def _listed(slots: Any, apart: Iterable[int]) -> list[Stream]:
    """All streams, those whose arrays are coded one by one resolved."""
    by_index = dict(enumerate(jax.tree.leaves(slots)))
    apart = set(apart)
    return [
        stream
        for number, whole in enumerate(streams(slots))
        for stream in (loose(whole, by_index) if number in apart else [whole])
    ]


def _noted(slots: Any, notes: dict[str, Any]) -> Plan:
    """The plan that the notes of a file lead to."""
    try:
        listed = _listed(slots, map(int, notes.get("apart", [])))
        same = {int(number): int(first) for number, first in notes.get("same", [])}
        for number, first in same.items():
            mine, theirs = listed[number].covers, listed[first].covers
            if not 0 <= first < number or len(mine) != len(theirs) or first in same:
                raise ValueError(f"stream {number} repeats {first}")
    except (TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"load: malformed notes ({error}).") from error
    return Plan(listed, same)


def _rebuilds(stream: Stream, arrays: list[np.ndarray]) -> bool:
    """Whether the symbols of a stream give its arrays back to the bit."""
    if isinstance(stream, Plain):
        return True
    try:
        again = stream.arrays(stream.symbols(arrays))
    except (ValueError, IndexError):  # a mask that keeps more or fewer than there are
        return False
    return all(
        arrays[i].dtype == again[i].dtype
        and arrays[i].shape == again[i].shape
        and np.array_equal(_octets(arrays[i]), _octets(again[i]))
        for i in stream.covers
    )


def _identity(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, hashlib.sha256(_octets(array).data).digest()


def _repeats(listed: list[Stream], arrays: list[np.ndarray]) -> dict[int, int]:
    """Streams whose arrays were there before, each with the first of its kind."""
    first: dict[Any, int] = {}
    same = {}
    for number, stream in enumerate(listed):
        key = (type(stream), *(_identity(arrays[index]) for index in stream.covers))
        if first.setdefault(key, number) < number:
            same[number] = first[key]
    return same


def _encode(stream: Stream, arrays: list[np.ndarray], profiles: Profiles) -> bytes:
    symbols = stream.symbols(arrays)
    number = profiles.best(symbols > 0)
    sides = profiles.classes(number, stream.shape)
    center = stream.center(arrays)
    coded = codec.encode(symbols, stream.alphabet, center=center, sides=sides)
    profiles.note(symbols > 0)
    return varint(number) + coded


def _decode(stream: Stream, data: bytes, profiles: Profiles) -> dict[int, np.ndarray]:
    reader = Reader(data)
    sides = profiles.classes(reader.varint(), stream.shape)
    symbols = codec.decode(reader.rest(), stream.shape, stream.alphabet, sides=sides)
    profiles.note(symbols > 0)
    return stream.arrays(symbols)


def _octets(array: np.ndarray) -> np.ndarray:
    """The bytes of the elements, `(size, itemsize)`, the lowest first."""
    flat = np.ascontiguousarray(array).reshape(-1, 1)
    return flat.view(np.uint8) if flat.size else np.zeros((0, array.dtype.itemsize), np.uint8)


def _decode_pool(pool: list[Slot], planes: list[bytes]) -> dict[int, np.ndarray]:
    sizes = [math.prod(slot.shape) for slot in pool]
    octets = np.stack([codec.decode(plane, (sum(sizes),), 256) for plane in planes], axis=1)
    cuts = np.cumsum(sizes)[:-1]
    return {
        slot.index: part.copy().view(slot.dtype).reshape(slot.shape)
        for slot, part in zip(pool, np.split(octets, cuts), strict=True)
    }
