"""Weight surgery: copying parameters of one model into another, with rules for names and shapes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.columns import Tabular, brief_fields
from nnopt_jax.errors import CompositionError, Problems, SelectionError, ShapeError, nearest
from nnopt_jax.transfer.surgery.leaf_rules import (
    canonical_dtype,
    is_lossy_cast,
    numeric_leaves,
    source_leaves,
)
from nnopt_jax.transfer.surgery.rule import Failed, Leaves, Rule, try_change
from nnopt_jax.transform.validation import described
from nnopt_jax.tree.devices import place
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Params

_NAME = "transfer.graft"


@dataclasses.dataclass(frozen=True, repr=False)
class GraftReport(Tabular):
    """The result of a graft, leaf by leaf.

    Args:
        copied: paths of the target whose leaves were copied, possibly to another dtype.
        adapted: the adaptations of other leaves of the source, by path.
        kept: paths of the target that were kept, by a rule or because the source lacks them.
        unused: paths of the source, after all renames, that were not used; with `keep`, a path may
            also be in `kept`.
        failed: the problems by path; leaves of the target among them were kept.
        dead_rules: rules that did not select a leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> source = {"a": jnp.ones(2), "b": jnp.ones(1)}
        >>> print(nnopt.transfer.graft({"a": jnp.zeros(2)}, source, strict=False).report)
        copied   1  a
        unused   1  b
    """

    copied: tuple[str, ...] = ()
    adapted: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    dead_rules: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return the summary that `repr` shows."""
        found = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return ", ".join(f"{len(paths)} {name}" for name, paths in found if paths)

    def to_json(self) -> dict[str, Any]:
        """Return the report as dictionaries and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Return a line for each outcome, with its count and up to eight of its paths."""
        lines = []
        for field in dataclasses.fields(self):
            found = getattr(self, field.name)
            if not found:
                continue
            said = [f"{path}: {text}" for path, text in found.items()] if isinstance(
                found, dict
            ) else list(found)  # fmt: skip
            more = f", and {len(said) - 8} more" if len(said) > 8 else ""
            lines.append(f"{field.name:8} {len(said)}  {', '.join(said[:8])}{more}")
        return "\n".join(lines)


class Grafted(NamedTuple):
    """The result of `graft`.

    Args:
        params: the parameters, with the structure of the target.
        report: the outcome for each leaf.

    Example:
        >>> from nnopt_jax.transfer import graft
        >>> graft({"a": 0.0}, {"a": 1.0}).report.copied
        ('a',)
    """

    params: Params
    report: GraftReport

    __repr__ = brief_fields


def graft(
    target: Params, source: Params, rules: Sequence[Rule] = (), *, strict: bool = True
) -> Grafted:
    r"""Copy the parameters of one model into another.

    Rules act on the leaves of the source in the given order; then each leaf of the target gets the
    leaf of its name. Nothing is changed in place. One wrong leaf raises an error, unless
    `strict=False`.

    Args:
        target: arrays, packed parameters, or `jax.ShapeDtypeStruct`s. A copied array gets the dtype
            of the target, and its devices if it names any (`sharding`). Floats are rounded to a
            narrower dtype (beyond its range, to infinity); greater losses (floats to integers,
            complex to real numbers, integers beyond the range) raise errors. Abstract leaves that
            are kept stay abstract.
        source: arrays or packed parameters. Packed parameters that no rule changes stay packed, in
            their dtype and on their devices.
        rules: rules of `nnopt_jax.transfer.rules`: `rename`, `drop`, `transpose`, `reshape`,
            `stack`, `unstack`, `fuse`, `split`, for the source; `keep`, `adapt`, for the target.
        strict: whether to raise if a leaf of the target lacks a counterpart (and a `keep`), a leaf
            of the source is not used (and has no `drop`, nor a `keep` of its name), a rule does not
            select a leaf or fails, two leaves have one name, or a shape or dtype does not fit.
            Otherwise, these leaves of the target are kept, and the report lists them.

    Returns:
        The parameters and the report.

    Raises:
        CompositionError: an argument is not a rule, or a leaf does not hold numbers.
        SelectionError: leaves lack a counterpart, two leaves have one name, or rules do not select
            leaves or do not fit; all are named, with the nearest names.
        ShapeError: shapes differ and are not adapted by a rule, or the dtype of the target would
            lose values; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.transfer import rules
        >>> source = {"encoder": {"weight": jnp.ones((4, 3))}, "old_head": jnp.ones(9)}
        >>> target = {"body": {"kernel": jnp.zeros((3, 4))}, "head": jnp.zeros(5)}
        >>> made = nnopt.transfer.graft(
        ...     target,
        ...     source,
        ...     [
        ...         rules.rename("encoder/weight", "body/kernel"),
        ...         rules.transpose("body/kernel"),
        ...         rules.drop("old_head"),
        ...         rules.keep("head"),
        ...     ],
        ... )
        >>> print(made.report)
        copied   1  body/kernel
        kept     1  head

    References:
        Assignment maps as in T5X; shape adapters: see `nnopt_jax.ops.resize_grid`, `resize_rows`.
    """
    rules, wrong = _rules(rules), Problems(_NAME)
    there, here = numeric_leaves(target, "target", wrong), source_leaves(source, wrong)
    wrong.raise_as(CompositionError)
    way = _Graft(here, rules)
    way.apply_rules(strict)
    found = {path: way.leaf(path, leaf) for path, leaf in there.items()}
    if strict:
        way.raise_problems(there)
    as_given = flatten(target, is_node)
    made = {
        path: as_given[path] if leaf is None else _place_like(there[path], leaf)
        for path, leaf in found.items()
    }
    return Grafted(unflatten(target, made, is_node), way.report(there))


