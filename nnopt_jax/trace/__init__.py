"""Analyses of how a function uses each of its parameters: `graph` and `on_packed`."""

from nnopt_jax.errors import former_names
from nnopt_jax.trace.cost_table import Cost, CostComparison, CostRow
from nnopt_jax.trace.coupling import CoupledAxes, Dimension, ShrunkModel, SmallerFunction
from nnopt_jax.trace.graphs import Graph, graph
from nnopt_jax.trace.packed import OnPacked, PackedReport, Use, on_packed
from nnopt_jax.trace.statistics import (
    Extremes,
    LeafUse,
    LeafUses,
    Moments,
    Observed,
    Statistic,
    input_absmax,
    input_count,
    input_gram,
    input_histogram,
    input_moments,
    input_range,
    output_moments,
)

__all__ = [
    "Cost", "CostComparison", "CostRow", "CoupledAxes", "Dimension", "Extremes", "Graph", "LeafUse",
    "LeafUses", "Moments", "Observed", "OnPacked", "PackedReport", "ShrunkModel", "SmallerFunction",
    "Statistic", "Use", "graph", "input_absmax", "input_count", "input_gram", "input_histogram",
    "input_moments", "input_range", "on_packed", "output_moments",
]  # fmt: skip

__getattr__ = former_names(
    "nnopt_jax.trace",
    {"Groups": "nnopt_jax.trace.CoupledAxes", "Shrunk": "nnopt_jax.trace.ShrunkModel"},
)
