"""Reports: the result of a run as tables, and as one self-contained HTML page."""

from nnopt_jax.report.html import page as page
from nnopt_jax.report.leaf_report import (
    LeafRow as LeafRow,
    call_note as call_note,
    compare as compare,
    leaf_calls as leaf_calls,
    leaf_rows as leaf_rows,
)
from nnopt_jax.report.result import (
    Latency as Latency,
    Measure as Measure,
    Result as Result,
    amount as amount,
    diff_table as diff_table,
    latency_table as latency_table,
    leaf_table as leaf_table,
    render as render,
    result_table as result_table,
)

_RENAMED = {"Summary": "Result", "table": "result_table"}


def __getattr__(name: str) -> object:
    """Say what became of a name."""
    if name in _RENAMED:
        raise AttributeError(f"nnopt_jax.report.{name} is now nnopt_jax.report.{_RENAMED[name]}")
    raise AttributeError(f"module 'nnopt_jax.report' has no attribute {name!r}")
