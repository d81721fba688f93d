"""The methods of compression."""

from __future__ import annotations

from nnopt_jax.registry.entry import Entry

ENTRIES: dict[str, Entry] = {
    "compression.codebook": Entry(
        "nnopt_jax.compression:codebook",
        "refine",
        (
            {"clusters": 4, "every": 2},
            {"clusters": 4, "learned": True},
            {"clusters": 3, "init": "quantile", "iterations": 5, "every": 1},
        ),
    ),
}
