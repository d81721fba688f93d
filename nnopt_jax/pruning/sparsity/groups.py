"""Groups of weights that a penalty takes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.pruning.pattern import Blocks, conventional
from nnopt_jax.settings import Settings

Groups: TypeAlias = str | Sequence[int]
"""`"outputs"`, `"inputs"`, or the sizes of a block as `nnopt_jax.pruning.pattern` has them."""

_UNITS = {"outputs": 1, "inputs": 2}
"""The axes that a leaf needs to have such groups."""
_WINDOWED = 3
"""Contracted axes of the kernels of convolutions, the last of which is that of their inputs."""


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


def misfit(groups: Groups | None, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
    """Say why groups do not fit a leaf of this shape; None where they do.

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
    return Blocks(tuple(groups)).misfit(shape, axes)


def needs_axes(groups: Groups | None) -> bool:
    """Whether groups lie along axes that a product sums over, or keeps.

    Example:
        >>> needs_axes("outputs"), needs_axes((3, 3, 4, 4)), needs_axes(None)
        (True, False, False)
    """
    if groups is None:
        return False
    return isinstance(groups, str) or Blocks(tuple(groups)).needs_axes


def block_of(
    groups: Groups | None, shape: tuple[int, ...], axes: Axes | None = None
) -> tuple[int, ...]:
    """Return the size of a group along each axis.

    An output is an index of the output axes; an input one of the contracted axes or, of
    convolutions, which contract a window as well, one of the last of them.

    Args:
        groups: None for single weights.
        shape: of the leaf.
        axes: of the leaf; default: the conventional ones.

    Example:
        >>> from nnopt_jax.pruning.sparsity.groups import block_of
        >>> block_of("outputs", (3, 3, 8, 16)), block_of((4, 1), (3, 3, 8, 16))
        ((3, 3, 8, 1), (1, 1, 4, 1))
    """
    if groups is None:
        return (1,) * len(shape)
    if not isinstance(groups, str):
        return Blocks(tuple(groups)).block(shape, axes)
    if len(shape) < 2:
        return (1,) * len(shape)
    axes = axes or conventional(shape)
    inputs = axes.contracted
    inputs = inputs[-1:] if len(inputs) >= _WINDOWED else inputs
    own = axes.output if groups == "outputs" else inputs
    single = {*own, *axes.batch}
    return tuple(1 if axis in single else size for axis, size in enumerate(shape))
