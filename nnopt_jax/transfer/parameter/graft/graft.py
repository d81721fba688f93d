"""Parameters of one model, put into another: by name, with rules where names or shapes differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from nnopt_jax.arrays.base import is_node, show
from nnopt_jax.errors import Problems, SelectionError, ShapeError, nearest
from nnopt_jax.transfer.parameter.graft.report import GraftReport
from nnopt_jax.transfer.parameter.graft.rule import Leaves, Rule
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.place import place
from nnopt_jax.typing import Params

_NAME = "transfer.graft"


class Grafted(NamedTuple):
    """What `graft` returns.

    Args:
        params: of the structure of the target.
        report: what became of every leaf.

    Example:
        >>> from nnopt_jax.transfer import graft
        >>> graft({"a": 0.0}, {"a": 1.0}).report.copied
        ('a',)
    """

    params: Params
    report: GraftReport


def graft(
    target: Params, source: Params, rules: Sequence[Rule] = (), *, strict: bool = True
) -> Grafted:
    r"""Puts the parameters of one model into another.

    Rules act on the leaves of the source in the order given; then each leaf of the target takes
    the leaf of its name. Nothing is changed in place, and nothing at all is returned where one
    leaf is wrong.

    Args:
        target: where parameters go: arrays, expressions, or `jax.ShapeDtypeStruct`s. A leaf comes
            in the dtype of the target's, and onto its devices where it says any (`sharding`). Of
            abstract leaves, those that are kept stay abstract.
        source: where they come from: arrays, or expressions, which stay packed where no rule
            changes them.
        rules: of `nnopt_jax.transfer.rules`: `rename`, `drop`, `transpose`, `reshape`, `stack`,
            `unstack`, `fuse`, `split`, for the source; `keep`, `adapt`, for the target.
        strict: whether it is an error if a leaf of the target finds none of its name (and no
            `keep` says so), a leaf of the source goes nowhere (and no `drop` says so), or a rule
            meets no leaf. Otherwise those stay, and the report lists them.

    Returns:
        The parameters and the report.

    Raises:
        SelectionError: leaves without a counterpart, two for one name, or rules that meet none;
            all are named, with the nearest names.
        ShapeError: shapes differ and no rule says what to do; all are named.

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
    there, here = flatten(target, is_node), flatten(source, is_node)
    here = {path: leaf if is_node(leaf) else jnp.asarray(leaf) for path, leaf in here.items()}
    twice = Problems(_NAME)
    hits: dict[Rule, int] = {}
    for rule in rules:
        if rule.change is not None:
            here, hits[rule] = rule.change(here, twice)
    twice.raise_as(SelectionError)
    way = _Graft(here, [rule for rule in rules if rule.change is None], hits)
    made = {path: way.leaf(path, leaf) for path, leaf in there.items()}
    report = way.report(there, rules)
    _complain(report, way, there, strict)
    placed = {path: _placed(there[path], leaf) for path, leaf in made.items()}
    return Grafted(unflatten(target, placed, is_node), report)


@dataclasses.dataclass
class _Graft:
    """The leaves of the source under their new names, and what became of them."""

    here: Leaves
    rules: list[Rule]
    hits: dict[Rule, int]
    copied: list[str] = dataclasses.field(default_factory=list)
    adapted: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def leaf(self, path: str, target: Any) -> Any:
        """What the target gets."""
        target = target if hasattr(target, "shape") else jnp.asarray(target)
        if self._met(path, target, lambda rule: rule.keeps):
            self.kept.append(path)
            return None
        if path not in self.here:
            self.kept.append(path)
            self.lost.append(path)
            return None
        source = self.here[path]
        rule = self._met(path, target, lambda rule: rule.adapts)
        if source.shape == target.shape:
            self.copied.append(path)
            return source
        return self._fitted(path, source, target, rule)

    def _met(self, path: str, target: Any, test: Any) -> Rule | None:
        """The first rule that means a leaf of the target; all that do are counted."""
        met = [rule for rule in self.rules if test(rule) and test(rule)(path, target)]
        for rule in met:
            self.hits[rule] = self.hits.get(rule, 0) + 1
        return met[0] if met else None

    def _fitted(self, path: str, source: Any, target: Any, rule: Rule | None) -> Any:
        if rule is None or rule.adapt is None:
            self.failed[path] = f"is {target.shape} in the target, {source.shape} in the source"
            return None
        found = rule.adapt(show(source), show(target))
        if found.shape != target.shape:
            self.failed[path] = f"{rule} made {found.shape} of {source.shape}, not {target.shape}"
            return None
        self.adapted[path] = f"{source.shape} -> {target.shape} by {rule}"
        return found

    def report(self, there: Leaves, rules: Sequence[Rule]) -> GraftReport:
        return GraftReport(
            tuple(self.copied),
            self.adapted,
            tuple(self.kept),
            tuple(path for path in self.here if path not in there),
            self.failed,
            tuple(str(rule) for rule in rules if not self.hits.get(rule)),
        )


def _complain(report: GraftReport, way: _Graft, there: Leaves, strict: bool) -> None:
    lost, misfit = Problems(_NAME), Problems(_NAME)
    if strict:
        for path in way.lost:
            near = nearest(path, report.unused)
            lost.add(path, f"finds no leaf in the source; rename() one, or keep({path!r}).{near}")
        for path in report.unused:
            near = nearest(path, way.lost)
            lost.add(path, f"of the source has no place; rename() it, or drop({path!r}).{near}")
        for rule in report.dead_rules:
            lost.add("", f"rule {rule} met no leaf; mend it or take it out.")
    for path, text in report.failed.items():
        misfit.add(path, f"{text}; adapt({path!r}, corner | rows | grid(...)), or keep() it")
    lost.raise_as(SelectionError)
    misfit.raise_as(ShapeError)


def _placed(target: Any, leaf: Any) -> Any:
    """In the dtype and on the devices that the target says."""
    if leaf is None:
        return target
    if not is_node(leaf):
        leaf = leaf.astype(target.dtype if hasattr(target, "dtype") else jnp.asarray(target).dtype)
    sharding = getattr(target, "sharding", None)
    return leaf if sharding is None or is_node(leaf) else place(leaf, sharding)
