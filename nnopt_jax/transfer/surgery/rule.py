"""The type of a graft rule, and constructors of common rules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from nnopt_jax.errors import SelectionError
from nnopt_jax.tree.select import Where, selector

Leaves = dict[str, Any]
Failed = dict[str, str]
"""The problem of each leaf that a rule could not change, by path."""

# Errors that a wrong shape, dtype or name causes in a function of leaves; others are bugs, and
# are passed on.
_WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One step of a graft, made by the functions of `transfer.rules`.

    Args:
        text: the rule as it was written, for errors and reports.
        change: a function `(leaves of the source, problems) -> (leaves, number of changed leaves)`,
            which adds to the problems.
        keeps: which leaves of the target are kept.
        adapts: which leaves of the target are adapted, and the function `adapt(source, target) ->
            array`.

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


def add_leaf(leaves: Leaves, path: str, leaf: Any, failed: Failed) -> None:
    """Add a leaf under a path; if the path is taken, drop both leaves and record the failure."""
    if path in leaves:
        failed[path] = "is the name of two leaves of the source; make the rules say which"
    if path in failed:
        leaves.pop(path, None)
    else:
        leaves[path] = leaf


def try_change(
    failed: Failed, path: str, what: str, function: Callable[..., Any], *given: Any
) -> Any:
    """Call a function of leaves; if it raises, record the failure of the path and return None."""
    try:
        return function(*given)
    except _WRONG as error:
        failed[path] = f"{what}: {error}"
        return None


def compile_pattern(pattern: str, template: str, group: str | None = None) -> re.Pattern[str]:
    """Compile the pattern of a rule; raise if its template or its groups do not fit."""
    try:
        expression = re.compile(pattern)
        expression.sub(template, "")  # parses the template, even if nothing matches
    except (re.error, LookupError, TypeError) as error:
        raise SelectionError(
            f"transfer.rules: {pattern!r} with {template!r} is not a regular expression and "
            f"template of re.Match.expand: {error}"
        ) from error
    if group is not None and group not in expression.groupindex:
        raise SelectionError(f"transfer.rules: {pattern!r} has no group (?P<{group}>...).")
    return expression


def selector_text(where: Where) -> str:
    """Return a selector as it was written."""
    return repr(where) if isinstance(where, str) else selector(where).text


def leafwise_rule(name: str, where: Where, function: Callable[[Any], Any]) -> Rule:
    """Return a rule that maps selected leaves through a function; None drops a leaf."""
    chosen = selector(where)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            if chosen(path, leaf):
                hits += 1
                what = f"{name} does not fit shape {leaf.shape}"
                leaf = try_change(failed, path, what, function, leaf)
            if leaf is not None:
                made[path] = leaf
        return made, hits

    return Rule(f"{name}({selector_text(where)})", change)


def splitting_rule(
    text: str,
    pattern: str,
    template: str,
    parts: Callable[[Any], Leaves] = lambda leaf: {"": leaf},
    slot: str = "\0",
) -> Rule:
    """Return a rule that splits a leaf into parts, whose names replace `slot` in the template.

    By default, one leaf gets one name, the unchanged template.
    """
    expression = compile_pattern(pattern, template)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            if found is None:
                add_leaf(made, path, leaf, failed)
                continue
            hits += 1
            # Expanded before the slot is filled, because names of parts may contain backslashes.
            name = found.expand(template.replace(slot, "\0"))
            for part, array in (try_change(failed, path, text, parts, leaf) or {}).items():
                add_leaf(made, name.replace("\0", part), array, failed)
        return made, hits

    return Rule(text, change)


def joining_rule(
    text: str, pattern: str, template: str, group: str, whole: Callable[[Leaves], Any]
) -> Rule:
    """Return a rule that joins several leaves into one; a group of the pattern names the parts."""
    expression = compile_pattern(pattern, template, group)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made: Leaves = {}
        parts: dict[str, Leaves] = {}
        hits = 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            if found is None:
                add_leaf(made, path, leaf, failed)
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
            array = None if path in failed else try_change(failed, path, text, whole, found)
            add_leaf(made, path, array, failed)
        return made, hits

    return Rule(text, change)
