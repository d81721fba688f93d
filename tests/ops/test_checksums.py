from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from nnopt_jax.ops.checksums import checksum

DTYPES = ["bool", "int2", "int4", "uint4", "int8", "uint8", "int16", "uint32", "float16"]
DTYPES += ["bfloat16", "float32", "complex64", "float8_e4m3fn", "float4_e2m1fn"]


def reference_mix(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def test_formula() -> None:
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    place = np.arange(20, dtype=np.uint32)
    for found, seed in zip(checksum(x), (0x9E3779B9, 0x7F4A7C15), strict=True):
        mixed = reference_mix(x.ravel().view(np.uint32) ^ reference_mix(place + np.uint32(seed)))
        assert int(found) == int(mixed.sum(dtype=np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype_sees_a_change_and_a_swap(dtype) -> None:
    x, changed, swapped = (
        jnp.asarray(bits).astype(dtype) for bits in ([0, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 0])
    )
    sums = [checksum(y) for y in (x, changed, swapped)]
    assert len({tuple(s.tolist()) for s in sums}) == 3
    np.testing.assert_array_equal(jax.jit(checksum)(x), sums[0])


def test_every_bit_of_a_float_counts() -> None:
    x = np.ones(3, np.float32)
    compiled = jax.jit(checksum)
    seen = {tuple(compiled(x).tolist())}
    for bit in range(32):
        y = x.copy()
        y.view(np.uint32)[1] ^= np.uint32(1 << bit)
        seen.add(tuple(compiled(y).tolist()))
    assert len(seen) == 33


def test_wide_dtypes() -> None:
    with jax.enable_x64(True):
        for dtype in ("float64", "int64", "uint64", "complex128"):
            x = jnp.arange(4).astype(dtype)
            assert checksum(x).tolist() != checksum(x + 1).tolist()
        high, low = jnp.array([1 << 40]), jnp.array([1 << 8])
        assert checksum(high).tolist() != checksum(low).tolist()


def test_keys_scalars_and_nothing() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    data = jax.random.key_data(keys)
    np.testing.assert_array_equal(checksum(keys), checksum(data))
    assert checksum(jax.random.key(1)).tolist() != checksum(jax.random.key(2)).tolist()
    assert checksum(3.0).shape == (2,)
    np.testing.assert_array_equal(checksum(np.zeros((0, 3))), [0, 0])


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_every_mesh_gives_the_same(shape) -> None:
    x = np.random.default_rng(1).standard_normal((32, 16)).astype(np.float32)
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(x, NamedSharding(mesh, P("a", "b")))
    sum_of = jax.jit(checksum)
    np.testing.assert_array_equal(sum_of(placed), checksum(x))
    text = sum_of.lower(placed).compile().as_text()
    for dims in re.findall(r"\w\d+\[([\d,]*)\][^ ]* all-(?:gather|reduce)\(", text):
        assert np.prod([int(d) for d in dims.split(",") if d], initial=1) <= 8
