"""Quantization to fewer than eight bits, or in groups: presets of `on_grid`."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from nnopt_jax.quantization import grids, weight_ranges
from nnopt_jax.quantization.quantizer import QuantizationChoices, on_grid, preset
from nnopt_jax.transform.base import Transform

__all__ = ["fp4", "grouped", "lsq", "mxfp4", "nf4"]


@preset
def lsq(bits: int = 4, **choices: Unpack[QuantizationChoices]) -> Transform:
    r"""Round weights to a grid whose step the optimizer learns with them (LSQ).

    $$ \hat w = s\,\mathrm{clip}(\mathrm{round}(v),\,-Q_N,\,Q_P), \quad v = w / s, \qquad
       \frac{\partial \hat w}{\partial s} = g \cdot \begin{cases}
       \mathrm{round}(v) - v & -Q_N < v < Q_P \\ -Q_N & v \le -Q_N \\ Q_P & v \ge Q_P
       \end{cases} $$

    where $Q_N = 2^{b-1}$, $Q_P = 2^{b-1} - 1$, and $g = 1 / \sqrt{N Q_P}$ for the `N` weights that
    share a step. Weights get the gradient inside the range and none outside. The initial step is
    $2\,\mathrm{mean}|w| / \sqrt{Q_P}$. Masked entries do not count for that mean, for `N` or for
    the gradient.

    A step stays positive and finite: if an update makes it anything else, it is fitted again from
    the weights, as at the start. It is 1 for weights that are all zero, or NaN or infinite.

    Args:
        bits: `b`, 2 to 8.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default granularity is `"tensor"`, as in the paper. Steps are learned in
            float32.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay. The steps are part
        of `nnopt.trainable(...).learned`.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.lsq(2)
        >>> params = {"kernel": jnp.array([[0.5, -0.6], [0.1, 2.0]])}
        >>> state = tx.init(params)
        >>> print(state.learned["kernel"][0].ravel(), tx.apply(params, state)["kernel"].ravel())
        [1.6] [0.  0.  0.  1.6]

    References:
        Esser et al. 2020, Learned Step Size Quantization, section 2.
    """
    return on_grid(grids.signed(bits), range="learned", name="quantization.lsq", **choices)


@preset
def nf4(
    *,
    double: bool = False,
    range: str | weight_ranges.WeightRange = "absmax",
    **choices: Unpack[QuantizationChoices],
) -> Transform:
    r"""Round weights to 16 quantiles of the normal distribution (NF4).

    $$ \hat w = s\, l_c, \qquad s = \max_{block} |w|, \qquad c = \arg\min_k |w / s - l_k| $$

    The gradient passes straight through. Masked entries do not count for the scales.

    Args:
        double: whether scales are quantized, too, to 8 bits with a second scale for at most 256
            consecutive scales along the output axes (all of the inner axes, and the greatest
            divisor of the next one that fits).
        range: how the scale of a block is chosen; see `on_grid`.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default is groups of 64.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.nf4(group=2, scale_dtype="float32")
        >>> params = {"kernel": jnp.array([[2.0, -0.3], [1.0, 0.1]])}
        >>> print(tx.apply(params, tx.init(params))["kernel"])
        [[ 2.         -0.3       ]
         [ 0.88141966  0.10137457]]

    References:
        Dettmers et al. 2023, QLoRA, section 3 (which runs blocks along the flattened leaf, and
        quantizes scales to 8-bit floats around their mean).
    """
    return on_grid(grids.nf4(), range=range, double=double, **choices)


@preset
def fp4(
    *,
    range: str | weight_ranges.WeightRange = "absmax",
    **choices: Unpack[QuantizationChoices],
) -> Transform:
    r"""Round weights to 4-bit floats (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4 and 6, of either sign.

    $$ \hat w = s\, l_c, \qquad s = \max_{block} |w| / 6, \qquad
       c = \arg\min_k |w / s - l_k| $$

    The gradient passes straight through. Masked entries do not count for the scales. The sixteenth
    code, -0, is not used.

    Args:
        range: how the scale of a block is chosen; see `on_grid`.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default is groups of 32.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.fp4(granularity="tensor")
        >>> params = {"kernel": jnp.array([[12.0, -1.1], [6.5, 0.4]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[12., -1.],
               [ 6.,  0.]], dtype=float32)

    References:
        Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3 (the
        elements); Dettmers et al. 2023, QLoRA, section 3 (a scale for each block).
    """
    return on_grid(grids.fp4(), range=range, **choices)


@preset
def mxfp4(
    *,
    range: str | weight_ranges.WeightRange = "absmax",
    **choices: Unpack[QuantizationChoices],
) -> Transform:
    r"""Round weights to 4-bit floats (E2M1) in blocks whose scale is a power of two (MXFP4).

    $$ \hat w = 2^{e}\, l_c, \qquad e = \lfloor \log_2 \max_{block} |w| \rfloor - 2, \qquad
       c = \arg\min_k |2^{-e} w - l_k| $$

    Storage takes 4.25 bits a weight, since exponents take 8 bits. Magnitudes above 6 units become
    6, and those halfway between two levels become the smaller one. The gradient passes straight
    through. Masked entries do not count for the exponents.

    Args:
        range: how the exponent of a block is chosen; see `on_grid`.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default is groups of 32, as in the standard, all of equal size.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.mxfp4(granularity="tensor")
        >>> params = {"kernel": jnp.array([[7.0, -1.1], [3.4, 0.2]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 6., -1.],
               [ 3.,  0.]], dtype=float32)

    References:
        Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
    """
    return on_grid(grids.mxfp4(), range=range, **choices)


@preset
def grouped(
    format: Literal["q4_0", "q8_0"] = "q4_0", **choices: Unpack[QuantizationChoices]
) -> Transform:
    r"""Round weights in groups, with the steps and rounding of GGUF's Q4_0 and Q8_0.

    $$ \hat w = \mathrm{float16}(d)\, q, \qquad
       q_{4\_0} = \min(\lfloor w / d + 8.5 \rfloor, 15) - 8, \quad d = -w_* / 8, \qquad
       q_{8\_0} = \mathrm{round}(w / d), \quad d = |w_*| / 127 $$

    where `w_*` is the weight of greatest magnitude in a group. Storage takes 4.5 and 8.5 bits a
    weight. For other widths, zero points and scales, see `quantization.uniform`, which rounds with
    the stored scale. The gradient passes straight through. Masked entries do not count for the
    steps.

    Args:
        format: `"q4_0"`: the weight of greatest magnitude has code -8 and is exact, and all 16
            codes are used. `"q8_0"`: 8 bits, symmetric.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default is groups of 32, as in files, all of equal size.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.grouped("q4_0", group=2)
        >>> params = {"kernel": jnp.array([[8.0, -0.5], [3.4, 4.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 8. , -0.5],
               [ 3. ,  4. ]], dtype=float32)

    References:
        The GGUF format of llama.cpp, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    formats = {"q4_0": grids.q4_0, "q8_0": grids.q8_0}
    found: Any = formats[format]() if format in formats else format
    return on_grid(found, name="quantization.grouped", **choices)
