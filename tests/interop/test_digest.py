"""The host's checksum against the devices', and against the formula in Python's integers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nnopt_jax.interop.stored_leaf import nonfinite
from nnopt_jax.ops.checksums import checksum, digest

DTYPES = (
    "bool int4 uint4 int8 uint8 int16 uint16 int32 uint32 float8_e4m3fn float8_e5m2 "
    "float4_e2m1fn bfloat16 float16 float32 complex64"
).split()


def fmix32(h):
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
    return h ^ (h >> 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5)])
def test_host_and_device_agree(dtype, shape):
    draws = np.random.default_rng(0).normal(scale=3, size=shape)
    x = jnp.asarray(draws).astype(dtype)
    assert digest(x) == digest(np.asarray(x)) == checksum(x).tolist()


def test_arrays_longer_than_a_chunk_agree():
    x = np.random.default_rng(1).normal(size=(3, 65536 + 5)).astype(np.float32)
    assert digest(x) == checksum(x).tolist()


def test_float64_is_seen_whole_whatever_jax_is_set_to():
    x = np.array([1.0, -0.0, np.pi])
    low, high = (x.view(np.uint64) & 0xFFFFFFFF).tolist(), (x.view(np.uint64) >> 32).tolist()
    expected = [
        sum(fmix32(high[i] ^ fmix32(low[i] ^ fmix32(i + seed))) for i in range(3)) % 2**32
        for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
    assert digest(x) == expected
    assert digest(np.nextafter(x, 9)) != expected


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_the_mesh_does_not_matter(shape):
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = np.random.default_rng(2).normal(size=(16, 8)).astype(np.float32)
    assert digest(jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b")))) == digest(x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float32", "float64"])
def test_nan_is_counted_in_every_dtype(dtype):
    x = np.array([1, np.nan, 2]).astype(jnp.dtype(dtype))
    assert nonfinite(x) == "holds 1 NaN and 0 infinite of 3"
    assert nonfinite(x[::2]) == ""


def test_infinity_passes_as_a_scalar_only():
    assert nonfinite(np.float32(-np.inf)) == nonfinite(float("inf")) == ""
    assert nonfinite(np.array([np.inf])) == "holds 0 NaN and 1 infinite of 1"
    assert nonfinite(np.array([1j * np.inf]))
    assert nonfinite(float("nan"))
    assert nonfinite("text") == nonfinite(3) == nonfinite(np.ones(2, bool)) == ""
