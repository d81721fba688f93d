"""The description of a tree in few bytes: JSON, without what can be told, deflated."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

from nnopt_jax.artifact import dictionary
from nnopt_jax.errors import ArtifactError, ValueRangeError
from nnopt_jax.ops.bits import packed_size

_MOST_BYTES = 1 << 26
"""A longer description is refused, so that no file can inflate without end."""


def write(description: Any, notes: dict[str, Any]) -> bytes:
    """Writes a description as `arrays.describe` makes it, and notes beside it.

    Args:
        description: nested dictionaries and lists.
        notes: what else there is to say, by name; empty values are left out.

    Returns:
        The bytes.

    Raises:
        ValueRangeError: the notes are not JSON, or it is all too long.

    Example:
        >>> data = write({"dict": {"w": ["float32", [2, 3]]}}, {"metadata": {"epoch": 3}})
        >>> read(data)
        ({'dict': {'w': ['float32', [2, 3]]}}, {'metadata': {'epoch': 3}})
    """
    notes = {name: value for name, value in notes.items() if value}
    content = [_shorten(description), *([notes] if notes else [])]
    try:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueRangeError(f"save: the metadata is not JSON ({error}).") from error
    plain = text.encode()
    if len(plain) > _MOST_BYTES:
        raise ValueRangeError(f"save: a description of {len(plain)} bytes, most is {_MOST_BYTES}.")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary.text())
    return deflate.compress(plain) + deflate.flush()


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
        if not inflate.eof or inflate.unused_data:
            raise ArtifactError(f"load: a description that does not end in {len(plain)} bytes.")
        content = json.loads(plain)
        description, notes = _lengthen(content[0]), content[1] if len(content) > 1 else {}
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, IndexError,
            RecursionError) as error:  # fmt: skip
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"load: malformed description ({error!r}).") from error
    if not isinstance(notes, dict):
        raise ArtifactError("load: malformed notes of a description.")
    return description, notes


def _shorten(at: Any) -> Any:
    """Leaves out what the rest tells: words and layout of bits, shape and codes of gaps."""
    if not isinstance(at, dict):
        return at
    if "node" not in at:
        return {kind: _each(_shorten, children) for kind, children in at.items()}
    fields, static = dict(at["fields"]), {**at["static"]}
    if "shape" in static:
        static["shape"] = list(static["shape"])
    if at["node"] == "Bits" and {**at, "static": static} == _bits(static):
        return {"node": "Bits", "static": {k: v for k, v in static.items() if k != "layout"}}
    support = fields.get("support")
    if at["node"] == "Sparse" and support and support["node"] == "Gaps":
        count = (support["fields"]["codes"].get("static", {"shape": (0,)})["shape"] or [0])[0]
        gaps = {"shape": static["shape"], "width": support["static"]["width"], "count": count}
        if json.dumps(support) == json.dumps(_gaps(**gaps)):
            fields["support"] = [gaps["width"], count]
    fields = {name: _shorten(field) for name, field in fields.items()}
    return {**at, "static": static, "fields": fields}


def _lengthen(at: Any) -> Any:
    """Undoes `_shorten`."""
    if not isinstance(at, dict):
        return at
    if "node" not in at:
        return {kind: _each(_lengthen, children) for kind, children in at.items()}
    static = at["static"]
    if "fields" not in at:
        return _bits(static)
    fields = dict(at["fields"])
    if at["node"] == "Sparse" and isinstance(fields["support"], list):
        width, count = fields["support"]
        fields["support"] = _gaps(static["shape"], width, count)
    return {**at, "fields": {name: _lengthen(field) for name, field in fields.items()}}


def _each(function: Any, children: Any) -> Any:
    if isinstance(children, dict):
        return {name: function(child) for name, child in children.items()}
    return [function(child) for child in children]


def _bits(static: dict[str, Any]) -> dict[str, Any]:
    """How `describe` describes what `Bits.of` makes."""
    shape, width = list(static["shape"]), static["width"]
    rows = bool(shape and shape[-1] and shape[-1] % 8 == 0)
    words = [*shape[:-1], shape[-1]] if rows else [math.prod(shape)]
    words[-1] = packed_size(words[-1], width)
    static = {**static, "shape": shape, "layout": "rows" if rows else "flat"}
    return {"node": "Bits", "version": 1, "static": static, "fields": {"words": ["uint8", words]}}


def _gaps(shape: list[int], width: int, count: int) -> dict[str, Any]:
    """How `describe` describes what `Gaps.of` makes."""
    codes = _bits({"width": width, "low": 0, "shape": [count]})
    static = {"shape": shape, "width": width}
    return {"node": "Gaps", "version": 1, "static": static, "fields": {"codes": codes}}
