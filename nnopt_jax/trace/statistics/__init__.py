"""Statistics of the inputs and outputs of each parameter of a function."""

from nnopt_jax.trace.statistics.observed import Observed as Observed
from nnopt_jax.trace.statistics.statistic import Statistic as Statistic
from nnopt_jax.trace.statistics.statistics import (
    STATISTICS as STATISTICS,
    Extremes as Extremes,
    Moments as Moments,
    input_absmax as input_absmax,
    input_count as input_count,
    input_gram as input_gram,
    input_histogram as input_histogram,
    input_moments as input_moments,
    input_range as input_range,
    output_moments as output_moments,
)
from nnopt_jax.trace.statistics.use_sites import LeafUse as LeafUse, LeafUses as LeafUses
