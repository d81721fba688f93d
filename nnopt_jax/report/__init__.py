"""Reports: the final table, metrics as JSON lines, one self-contained HTML page."""

from nnopt_jax.report.calls import call_note as call_note, leaf_calls as leaf_calls
from nnopt_jax.report.html import page as page
from nnopt_jax.report.leaves import compare as compare, leaf_rows as leaf_rows
from nnopt_jax.report.summary import (
    Latency as Latency,
    LeafRow as LeafRow,
    Measure as Measure,
    Summary as Summary,
    amount as amount,
)
from nnopt_jax.report.table import (
    diff_table as diff_table,
    latency_table as latency_table,
    leaf_table as leaf_table,
    table as table,
)
