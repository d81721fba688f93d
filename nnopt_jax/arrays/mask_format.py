"""The storage format of a mask: the requested one, or the smallest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.core import Tracer

from nnopt_jax.arrays.index_layouts import CSR, DeltaIndex
from nnopt_jax.arrays.packed_integers import Bits
from nnopt_jax.arrays.pattern_layouts import BSR, NMIndex, any_in_block, block_misfit, n_of_m_misfit
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.errors import CompositionError
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import split_groups
from nnopt_jax.settings import Settings

Format: TypeAlias = str | tuple[int, ...]
"""`"smallest"`, `"bitmask"`, `"gaps"`, `"csr"`, `"n:m"` such as `"2:4"`, or sizes of blocks."""

Roles: TypeAlias = tuple[tuple[int, ...], ...]
"""The contracted, output and batch axes along which a pattern lies; none for `(..., in, out)`."""

NAMES = ("smallest", "bitmask", "gaps", "csr")
_GROUPS = (2, 4, 8, 16, 32)  # group sizes of n:m patterns that `smallest_support` tries


def parse_format(format: str | Sequence[int], settings: Settings) -> Format:
    """Parse the name of a storage format of masks.

    Args:
        format: the name or block sizes that the user wrote.
        settings: collects the problem, if there is one.

    Returns:
        The format, hashable.

    Example:
        >>> from nnopt_jax.settings import Settings
        >>> settings = Settings("demo")
        >>> parse_format("2:4", settings), parse_format([4, 1], settings)
        ('2:4', (4, 1))
    """
    if isinstance(format, str):
        pair = n_of_m(format)
        known = pair is not None and n_of_m_misfit((pair[1],), *pair) is None
        if known or format in NAMES:
            return format
    elif isinstance(format, Sequence) and format:
        sizes = tuple(format)
        if all(type(size) is int and size > 0 for size in sizes):
            return sizes
    names = ", ".join(map(repr, NAMES))
    text = f"is not one of {names}, 'n:m' of at most 2^31 choices, or block sizes as (4, 4)."
    settings.wrong("format", format, text)
    return "smallest"


def n_of_m(format: Format) -> tuple[int, int] | None:
    """Parse `"n:m"` to its two numbers; return None for any other format.

    Example:
        >>> n_of_m("2:4"), n_of_m("csr")
        ((2, 4), None)
    """
    found = re.fullmatch(r"(\d+):(\d+)", format) if isinstance(format, str) else None
    return (int(found[1]), int(found[2])) if found else None


def shape_misfit(shape: tuple[int, ...], format: Format) -> str | None:
    """Return why masks of this shape cannot be stored in this format; None if they can.

    Example:
        >>> shape_misfit((6, 8), "2:4"), shape_misfit((6, 8), "csr")
        ('groups of 4 do not divide axis 0 of shape (6, 8)', None)
    """
    if pair := n_of_m(format):
        return n_of_m_misfit(shape, *pair)
    return block_misfit(shape, format) if isinstance(format, tuple) else None


def mask_misfit(mask: jax.Array, format: Format) -> str | None:
    """Return why a concrete mask cannot be stored in this format; None if it can.

    Example:
        >>> import jax.numpy as jnp
        >>> mask_misfit(jnp.array([True, True, True, False]), "2:4")
        'keeps 3 of 4 in a group, and format 2:4 stores 2'
    """
    if text := shape_misfit(mask.shape, format):
        return text
    if pair := n_of_m(format):
        counts = np.asarray(split_groups(mask, pair[1]).sum(-1))
        wrong = counts[counts != pair[0]]
        if wrong.size:
            return f"keeps {wrong[0]} of {pair[1]} in a group, and format {format} stores {pair[0]}"
    if isinstance(format, tuple):
        whole = expand(any_in_block(mask, format), mask.shape)
        if int((whole != mask).sum()):
            return f"keeps some of a block of {format}, which format {format} cannot store"
    return None


def support_of(
    mask: jax.Array, format: Format = "smallest", roles: Roles = ()
) -> Bits | DeltaIndex | CSR | NMIndex | BSR | Reshaped:
    """Encode a mask in the given format.

    Under `jax.jit` the mask is unknown: patterns (n:m, blocks) are not checked, and formats whose
    size depends on the mask (gaps, CSR, the smallest) are replaced by one bit for each element.

    Args:
        mask: bool, any shape.
        format: see `Format`.
        roles: the roles of the axes; the groups of `"n:m"` lie on contracted axes, see `Roles`.

    Returns:
        The sparse layout; with roles, a view of the layout of the mask as a matrix.

    Raises:
        CompositionError: the mask does not have the pattern of the format.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.mask_format import support_of
        >>> mask = jnp.arange(16).reshape(8, 2) % 4 < 2
        >>> [support_of(mask, format) for format in ("bitmask", "csr", "2:4", (1, 2))]
        [1-bit[8,2], rows 2-bit[8] columns 1-bit[8], 2:4 3-bit[2,2], 1x2 blocks 1-bit[8,1]]
    """
    pair = n_of_m(format)
    if pair and roles:
        contracted, output, batch = roles
        axes = Axes(contracted, output, batch)
        split = tuple(mask.shape[axis] for axis in axes.order)
        matrix = support_of(axes.to_matrix(mask), format)
        return Reshaped(matrix, split, axes.inverse, tuple(mask.shape))
    traced = isinstance(mask, Tracer)
    text = shape_misfit(mask.shape, format) if traced else mask_misfit(mask, format)
    if text:
        raise CompositionError(f"{text}; give another format, or prune to this pattern.")
    if pair:
        return NMIndex.of(mask, *pair)
    if isinstance(format, tuple):
        return BSR.of(mask, format)
    if traced or format == "bitmask":
        return Bits.of(mask, 1)
    if format == "smallest":
        return smallest_support(mask)
    return DeltaIndex.of(mask) if format == "gaps" else CSR.of(mask)


def smallest_support(mask: jax.Array) -> Bits | DeltaIndex | CSR | NMIndex | BSR | Reshaped:
    """Encode a mask in the format whose arrays take the fewest bits.

    Candidates are one bit for each element, relative indices, compressed rows, `n:m` along the axis
    before the last for groups of 2 to 32, and the largest blocks that the mask consists of. Under
    `jax.jit` the mask is unknown, and the result is one bit for each element.

    Args:
        mask: bool, any shape.

    Returns:
        The smallest sparse layout; on a tie, the first in the order above.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.arrays.mask_format import smallest_support
        >>> from nnopt_jax.ops.masks import keep_n_of_m
        >>> half = keep_n_of_m(jnp.sin(jnp.arange(256.0) ** 2).reshape(32, 8), 2, 4)
        >>> for mask in (jnp.arange(1000) % 101 == 0, half, jnp.ones((32, 8), bool)):
        ...     print(smallest_support(mask))
        gaps 7-bit[10]
        2:4 3-bit[8,8]
        32x8 blocks 1-bit[1,1]
    """
    if isinstance(mask, Tracer) or not mask.size:
        return Bits.of(mask, 1)
    forms = _forms(np.asarray(mask))
    format = min(forms, key=forms.__getitem__)
    return support_of(mask, format)


def _forms(mask: np.ndarray) -> dict[Format, int]:
    """Return the bits that each possible format of the mask needs."""
    forms: dict[Format, int] = {
        "bitmask": Bits.cost(mask.shape, 1),
        "gaps": DeltaIndex.cost(mask),
        "csr": CSR.cost(mask),
    }
    if pair := _pattern(mask):
        forms[f"{pair[0]}:{pair[1]}"] = NMIndex.cost(mask.shape, *pair)
    sizes = tuple(_unit(mask, axis) for axis in range(mask.ndim))
    if math.prod(sizes) > 1:
        forms[sizes] = BSR.cost(mask, sizes)
    return forms


def _pattern(mask: np.ndarray) -> tuple[int, int] | None:
    """Return the smallest `n:m` pattern that a mask follows, or None."""
    total = int(mask.sum())
    for m in _GROUPS:
        kept, rest = divmod(total * m, mask.size)
        if rest or not 0 < kept < m or n_of_m_misfit(mask.shape, kept, m):
            continue
        axis = max(mask.ndim - 2, 0)
        split = (*mask.shape[:axis], -1, m, *mask.shape[axis + 1 :])
        if (mask.reshape(split).sum(axis + 1) == kept).all():
            return kept, m
    return None


def _unit(mask: np.ndarray, axis: int) -> int:
    """Return the greatest block size along an axis such that the mask consists of whole blocks."""
    lines = np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1)
    changes = np.flatnonzero((lines[1:] != lines[:-1]).any(1)) + 1
    return math.gcd(mask.shape[axis], *changes.tolist())
