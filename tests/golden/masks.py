"""Trees of masks: every support, in training and in storage, over every kind of values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import (
    BSR,
    CSR,
    ELL,
    Bits,
    BlockELL,
    Codebook,
    DeltaIndex,
    Factored,
    LookupQuantized,
    Masked,
    NMIndex,
    Quantized,
    Sparse,
)
from tests.golden.draws import NF4, SHAPE, Draws


def supports() -> Any:
    """Masks by themselves, in every form."""
    draws = Draws(9)
    tree: dict[str, Any] = {
        f"gaps{w}": DeltaIndex.of(draws.mask(0.1), w) for w in (1, 2, 3, 5, 8, 16)
    }
    for n, m in ((1, 2), (2, 4), (1, 4), (4, 8), (8, 16)):
        tree[f"groups_{n}_{m}"] = NMIndex.of(draws.n_of_m(n, m), n, m)
    tree["groups_16_32"] = NMIndex.of(draws.n_of_m(16, 32, 64, 8), 16, 32)
    for sizes in ((1, 1), (4, 1), (2, 8), (16, 24)):
        name = "x".join(map(str, sizes))
        tree[f"blocks_{name}"] = BSR.of(draws.blocks(0.5, sizes), sizes)
    few = np.zeros((64, 48), bool)
    few[8:12, 40:] = True
    wide = np.zeros((2, 70_000), bool)
    wide[[0, 0, 1], [5, 69_999, 66_000]] = True
    codes = jnp.array([3, 0, 255, 255, 4, 1], np.uint16)
    return tree | {
        "gaps_none": DeltaIndex.of(jnp.zeros(9, bool), 2),
        "gaps_plain": DeltaIndex(codes, (800,), 8),
        "gaps_vector": DeltaIndex.of(draws.mask(0.02, 900)),
        "rows": CSR.of(draws.mask(0.1)),
        "rows_empty": CSR.of(jnp.zeros((3, 5), bool)),
        "rows_stack": CSR.of(draws.mask(0.1, 2, 3, 24)),
        "rows_wide": CSR.of(jnp.asarray(wide)),
        "groups_vector": NMIndex.of(draws.n_of_m(2, 4, 16, 1)[:, 0], 2, 4),
        "groups_stack": NMIndex.of(draws.n_of_m(2, 4, 2, 8, 8), 2, 4),
        "blocks_few": BSR.of(jnp.asarray(few), (4, 8)),
        "blocks_convolution": BSR.of(jnp.ones((3, 3, 4, 8), bool), (4, 8)),
        "bits": Bits.of(draws.mask(0.3), 1),
    }


def masked() -> Any:
    """Masks in training, and stored over what they cannot cut."""
    draws = Draws(10)
    values, mask = draws.floats(), draws.mask(0.3)
    tree: dict[str, Any] = {
        mode: Masked(values, mask, mode=mode) for mode in ("select", "straight_through")
    }
    for format in ("smallest", "bitmask", "gaps", "csr"):
        tree[format] = Masked(values, mask, format=format)
    factors = Factored(draws.eighths(16, 2), draws.eighths(2, 24))
    return tree | {
        "applied": Masked(jnp.where(mask, values, 0.0), mask, mode="applied"),
        "capacity": Masked(values, mask, capacity=200),
        "two_of_four": Masked(values, draws.n_of_m(2, 4), format="2:4"),
        "blocks": Masked(values, draws.blocks(0.5, (4, 8)), format=(4, 8)),
        "bits": Masked(values, Bits.of(mask, 1)),
        "gaps": Masked(values, DeltaIndex.of(mask)),
        "over_grid": Masked(draws.int4(), mask),
        "over_mask": Masked(Masked(values, draws.mask(0.5)), mask),
        "stored_factors": Masked(factors, mask).store(),
        "bfloat16": Masked(draws.floats(dtype=jnp.bfloat16), mask),
    }


def sparse() -> Any:
    """Every support under every kind of values."""
    draws = Draws(11)
    masks: dict[str, tuple[Any, Any]] = {
        "bitmask": (draws.mask(0.4), "bitmask"), "gaps": (draws.mask(0.06), "gaps"),
        "csr": (draws.mask(0.1), "csr"), "two_of_four": (draws.n_of_m(2, 4), "2:4"),
        "one_of_two": (draws.n_of_m(1, 2), "1:2"), "blocks": (draws.blocks(0.4, (4, 8)), (4, 8)),
        "all": (jnp.ones(SHAPE, bool), "bitmask"), "none": (jnp.zeros(SHAPE, bool), "bitmask"),
    }  # fmt: skip
    table = Quantized(draws.codes(-7, 7, 9), draws.scales(1), low=-7, high=7)
    values: dict[str, Any] = {
        "float": draws.floats(),
        "bfloat16": draws.floats(dtype=jnp.bfloat16),
        "int4": draws.int4(),
        "zero": Quantized(draws.codes(0, 7), draws.scales(4, 24), draws.codes(0, 7, 4, 24),
                          low=0, high=7),
        "int8": Quantized(draws.codes(-127, 127), draws.scales(1, 1)),
        "int12": Quantized(draws.codes(-2047, 2047), draws.scales(), low=-2047, high=2047),
        "ternary": LookupQuantized(draws.codes(0, 2), draws.scales(), levels=(-1.0, 0.0, 1.0)),
        "nf4": LookupQuantized(draws.codes(0, 15), draws.scales(4, 24), levels=NF4),
        "shared": Codebook(draws.indices(16), draws.table(16)),
        "shared_grid": Codebook(draws.indices(9), table),
    }  # fmt: skip
    tree: dict[str, Any] = {
        f"{name}_{form}": Masked(inner, mask, format=format).store()
        for name, inner in values.items()
        for form, (mask, format) in masks.items()
        if form in ("bitmask", "gaps") or name in ("float", "int4")
    }
    few = jnp.asarray(np.arange(384).reshape(SHAPE) % 40 == 3)
    kept = Sparse(jnp.arange(20.0), DeltaIndex.of(few), SHAPE)
    return tree | {"spare_values": kept}


def gathered() -> Any:
    draws, mask = Draws(20), Draws(21).mask(0.1)
    blocks = draws.blocks(0.3, (4, 8))
    return {
        "weights": ELL.of(draws.floats(), mask),
        "zeros": ELL.of(jnp.zeros((4, 3))),
        "bfloat16": ELL.of(draws.floats(dtype=jnp.bfloat16), mask),
        "blocks": BlockELL.of(draws.floats(), (4, 8), blocks),
        "blocks_float16": BlockELL.of(draws.floats(dtype=np.float16), (2, 24), blocks),
    }


TREES = (supports, masked, sparse, gathered)
