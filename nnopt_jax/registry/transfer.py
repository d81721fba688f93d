"""The methods of knowledge transfer that are transforms."""

from __future__ import annotations

from nnopt_jax.registry.entry import Entry

ENTRIES: dict[str, Entry] = {
    "transfer.freeze": Entry(
        "nnopt_jax.transfer:freeze",
        "wrap",
        ({},),
        straight_through=False,
    ),
    "transfer.lora": Entry(
        "nnopt_jax.transfer:lora",
        "wrap",
        ({"rank": 2}, {"rank": 2, "alpha": 3, "rank_stabilized": True, "freeze": None}),
        straight_through=False,
    ),
    "transfer.dora": Entry(
        "nnopt_jax.transfer:dora",
        "wrap",
        ({"rank": 2},),
        straight_through=False,
    ),
}
