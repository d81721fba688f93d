"""One step of a graft."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from nnopt_jax.errors import SelectionError
from nnopt_jax.tree.select import Where, selector

Leaves = dict[str, Any]
Failed = dict[str, str]
"""What was wrong, by path."""

_WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One step of a graft; the functions of this module make them.

    Args:
        text: how it was written, for errors and reports.
        change: `(leaves of the source, what was wrong) -> (leaves, number of leaves it took)`;
            adds to what was wrong.
        keeps: which leaves of the target it leaves alone.
        adapts: which leaves of the target it makes fit, and `adapt(source, target) -> array`.

    Example:
        >>> from nnopt_jax.transfer import rules
        >>> rules.drop("head/*")
        drop('head/*')
    """

    text: str
    change: Callable[[Leaves, Failed], tuple[Leaves, int]] | None = None
    keeps: Callable[[str, Any], bool] | None = None
    adapts: Callable[[str, Any], bool] | None = None
    adapt: Callable[[Any, Any], Any] | None = None

    def __repr__(self) -> str:
        """The rule as it was written."""
        return self.text


def put(leaves: Leaves, path: str, leaf: Any, failed: Failed) -> None:
    """Adds a leaf to those of the source; a name that went wrong, or has two, has none."""
    if path in leaves:
        failed[path] = "is the name of two leaves of the source; make the rules say which"
    if path in failed:
        leaves.pop(path, None)
    else:
        leaves[path] = leaf


def tried(failed: Failed, path: str, what: str, function: Callable[..., Any], *given: Any) -> Any:
    """What a function makes of leaves; None where it cannot, and then the path has failed."""
    try:
        return function(*given)
    except _WRONG as error:
        failed[path] = f"{what}: {error}"
        return None


def compiled(pattern: str, template: str, group: str | None = None) -> re.Pattern[str]:
    """The expression of whole paths, with the groups that the template and the rule need."""
    try:
        expression = re.compile(pattern)
        expression.sub(template, "")  # reads the template, whether anything matches or not
    except (re.error, LookupError, TypeError) as error:
        raise SelectionError(
            f"transfer.rules: {pattern!r} with {template!r} is not a regular expression and "
            f"template of re.Match.expand: {error}"
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

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            if chosen(path, leaf):
                hits += 1
                what = f"{name} does not fit shape {leaf.shape}"
                leaf = tried(failed, path, what, function, leaf)
            if leaf is not None:
                made[path] = leaf
        return made, hits

    return Rule(f"{name}({written(where)})", change)
