"""Binary and ternary quantization: presets of `on_grid`."""

from __future__ import annotations

import dataclasses
from typing import Literal, Unpack

from nnopt_jax.quantization import grids, method_ranges
from nnopt_jax.quantization.quantizer import QuantizationChoices, on_grid, preset
from nnopt_jax.transform.base import Transform
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where

__all__ = ["binary_connect", "ttq", "twn", "xnor"]


@recorded
def binary_connect(
    *,
    where: Where = matrices,
    scale: float | Literal["glorot"] = 1.0,
    stochastic: bool = False,
) -> Transform:
    r"""Binarize weights to their signs times a constant, over real-valued latent weights.

    $$ \hat w = \pm H, \qquad
       \hat w = +H \text{ where } w \ge 0 \text{, or with probability }
       \mathrm{clip}\left(\frac{w / H + 1}{2},\; 0,\; 1\right) $$

    The gradient passes straight through. Each update clips the weights to `[-H, H]`, beyond which
    they would have no effect, unless an earlier transform encodes the leaf and therefore moves its
    weights. The grid does not contain zero; only a mask makes zeros. Storage takes 1 bit a weight,
    and one scale for each leaf.

    Args:
        where: which leaves; by default those of two or more axes.
        scale: `H`, a positive number, or `"glorot"`: `sqrt(1.5 / (fan in + fan out))`, for networks
            without normalization. Fan in is the size of the contracted axes, fan out that of the
            output axes; in convolutions (three or more contracted axes), the window counts for fan
            out, too.
        stochastic: whether training draws new signs at each update (`tx.init` then needs `key`).
            Inference and storage use the sign of the weight. Running statistics of normalization
            layers then belong to the random signs, so recompute them with the stored ones.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, `stochastic` lacks a key.
        ShapeError: at `init`, axes do not fit a leaf or, for `"glorot"`, are unknown.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.binary_connect()
        >>> params = {"kernel": jnp.array([[0.3, -2.0], [-0.1, 0.0]])}
        >>> state = tx.init(params)
        >>> tx.apply(params, state)["kernel"]
        Array([[ 1., -1.],
               [-1.,  1.]], dtype=float32)
        >>> tx.update(params, state)[0]["kernel"].min()
        Array(-1., dtype=float32)

    References:
        Courbariaux et al. 2015, BinaryConnect, sections 2.2 to 2.4; `"glorot"`: their code.
    """
    grid = grids.binary()
    check = lambda settings: settings.flag("stochastic", stochastic)  # noqa: E731 - beside scale's
    return on_grid(
        dataclasses.replace(grid, check=check), where=where, granularity="tensor",
        range=method_ranges.fixed(scale, project_weights=True),
        rounding="stochastic" if stochastic else "nearest",
        name="quantization.binary_connect",
    )  # fmt: skip


@preset
def xnor(**choices: Unpack[QuantizationChoices]) -> Transform:
    r"""Binarize weights to their signs times the mean magnitude of each block (XNOR-Net).

    $$ \hat w = \alpha\,\mathrm{sign}(w), \qquad
       \alpha = \frac{1}{n} \sum_{block} |w|, \qquad
       \frac{\partial L}{\partial w} = \frac{\partial L}{\partial \hat w}
       \left(\frac{1}{n} + \alpha\, [\,|w| \le 1\,]\right) $$

    The gradient is that of the paper. It shrinks with the scale, which Adam compensates, but plain
    SGD needs a larger learning rate. The sign of zero is plus. Masked entries count neither for the
    sum nor for the number of weights in the mean. Storage takes 1 bit a weight, and the scales.

    Args:
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default granularity is `"channel"`, the filters of the paper.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.xnor()
        >>> params = {"kernel": jnp.array([[0.3, -2.0], [-0.1, -1.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0.2, -1.5],
               [-0.2, -1.5]], dtype=float32)

    References:
        Rastegari et al. 2016, XNOR-Net, section 3.1 (binary weights) and its gradient.
    """
    return on_grid(grids.binary(), range="mean", name="quantization.xnor", **choices)


@preset
def twn(threshold: float = 0.7, **choices: Unpack[QuantizationChoices]) -> Transform:
    r"""Round weights to zero or one magnitude of either sign (TWN).

    $$ \hat w = \alpha\,\mathrm{sign}(w)\,[\,|w| > \Delta\,], \qquad
       \Delta = t \cdot \mathrm{mean}\,|w|, \qquad
       \alpha = \mathrm{mean}\,\{|w| : |w| > \Delta\} $$

    The gradient passes straight through. Masked entries do not count for the means. Storage takes
    1.6 bits a weight, and the scales.

    Args:
        threshold: `t`, 0 or more; 0.7 is near the optimum for normal and uniform weights.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default granularity is `"tensor"`.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.twn()
        >>> params = {"kernel": jnp.array([[1.0, -2.0], [-0.1, 0.1]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 1.5, -1.5],
               [ 0. ,  0. ]], dtype=float32)

    References:
        Li et al. 2016, Ternary Weight Networks, section 2.2.
    """
    chosen = method_ranges.threshold(threshold)
    return on_grid(grids.ternary(), range=chosen, name="quantization.twn", **choices)


@preset
def ttq(threshold: float = 0.05, **choices: Unpack[QuantizationChoices]) -> Transform:
    r"""Round weights to zero, a learned positive value or a learned negative value (TTQ).

    $$ \hat w = \begin{cases} W_p & w > \Delta \\ 0 & |w| \le \Delta \\
       -W_n & w < -\Delta \end{cases} \qquad \Delta = t \cdot \max |w| $$

    The optimizer trains both scales: the gradient of each is the sum over its weights (for `W_n`
    with the sign given by the chain rule). The latent weights get the gradient times `W_p`, 1 or
    `W_n`. Both scales start at the mean magnitude of their weights. Masked entries do not count for
    thresholds and initial scales. Storage takes 1.6 bits a weight, and the scales.

    Args:
        threshold: `t`, a fraction of the greatest magnitude, 0 to 1.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default granularity is `"tensor"`.

    Returns:
        The transform. It refines: masks and tables of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, axes are unknown or do not fit a leaf; see `bind`.
        CompositionError: at `init`, a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.ttq(0.5)
        >>> params = {"kernel": jnp.array([[1.0, -2.0], [-0.1, 3.0]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[ 0., -2.],
               [ 0.,  3.]], dtype=float32)

    References:
        Zhu et al. 2017, Trained Ternary Quantization, sections 3.1 and 3.2.
    """
    chosen = method_ranges.two_sided(threshold)
    return on_grid(grids.ternary(), range=chosen, name="quantization.ttq", **choices)
