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
    "quantization.quantize_activations": Entry(
        "nnopt_jax.quantization:quantize_activations",
        "wrap",
        ({"bits": 8}, {"bits": 4, "scale": "static"}),
    ),
    "quantization.binary_connect": Entry(
        "nnopt_jax.quantization:binary_connect",
        "refine",
        ({}, {"scale": "glorot"}, {"stochastic": True, "scale": 0.5}),
        quantizes=True,
        trains_as_stored=lambda case: not case.get("stochastic", False),
        shows_zeros=False,
    ),
    "quantization.xnor": Entry(
        "nnopt_jax.quantization:xnor",
        "refine",
        ({}, {"granularity": 4, "scale_dtype": jnp.float16}),
        quantizes=True,
        straight_through=False,
    ),
    "quantization.twn": Entry(
        "nnopt_jax.quantization:twn",
        "refine",
        ({}, {"granularity": "channel", "scale_dtype": jnp.bfloat16}),
        quantizes=True,
    ),
    "quantization.ttq": Entry(
        "nnopt_jax.quantization:ttq",
        "refine",
        ({}, {"threshold": 0.2, "granularity": "channel"}),
        quantizes=True,
        straight_through=False,
    ),
    "quantization.nf4": Entry(
        "nnopt_jax.quantization:nf4",
        "refine",
        (
            {"granularity": "channel"},
            {"granularity": 4, "scale_dtype": jnp.bfloat16},
            {"granularity": 2, "double": True},
        ),
        quantizes=True,
    ),
    "quantization.fp4": Entry(
        "nnopt_jax.quantization:fp4",
        "refine",
        ({"granularity": "channel"}, {"granularity": 4, "scale_dtype": jnp.float16}),
        quantizes=True,
    ),
    "quantization.mxfp4": Entry(
        "nnopt_jax.quantization:mxfp4",
        "refine",
        ({"granularity": "channel"}, {"granularity": 4}),
        quantizes=True,
    ),
    "quantization.grouped": Entry(
        "nnopt_jax.quantization:grouped",
        "refine",
        ({"granularity": "channel"}, {"granularity": 4}, {"format": "q8_0", "granularity": 2}),
        quantizes=True,
    ),
}
