"""The analysis of what a function does with each of its parameters: `graph` and `on_packed`."""

from nnopt_jax.trace.cost_table import (
    Cost as Cost,
    CostComparison as CostComparison,
    CostRow as CostRow,
)
from nnopt_jax.trace.coupling import (
    CoupledAxes as CoupledAxes,
    Dimension as Dimension,
    ShrunkModel as ShrunkModel,
    SmallerFunction as SmallerFunction,
)
from nnopt_jax.trace.graphs import Graph as Graph, graph as graph
from nnopt_jax.trace.packed import (
    OnPacked as OnPacked,
    PackedReport as PackedReport,
    Use as Use,
    on_packed as on_packed,
)
from nnopt_jax.trace.statistics import (
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
    output_moments as output_moments,
)
