"""Execution of functions of arrays on packed parameters."""

from nnopt_jax.trace.packed.packed_function import (
    OnPacked as OnPacked,
    PackedReport as PackedReport,
    Use as Use,
    on_packed as on_packed,
)
