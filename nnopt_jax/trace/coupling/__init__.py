"""Coupled axes of parameters, and smaller functions without some of their channels or heads."""

from nnopt_jax.trace.coupling.coupled_axes import CoupledAxes as CoupledAxes
from nnopt_jax.trace.coupling.coupling_analysis import Dimension as Dimension
from nnopt_jax.trace.coupling.rearrange import (
    ShrunkModel as ShrunkModel,
    SmallerFunction as SmallerFunction,
)
