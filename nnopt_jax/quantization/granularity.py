"""Which weights share a scale: a whole tensor, a channel, or a group."""

from __future__ import annotations

from typing import Literal, TypeAlias

from nnopt_jax.settings import Settings

Granularity: TypeAlias = Literal["tensor", "channel"] | int
"""`"tensor"`: one scale. `"channel"`: one for each index of an axis. A number `g`: one for each
group of `g` entries along the axis before the last. Arrays of one axis take one scale."""


def block_of(shape: tuple[int, ...], granularity: Granularity, axis: int) -> tuple[int, ...]:
    """The sizes of the blocks that share a scale.

    Args:
        shape: of the weights.
        granularity: see `Granularity`.
        axis: the channel axis.

    Returns:
        One size for each axis, which it divides where `misfit` finds nothing.

    Example:
        >>> block_of((6, 4), "channel", -1), block_of((6, 4), 3, -1), block_of((6, 4), "tensor", -1)
        ((6, 1), (3, 1), (6, 4))
    """
    if granularity == "tensor" or len(shape) < 2:
        return shape
    if granularity == "channel":
        return tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
    return tuple(int(granularity) if i == len(shape) - 2 else 1 for i in range(len(shape)))


def misfit(shape: tuple[int, ...], granularity: Granularity, axis: int) -> str | None:
    """What is wrong with a granularity for weights of a shape, or None.

    Example:
        >>> misfit((6, 4), 4, -1)
        'groups of 4 do not divide axis 0 of shape (6, 4)'
    """
    if len(shape) < 2 or granularity == "tensor":
        return None
    if granularity == "channel":
        fits = -len(shape) <= axis < len(shape)
        return None if fits else f"axis {axis} is not one of the axes of shape {shape}"
    if shape[-2] % int(granularity) == 0:
        return None
    return f"groups of {granularity} do not divide axis {len(shape) - 2} of shape {shape}"


def check_granularity(settings: Settings, granularity: Granularity, axis: int) -> None:
    """Adds what is wrong with the two settings to the others.

    Example:
        >>> from nnopt_jax.settings import Settings
        >>> settings = Settings("demo")
        >>> check_granularity(settings, 0, -1)
        >>> settings.done()
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: demo: granularity=0 is not a whole number of 1 or more.
    """
    if isinstance(granularity, str):
        settings.choice("granularity", granularity, ("tensor", "channel"))
    else:
        settings.integer("granularity", granularity, 1)
    settings.integer("axis", axis, -32, 31)
