"""Learning rates of leaves: labels for optax, and rates that decrease towards the input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import Problems, SelectionError
from nnopt_jax.settings import Settings
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import Params, PyTree


class Rates(NamedTuple):
    """The relative learning rate of each leaf.

    Args:
        labels: a string for each leaf, as `optax.multi_transform` takes them.
        multipliers: the factor of the learning rate for each label, from the first group to the
            last.

    Example:
        >>> import optax
        >>> from nnopt_jax.transfer import layerwise_rates
        >>> rates = layerwise_rates({"a": 1.0, "b": 1.0}, ["a", "b"], decay=0.5)
        >>> optimizer = optax.multi_transform(
        ...     {label: optax.sgd(0.1 * by) for label, by in rates.multipliers.items()},
        ...     rates.labels,
        ... )
        >>> updates, _ = optimizer.update(
        ...     {"a": 1.0, "b": 1.0}, optimizer.init({"a": 0.0, "b": 0.0})
        ... )
        >>> updates
        {'a': -0.05, 'b': -0.1}
    """

    labels: PyTree
    multipliers: dict[str, float]

    __repr__ = brief_fields

    def scale(self, updates: PyTree) -> PyTree:
        """Multiply updates by the rates, after an optimizer that normalizes gradients (Adam).

        Args:
            updates: the updates, with the structure of the parameters; all arrays of a packed
                parameter are scaled equally.

        Returns:
            The updates, each times the multiplier of its leaf.

        Example:
            >>> import jax.numpy as jnp
            >>> from nnopt_jax.transfer import layerwise_rates
            >>> rates = layerwise_rates({"a": 1.0, "b": 1.0}, ["a", "b"], decay=0.5)
            >>> rates.scale({"a": jnp.ones(2), "b": jnp.ones(2)})["a"]
            Array([0.5, 0.5], dtype=float32)
        """

        def scaled(label: str, leaf: Any) -> Any:
            return jax.tree.map(lambda x: self.multipliers[label] * x, leaf)

        return jax.tree.map(scaled, self.labels, updates)


def layerwise_rates(params: Params, order: Sequence[Where], *, decay: float = 0.75) -> Rates:
    r"""Return rates that decrease from layer to layer towards the input.

    $$ \eta_l = \eta \, d^{\,L - l}, \qquad l = 1, \dots, L $$

    The rate of the last group is that of the optimizer.

    Args:
        params: the parameters, or their shapes.
        order: the groups from input to output, each a selector. A regular expression with a group
            `(?P<index>\d+)` stands for one group for each number, in their order.
        decay: `d`, above 0 and at most 1.

    Returns:
        Labels `"01"`, `"02"`, ... and their multipliers.

    Raises:
        ValueRangeError: the decay is out of range.
        SelectionError: a group is empty, or a leaf is in no group or in two; all are named.

    Example:
        >>> from nnopt_jax.transfer import layerwise_rates
        >>> params = {"embed": 0.0, "layers": [{"w": 0.0}, {"w": 0.0}], "head": 0.0}
        >>> rates = layerwise_rates(
        ...     params, ["embed", r"re:layers/(?P<index>\d+)/", "head"], decay=0.5
        ... )
        >>> rates.labels
        {'embed': '01', 'head': '04', 'layers': [{'w': '02'}, {'w': '03'}]}
        >>> rates.multipliers
        {'01': 0.125, '02': 0.25, '03': 0.5, '04': 1.0}

    References:
        Howard and Ruder 2018, ULMFiT, section 3.2 (discriminative fine-tuning, decay 1 / 2.6);
        Bao et al. 2022, BEiT, section 3 (layer-wise decay).
    """
    who = "transfer.layerwise_rates"
    settings = Settings(who)
    settings.number("decay", decay, 0, 1, above=True)
    settings.done()
    leaves = flatten(params, is_node)
    groups = [group for where in order for group in _path_groups(where, leaves, who)]
    # Padded with zeros, so that labels sort in the order of the groups.
    width = max(2, len(str(len(groups))))
    named = {f"{number:0{width}}": group for number, group in enumerate(groups, 1)}
    found = _label_by_path(named, leaves, who)
    lost = Problems(who)
    for path in leaves.keys() - found.keys():
        lost.add(path, "is in no group of the order; add a selector for it")
    lost.found.sort()
    lost.raise_as(SelectionError)
    ordered = {path: found[path] for path in leaves}
    multipliers = {label: decay ** (len(groups) - at) for at, label in enumerate(named, 1)}
    return Rates(unflatten(params, ordered, is_node), multipliers)


def labels(
    params: Params, rules: Mapping[str, Where | Sequence[Where]], *, default: str = "trained"
) -> PyTree:
    """Label each leaf by rules, for `optax.multi_transform`.

    Args:
        params: the parameters, or their shapes.
        rules: for each label, one or several selectors of its leaves.
        default: the label of all other leaves.

    Returns:
        A string for each leaf; one for all arrays of a packed parameter.

    Raises:
        SelectionError: a rule selects no leaf, or a leaf gets two labels; all are named.

    Example:
        >>> import optax
        >>> from nnopt_jax.transfer import labels
        >>> params = {"embed": {"token": 0.0}, "head": 0.0}
        >>> labels(params, {"frozen": "embed/**"})
        {'embed': {'token': 'frozen'}, 'head': 'trained'}
        >>> parts = {"frozen": optax.set_to_zero(), "trained": optax.adam(1e-3)}
        >>> optimizer = optax.multi_transform(parts, labels(params, {"frozen": "embed/**"}))
    """
    who = "transfer.labels"
    if not isinstance(rules, Mapping):
        raise SelectionError(f"{who}: rules={rules!r} is not a mapping; give {{label: selector}}.")
    leaves = flatten(params, is_node)
    named = {}
    for label, where in rules.items():
        several = [where] if isinstance(where, str) or callable(where) else where
        named[label] = [path for one in several for path in resolve(one, leaves, who)]
    found = _label_by_path(named, leaves, who)
    return unflatten(params, {path: found.get(path, default) for path in leaves}, is_node)


def _path_groups(where: Where, leaves: Mapping[str, Any], who: str) -> list[list[str]]:
    """Return the paths that a selector matches, one list for each value of its `index` group."""
    paths = resolve(where, leaves, who)
    if not isinstance(where, str) or "(?P<index>" not in where:
        return [paths]
    expression = re.compile(where.removeprefix("re:"))
    apart: dict[int, list[str]] = {}
    problems = Problems(who)
    for path in paths:
        found = expression.search(path)
        assert found is not None
        index = found["index"]
        if index is None or not index.isdecimal():
            problems.add(
                path, f"has {index!r} for the index of {where!r}; let it be (?P<index>\\d+)"
            )
            continue
        apart.setdefault(int(index), []).append(path)
    problems.raise_as(SelectionError)
    return [apart[number] for number in sorted(apart)]


def _label_by_path(
    named: Mapping[str, Sequence[str]], leaves: Mapping[str, Any], who: str
) -> dict[str, str]:
    """Return the label of each labeled leaf; raise if a leaf has two labels."""
    mine: dict[str, list[str]] = {}
    for label, paths in named.items():
        for path in dict.fromkeys(paths):
            mine.setdefault(path, []).append(label)
    problems = Problems(who)
    for path in (path for path in leaves if len(mine.get(path, ())) > 1):
        problems.add(
            path, f"is in {' and in '.join(map(repr, mine[path]))}; make the rules say which"
        )
    problems.raise_as(SelectionError)
    return {path: mine[path][0] for path in leaves if path in mine}
