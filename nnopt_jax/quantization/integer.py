"""Integer quantization: presets of `on_grid`."""

from __future__ import annotations

from typing import Unpack

from nnopt_jax.quantization import grids, weight_ranges
from nnopt_jax.quantization.quantizer import QuantizationChoices, on_grid, preset
from nnopt_jax.transform.base import Transform

__all__ = ["uniform"]


@preset
def uniform(
    bits: int = 8,
    *,
    symmetric: bool = True,
    range: str | weight_ranges.WeightRange = "absmax",
    percent: float = 99.9,
    **choices: Unpack[QuantizationChoices],
) -> Transform:
    r"""Round weights to a uniform grid, both in training and in storage.

    $$ \hat w = s\,(q - z), \qquad
       q = \mathrm{clip}(\mathrm{round}(w / s) + z,\; lo,\; hi) $$

    The gradient passes straight through, except where the grid clips a weight by more than the
    rounding of its ends. Masked entries do not count for a range. A block of zeros, or with NaN or
    infinity, has scale 1.

    Args:
        bits: 2 to 16; codes of 8 and 16 bits are stored in integer arrays, others are packed.
        symmetric: whether codes are symmetric about zero, without a zero point; otherwise an
            integer zero point makes zero exact.
        range: `"absmax"`: the extreme values of a block. `"percentile"`: the range that holds
            `percent` of a block. `"mse"`: the one of 80 fractions of the extreme values with the
            least squared error, which takes 80 passes over the weights, so raise `every`.
        percent: the percentage of a block that its range holds, 50 to 100; if not symmetric, each
            end excludes equally many. Used only by `"percentile"`.
        **choices: `where`, `granularity`, `group`, `axis`, `rounding`, `scale_dtype` and `every` of
            `on_grid`; the default granularity is `"tensor"`.

    Returns:
        The transform. It refines: masks and tables above it stay.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init`, where axes are not known or do not fit a leaf; see `bind`.
        CompositionError: at `init`, where a leaf is quantized already.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.quantization.uniform(8, granularity="channel")
        >>> params = {"kernel": jnp.array([[127.0, 63.5], [33.3, -10.2]])}
        >>> tx.apply(params, tx.init(params))["kernel"]
        Array([[127. ,  63.5],
               [ 33. , -10. ]], dtype=float32)

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks, section 2.1; percentiles:
        McKinstry et al. 2018, section 3; squared error: Banner et al. 2019, section 3.
    """
    chosen = weight_ranges.percentile(percent) if range == "percentile" else range
    return on_grid(grids.uniform(bits, symmetric), range=chosen, **choices)
