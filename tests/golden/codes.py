"""Trees of codes: every width, granularity, table and set of levels."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import (
    Bits,
    Codebook,
    LookupQuantized,
    Masked,
    PackedTernary,
    Powers,
    Quantized,
    Reshaped,
    SoftCodebook,
    UnevenGroups,
    store,
)
from nnopt_jax.ops.axis_roles import Axes
from tests.golden.draws import FP4, NF4, SHAPE, Draws


def bits() -> Any:
    draws, tree = Draws(1), {}
    for width in range(1, 17):
        tree[f"rows{width}"] = Bits.of(draws.indices(1 << width), width)
        low = -(1 << (width - 1))
        tree[f"flat{width}"] = Bits.of(draws.indices(1 << width, 5, 7) + low, width, low)
    tree["scalar"] = Bits.of(jnp.int32(3), 2)
    tree["empty"] = Bits.of(jnp.zeros((0, 8), np.int32), 3)
    tree["stack"] = Bits.of(draws.indices(8, 2, 3, 8), 3)
    return tree


def trits() -> Any:
    draws = Draws(2)
    return {
        "flat": PackedTernary.of(draws.indices(3, 7, 9) - 1),
        "rows": PackedTernary.of(draws.indices(3, 4, 10) + 5, 5),
        "empty": PackedTernary.of(jnp.zeros((0,), np.int32)),
        "scalar": PackedTernary.of(jnp.int32(1), 0),
    }


def powers() -> Any:
    exponents = jnp.asarray(np.arange(255, dtype=np.uint8).reshape(15, 17))
    packed = Bits.of(Draws(8).indices(64), 6, 96)
    return {"all": Powers(exponents), "few": Powers(packed.materialize().astype(jnp.uint8))}


def quantized_widths() -> Any:
    """Every width, signed and with zero points, as `store` packs them and as bits."""
    draws, tree = Draws(3), {}
    for width in range(1, 17):
        high = (1 << width) - 1
        low, top = (-1, 0) if width == 1 else (-(1 << (width - 1)), (1 << (width - 1)) - 1)
        grid = Quantized(draws.codes(low, top), draws.scales(), low=low, high=top)
        zero = draws.codes(0, high, 1, SHAPE[1])
        with_zero = Quantized(draws.codes(0, high), draws.scales(), zero, low=0, high=high)
        tree[f"int{width}"], tree[f"uint{width}"] = grid.store(), with_zero.store()
    for width in (8, 12, 16):
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        packed = Bits.of(draws.codes(low, high), width, low)
        tree[f"bits{width}"] = Quantized(packed, draws.scales(), low=low, high=high)
    for high in (1, 2, 3, 7, 127):
        grid = Quantized(draws.codes(-high, high), draws.scales(1, 1), low=-high, high=high)
        tree[f"even{high}"] = grid.store()
    return tree


def quantized() -> Any:
    """Every granularity, dtype and kind of field."""
    draws, tree = Draws(4), {}
    for name, scale in {
        "tensor": (1, 1), "channel": (1, 24), "inputs": (16, 1), "groups": (4, 24),
        "groups_of_outputs": (16, 3), "tiles": (4, 3), "elements": (16, 24),
    }.items():  # fmt: skip
        grid = Quantized(draws.codes(-7, 7), draws.scales(*scale), low=-7, high=7)
        zero = draws.codes(0, 15, *scale)
        shifted = Quantized(draws.codes(0, 15), draws.scales(*scale), zero, low=0, high=15)
        tree[name], tree[f"{name}_zero"] = grid.store(), shifted.store()
    for name, shape, scale in (
        ("vector", (24,), (3,)), ("scalar", (), ()), ("stack", (2, 8, 24), (2, 1, 24)),
        ("convolution", (3, 3, 4, 8), (1, 1, 1, 8)), ("empty", (0, 24), (1, 24)),
    ):  # fmt: skip
        codes = jnp.asarray(draws.rng.integers(-7, 8, shape).astype(np.float32))
        tree[name] = Quantized(codes, draws.scales(*scale) if scale else jnp.float32(0.3),
                               low=-7, high=7).store()  # fmt: skip
    for dtype in ("bfloat16", "float16"):
        scale = draws.scales(dtype=jnp.dtype(dtype))
        tree[dtype] = Quantized(draws.codes(-127, 127), scale, dtype=dtype).store()
        tree[f"scale_{dtype}"] = Quantized(draws.codes(-127, 127), scale).store()
    powers = Powers(draws.indices(20, 1, 24, dtype=np.uint8) + jnp.uint8(110))
    double = Quantized(draws.codes(0, 255, 1, 24), draws.scales(1, 1), low=0, high=255)
    coded = Codebook(draws.indices(5), jnp.array([-6.0, -1.0, 0.0, 2.0, 7.0]))
    turned = Bits.of(draws.codes(-8, 7, 24, 16), 4, -8)
    return tree | {
        "scale_powers": Quantized(draws.codes(-7, 7), powers, low=-7, high=7).store(),
        "scale_quantized": Quantized(draws.codes(-7, 7), double, low=-7, high=7).store(),
        "codes_codebook": Quantized(coded, draws.scales(1, 1), low=-7, high=7).store(),
        "codes_turned": Quantized(Reshaped.of(turned, (1, 0)), draws.scales(), low=-8, high=7),
        "training": Quantized(draws.codes(-7, 7), draws.scales(), carry=draws.floats()),
        "training_zero": Quantized(draws.codes(0, 9), draws.scales(), draws.codes(0, 9, 1, 24)),
    }


def codebook() -> Any:
    draws = Draws(5)
    tree: dict[str, Any] = {
        f"of{count}": Codebook(draws.indices(count), draws.table(count)).store()
        for count in (1, 2, 3, 4, 5, 16, 256, 300)
    }
    table = Quantized(jnp.asarray(np.arange(-4, 4).astype(np.float32)), draws.scales(1))
    half = draws.table(6, jnp.bfloat16)
    return tree | {
        "table_quantized": Codebook(draws.indices(8), table).store(),
        "table_bfloat16": Codebook(draws.indices(6), half, dtype="bfloat16").store(),
        "float16": Codebook(draws.indices(6), draws.table(6), dtype="float16").store(),
        "vector": Codebook(draws.indices(4, 9), draws.table(4)).store(),
        "training": Codebook(draws.indices(9), draws.table(9), draws.floats()),
    }


def soft_codebook() -> Any:
    """Values at an entry of the table, or half-way between two: no mean depends on rounding."""
    table, width = jnp.array([-2.0, -1.0, 1.0, 3.0]), jnp.float32(2.0**-6)
    draws, grid = Draws(6), jnp.array([-2.0, -1.5, -1.0, 0.0, 1.0, 2.0, 3.0])
    values = grid[np.asarray(draws.indices(7))]
    coded = Quantized(table, jnp.ones(1), low=-3, high=3)
    return {
        "table": SoftCodebook(values, table, width),
        "table_quantized": SoftCodebook(values, coded, width),
        "bfloat16": SoftCodebook(values, table, width, dtype="bfloat16"),
        "stored": store({"w": SoftCodebook(values, table, width)})["w"],
    }


def levels() -> Any:
    draws = Draws(7)
    three, sixteen = (-1.0, 0.0, 1.0), draws.codes(0, 15)
    powers = Powers(draws.indices(20, 4, 24, dtype=np.uint8) + jnp.uint8(110))
    double = Quantized(draws.codes(0, 255, 4, 24), draws.scales(1, 3), low=0, high=255)
    many = tuple(float(x) for x in np.linspace(-3, 3, 256, dtype=np.float32))
    stored = {
        "signs": LookupQuantized(draws.codes(0, 1), draws.scales()),
        "signs_tensor": LookupQuantized(draws.codes(0, 1), draws.scales(1, 1)),
        "ternary": LookupQuantized(draws.codes(0, 2), draws.scales(), levels=three),
        "two_scales": LookupQuantized(
            draws.codes(0, 2), draws.scales(), draws.scales(), levels=three
        ),
        "eight": LookupQuantized(draws.codes(0, 7), draws.scales(), levels=NF4[::2]),
        "nf4": LookupQuantized(sixteen, draws.scales(4, 24), levels=NF4),
        "nf4_double": LookupQuantized(sixteen, double, levels=NF4),
        "nf4_bfloat16": LookupQuantized(sixteen, draws.scales(4, 24), levels=NF4, dtype="bfloat16"),
        "fp4": LookupQuantized(draws.codes(0, 14), draws.scales(4, 24), levels=FP4),
        "mxfp4": LookupQuantized(draws.codes(0, 14), powers, levels=FP4),
        "float16_scale": LookupQuantized(
            sixteen, draws.scales(4, 24, dtype=np.float16), levels=NF4
        ),
        "many": LookupQuantized(draws.codes(0, 255), draws.scales(), levels=many),
        "zero_scale": LookupQuantized(draws.codes(0, 2), jnp.zeros((1, 24)), levels=three),
        "stack": LookupQuantized(draws.codes(0, 1, 2, 8, 24), draws.scales(2, 1, 24)),
    }
    training = LookupQuantized(draws.codes(0, 1), draws.scales(), carry=draws.floats())
    return {name: leaf.store() for name, leaf in stored.items()} | {"training": training}


def in_layouts() -> Any:
    """What bound transforms store: shorter last groups, views of matrices, patterns, channels."""
    draws = Draws(9)
    uneven = UnevenGroups(draws.scales(4, 24), -2, 5, 16)
    half = UnevenGroups(draws.scales(4, 24, dtype=np.float16), -2, 5, 16)
    zero = UnevenGroups(draws.codes(0, 15, 4, 24), -2, 5, 16)
    matrix = Quantized(draws.codes(-7, 7), draws.scales(), low=-7, high=7)
    pattern = jnp.asarray(np.arange(16 * 24).reshape(16, 24) % 4 < 2)
    masked = Masked(draws.floats(16, 24), pattern, format="2:4", roles=((1,), (0,), ()))
    leaves = {
        "uneven": Quantized(draws.codes(-7, 7), uneven, low=-7, high=7),
        "uneven_float16": Quantized(draws.codes(-7, 7), half, low=-7, high=7),
        "uneven_zero": Quantized(draws.codes(0, 15), uneven, zero, low=0, high=15),
        "uneven_levels": LookupQuantized(draws.codes(0, 2), uneven, levels=(-1.0, 0.0, 1.0)),
        "turned": Reshaped.of_matrix(matrix, Axes(1, 0), (24, 16)),
        "query": Reshaped.of_matrix(matrix, Axes(1, (0, 2)), (4, 16, 6)),
        "pattern_along_outputs": masked,
        "channels": Codebook(draws.indices(3), draws.floats(1, 24, 3)),
    }
    return {name: leaf.store() for name, leaf in leaves.items()}


TREES = (
    bits, trits, powers, quantized_widths, quantized, codebook, soft_codebook, levels, in_layouts,
)  # fmt: skip
