"""The one reading: what a function does with each of its parameters."""

from nnopt_jax.trace.on_packed import OnPacked as OnPacked, on_packed as on_packed
from nnopt_jax.trace.report import PackedReport as PackedReport, Use as Use
