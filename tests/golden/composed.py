"""Trees of nodes that stand on others: sums, views, adapters, nodes in nodes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import (
    Bits,
    Codebook,
    Factored,
    InputQuantized,
    LookupQuantized,
    Masked,
    Normalized,
    Quantized,
    Reshaped,
    SoftThresholded,
    Sum,
)
from tests.golden.draws import FP4, SHAPE, Draws


def factored() -> Any:
    draws = Draws(14)
    half = draws.eighths(2, 24).astype(jnp.bfloat16)
    u = Quantized(draws.codes(-7, 7, 16, 2), jnp.full((1, 2), 0.25), low=-7, high=7)
    v = Masked(draws.eighths(2, 24), draws.mask(0.5, 2, 24))
    return {
        "matrix": Factored(draws.eighths(16, 3), draws.eighths(3, 24)),
        "stack": Factored(draws.eighths(2, 8, 3), draws.eighths(2, 3, 24)),
        "bfloat16": Factored(draws.eighths(16, 2).astype(jnp.bfloat16), half, dtype="bfloat16"),
        "packed": Factored(u, v).store(),
    }


def sums() -> Any:
    draws = Draws(15)
    factors = Factored(draws.eighths(16, 2), draws.eighths(2, 24))
    eighth = jnp.full((1, 24), 0.125)
    eight = LookupQuantized(draws.codes(0, 14), eighth, levels=FP4)
    return {
        "dense": Sum(draws.eighths(), factors),
        "arrays": Sum(draws.eighths(), draws.eighths()),
        "lora_int4": Sum(draws.int4().store(), factors),
        "lora_fp4": Sum(eight.store(), factors),
        "lora_bfloat16": Sum(draws.int4(dtype="bfloat16").store(), factors),
        "training": Sum(draws.int4(), factors),
    }


def normalized() -> Any:
    """Columns whose lengths are whole: 3-4-5 triangles, and one of zeros."""
    base = np.zeros(SHAPE, np.float32)
    base[0], base[1] = 3, 4
    base[:, 23] = 0
    base = jnp.asarray(base)
    length = jnp.asarray((5 * np.arange(24)).astype(np.float32)[None])
    grid = Quantized(base, jnp.ones((1, 24)), low=-7, high=7).store()
    zeros = Factored(jnp.zeros((16, 1)), jnp.zeros((1, 24)))
    return {
        "dense": Normalized(base, length),
        "dora_int4": Normalized(Sum(grid, zeros), length),
        "tensor": Normalized(base[:, :1], jnp.full((1, 1), 10.0)),
        "bfloat16": Normalized(base.astype(jnp.bfloat16), length.astype(jnp.bfloat16)),
    }


def shrunk() -> Any:
    draws = Draws(16)
    table = jnp.array([-1.0, -0.25, 0.0, 0.5, 2.0])
    return {
        "dense": SoftThresholded(draws.eighths(), jnp.float32(0.5)),
        "grid": SoftThresholded(draws.int4(), jnp.float32(0.25)).store(),
        "shared": SoftThresholded(Codebook(draws.indices(5), table), jnp.float32(0.25)).store(),
        "bfloat16": SoftThresholded(draws.eighths().astype(jnp.bfloat16), jnp.float32(0.5)),
    }


def reshaped() -> Any:
    draws = Draws(17)
    kernel = Factored(draws.eighths(12, 2), draws.eighths(2, 10))
    return {
        "turned": Reshaped.of(draws.int4().store(), (1, 0)),
        "dense_turned": Reshaped.of(draws.floats(), (1, 0)),
        "same": Reshaped.of(draws.int4().store()),
        "convolution": Reshaped(kernel, (3, 4, 2, 5), (0, 2, 1, 3), (3, 2, 4, 5)),
        "flat": Reshaped(draws.int4().store(), (16, 24), (0, 1), (384,)),
        "mask": Reshaped.of(Bits.of(draws.mask(0.5), 1), (1, 0)),
    }


def tied() -> Any:
    """Leaves that are the same arrays: views of one another, and arrays that occur twice."""
    draws = Draws(18)
    embedding = Quantized(draws.codes(-127, 127, 32, 8), draws.scales(1, 8)).store()
    block = {"kernel": draws.int4().store(), "bias": draws.floats(24)}
    return {
        "embedding": embedding, "head": Reshaped.of(embedding, (1, 0)),
        "layers": [block, block], "again": {"bias": block["bias"], "empty": jnp.zeros((0, 3))},
        "empty": jnp.zeros((0, 3)),
    }  # fmt: skip


def input_quantized() -> Any:
    draws = Draws(19)
    tree: dict[str, Any] = {
        f"inputs{n}": InputQuantized(draws.int4(), jnp.full((1, 1), 0.5), input_bits=n).store()
        for n in range(2, 9)
    }
    return tree | {
        "dynamic": InputQuantized(draws.int4()).store(),
        "dense": InputQuantized(draws.floats(), draws.scales(1, 1)),
        "stack": InputQuantized(draws.floats(2, 8, 24), draws.scales(2, 1, 1)),
        "training": InputQuantized(draws.int4(), None, draws.floats()),
    }


def nested() -> Any:
    """Nodes in nodes, three and four deep."""
    draws, mask = Draws(12), Draws(13).mask(0.2)
    eighths, factors = (
        jnp.full((1, 24), 0.125),
        Factored(draws.eighths(16, 2), draws.eighths(2, 24)),
    )
    coded = Codebook(draws.indices(5), jnp.array([-6.0, -1.0, 0.0, 2.0, 7.0]))
    grid_over_codes = Quantized(coded, eighths, low=-7, high=7)
    pruned = Masked(draws.int4(), mask)
    u = Quantized(draws.codes(-7, 7, 16, 2), jnp.full((1, 2), 0.25), low=-7, high=7)
    rounded = InputQuantized(pruned, jnp.full((1, 1), 0.5), input_bits=4)
    return {
        "sparse_codes_shared": Masked(grid_over_codes, mask).store(),
        "sparse_shrunk": Masked(SoftThresholded(draws.int4(), jnp.float32(0.25)), mask).store(),
        "sparse_inputs": Masked(InputQuantized(draws.int4()), mask).store(),
        "sparse_view": Masked(Reshaped.of(draws.int4()), mask).store(),
        "masked_turned": Masked(
            Reshaped.of(Quantized(draws.codes(-7, 7, 24, 16), draws.scales(1, 16)), (1, 0)), mask
        ).store(),
        "masks_merged": Masked(Masked(draws.floats(), draws.mask(0.5)), mask).store(),
        "sum_of_sparse": Sum(pruned.store(), Factored(u.store(), draws.eighths(2, 24))),
        "sum_of_sums": Sum(Sum(draws.int4().store(), factors), factors),
        "inputs_of_sparse": rounded.store(),
        "inputs_of_sum": InputQuantized(Sum(draws.int4().store(), factors)),
        "view_of_sparse": Reshaped.of(pruned.store(), (1, 0)),
        "masked_sum": Masked(Sum(draws.eighths(), factors), mask).store(),
        "shrunk_levels": SoftThresholded(LookupQuantized(draws.codes(0, 2), jnp.full((1, 1), 0.5),
                                       levels=(-1.0, 0.0, 1.0)), jnp.float32(0.25)).store(),
        "training": Masked(Quantized(coded, eighths, carry=draws.floats(), low=-7, high=7), mask),
    }  # fmt: skip


TREES = (factored, sums, normalized, shrunk, reshaped, tied, input_quantized, nested)
