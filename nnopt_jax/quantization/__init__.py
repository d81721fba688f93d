"""Quantization of weights and activations: integers, binary and ternary values, and floats."""

from nnopt_jax.errors import former_names
from nnopt_jax.quantization import grids, ranges, rounding
from nnopt_jax.quantization.activations.entropy_grid import kl_grid
from nnopt_jax.quantization.activations.fake_quantization import (
    dynamic,
    fake_quant,
)
from nnopt_jax.quantization.activations.input_quantization import (
    quantize_activations,
)
from nnopt_jax.quantization.activations.learned_clipping import pact
from nnopt_jax.quantization.activations.learned_step import (
    lsq_activation,
    lsq_step,
)
from nnopt_jax.quantization.activations.moving_range import (
    EmaRange,
    ema_grid,
    ema_range,
)
from nnopt_jax.quantization.activations.observed_range import (
    Range,
    merge_ranges,
    update_range,
)
from nnopt_jax.quantization.activations.static_grids import (
    ActivationGrid,
    absmax_grid,
    mse_grid,
    percentile_grid,
)
from nnopt_jax.quantization.binary import (
    binary_connect,
    ttq,
    twn,
    xnor,
)
from nnopt_jax.quantization.grids import Grid
from nnopt_jax.quantization.integer import uniform
from nnopt_jax.quantization.quantizer import on_grid
from nnopt_jax.quantization.subinteger import (
    fp4,
    grouped,
    lsq,
    mxfp4,
    nf4,
)

__all__ = [
    "ActivationGrid",
    "EmaRange",
    "Grid",
    "Range",
    "absmax_grid",
    "binary_connect",
    "dynamic",
    "ema_grid",
    "ema_range",
    "fake_quant",
    "fp4",
    "grids",
    "grouped",
    "kl_grid",
    "lsq",
    "lsq_activation",
    "lsq_step",
    "merge_ranges",
    "mse_grid",
    "mxfp4",
    "nf4",
    "on_grid",
    "pact",
    "percentile_grid",
    "quantize_activations",
    "ranges",
    "rounding",
    "ttq",
    "twn",
    "uniform",
    "update_range",
    "xnor",
]

__getattr__ = former_names(
    "nnopt_jax.quantization", {"observe": "nnopt_jax.quantization.update_range"}
)
