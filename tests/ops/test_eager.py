"""Outside of `jit`, values are those of compiled code, and few programs are compiled."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnopt_jax import compression, pruning, quantization
from nnopt_jax.ops import eager, threshold

SCORES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-45])


@given(
    rows=st.lists(st.lists(SCORES, min_size=1, max_size=9), min_size=1, max_size=3),
    part=st.floats(0, 1),
    signed=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_sorting_and_searching_mark_the_same_scores(rows, part, signed, dtype):
    arrays = [jnp.asarray(np.array(row, np.float32), dtype) for row in rows]
    k = round(part * sum(array.size for array in arrays))
    sorted_masks = threshold._sorted_masks(arrays, k, signed)
    searched = threshold._masks(arrays, jnp.int32(k), signed)
    for one, other in zip(sorted_masks, searched, strict=True):
        np.testing.assert_array_equal(one, other)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=20), room=st.integers(0, 3))
def test_places_on_the_host_are_those_of_compiled_code(bits, room):
    mask = jnp.asarray(bits)
    count = eager.count_true(mask) + room
    places = eager.kept_places(mask, count)
    np.testing.assert_array_equal(places, jax.jit(eager.kept_places, static_argnums=1)(mask, count))
    x = jnp.arange(mask.size) * 3
    np.testing.assert_array_equal(eager.take_flat(x, places), np.asarray(x)[places])


def test_results_stay_on_the_device_of_the_input():
    device = jax.local_devices(backend="cpu")[-1]
    x = jax.device_put(jnp.arange(4), device)
    assert eager.take_flat(x, np.array([1])).devices() == {device}
    assert eager.take_flat(x, np.array([1])).committed
    assert not eager.take_flat(jnp.arange(4), np.array([1])).committed


def test_traced_and_abstract_arrays_are_not_on_the_host():
    found = []
    jax.jit(lambda x: (found.append(eager.is_on_host(x)), x)[1])(jnp.ones(2))
    assert found == [False]
    assert not eager.is_on_host(jax.ShapeDtypeStruct((2,), "float32"))


@pytest.mark.parametrize("values", [[1.0, np.nan, np.inf, -np.inf], [0.0, 1.0]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3"])
def test_nonfinite_values_are_counted(values, dtype):
    x = jnp.asarray(values, dtype)
    assert eager.count_nonfinite(x) == int((~jnp.isfinite(x)).sum())


def compiled_programs(caplog, tx, shape):
    """The programs that `init` and `pack` compile for a shape that the process has not met."""
    params = {"kernel": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    params = jax.tree.map(jnp.asarray, params)
    caplog.clear()
    with caplog.at_level(logging.WARNING), jax.log_compiles(True):
        tx.pack(params, tx.init(params))
    return [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]


@pytest.mark.parametrize(
    ("tx", "most"),
    [
        (quantization.uniform(8, granularity="channel"), 2),
        (quantization.uniform(4, group=8, where="**"), 3),
        (quantization.uniform(4), 2),
        (pruning.magnitude(0.5), 1),
        (compression.codebook(16), 3),
    ],
    ids=["channel", "group", "tensor", "magnitude", "codebook"],
)
def test_a_new_shape_compiles_few_programs(caplog, tx, most):
    compiled_programs(caplog, tx, (6, 4))  # what does not depend on the shape
    programs = compiled_programs(caplog, tx, (24, 7))
    assert len(programs) <= most, programs


def test_inside_of_jit_functions_are_inlined():
    tx = quantization.uniform(8, granularity="channel")
    params = {"kernel": jnp.ones((6, 4))}
    program = jax.jit(lambda p: tx.apply(p, tx.init(p))).lower(params).as_text()
    assert "stablehlo.round_nearest_even" in program
    assert not [name for name in ("_fit_grid", "_quantize", "_dequantize") if name in program]
