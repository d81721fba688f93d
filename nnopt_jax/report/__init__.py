"""Reports: the result of a run as tables, and as one self-contained HTML page."""

from nnopt_jax.errors import former_names
from nnopt_jax.report.html import page
from nnopt_jax.report.leaf_report import LeafRow, call_note, compare, leaf_calls, leaf_rows
from nnopt_jax.report.result import (
    Latency,
    Measure,
    Result,
    amount,
    diff_table,
    latency_table,
    leaf_table,
    render,
    result_table,
)

__all__ = [
    "Latency", "LeafRow", "Measure", "Result", "amount", "call_note", "compare", "diff_table",
    "latency_table", "leaf_calls", "leaf_rows", "leaf_table", "page", "render", "result_table",
]  # fmt: skip

__getattr__ = former_names(
    "nnopt_jax.report",
    {"Summary": "nnopt_jax.report.Result", "table": "nnopt_jax.report.result_table"},
)
