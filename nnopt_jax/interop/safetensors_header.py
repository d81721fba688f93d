"""The header of a safetensors file, with checks of every field."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import ArtifactError, Problems, nearest

MOST_BYTES = 100_000_000
"""The greatest number of bytes of a header, as in the format's own library."""

# The greatest sizes in NumPy, which apply to empty arrays, too.
_MOST_AXES, _MOST_ELEMENTS = 64, 2**59

DTYPES: Mapping[str, Any] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{sign}{8 * n}": np.dtype(f"{sign.lower()}{n}") for sign in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "F8_E8M0": np.dtype(jnp.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(jnp.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(jnp.float8_e5m2fnuz),
}
"""The dtypes of whole bytes, by the names that the format gives them."""


class TensorEntry(NamedTuple):
    """One tensor of the file.

    Args:
        dtype: the NumPy dtype.
        shape: the shape.
        begin: the offset of its bytes after the header.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Return the number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse(text: bytes, room: int, who: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Parse and check the header of a safetensors file.

    Args:
        text: the JSON text, without the length before it.
        room: the number of bytes after the header.
        who: the caller and the file, for errors.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        ArtifactError: the text is not a header, a dtype is unknown, or tensors overlap, leave gaps
            or end beyond the file; all are named.

    Example:
        >>> entries, _ = parse(
        ...     b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', 4, "demo"
        ... )
        >>> entries["w"].dtype, entries["w"].shape
        (dtype(bfloat16), (2,))
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
        if not isinstance(found, dict):
            raise ValueError("it is not a mapping")
        metadata = found.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
            raise ValueError("its metadata are not strings by name")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{who}: the header is not JSON of tensors ({error}).") from error
    problems, entries = Problems(who), {}
    for name, given in found.items():
        try:
            entries[name] = _entry(given)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            problems.add(
                name, f"{error}" if isinstance(error, ArtifactError) else f"malformed ({error!r})"
            )
    if not problems:
        _check_tiling(entries, room, problems)
    problems.raise_as(ArtifactError)
    return entries, metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _entry(given: Any) -> TensorEntry:
    name, shape, (begin, end) = given["dtype"], given["shape"], given["data_offsets"]
    if name not in DTYPES:
        hint = (
            "values of less than a byte are not read"
            if name[:2] in ("F4", "F6")
            else nearest(name, DTYPES)
        )
        raise ArtifactError(f"has the unknown dtype {name!r}; {hint.strip()}")
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ArtifactError(
            f"has the shape {shape} and the offsets {[begin, end]}, which are not whole numbers"
        )
    if len(shape) > _MOST_AXES or math.prod(n or 1 for n in shape) > _MOST_ELEMENTS:
        raise ArtifactError(f"has {len(shape)} axes of sizes {reprlib.repr(shape)}, which no array "
                            "of NumPy has")  # fmt: skip
    entry = TensorEntry(DTYPES[name], tuple(shape), begin)
    if end - begin != entry.nbytes:
        raise ArtifactError(f"takes {end - begin} bytes, and {name}{shape} has {entry.nbytes}")
    return entry


def _check_tiling(entries: Mapping[str, TensorEntry], room: int, problems: Problems) -> None:
    """Check that tensors follow one another without gaps, from the first byte to the last."""
    at, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if entry.begin != at:
            how = "overlaps" if entry.begin < at else "leaves a gap after"
            problems.add(
                name, f"begins at byte {entry.begin} and {how} {before}, which ends at {at}"
            )
        at, before = max(at, entry.begin + entry.nbytes), name
        if at > room:
            problems.add(
                name, f"ends at byte {at} of {room}: the file was cut short; copy it again"
            )
    if at < room:
        problems.add("", f"{room - at} bytes follow the last tensor, {before}")


def compose(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Write the header of arrays that follow it in this order.

    Args:
        arrays: objects with a dtype, a shape and `nbytes`, by name.
        metadata: strings to save with the arrays.

    Returns:
        Length and text; the text is padded so that the data starts at a multiple of 8.

    Raises:
        ArtifactError: the format lacks the dtype of some arrays; all are named.

    Example:
        >>> compose({"w": np.zeros(2, np.int8)}, {})[8:]
        b'{"w":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}   '
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    given: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    problems, at = Problems("write_safetensors"), 0
    for name, x in arrays.items():
        if x.dtype not in names:
            problems.add(
                name, f"is {x.dtype}, which the format lacks; cast it, or use nnopt.save()"
            )
            continue
        given[name] = {
            "dtype": names[x.dtype],
            "shape": list(x.shape),
            "data_offsets": [at, at + x.nbytes],
        }
        at += x.nbytes
    problems.raise_as(ArtifactError)
    text = json.dumps(given, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
