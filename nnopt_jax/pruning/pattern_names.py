"""Parsing of the names of patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from nnopt_jax.errors import nearest
from nnopt_jax.pruning.patterns import (
    BlockPattern,
    CoupledPattern,
    LinePattern,
    NOfM,
    Pattern,
    PerOutput,
    WholeBlocks,
)
from nnopt_jax.settings import Settings, is_whole

__all__ = ["PatternLike", "parse_groups", "parse_pattern"]

PatternLike: TypeAlias = Pattern | str | Sequence[int] | None
"""A pattern; None for single weights; `"2:4"`; the sizes of a block such as `(4, 4)`;
`"per_output"`; or `"coupled"`."""

_NAMED: dict[str, Pattern] = {"per_output": PerOutput(), "coupled": CoupledPattern()}


def parse_pattern(pattern: PatternLike, settings: Settings) -> Pattern:
    """Return the pattern that a caller names.

    Args:
        pattern: the pattern as the caller wrote it.
        settings: collects the problem, if there is one.

    Example:
        >>> from nnopt_jax.pruning.pattern_names import parse_pattern
        >>> from nnopt_jax.settings import Settings
        >>> parse_pattern("2:4", Settings("demo")), parse_pattern([4, 1], Settings("demo"))
        (NOfM(n=2, m=4), BlockPattern(sizes=(4, 1)))
    """
    if pattern is None or isinstance(pattern, Pattern):
        return pattern or Pattern()
    if isinstance(pattern, str) and pattern in _NAMED:
        return _NAMED[pattern]
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if found and 0 < int(found[1]) <= int(found[2]) <= 64:
        return NOfM(int(found[1]), int(found[2]))
    if sizes := _sizes(pattern):
        return BlockPattern(sizes)
    hint = nearest(pattern, _NAMED) if isinstance(pattern, str) else ""
    hint = hint if hint.startswith(" Did") else ""
    settings.wrong("pattern", pattern, "is neither None, 'n:m' with n <= m <= 64, nor block sizes"
                                       f" such as (4, 4), nor 'per_output', nor 'coupled'.{hint}"
                   )  # fmt: skip
    return Pattern()


def parse_groups(groups: Any, settings: Settings) -> WholeBlocks:
    """Parse the groups of a group penalty: `"outputs"`, `"inputs"`, or block sizes.

    Example:
        >>> from nnopt_jax.pruning.pattern_names import parse_groups
        >>> from nnopt_jax.settings import Settings
        >>> parse_groups([4, 1], Settings("demo"))
        BlockPattern(sizes=(4, 1))
    """
    if isinstance(groups, str):
        settings.choice("groups", groups, ("outputs", "inputs"))
        return LinePattern(groups)  # pyright: ignore[reportArgumentType] - checked
    if sizes := _sizes(groups):
        return BlockPattern(sizes)
    text = "is neither 'outputs', 'inputs', nor block sizes such as (4, 4)."
    settings.wrong("groups", groups, text)
    return BlockPattern((1,))


def _sizes(given: Any) -> tuple[int, ...]:
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    sizes = tuple(given) if listed else ()
    return tuple(map(int, sizes)) if all(is_whole(n) and n > 0 for n in sizes) else ()
