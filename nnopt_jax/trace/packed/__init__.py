"""Execution of ordinary functions of arrays on packed parameters."""

from nnopt_jax.trace.packed.packed_function import OnPacked, PackedReport, Use, on_packed

__all__ = [
    "OnPacked", "PackedReport", "Use", "on_packed",
]  # fmt: skip
