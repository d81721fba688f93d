"""Quantization: integer, binary, sub-integer."""

from nnopt_jax.quantization.integer.uniform import uniform as uniform
