"""Quantization: integer, binary, sub-integer."""

from nnopt_jax.quantization.binary.binary_connect import binary_connect as binary_connect
from nnopt_jax.quantization.binary.ttq import ttq as ttq
from nnopt_jax.quantization.binary.twn import twn as twn
from nnopt_jax.quantization.binary.xnor import xnor as xnor
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
from nnopt_jax.quantization.integer.quantize_activations import (
    quantize_activations as quantize_activations,
)
from nnopt_jax.quantization.integer.ranges import (
    Range as Range,
    merge_ranges as merge_ranges,
    observe as observe,
)
from nnopt_jax.quantization.integer.uniform import uniform as uniform
from nnopt_jax.quantization.subinteger.fp4 import fp4 as fp4
from nnopt_jax.quantization.subinteger.grouped import grouped as grouped
from nnopt_jax.quantization.subinteger.lsq import lsq as lsq
from nnopt_jax.quantization.subinteger.lsq_activation import (
    lsq_activation as lsq_activation,
    lsq_step as lsq_step,
)
from nnopt_jax.quantization.subinteger.mxfp4 import mxfp4 as mxfp4
from nnopt_jax.quantization.subinteger.nf4 import nf4 as nf4
from nnopt_jax.quantization.subinteger.pact import pact as pact
