"""Levels, powers and trits as nodes: stored, masked, described, saved, in as many bits as said."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.arrays import (
    Bits,
    Codebook,
    LookupQuantized,
    Masked,
    PackedTernary,
    Powers,
    Quantized,
    abstract,
    check,
    describe,
    materialize,
    store,
)
from nnopt_jax.errors import ArtifactError
from nnopt_jax.ops.lookup_tables import BINARY, E2M1, NF4, TERNARY

TABLES = st.sampled_from([BINARY, TERNARY, E2M1, NF4, (-1.0,), (-3.0, 0.25)])


MASK = jnp.arange(80).reshape(8, 10) % 3 == 0


def _levels(levels, shape=(8, 10), seed=0, **fields):
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(0, len(levels), shape), jnp.float32)
    scale = jnp.asarray(rng.random((2, *shape[1:])), jnp.float32)
    return LookupQuantized(codes, scale, levels=levels, **fields)


@settings(max_examples=10)
@given(levels=TABLES, seed=st.integers(0, 2**16), apart=st.booleans())
def test_stands_for_the_same_in_every_form(levels, seed, apart):
    below = jnp.full((2, 10), 0.5) if apart else None
    leaf = _levels(levels, seed=seed, below=below)
    value = np.array(levels, np.float32)[np.asarray(leaf.codes).astype(int)]
    scale = np.repeat(np.asarray(leaf.scale), 4, 0)
    scale = np.where((value < 0) & apart, np.float32(0.5), scale)
    np.testing.assert_array_equal(leaf.materialize(), value * scale)
    for tree in (leaf, Masked(leaf, MASK)):
        packed = store({"w": tree})
        np.testing.assert_array_equal(materialize(packed)["w"], tree.materialize())
        check(packed, "test")
        rebuilt = abstract(describe(packed))
        assert jax.tree.structure(rebuilt) == jax.tree.structure(packed)


def test_shows_no_negative_zero():
    leaf = LookupQuantized(jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[-0.0]]), levels=TERNARY)
    assert not np.signbit(leaf.materialize()).any()
    small = LookupQuantized(
        jnp.zeros((1, 1)), jnp.full((1, 1), 1e-12), levels=BINARY, dtype="float16"
    )
    assert not np.signbit(small.materialize()).any()


def test_a_refined_code_has_a_gradient():
    """Codes that a learned table replaces are worth the mean step between levels."""

    def shown(table):
        codes = Codebook(jnp.array([[0, 1, 1]]), table)
        return (
            LookupQuantized(codes, jnp.full((1, 1), 3.0), levels=(-1.0, 0.0, 1.0))
            .materialize()
            .sum()
        )

    np.testing.assert_array_equal(jax.grad(shown)(jnp.array([0.0, 2.0])), [3, 6])


def test_a_table_of_codes_picks_levels():
    """What sharing makes of codes: few of the levels, exactly."""
    codes = Codebook(jnp.array([[0, 1, 2, 1]]), jnp.array([3.0, 7.0, 15.0]))
    leaf = LookupQuantized(codes, jnp.full((1, 1), 2.0), levels=NF4)
    wanted = 2 * np.array(NF4, np.float32)[[3, 7, 15, 7]]
    np.testing.assert_array_equal(leaf.materialize(), wanted[None])
    np.testing.assert_array_equal(leaf.store().materialize(), wanted[None])


def test_specs_follow_the_weight():
    leaf = store(_levels(NF4, (8, 16)).replace(scale=Powers(jnp.ones((2, 16), jnp.uint8))))
    spec = leaf.specs(PartitionSpec("data", "model"))
    assert tuple(spec.codes.words) == ("data", "model")
    assert tuple(spec.scale.exponents) == ("data", "model")
    flat = PackedTernary.of(jnp.zeros((2, 3))).specs(PartitionSpec("data"))
    assert tuple(flat.words) == ()
    rows = PackedTernary.of(jnp.zeros((2, 5))).specs(PartitionSpec("data"))
    assert rows.words == PartitionSpec("data")


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (LookupQuantized(jnp.ones((4, 2)), jnp.ones((3, 1))), "does not divide"),
        (LookupQuantized(jnp.ones((4, 2)), jnp.ones((1, 1)), jnp.ones((1, 3))), "below"),
        (LookupQuantized(jnp.ones((1, 1)), jnp.ones((1, 1)), levels=(1.0, -1.0)), "do not ascend"),
        (LookupQuantized(jnp.ones((1, 1)), jnp.ones((1, 1)), levels=()), "has levels"),
        (LookupQuantized(jnp.ones((1, 1)), jnp.ones((1, 1)), levels=("a",)), "has levels"),  # pyright: ignore
        (Powers(jnp.ones(3, jnp.int8)), "not uint8"),
        (PackedTernary(jnp.zeros(2, jnp.uint8), -1, (3, 5), "rows"), "needs uint8 words"),
        (PackedTernary(jnp.zeros(3, jnp.uint8), -1, (3, 5), "columns"), "layout"),
    ],
)
def test_broken_invariants_are_told(leaf, text):
    with pytest.raises(ArtifactError, match=text):
        check({"w": leaf}, "test")


def _codes(high, shape):
    return jnp.asarray(np.random.default_rng(5).integers(0, high, shape), jnp.float32)


SHAPE = (512, 640)  # groups of 64 along the first axis
GROUPS = jnp.asarray(np.ones((8, 640), np.float16))  # cast by NumPy: XLA needs F16C
STORED = {
    "int4 in groups": (Quantized(_codes(16, SHAPE) - 8, GROUPS, low=-8, high=7), 4.25),
    "int2 in groups": (Quantized(_codes(4, SHAPE) - 2, GROUPS, low=-2, high=1), 2.25),
    "ternary in groups": (Quantized(_codes(3, SHAPE) - 1, GROUPS, low=-1, high=1), 1.85),
    "ternary": (LookupQuantized(_codes(3, SHAPE), jnp.ones((1, 1)), levels=TERNARY), 1.6 + 1e-4),
    "binary": (LookupQuantized(_codes(2, SHAPE), jnp.ones((1, 640)), levels=BINARY), 1 + 32 / 512),
    "NF4": (LookupQuantized(_codes(16, SHAPE), jnp.ones(GROUPS.shape), levels=NF4), 4.5),
    "MXFP4": (
        LookupQuantized(_codes(15, SHAPE), Powers(jnp.ones((16, 640), jnp.uint8)), levels=E2M1),
        4.25,
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_stored_bits(name):
    """Counted from the bytes of the arrays."""
    leaf, wanted = STORED[name]
    packed = leaf.store()
    counted = 8 * sum(np.asarray(x).nbytes for x in jax.tree.leaves(packed)) / leaf.size
    assert counted == pytest.approx(wanted, abs=2e-5)
    assert packed.bits / leaf.size == counted


def test_a_file_of_trits_is_no_larger_than_one_of_bits(tmp_path):
    codes = np.random.default_rng(1).choice(3, 10_000, p=[0.2, 0.6, 0.2]).reshape(100, 100) - 1
    trits, bits = PackedTernary.of(jnp.asarray(codes)), Bits.of(jnp.asarray(codes), 2, -1)
    sizes = []
    for words in (trits, bits):
        leaf = Quantized(words, jnp.ones((1, 1)), low=-1, high=1)
        nnopt.save(tmp_path / "w.nnopt", {"w": leaf})
        back = nnopt.load(tmp_path / "w.nnopt")["w"]
        np.testing.assert_array_equal(back.materialize(), codes)
        np.testing.assert_array_equal(back.codes.words, words.words)
        sizes.append(os.path.getsize(tmp_path / "w.nnopt"))
    assert sizes[0] <= sizes[1] + 32  # the description
    entropy = -(0.4 * np.log2(0.2) + 0.6 * np.log2(0.6))
    assert 8 * (sizes[0] - 300) / codes.size < entropy + 0.02  # besides the plain description


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("levels", [BINARY, TERNARY, NF4])
def test_comes_back_from_a_file(levels, masked, tmp_path):
    leaf = _levels(levels).replace(scale=Powers(jnp.full((2, 10), 125, jnp.uint8)))
    tree = {"w": Masked(leaf, leaf.codes != 1) if masked else leaf}
    packed = store(tree)
    nnopt.save(tmp_path / "w.nnopt", packed)
    back = nnopt.load(tmp_path / "w.nnopt")
    assert jax.tree.structure(back) == jax.tree.structure(packed)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(packed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_words_that_no_packing_makes_come_back_as_they_are(tmp_path):
    words = jnp.array([255, 1, 7], jnp.uint8)
    nnopt.save(tmp_path / "w.nnopt", {"w": PackedTernary(words, -1, (3, 5), "flat")})
    np.testing.assert_array_equal(nnopt.load(tmp_path / "w.nnopt")["w"].words, words)
