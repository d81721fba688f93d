"""Groups of weights that a penalty takes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from nnopt_jax.pruning.pattern import Blocks
from nnopt_jax.settings import Settings

Groups: TypeAlias = str | Sequence[int]
"""`"outputs"`, `"inputs"`, or the sizes of a block of the last axes."""

_UNITS = {"outputs": 1, "inputs": 2}
"""The axis, from the end, whose indices are the groups."""


def check_groups(name: str, groups: Any, settings: Settings) -> Groups:
    """Checks the setting.

    Args:
        name: what it is called.
        groups: what the user wrote.
        settings: takes the problem, if there is one.

    Returns:
        The groups.

    Example:
        >>> from nnopt_jax.pruning.sparsity.groups import check_groups
        >>> from nnopt_jax.settings import Settings
        >>> check_groups("groups", [4, 1], Settings("demo"))
        (4, 1)
    """
    if isinstance(groups, str):
        settings.choice(name, groups, tuple(_UNITS))
        return groups
    sizes = tuple(groups) if isinstance(groups, Sequence) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        text = "is neither 'outputs', 'inputs', nor block sizes such as (4, 4)."
        settings.wrong(name, groups, text)
    return sizes


def misfit(groups: Groups | None, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a leaf of this shape, if anything is.

    Example:
        >>> from nnopt_jax.pruning.sparsity.groups import misfit
        >>> misfit("inputs", (3,))
        "groups 'inputs' need 2 axes, shape (3,) has less"
    """
    if groups is None:
        return None
    if isinstance(groups, str):
        least = _UNITS[groups]
        if len(shape) < least:
            return f"groups {groups!r} need {least} axes, shape {shape} has less"
        return None
    return Blocks(tuple(groups)).misfit(shape)


def block_of(groups: Groups | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a group along each axis.

    Example:
        >>> from nnopt_jax.pruning.sparsity.groups import block_of
        >>> block_of("outputs", (3, 3, 8, 16)), block_of((4, 1), (3, 3, 8, 16))
        ((3, 3, 8, 1), (1, 1, 4, 1))
    """
    if groups is None:
        return (1,) * len(shape)
    if isinstance(groups, str):
        axis = len(shape) - _UNITS[groups]
        return tuple(1 if i == axis else size for i, size in enumerate(shape))
    return (1,) * (len(shape) - len(groups)) + tuple(groups)
