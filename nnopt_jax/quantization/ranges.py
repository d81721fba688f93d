"""Choices of the range of weights, which determine the scale of each block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nnopt_jax.quantization.method_ranges import (
    fixed as fixed,
    gguf as gguf,
    mean as mean,
    threshold as threshold,
    two_sided as two_sided,
)
from nnopt_jax.quantization.weight_ranges import (
    WeightRange as WeightRange,
    absmax as absmax,
    learned as learned,
    mse as mse,
    percentile as percentile,
)

RANGES: Mapping[str, Callable[..., WeightRange]] = MappingProxyType(
    {
        "absmax": absmax,
        "percentile": percentile,
        "mse": mse,
        "mean": mean,
        "learned": learned,
        "threshold": threshold,
        "two_sided": two_sided,
        "gguf": gguf,
        "fixed": fixed,
    }
)
"""The ranges that a string can name, with their default settings."""
