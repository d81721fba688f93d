"""Selectors of leaves, by glob, regular expression or predicate."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from nnopt_jax.errors import SelectionError
from nnopt_jax.settings import takes

Predicate = Callable[[str, Any], bool]


@dataclasses.dataclass(frozen=True)
class Selector:
    """A test of a leaf, which can be combined by `&`, `|` and `~`.

    Args:
        text: the rule as it was written, for errors and tables.
        test: the predicate `(path, leaf) -> bool`.

    Example:
        >>> from nnopt_jax.tree.select import selector
        >>> rule = selector("**/kernel") & ~selector("re:head")
        >>> [rule(path, None) for path in ("body/kernel", "body/bias", "head/kernel")]
        [True, False, False]
        >>> rule
        Selector('**/kernel' & ~'re:head')
    """

    text: str
    test: Predicate

    def __call__(self, path: str, leaf: Any) -> bool:
        """Return whether the leaf at `path` is selected."""
        return bool(self.test(path, leaf))

    def __and__(self, other: Selector) -> Selector:
        """Return a selector of the leaves that both select."""
        return Selector(f"{self.text} & {other.text}", lambda p, x: self(p, x) and other(p, x))

    def __or__(self, other: Selector) -> Selector:
        """Return a selector of the leaves that either selects."""
        return Selector(f"({self.text} | {other.text})", lambda p, x: self(p, x) or other(p, x))

    def __invert__(self) -> Selector:
        """Return a selector of the leaves that this one does not select."""
        text = f"({self.text})" if " & " in self.text else self.text
        return Selector(f"~{text}", lambda p, x: not self(p, x))

    def __repr__(self) -> str:
        """Return the rule as it was written."""
        return f"Selector({self.text})"


Where = str | Selector | Predicate


def _glob(pattern: str) -> re.Pattern[str]:
    """Translate a glob: `**` is any number of path segments, `*` and `?` stay in one segment."""
    parts = []
    for token in re.split(r"(\*\*/|/\*\*|\*\*|\*|\?)", pattern):
        parts.append(
            {"**/": "(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(
                token, re.escape(token)
            )
        )
    return re.compile("".join(parts))


def selector(where: Where) -> Selector:
    """Make a selector from a glob, a regular expression or a predicate.

    Args:
        where: a glob (`"**/kernel"`: `**` spans any number of segments, `*` stays within one), a
            regular expression with the prefix `re:` (searched anywhere in the path), a predicate
            `(path, leaf) -> bool`, or a selector.

    Returns:
        The selector.

    Raises:
        SelectionError: the regular expression does not compile, or the predicate does not take
            two arguments.

    Example:
        >>> from nnopt_jax.tree.select import selector
        >>> selector("dense_*/kernel")("dense_1/kernel", None)
        True
        >>> selector("dense_*/kernel")("block/dense_1/kernel", None)
        False
    """
    if isinstance(where, Selector):
        return where
    if callable(where):
        name = getattr(where, "__name__", repr(where))
        if not takes(where, "path", None):
            raise SelectionError(
                f"selector: {name} is not a predicate (path, leaf). Write e.g. "
                "where=lambda path, leaf: leaf.ndim == 2."
            )
        return Selector(name, where)
    if not isinstance(where, str):
        raise SelectionError(
            f"selector: {where!r} is neither a glob, 're:...' nor a predicate. "
            "Write e.g. where='**/kernel'."
        )
    if not where.startswith("re:"):
        pattern = _glob(where)
        return Selector(repr(where), lambda path, leaf: pattern.fullmatch(path) is not None)
    try:
        expression = re.compile(where[3:])
    except re.error as error:
        raise SelectionError(f"selector: {where!r} is not a regular expression: {error}") from error
    return Selector(repr(where), lambda path, leaf: expression.search(path) is not None)


def resolve(where: Where, leaves: Mapping[str, Any], who: str) -> list[str]:
    """Return the paths that a rule selects; raise if it selects none.

    Args:
        where: see `selector`.
        leaves: the candidates by path, as `flatten` returns them.
        who: the caller, for the error.

    Returns:
        The selected paths, in the order of `leaves`.

    Raises:
        SelectionError: nothing is selected; the error names the nearest paths.

    Example:
        >>> from nnopt_jax.tree.select import resolve
        >>> resolve("**/kernel", {"a/kernel": 0, "a/bias": 0, "kernel": 0}, "demo")
        ['a/kernel', 'kernel']
    """
    rule = selector(where)
    chosen = [path for path, leaf in leaves.items() if rule(path, leaf)]
    if chosen:
        return chosen
    written = where if isinstance(where, str) else rule.text
    raise SelectionError(
        f"{who}: rule {rule.text} matched no leaf.{_nearest(written, leaves)} "
        f"{len(leaves)} leaves considered; nnopt.tree.flatten(params) shows them, as does "
        "'nnopt plan RECIPE --list'."
    )


def _nearest(pattern: str, leaves: Mapping[str, Any]) -> str:
    """Return the three paths most similar to a pattern without matches."""

    def likeness(path: str) -> float:
        return difflib.SequenceMatcher(None, pattern.removeprefix("re:"), path).ratio()

    close = sorted(leaves, key=likeness, reverse=True)[:3]
    return f" Nearest: {', '.join(close)}." if close else ""
