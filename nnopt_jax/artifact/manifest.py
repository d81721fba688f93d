"""The description of a tree in few bytes: lists instead of names, numbers apart, deflated."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

from nnopt_jax.arrays.nodes import NODE_TYPES
from nnopt_jax.artifact import dictionary
from nnopt_jax.artifact.wire import Reader, varint
from nnopt_jax.errors import ArtifactError, ValueRangeError, nearest
from nnopt_jax.ops.bit_packing import packed_size

_MOST_BYTES = 1 << 26
"""A longer description is refused, so that no file can inflate without end."""


def write(description: Any, notes: dict[str, Any]) -> bytes:
    """Writes a description as `arrays.describe` makes it, and notes beside it.

    Args:
        description: nested dictionaries and lists.
        notes: what else there is to say, by name; empty values are left out.

    Returns:
        Deflated text in which every size is 0, and the sizes.

    Raises:
        ValueRangeError: the notes are not JSON, or it is all too long.

    Example:
        >>> data = write({"dict": {"w": ["float32", [2, 3]]}}, {"metadata": {"epoch": 3}})
        >>> read(data)
        ({'dict': {'w': ['float32', [2, 3]]}}, {'metadata': {'epoch': 3}})
    """
    notes = {name: value for name, value in notes.items() if value}
    numbers: list[int] = []
    content = [_hide(_shorten(description), numbers), *([notes] if notes else [])]
    try:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueRangeError(f"save: the metadata is not JSON ({error}).") from error
    plain = text.encode()
    if len(plain) > _MOST_BYTES:
        raise ValueRangeError(f"save: a description of {len(plain)} bytes, most is {_MOST_BYTES}.")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary.text())
    return deflate.compress(plain) + deflate.flush() + b"".join(map(varint, numbers))


def read(data: bytes) -> tuple[Any, dict[str, Any]]:
    """Reads what `write` wrote.

    Args:
        data: the bytes, whole; not trusted.

    Returns:
        The description and the notes.

    Raises:
        ArtifactError: the data are malformed, or inflate to more than a description may be.
    """
    inflate = zlib.decompressobj(-15, dictionary.text())
    try:
        plain = inflate.decompress(data, _MOST_BYTES + 1)
        if not inflate.eof:
            raise ArtifactError(f"load: a description that does not end in {len(plain)} bytes.")
        content = json.loads(plain)
        numbers = Reader(inflate.unused_data)
        description = _lengthen(_show(content[0], numbers))
        numbers.end()
        notes = content[1] if len(content) > 1 else {}
    except (
        zlib.error,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
    ) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"load: malformed description ({error!r}).") from error
    if not isinstance(notes, dict):
        raise ArtifactError("load: malformed notes of a description.")
    return description, notes


def _hide(value: Any, numbers: list[int]) -> Any:
    """Moves all integers of zero and more to a list of their own."""
    if isinstance(value, dict):
        return {name: _hide(item, numbers) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(item, numbers) for item in value]
    if type(value) is int and value >= 0:
        numbers.append(value)
        return 0
    return value


def _show(value: Any, numbers: Reader) -> Any:
    """Undoes `_hide`."""
    if isinstance(value, dict):
        return {name: _show(item, numbers) for name, item in value.items()}
    if isinstance(value, list):
        return [_show(item, numbers) for item in value]
    return numbers.varint() if type(value) is int and value >= 0 else value


def _shorten(at: Any) -> Any:
    """Dictionaries stay; all else becomes a list that begins with its kind."""
    if at is None:
        return None
    if isinstance(at, list):
        return [at[0], *at[1]]
    if "node" in at:
        return _shorten_node(at)
    ((kind, children),) = at.items()
    if kind == "dict":
        return {name: _shorten(child) for name, child in children.items()}
    return [kind, *map(_shorten, children)]


def _shorten_node(at: dict[str, Any]) -> list[Any]:
    """Settings, then fields, in the order of the class; without what the others tell."""
    name, static, fields = at["node"], at["static"], at["fields"]
    if name == "Bits" and static["low"] <= 0 and at == _bits(**static):
        return [
            "Bits",
            static["width"],
            *([static["low"]] if static["low"] else []),
            *static["shape"],
        ]
    head = name if at["version"] == 1 else f"{name}/{at['version']}"
    short = [_shorten(fields.get(field)) for field in NODE_TYPES[name].names()]
    support = fields.get("support", {})
    if support and support == _bits(1, 0, static["shape"]):
        short = [*short[:-1], True]
    elif support.get("node") == "Gaps" and support == _gaps(static["shape"], support):
        (count,) = support["fields"]["codes"]["static"]["shape"]
        short = [*short[:-1], [support["static"]["width"], count]]
    return [head, *static.values(), *short]


def _lengthen(short: Any) -> Any:
    """Undoes `_shorten`."""
    if short is None:
        return None
    if isinstance(short, dict):
        return {"dict": {name: _lengthen(child) for name, child in short.items()}}
    head, *rest = short
    if head in ("list", "tuple"):
        return {head: [_lengthen(child) for child in rest]}
    name, _, version = head.partition("/")
    if name in NODE_TYPES:
        return _lengthen_node(name, int(version or 1), rest)
    if name[:1].isupper():
        raise ArtifactError(f"load: unknown node {name!r}.{nearest(name, NODE_TYPES)}")
    return [head, rest]


def _lengthen_node(name: str, version: int, rest: list[Any]) -> dict[str, Any]:
    """Undoes `_shorten_node`."""
    if name == "Bits" and all(type(value) is int for value in rest):
        width, *shape = rest
        low = shape.pop(0) if shape and shape[0] < 0 else 0
        return _bits(width, low, shape)
    names = NODE_TYPES[name].names()
    given = max(len(rest) - len(names), 0)  # late settings may be left out
    static = dict(zip(NODE_TYPES[name].names(is_static=True)[:given], rest[:given], strict=True))
    fields = dict(zip(names, rest[given:], strict=True))
    if name == "Sparse" and fields["support"] is True:
        fields["support"] = ["Bits", 1, *static["shape"]]
    elif name == "Sparse" and type(fields["support"][0]) is int:
        width, count = fields["support"]
        fields["support"] = ["Gaps", static["shape"], width, ["Bits", width, count]]
    fields = {field: _lengthen(value) for field, value in fields.items() if value is not None}
    return {"node": name, "version": version, "static": static, "fields": fields}


def _bits(width: int, low: int, shape: Sequence[int], layout: str = "") -> dict[str, Any]:
    """How `describe` describes what `Bits.of` makes, whatever the layout that is given."""
    rows = bool(len(shape) and shape[-1] and shape[-1] % 8 == 0)
    words = [*shape] if rows else [math.prod(shape)]
    words[-1] = packed_size(words[-1], width)
    layout = "rows" if rows else "flat"
    static = {"width": width, "low": low, "shape": shape, "layout": layout}
    return {"node": "Bits", "version": 1, "static": static, "fields": {"words": ["uint8", words]}}


def _gaps(shape: Sequence[int], like: dict[str, Any]) -> dict[str, Any]:
    """How `describe` describes what `Gaps.of` makes, of the width and the codes of another."""
    width, codes = like["static"]["width"], like["fields"].get("codes")
    count = codes["static"]["shape"] if isinstance(codes, dict) else ()
    static = {"shape": shape, "width": width}
    fields = {"codes": _bits(width, 0, count)}
    return {"node": "Gaps", "version": 1, "static": static, "fields": fields}
