"""Rules that say which leaf of the source goes where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnopt_jax.transfer.parameter.graft.rule import (
    Failed,
    Leaves,
    Rule,
    compiled,
    each,
    put,
    written,
)
from nnopt_jax.tree.select import Where, selector


def rename(pattern: str, template: str) -> Rule:
    r"""Calls leaves of the source as the target calls them.

    Args:
        pattern: regular expression of whole paths, as `re.fullmatch` takes it.
        template: the new path, with `\1`, `\g<name>` for groups.

    Example:
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.rename(r"layer_(\d)/w", r"blocks/\1/kernel")
        >>> graft({"blocks": [{"kernel": 0.0}]}, {"layer_0": {"w": 7.0}}, [rule]).params
        {'blocks': [{'kernel': Array(7., dtype=float32)}]}
    """
    expression = compiled(pattern, template)

    def change(leaves: Leaves, failed: Failed) -> tuple[Leaves, int]:
        made, hits = {}, 0
        for path, leaf in leaves.items():
            found = expression.fullmatch(path)
            hits += found is not None
            put(made, path if found is None else found.expand(template), leaf, failed)
        return made, hits

    return Rule(f"rename({pattern!r}, {template!r})", change)


def drop(where: Where) -> Rule:
    """Leaves of the source that are not wanted.

    Args:
        where: which; glob, `re:` expression, predicate or selector.

    Example:
        >>> from nnopt_jax.transfer import graft, rules
        >>> graft({"a": 0.0}, {"a": 1.0, "b": 2.0}, [rules.drop("b")]).params
        {'a': Array(1., dtype=float32)}
    """
    return each("drop", where, lambda leaf: None)


def keep(where: Where) -> Rule:
    """Leaves of the target that stay as they are: a new head, say.

    A leaf of the source that has such a name goes nowhere; the report lists it as unused.

    Args:
        where: which leaves of the target.

    Example:
        >>> from nnopt_jax.transfer import graft, rules
        >>> made = graft({"a": 0.0, "head": 5.0}, {"a": 1.0}, [rules.keep("head")])
        >>> made.params["head"]
        5.0
    """
    return Rule(f"keep({written(where)})", keeps=selector(where))


def adapt(where: Where, how: Callable[[Any, Any], Any]) -> Rule:
    """How leaves are made to fit whose shapes differ.

    Args:
        where: which leaves of the target.
        how: `(source array, target array or its shape and dtype) -> array`: one of
            `corner`, `grid`, `rows`, or your own.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transfer import graft, rules
        >>> rule = rules.adapt("w", lambda source, target: source[: target.shape[0]])
        >>> graft({"w": jnp.zeros(2)}, {"w": jnp.arange(5.0)}, [rule]).params["w"]
        Array([0., 1.], dtype=float32)
    """
    name = getattr(how, "__name__", repr(how))
    return Rule(f"adapt({written(where)}, {name})", adapts=selector(where), adapt=how)
