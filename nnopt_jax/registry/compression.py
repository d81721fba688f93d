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
            {"clusters": 4, "scope": "tree", "every": 2},
            {"clusters": 4, "scope": "tree", "learned": True},
        ),
    ),
    "compression.dkm": Entry(
        "nnopt_jax.compression:dkm",
        "refine",
        ({"clusters": 4}, {"clusters": 3, "temperature": 1e-3, "iterations": 1}),
        straight_through=False,
        trains_as_stored=False,
    ),
    "compression.tie": Entry(
        "nnopt_jax.compression:tie",
        "wrap",
        ({"pairs": {"head/kernel": "dense/kernel"}},),
        straight_through=False,
        replaces=("head/kernel",),
    ),
    "compression.low_rank": Entry(
        "nnopt_jax.compression:low_rank",
        "refine",
        ({"rank": 2}, {"ratio": 2.5}, {"rank": 1, "method": "randomized"}),
        straight_through=False,
        comes_first=True,
    ),
    "compression.sparse": Entry(
        "nnopt_jax.compression:sparse",
        "wrap",
        ({}, {"format": "csr"}, {"format": (2, 2)}),
    ),
}
