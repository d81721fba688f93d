"""What a function costs: FLOPs, bytes and milliseconds, for each leaf of its parameters."""

from nnopt_jax.trace.costed.comparison import CostComparison as CostComparison
from nnopt_jax.trace.costed.cost import cost as cost
from nnopt_jax.trace.costed.table import Cost as Cost, CostRow as CostRow