def _rules(given: Any) -> list[Rule]:
    """Return the rules as a list; raise if a value is not a rule."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CompositionError(
            f"{_NAME}: rules is {described(given)}; give a list, [rules.keep('head')], say."
        )
    rules, wrong = list(given), Problems(_NAME)
    for number, rule in enumerate(rules, 1):
        if not isinstance(rule, Rule):
            wrong.add("", f"rule {number} is {described(rule)}; give e.g. rules.keep('head')")
    wrong.raise_as(CompositionError)
    return rules


@dataclasses.dataclass
class _Graft:
    """A graft in progress: the renamed leaves of the source, and the outcome so far."""

    here: Leaves
    rules: list[Rule]
    hits: collections.Counter[Rule] = dataclasses.field(default_factory=collections.Counter)
    copied: list[str] = dataclasses.field(default_factory=list)
    adapted: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    hidden: set[str] = dataclasses.field(default_factory=set)
    failed: Failed = dataclasses.field(default_factory=dict)

    def apply_rules(self, strict: bool) -> None:
        """Apply the rules to the leaves of the source."""
        for rule in self.rules:
            if rule.change is not None:
                self.here, hits = rule.change(self.here, self.failed)
                self.hits[rule] += hits
        if strict:
            _problems_of(self.failed).raise_as(SelectionError)

    def leaf(self, path: str, target: Any) -> Any:
        """Return the source's leaf for a path of the target; None if the target keeps its own."""
        if self._first_rule(path, target, lambda rule: rule.keeps):
            self.kept.append(path)
            self.hidden.update({path} & self.here.keys())
            return None
        if path not in self.here:
            if path not in self.failed:
                self.kept.append(path)
                self.lost.append(path)
            return None
        source = self.here[path]
        rule = self._first_rule(path, target, lambda rule: rule.adapts)
        alike = source.shape == target.shape
        found = source if alike else self._adapt_shape(path, source, target, rule)
        if found is None or self._is_lossy(path, target, found):
            return None
        if alike:
            self.copied.append(path)
        else:
            self.adapted[path] = f"{source.shape} -> {target.shape} by {rule}"
        return found

    def _first_rule(self, path: str, target: Any, test: Any) -> Rule | None:
        """Return the first rule that selects a leaf of the target; count all that do."""
        selecting = [rule for rule in self.rules if test(rule) and test(rule)(path, target)]
        for rule in selecting:
            self.hits[rule] += 1
        return selecting[0] if selecting else None

    def _adapt_shape(self, path: str, source: Any, target: Any, rule: Rule | None) -> Any:
        """Return the source's leaf in the shape of the target; None if no rule adapts it."""
        how = f"adapt({path!r}, corner | rows | grid(...)), or keep() it"
        if rule is None or rule.adapt is None:
            self.failed[path] = (
                f"is {target.shape} in the target, {source.shape} in the source; {how}"
            )
            return None
        what = f"{rule} makes no {target.shape} of {source.shape}"
        found = try_change(self.failed, path, what, _call_adapter, rule.adapt, source, target)
        if found is not None and found.shape != target.shape:
            self.failed[path] = (
                f"{rule} made {found.shape} of {source.shape}, not {target.shape}; {how}"
            )
            return None
        return found

    def _is_lossy(self, path: str, target: Any, found: Any) -> bool:
        """Return whether a cast to the target's dtype would lose values, and record the failure."""
        if is_node(found) or not is_lossy_cast(found, canonical_dtype(target.dtype)):
            return False
        self.failed[path] = (
            f"is {target.dtype} in the target, where values of {found.dtype} would be lost; make "
            f"the source {target.dtype} first (x.astype, say), or keep({path!r})"
        )
        return True

    def report(self, there: Leaves) -> GraftReport:
        """Return the report so far."""
        return GraftReport(
            tuple(self.copied),
            self.adapted,
            tuple(self.kept),
            tuple(path for path in self.here if path not in there or path in self.hidden),
            self.failed,
            tuple(str(rule) for rule in self.rules if not self.hits[rule]),
        )

    def raise_problems(self, there: Leaves) -> None:
        """Raise if leaves lack a counterpart; otherwise, raise if leaves do not fit."""
        lost, report = Problems(_NAME), self.report(there)
        homeless = [path for path in report.unused if path not in self.hidden]
        for path in self.lost:
            near = nearest(path, homeless)
            lost.add(path, f"finds no leaf in the source; rename() one, or keep({path!r}).{near}")
        for path in homeless:
            near = nearest(path, self.lost)
            lost.add(path, f"of the source has no place; rename() it, or drop({path!r}).{near}")
        for rule in report.dead_rules:
            lost.add("", f"rule {rule} selected no leaf; correct it or remove it.")
        lost.raise_as(SelectionError)
        _problems_of(self.failed).raise_as(ShapeError)


def _problems_of(failed: Failed) -> Problems:
    problems = Problems(_NAME)
    for path, text in failed.items():
        problems.add(path, text)
    return problems


def _call_adapter(adapt: Callable[[Any, Any], Any], source: Any, target: Any) -> Any:
    return jnp.asarray(adapt(materialize(source), materialize(target)))


def _place_like(target: Any, leaf: Any) -> Any:
    """Cast a leaf and move it to the devices of the target; leave packed leaves unchanged."""
    if is_node(leaf):
        return leaf
    leaf = jnp.asarray(leaf, canonical_dtype(target.dtype))
    sharding = getattr(target, "sharding", None)
    return leaf if sharding is None else place(leaf, sharding)
