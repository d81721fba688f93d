"""Coupled axes of parameters, and smaller functions without some of their channels or heads."""

from nnopt_jax.trace.coupling.axis_coupling import CoupledAxes
from nnopt_jax.trace.coupling.coupling_analysis import Dimension
from nnopt_jax.trace.coupling.rearrange import ShrunkModel, SmallerFunction

__all__ = [
    "CoupledAxes", "Dimension", "ShrunkModel", "SmallerFunction",
]  # fmt: skip
