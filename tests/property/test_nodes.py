"""Nodes stand for the same array in every form, for any values, masks and nesting."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from nnopt_jax.arrays import (
    Bits,
    Codebook,
    DeltaIndex,
    Factored,
    Masked,
    Quantized,
    Sparse,
    Sum,
    abstract,
    check,
    describe,
    materialize,
    store,
)
from nnopt_jax.arrays.packed_integers import pack_integers
from nnopt_jax.tree import tree_bits

SHAPES = st.sampled_from([(), (1,), (7,), (3, 8), (2, 3, 5), (0, 4)])
FLOATS = st.floats(-100, 100, width=32)


@st.composite
def masks(draw, shape):
    """Bools of any density, 0 and 1 included."""
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    seed = draw(st.integers(0, 2**16))
    return np.random.default_rng(seed).random(shape) < density


def numbers(shape):
    return hnp.arrays(np.float32, shape, elements=FLOATS)


@st.composite
def expressions(draw, shape):
    """A node over a float array, and the array that NumPy says it stands for."""
    dense = draw(numbers(shape))
    kind = draw(st.sampled_from(["raw", "grid", "table", "table on a grid", "codes of a table"]))
    codes = np.round(dense)
    indices = np.abs(codes).astype(np.int32) % 5
    scale = np.full((1,) * dense.ndim, 0.25, np.float32)
    levels = np.array([-2, -1, 0, 3, 5], np.float32)
    if kind == "raw":
        return jnp.asarray(dense), dense
    if kind == "grid":
        return Quantized(jnp.asarray(codes), jnp.asarray(scale)), codes * 0.25
    if kind == "table":
        return Codebook(jnp.asarray(indices), jnp.asarray(levels)), levels[indices]
    if kind == "table on a grid":
        table = Quantized(jnp.asarray(levels), jnp.asarray([0.5], jnp.float32))
        return Codebook(jnp.asarray(indices), table), levels[indices] * 0.5
    shared = Codebook(jnp.asarray(indices), jnp.asarray(levels))
    return Quantized(shared, jnp.asarray(scale)), levels[indices] * 0.25


@st.composite
def masked_expressions(draw):
    """Up to two masks over an expression, and the dense array."""
    shape = draw(SHAPES)
    leaf, dense = draw(expressions(shape))
    for _ in range(draw(st.integers(1, 2))):
        mask = draw(masks(shape))
        leaf, dense = Masked(leaf, jnp.asarray(mask)), np.where(mask, dense, 0)
    return leaf, dense


@given(st.data())
@pytest.mark.parametrize("width", [1, 3, 4, 8, 12, 16])
def test_bits_hold_every_code(width, data):
    shape = data.draw(SHAPES)
    low = data.draw(st.integers(-(2 ** (width - 1)), 0))
    codes = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(low, low + 2**width - 1)))
    packed = Bits.of(jnp.asarray(codes), width, low)
    assert packed.shape == shape
    assert not packed.problems(shape)
    assert packed.words.size <= -(-codes.size * width // 8) + 2 * max(1, codes.size // 8)
    np.testing.assert_array_equal(packed.materialize(), codes)


@given(SHAPES, st.sampled_from([(0, 1), (-1, 1), (-8, 7), (-127, 127), (0, 255), (-32767, 32767)]),
       st.integers(0, 2**16))  # fmt: skip
def test_pack_integers_is_lossless(shape, ends, seed):
    low, high = ends
    codes = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    packed = pack_integers(jnp.asarray(codes, jnp.float32), low, high)
    np.testing.assert_array_equal(materialize(packed), codes)
    assert tree_bits(packed) <= 16 * codes.size + 16


@given(st.data(), st.integers(1, 8))
def test_gaps_round_trip(data, width):
    mask = data.draw(masks(data.draw(SHAPES)))
    gaps = DeltaIndex.of(jnp.asarray(mask), width)
    np.testing.assert_array_equal(gaps.materialize(), mask)
    codes = np.asarray(gaps.codes.materialize())
    assert codes.size == 0 or (codes.min() >= 0 and codes.max() < 2**width)
    assert (codes != 2**width - 1).sum() == mask.sum()
    plain = gaps.replace(codes=jnp.asarray(codes, jnp.uint8))
    np.testing.assert_array_equal(plain.materialize(), mask)


@given(masked_expressions())
def test_storage_stands_for_the_same_array(case):
    leaf, dense = case
    stored = store({"w": leaf})["w"]
    np.testing.assert_array_equal(leaf.materialize(), dense)
    np.testing.assert_array_equal(stored.materialize(), dense)
    assert isinstance(stored, Sparse)
    assert not stored.problems(stored.shape)
    again = store({"w": stored})["w"]
    assert repr(again) == repr(stored)
    np.testing.assert_array_equal(again.materialize(), dense)


@given(masked_expressions(), st.integers(0, 3))
def test_storage_with_room_to_spare(case, more):
    leaf, dense = case
    room = int((np.asarray(leaf.mask)).sum()) + more
    stored = store({"w": leaf}, capacities={"w": room})
    np.testing.assert_array_equal(stored["w"].materialize(), dense)


@given(st.data())
def test_what_cannot_be_cut_keeps_its_mask(data):
    u, v = data.draw(numbers((3, 2))), data.draw(numbers((2, 4)))
    base, mask = data.draw(numbers((3, 4))), data.draw(masks((3, 4)))
    for inner in (Factored(u, v), Sum(jnp.asarray(base), Factored(jnp.asarray(u), jnp.asarray(v)))):
        leaf = Masked(inner, jnp.asarray(mask))
        stored = store({"w": leaf})["w"]
        assert isinstance(stored, Masked)
        np.testing.assert_array_equal(stored.materialize(), leaf.materialize())
        assert not np.asarray(stored.materialize())[~mask].any()
        assert stored.bits < 32 * 12 * 2 + 32 * 14


@given(masked_expressions(), st.booleans())
def test_description_survives_json(case, stored):
    tree = {"a": [case[0], jnp.arange(2)], "b": (None, {"c": case[0]})}
    tree = store(tree) if stored else tree
    text = json.dumps(describe(tree))
    rebuilt = abstract(json.loads(text))
    wanted = jax.eval_shape(lambda: tree)
    assert jax.tree.structure(rebuilt) == jax.tree.structure(wanted)
    for got, want in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(wanted), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert json.dumps(describe(rebuilt)) == text
    check(rebuilt, "test")
