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
"""The problem of each path that failed."""

_WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One step of a graft; the functions of `transfer.rules` make them.

    Args:
        text: how it was written, for errors and reports.
        change: `(leaves of the source, what was wrong) -> (leaves, number of leaves it took)`;
            it adds to what was wrong.
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
        """Return the rule as it was written."""
        return self.text


def put(leaves: Leaves, path: str, leaf: Any, failed: Failed) -> None:
    """Add a leaf to those of the source, unless its name failed or has a leaf already."""
    if path in leaves:
        failed[path] = "is the name of two leaves of the source; make the rules say which"
    if path in failed:
        leaves.pop(path, None)
    else:
        leaves[path] = leaf


def tried(failed: Failed, path: str, what: str, function: Callable[..., Any], *given: Any) -> Any:
    """Call a function of leaves; if it raises, note that the path failed and return None."""
    try:
        return function(*given)
    except _WRONG as error:
        failed[path] = f"{what}: {error}"
        return None


def compiled(pattern: str, template: str, group: str | None = None) -> re.Pattern[str]:
    """Compile the expression of whole paths; check the groups of the template and the rule."""
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
    """Return a selector as it was written."""
    return repr(where) if isinstance(where, str) else selector(where).text


def each(name: str, where: Where, function: Callable[[Any], Any]) -> Rule:
    """Return a rule that changes chosen leaves one by one; those that become None are left out."""
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


def spreading(
    text: str,
    pattern: str,
    template: str,
    parts: Callable[[Any], Leaves] = lambda leaf: {"": leaf},
    slot: str = "\0",
) -> Rule:
    """Return a rule that makes several leaves of one; their names go to the slot of the template.

    By default one leaf gets one name, the template as it is.
    """
    expression = compiled(pattern, template)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            if found is None:
                put(made, path, leaf, failed)
                continue
            hits += 1
            # Expanded before the slot is filled: names of parts may hold backslashes.
            name = found.expand(template.replace(slot, "\0"))
            for part, array in (tried(failed, path, text, parts, leaf) or {}).items():
                put(made, name.replace("\0", part), array, failed)
        return made, hits

    return Rule(text, change)


def joining(
    text: str, pattern: str, template: str, group: str, whole: Callable[[Leaves], Any]
) -> Rule:
    """Return a rule that makes one leaf of several; the group of the pattern names each."""
    expression = compiled(pattern, template, group)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made: Leaves = {}
        parts: dict[str, Leaves] = {}
        hits = 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            if found is None:
                put(made, path, leaf, failed)
                continue
            hits += 1
            name, place = found[group], found.expand(template)
            if name in parts.setdefault(place, {}):
                failed[place] = (
                    f"{text}: two leaves of the source are {group} {name!r}; make the template "
                    "tell them apart"
                )
            parts[place][name] = leaf
        for path, found in parts.items():
            array = None if path in failed else tried(failed, path, text, whole, found)
            put(made, path, array, failed)
        return made, hits

    return Rule(text, change)
