"""Quantization: integer, binary, sub-integer."""

from nnopt_jax.quantization.integer.activations import dynamic as dynamic, fake_quant as fake_quant
from nnopt_jax.quantization.integer.calibrated import (
    Grid as Grid,
    absmax_grid as absmax_grid,
    mse_grid as mse_grid,
    percentile_grid as percentile_grid,
)
from nnopt_jax.quantization.integer.ema import (
    EmaRange as EmaRange,
    ema_grid as ema_grid,
    ema_range as ema_range,
)
from nnopt_jax.quantization.integer.entropy import kl_grid as kl_grid
from nnopt_jax.quantization.integer.ranges import (
    Range as Range,
    merge_ranges as merge_ranges,
    observe as observe,
)
from nnopt_jax.quantization.integer.uniform import uniform as uniform
from nnopt_jax.quantization.subinteger.lsq import lsq as lsq
from nnopt_jax.quantization.subinteger.lsq_activation import (
    lsq_activation as lsq_activation,
    lsq_step as lsq_step,
)
from nnopt_jax.quantization.subinteger.pact import pact as pact
