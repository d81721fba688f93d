"""The one reading: what a function does with each of its parameters."""

from nnopt_jax.trace.costed import (
    Cost as Cost,
    CostComparison as CostComparison,
    CostRow as CostRow,
    cost as cost,
)
from nnopt_jax.trace.grouped import (
    Dimension as Dimension,
    Groups as Groups,
    Shrunk as Shrunk,
    SmallerFunction as SmallerFunction,
    groups as groups,
    shrink as shrink,
)
from nnopt_jax.trace.observed import (
    Extremes as Extremes,
    LeafUse as LeafUse,
    LeafUses as LeafUses,
    Moments as Moments,
    Observed as Observed,
    Statistic as Statistic,
    input_absmax as input_absmax,
    input_count as input_count,
    input_gram as input_gram,
    input_histogram as input_histogram,
    input_moments as input_moments,
    input_range as input_range,
    observe as observe,
    output_moments as output_moments,
    uses as uses,
)
from nnopt_jax.trace.packed.on_packed import OnPacked as OnPacked, on_packed as on_packed
from nnopt_jax.trace.packed.report import PackedReport as PackedReport, Use as Use
