"""One step of a graft."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from nnopt_jax.errors import Problems, SelectionError
from nnopt_jax.tree.select import Where, selector

Leaves = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One step of a graft; the functions of this module make them.

    Args:
        text: how it was written, for errors and reports.
        change: `(leaves of the source, problems) -> (leaves, number of leaves it took)`.
        keeps: which leaves of the target it leaves alone.
        adapts: which leaves of the target it makes fit, and `adapt(source, target) -> array`.

    Example:
        >>> from nnopt_jax.transfer import rules
        >>> rules.drop("head/*")
        drop('head/*')
    """

    text: str
    change: Callable[[Leaves, Problems], tuple[Leaves, int]] | None = None
    keeps: Callable[[str, Any], bool] | None = None
    adapts: Callable[[str, Any], bool] | None = None
    adapt: Callable[[Any, Any], Any] | None = None

    def __repr__(self) -> str:
        """The rule as it was written."""
        return self.text


def put(leaves: Leaves, path: str, leaf: Any, problems: Problems) -> None:
    """Adds a leaf to those of the source, under a name that no other has."""
    if path in leaves:
        problems.add(path, "is the name of two leaves of the source; make the rules say which")
    leaves[path] = leaf


def compiled(pattern: str, group: str | None = None) -> re.Pattern[str]:
    """The expression of whole paths, with the group that is needed."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SelectionError(
            f"transfer.rules: {pattern!r} is no regular expression: {error}"
        ) from error
    if group is not None and group not in expression.groupindex:
        raise SelectionError(f"transfer.rules: {pattern!r} has no group (?P<{group}>...).")
    return expression


def written(where: Where) -> str:
    """A selector as it was written."""
    return repr(where) if isinstance(where, str) else selector(where).text


def each(name: str, where: Where, function: Callable[[Any], Any]) -> Rule:
    """A rule that changes chosen leaves one by one; what becomes None is left out."""
    chosen = selector(where)

    def change(leaves: Leaves, problems: Problems) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            if chosen(path, leaf):
                hits += 1
                try:
                    leaf = function(leaf)
                except (TypeError, ValueError) as error:
                    problems.add(path, f"{name} does not fit shape {leaf.shape}: {error}")
            if leaf is not None:
                made[path] = leaf
        return made, hits

    return Rule(f"{name}({written(where)})", change)
