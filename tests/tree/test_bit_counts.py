"""Sizes in bits, whatever a backend pads them to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nnopt_jax.tree import dtype_bits, tree_bits


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (jnp.int2, 2), (jnp.uint4, 4), (jnp.int8, 8), (jnp.bool_, 8), (jnp.float16, 16),
        (jnp.float8_e4m3fn, 8), (jnp.float4_e2m1fn, 4), (jnp.int32, 32), (jnp.complex64, 64),
    ],
)  # fmt: skip
def test_bits_of_one_element(dtype, bits):
    assert dtype_bits(dtype) == bits


def test_keys_count_their_words():
    key = jax.random.key(0)
    assert dtype_bits(key.dtype) == 64
    assert tree_bits({"key": jax.random.split(key, 3), "count": jnp.int32(0)}) == 3 * 64 + 32


def test_shapes_count_like_arrays_and_other_leaves_do_not():
    tree = {"w": jax.ShapeDtypeStruct((3, 5), jnp.int4), "name": "x", "none": None}
    assert tree_bits(tree) == 60
