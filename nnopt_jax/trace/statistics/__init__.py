"""Statistics of the inputs and outputs of each weight of a function."""

from nnopt_jax.trace.statistics.observed import Observed
from nnopt_jax.trace.statistics.statistic import Statistic
from nnopt_jax.trace.statistics.statistics import (
    STATISTICS,
    Extremes,
    Moments,
    input_absmax,
    input_count,
    input_gram,
    input_histogram,
    input_moments,
    input_range,
    output_moments,
)
from nnopt_jax.trace.statistics.use_sites import LeafUse, LeafUses

__all__ = [
    "STATISTICS", "Extremes", "LeafUse", "LeafUses", "Moments", "Observed", "Statistic",
    "input_absmax", "input_count", "input_gram", "input_histogram", "input_moments", "input_range",
    "output_moments",
]  # fmt: skip
