"""The one reading: what a function does with each of its parameters."""

from nnopt_jax.trace.cost import (
    Cost as Cost,
    CostComparison as CostComparison,
    CostRow as CostRow,
    cost as cost,
)
from nnopt_jax.trace.groups import (
    Dimension as Dimension,
    Groups as Groups,
    Shrunk as Shrunk,
    SmallerFunction as SmallerFunction,
    groups as groups,
    shrink as shrink,
)
from nnopt_jax.trace.packed.on_packed import OnPacked as OnPacked, on_packed as on_packed
from nnopt_jax.trace.packed.report import PackedReport as PackedReport, Use as Use
