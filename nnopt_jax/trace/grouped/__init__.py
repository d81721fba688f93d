"""Which axes change together, and functions without some of their units."""

from nnopt_jax.trace.grouped.dimension import Dimension as Dimension
from nnopt_jax.trace.grouped.graph import Groups as Groups, groups as groups
from nnopt_jax.trace.grouped.shrink import (
    Shrunk as Shrunk,
    SmallerFunction as SmallerFunction,
    shrink as shrink,
)
