"""Scales stored in float16 act in float32: materialized and in products, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import LookupQuantized, Masked, Quantized, UnevenGroups

INNER, OUTER, GROUP = 12, 6, 4
RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (INNER, OUTER))
ZERO = RNG.integers(-3, 4, (INNER // GROUP, OUTER))
MASK = RNG.random((INNER, OUTER)) < 0.5
LEVELS = (-1.0, -0.3, 0.0, 0.7, 1.0)
# A code times the greatest scale overflows in float16; the least is subnormal there.
SCALES = RNG.choice(np.array([6e-8, 3e-5, 0.01, 1.5, 600.0]), (INNER // GROUP, OUTER))
SCALES = SCALES.astype(np.float16)
X = RNG.normal(size=(2, INNER)).astype(np.float32)


def per_entry(grid: np.ndarray) -> np.ndarray:
    return np.repeat(grid, GROUP, axis=0).astype(np.float64)


def uneven(grid: np.ndarray) -> UnevenGroups:
    """Groups of five, five and two."""
    return UnevenGroups(jnp.asarray(grid), -2, 5, INNER)


def per_uneven_entry(grid: np.ndarray) -> np.ndarray:
    return np.repeat(grid, 5, axis=0)[:INNER].astype(np.float64)


INDICES = CODES % len(LEVELS)
TABLE = np.array(LEVELS, np.float32).astype(np.float64)
CASES = {
    "integers": (
        lambda dtype: Quantized(jnp.float32(CODES), jnp.asarray(SCALES), dtype=dtype),
        CODES * per_entry(SCALES),
    ),
    "zero points": (
        lambda dtype: Quantized(
            jnp.float32(CODES), jnp.asarray(SCALES), jnp.float32(ZERO), dtype=dtype
        ),
        (CODES - per_entry(ZERO)) * per_entry(SCALES),
    ),
    "uneven groups": (
        lambda dtype: Quantized(jnp.float32(CODES), uneven(SCALES), dtype=dtype),
        CODES * per_uneven_entry(SCALES),
    ),
    "lookup tables": (
        lambda dtype: LookupQuantized(
            jnp.float32(INDICES), jnp.asarray(SCALES), levels=LEVELS, dtype=dtype
        ),
        TABLE[INDICES] * per_entry(SCALES),
    ),
    "two scales": (
        lambda dtype: LookupQuantized(
            jnp.float32(INDICES), jnp.asarray(SCALES), jnp.asarray(SCALES[::-1]),
            levels=LEVELS, dtype=dtype,
        ),
        TABLE[INDICES] * np.where(TABLE[INDICES] < 0, per_entry(SCALES[::-1]), per_entry(SCALES)),
    ),
}  # fmt: skip


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """Products of a small integer or a float32 level with a float16 scale, cast as nodes do."""
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite there
        return x.astype(np.float32).astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_values_are_computed_in_float32_and_cast_once(name, dtype):
    make, wanted = CASES[name]
    node = make(dtype)
    for form in (node, node.store()):
        for function in (nnopt.materialize, jax.jit(nnopt.materialize)):
            np.testing.assert_array_equal(function(form), cast(wanted, dtype) + 0)
    assert {x.dtype for x in jax.tree.leaves(node.store().scale)} == {jnp.dtype(jnp.float16)}


@pytest.mark.parametrize("name", CASES)
def test_masks_leave_the_scales_alone(name):
    make, wanted = CASES[name]
    stored = Masked(make("float32"), jnp.asarray(MASK)).store()
    np.testing.assert_array_equal(stored.materialize(), np.where(MASK, cast(wanted, "float32"), 0))


@pytest.mark.parametrize("channel", [False, True], ids=["groups", "channels"])
@pytest.mark.parametrize("name", ["integers", "zero points", "lookup tables"])
def test_products_scale_in_float32(name, channel):
    make, wanted = CASES[name]
    node = make("float32").store()
    if channel:
        sums, grids = wanted / per_entry(SCALES), SCALES[:1]
        zero = {"zero": node.zero[:1]} if name == "zero points" else {}
        if zero:
            sums = CODES - ZERO[:1]
        node, wanted = node.replace(scale=jnp.asarray(grids), **zero), sums * grids.astype(float)
    run = nnopt.on_packed(lambda w, x: x @ w, strict=True)
    exact = X.astype(np.float64) @ wanted
    size = np.abs(X.astype(np.float64)) @ np.abs(wanted)
    np.testing.assert_array_less(np.abs(np.asarray(run(node, X)) - exact), 1e-5 * size + 1e-12)


def test_a_factor_of_float16_does_not_round_the_scales():
    node = Quantized(jnp.float32(CODES), jnp.asarray(SCALES), dtype="float16").store()
    number = np.float16(1 / 3)
    found = node.times(jnp.asarray(number)).replace(dtype="float32").materialize()
    wanted = CODES * per_entry(SCALES) * float(number)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
