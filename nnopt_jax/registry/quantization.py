"""The methods of quantization."""

from __future__ import annotations

import jax.numpy as jnp

from nnopt_jax.registry.entry import Entry

ENTRIES: dict[str, Entry] = {
    "quantization.lsq": Entry(
        "nnopt_jax.quantization:lsq",
        "refine",
        (
            {"bits": 4},
            {"bits": 3, "granularity": "channel"},
            {"bits": 2, "granularity": 2, "scale_dtype": jnp.bfloat16},
        ),
        quantizes=True,
        straight_through=False,
    ),
    "quantization.uniform": Entry(
        "nnopt_jax.quantization:uniform",
        "refine",
        (
            {"bits": 8},
            {"bits": 16, "granularity": "channel"},
            {"bits": 8, "symmetric": False, "every": 2},
            {"bits": 4, "granularity": 2, "scale_dtype": jnp.bfloat16},
            {"bits": 3, "granularity": "channel", "range": "mse", "every": 2},
            {"bits": 4, "granularity": "channel", "range": "percentile", "percent": 90},
        ),
        quantizes=True,
    ),
}
