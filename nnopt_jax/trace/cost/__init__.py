"""Cost analysis of a function: FLOPs, bytes and milliseconds for each leaf of its parameters."""

from nnopt_jax.trace.cost.comparison import CostComparison as CostComparison
from nnopt_jax.trace.cost.table import Cost as Cost, CostRow as CostRow
