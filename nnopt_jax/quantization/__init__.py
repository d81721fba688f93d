"""Quantization of weights and activations: integers, binary and ternary values, and floats."""

from nnopt_jax.errors import former_names
from nnopt_jax.quantization import grids as grids, ranges as ranges, rounding as rounding
from nnopt_jax.quantization.activations.entropy_grid import kl_grid as kl_grid
from nnopt_jax.quantization.activations.fake_quantization import (
    dynamic as dynamic,
    fake_quant as fake_quant,
)
from nnopt_jax.quantization.activations.input_quantization import (
    quantize_activations as quantize_activations,
)
from nnopt_jax.quantization.activations.learned_clipping import pact as pact
from nnopt_jax.quantization.activations.learned_step import (
    lsq_activation as lsq_activation,
    lsq_step as lsq_step,
)
from nnopt_jax.quantization.activations.moving_range import (
    EmaRange as EmaRange,
    ema_grid as ema_grid,
    ema_range as ema_range,
)
from nnopt_jax.quantization.activations.observed_range import (
    Range as Range,
    merge_ranges as merge_ranges,
    update_range as update_range,
)
from nnopt_jax.quantization.activations.static_grids import (
    ActivationGrid as ActivationGrid,
    absmax_grid as absmax_grid,
    mse_grid as mse_grid,
    percentile_grid as percentile_grid,
)
from nnopt_jax.quantization.binary import (
    binary_connect as binary_connect,
    ttq as ttq,
    twn as twn,
    xnor as xnor,
)
from nnopt_jax.quantization.grids import Grid as Grid
from nnopt_jax.quantization.integer import uniform as uniform
from nnopt_jax.quantization.quantizer import on_grid as on_grid
from nnopt_jax.quantization.subinteger import (
    fp4 as fp4,
    grouped as grouped,
    lsq as lsq,
    mxfp4 as mxfp4,
    nf4 as nf4,
)

__getattr__ = former_names(
    "nnopt_jax.quantization", {"observe": "nnopt_jax.quantization.update_range"}
)
