"""The grids of common formats, and grids of values of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from nnopt_jax.ops import lookup_tables
from nnopt_jax.ops.grid import integer_range
from nnopt_jax.quantization.grid_class import Grid, are_levels
from nnopt_jax.settings import Settings, is_whole
from nnopt_jax.typing import ArrayLike

__all__ = [
    "GRIDS",
    "Grid",
    "binary",
    "codebook",
    "fp4",
    "mxfp4",
    "nf4",
    "q4_0",
    "q8_0",
    "signed",
    "ternary",
    "uniform",
]


def uniform(bits: int = 8, symmetric: bool = True) -> Grid:
    r"""Return the grid of evenly spaced values $s (q - z)$: integers.

    Args:
        bits: 2 to 16.
        symmetric: whether codes are symmetric about zero, $|q| < 2^{b-1}$; otherwise the grid has
            an integer zero point $z$, which makes zero exact.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.uniform(4), nnopt.quantization.grids.uniform(4).ends
        (uniform(bits=4, symmetric=True), (-7.0, 7.0))

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 2.1.
    """

    def check(settings: Settings) -> None:
        settings.integer("bits", bits, 2, 16)
        settings.flag("symmetric", symmetric)

    good = is_whole(bits) and 2 <= bits <= 16
    low, high = integer_range(bits if good else 8, symmetric=symmetric is not False)
    pairs = (("bits", bits), ("symmetric", symmetric))
    return Grid("uniform", low, high, None, symmetric is False, settings=pairs, check=check)


def signed(bits: int = 4) -> Grid:
    r"""Return the grid of two's complement integers, $-2^{b-1} \le q < 2^{b-1}$.

    Args:
        bits: 2 to 8.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.signed(4).ends
        (-8.0, 7.0)

    References:
        Esser et al. 2020, Learned Step Size Quantization, section 2.
    """
    good = is_whole(bits) and 2 <= bits <= 8
    low, high = integer_range(bits if good else 8, symmetric=False)
    return Grid(
        "signed", low, high, settings=(("bits", bits),),
        check=lambda settings: settings.integer("bits", bits, 2, 8),
    )  # fmt: skip


def _table(name: str, levels: tuple[float, ...], **options: Any) -> Grid:
    return Grid(name, 0, len(levels) - 1, levels, **options)


def binary() -> Grid:
    """Return the grid of the signs -1 and 1.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.binary().levels
        (-1.0, 1.0)
    """
    return _table("binary", lookup_tables.BINARY, granularity="channel", range="mean")


def ternary() -> Grid:
    """Return the grid of -1, 0 and 1, stored in 1.6 bits.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.ternary().ends
        (-1.0, 1.0)
    """
    return Grid("ternary", -1, 1)


def nf4() -> Grid:
    """Return the grid of NormalFloat4: 16 quantiles of the normal distribution, scaled to 1.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.nf4().ends
        (-1.0, 1.0)

    References:
        Dettmers et al. 2023, QLoRA, section 3.
    """
    return _table("nf4", lookup_tables.NF4, granularity=64)


def fp4() -> Grid:
    """Return the grid of the float E2M1: 0, .5, 1, 1.5, 2, 3, 4 and 6, and their negatives.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.fp4().top
        6.0

    References:
        Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3.
    """
    return _table("fp4", lookup_tables.E2M1, granularity=32)


def mxfp4() -> Grid:
    """Return the grid of E2M1 for groups whose scale is a power of two.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.mxfp4().scale_dtype
        'e8m0'

    References:
        Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
    """
    return _table(
        "mxfp4", lookup_tables.E2M1, granularity=32, whole_groups=True, scale_dtype="e8m0",
        dtypes=("e8m0",),
    )  # fmt: skip


def codebook(levels: Sequence[float] | ArrayLike) -> Grid:
    """Return a grid of arbitrary values.

    Args:
        levels: 2 to 256 ascending numbers, of which the last is positive; a sequence or an array
            of one axis.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.codebook((-1.0, -0.25, 0.25, 1.0))
        codebook(levels=(-1.0, -0.25, 0.25, 1.0))
    """
    is_array = isinstance(levels, jax.Array | np.ndarray)
    listed: Any = levels.tolist() if is_array else levels
    good = are_levels(listed)

    def check(settings: Settings) -> None:
        if not good:
            text = "are not 2 to 256 ascending numbers, the last of them above 0."
            settings.wrong("levels", listed, text)

    table = tuple(map(float, listed)) if good else lookup_tables.TERNARY
    return _table("codebook", table, settings=(("levels", table),), check=check)


def q4_0() -> Grid:
    """Return the grid of GGUF's Q4_0, whose weight of greatest magnitude has code -8 and is exact.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.q4_0().ends
        (-8.0, 7.0)
    """
    return _table(
        "q4_0", tuple(float(level) for level in range(-8, 8)), granularity=32,
        whole_groups=True, range="gguf", scale_dtype="float16", dtypes=("float16",),
    )  # fmt: skip


def q8_0() -> Grid:
    """Return the grid of GGUF's Q8_0, the integers from -127 to 127.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.quantization.grids.q8_0().ends
        (-127.0, 127.0)
    """
    return Grid(
        "q8_0", -127, 127, granularity=32, whole_groups=True, range="gguf",
        scale_dtype="float16", dtypes=("float16",),
    )  # fmt: skip


GRIDS: Mapping[str, Callable[..., Grid]] = MappingProxyType(
    {
        "binary": binary,
        "fp4": fp4,
        "int16": lambda: uniform(16),
        "int8": lambda: uniform(8),
        "int4": lambda: uniform(4),
        "int3": lambda: uniform(3),
        "int2": lambda: uniform(2),
        "mxfp4": mxfp4,
        "nf4": nf4,
        "q4_0": q4_0,
        "q8_0": q8_0,
        "ternary": ternary,
    }
)
"""The grids that a string can name."""
