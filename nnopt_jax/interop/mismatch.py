"""What two descriptions of trees do not share, told by leaf path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def mismatches(stored: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Compares two descriptions made by `nnopt_jax.arrays.describe`.

    Args:
        stored: what a file holds.
        wanted: what the target is.
        path: where in the tree they stand.

    Yields:
        The path and a sentence for each difference.

    Example:
        >>> from nnopt_jax.interop.mismatch import mismatches
        >>> list(mismatches({"dict": {"w": ["float32", [2]]}}, {"dict": {"w": ["int8", [2]]}}))
        [('w', 'stored is float32[2], the target wants int8[2]')]
    """
    if stored == wanted:
        return
    ours, theirs = _children(stored), _children(wanted)
    if ours is None or theirs is None or _head(stored) != _head(wanted):
        yield path, f"stored is {_head(stored)}, the target wants {_head(wanted)}"
        return
    for name in dict.fromkeys([*ours, *theirs]):
        inner = "/".join(part for part in (path, name) if part)
        if name not in theirs:
            yield inner, f"stored is {_head(ours[name])}, the target has no such entry"
        elif name not in ours:
            yield inner, f"not stored, the target wants {_head(theirs[name])}"
        else:
            yield from mismatches(ours[name], theirs[name], inner)


def _children(at: Any) -> dict[str, Any] | None:
    """What lies inside a container or node, by name; None for a leaf."""
    if not isinstance(at, dict):
        return None
    if "node" in at:
        return at["fields"]
    ((_, children),) = at.items()
    if isinstance(children, dict):
        return children
    return {str(index): child for index, child in enumerate(children)}


def _head(at: Any) -> str:
    """One entry in a few words: `float32[3,4]`, `dict`, `Bits version 1 (width=4, ...)`."""
    if at is None:
        return "None"
    if isinstance(at, list):
        dtype, shape = at
        return f"{dtype}[{','.join(map(str, shape))}]"
    if "node" in at:
        static = ", ".join(f"{name}={value!r}" for name, value in at["static"].items())
        return f"{at['node']} version {at['version']} ({static})"
    ((kind, children),) = at.items()
    return kind if kind == "dict" else f"{kind} of {len(children)}"
