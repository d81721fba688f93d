"""The statistics that a transform takes, by name and path, with a reason for each missing one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.errors import Problems, StatisticsError
from nnopt_jax.transform.validation import check_shapes, described
from nnopt_jax.tree.paths import flatten

Leaves = dict[str, Any]

SLOPES = ("gradient", "fisher", "hessian_gradient")
"""Statistics of a loss, which have the shape of their leaf."""


class Measured(dict[str, Leaves]):
    """Statistics by name and path.

    Args:
        found: the measured statistics.
        lacking: the reasons for missing statistics, by name and path.

    Example:
        >>> from nnopt_jax.transform.measured import Measured
        >>> Measured({"gradient": {"a": 1, "b": 2}}, {}).of(["b"])
        {'gradient': {'b': 2}}
    """

    def __init__(
        self, found: Mapping[str, Leaves], lacking: Mapping[str, Mapping[str, str]]
    ) -> None:
        super().__init__(found)
        self.lacking = lacking

    @classmethod
    def read(cls, who: str, stats: Any, paths: Iterable[str]) -> Measured:
        """Convert the `stats` argument of `init` to a table of statistics.

        Args:
            who: the transform, for errors.
            stats: the result of `graph.observe`, or a dictionary by name. Its values are trees of
                the structure of the parameters, or dictionaries by path with values of any kind.
            paths: the paths of the parameters.

        Raises:
            StatisticsError: `stats` is not a dictionary by name.
        """
        if stats is None:
            return cls({}, {})
        if isinstance(stats, Measured):
            return stats
        if not (isinstance(stats, Mapping) and all(isinstance(name, str) for name in stats)):
            raise StatisticsError(
                f"{who}: stats is {described(stats)}; give the dictionary by name that "
                "nnopt.graph(loss, params, *batch).observe(params, batches, tx.needs) returns."
            )
        known = set(paths)
        found = {name: _by_path(tree, known) for name, tree in stats.items()}
        return cls(found, getattr(stats, "lacking", {}))

    def named(self, names: Iterable[str]) -> Self:
        """Return the statistics with the given names."""
        found = {name: self[name] for name in names if name in self}
        return type(self)(found, self.lacking)

    def of(self, paths: Iterable[str]) -> Self:
        """Return the statistics of some leaves."""
        chosen = list(paths)
        found = {
            name: {path: leaves[path] for path in chosen if path in leaves}
            for name, leaves in self.items()
        }
        return type(self)(found, self.lacking)

    def check_used(self, who: str, used: Iterable[str]) -> None:
        """Raise if there are statistics that the transform does not use.

        Args:
            who: the transform, for errors.
            used: the names of the statistics that it uses.

        Raises:
            StatisticsError: statistics are not used; the message lists all.
        """
        names = tuple(dict.fromkeys(used))
        unused = [name for name in self if name not in names]
        if unused:
            takes = f"takes {', '.join(names)}" if names else "takes no statistics"
            raise StatisticsError(
                f"{who}: {takes}, and does not use {', '.join(unused)}; leave "
                f"{'it' if len(unused) == 1 else 'them'} out: "
                "graph.observe(params, batches, tx.needs) measures what is used."
            )

    def check_complete(self, who: str, needs: Iterable[str], leaves: Leaves) -> None:
        """Raise if leaves lack a statistic, with the reason if it is known.

        Args:
            who: the transform, for errors.
            needs: the names of the statistics that it requires.
            leaves: the leaves that it takes, by path.

        Raises:
            StatisticsError: statistics are missing; the message lists all.
            ShapeError: a statistic of a loss has another shape than its leaf; the message
                lists all.
        """
        problems = Problems(who)
        for name in needs:
            reasons = self.lacking.get(name, {})
            missing = [path for path in leaves if path not in self.get(name, {})]
            for path in [path for path in missing if path in reasons]:
                problems.add(path, f"has no {name}: {reasons[path]}; leave it out by where=")
            unmeasured = [path for path in missing if path not in reasons]
            if unmeasured:
                function = "loss" if name in SLOPES else "apply"
                problems.add(
                    "",
                    f"needs the {name} of {', '.join(unmeasured)}; give tx.init(params, stats="
                    f"nnopt.graph({function}, params, *batch).observe(params, batches, tx.needs))",
                )
        problems.raise_as(StatisticsError)
        for name in SLOPES:
            if name in self:
                check_shapes(who, name, self[name], leaves)


def _by_path(tree: Any, paths: set[str]) -> Leaves:
    """Return a dictionary by path unchanged, and flatten any other tree."""
    if isinstance(tree, Mapping) and tree and paths.issuperset(tree):
        return dict(tree)
    return flatten(tree, is_node)


def not_measured(who: str, path: str, name: str, value: Any) -> StatisticsError:
    """Return the error for a value that is not what `graph.observe` measures.

    Example:
        >>> print(not_measured("demo", "kernel", "input_moments", 3))
        demo: kernel: its input_moments is the int 3; give what graph.observe(params, batches, \
tx.needs) measured.
    """
    return StatisticsError(
        f"{who}: {path}: its {name} is {described(value)}; give what graph.observe(params, "
        "batches, tx.needs) measured."
    )
