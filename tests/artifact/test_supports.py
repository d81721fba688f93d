"""Sparse leaves of every format in a file: whole, and no larger than need be."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import nnopt_jax as nnopt
from nnopt_jax.arrays import CSR, Masked, Quantized, Sparse, store
from nnopt_jax.artifact import container
from nnopt_jax.interop import Checkpoints
from nnopt_jax.ops.masks import keep_n_of_m
from tests.contract.checks import assert_same

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(64, 48)).astype(np.float32)
PATTERN = np.asarray(keep_n_of_m(jnp.asarray(np.abs(VALUES)), 2, 4))
BLOCKS = np.kron(RNG.random((16, 12)) < 0.4, np.ones((4, 4))) > 0
FORMATS = {"bitmask": PATTERN, "gaps": PATTERN, "csr": PATTERN, "2:4": PATTERN, (4, 4): BLOCKS}
WIDE = jnp.asarray(RNG.random((2, 70_000)) < 0.001)


def stored(format, mask, quantized):
    grid = Quantized(jnp.round(jnp.asarray(VALUES * 3)), jnp.ones((1, 48)), low=-15, high=15)
    values = grid if quantized else jnp.asarray(VALUES)
    return store({"w": Masked(values, jnp.asarray(mask), format=format)})["w"]


TREE = {
    f"{format} {quantized}": stored(format, mask, quantized)
    for format, mask in FORMATS.items()
    for quantized in (False, True)
} | {"wide": Sparse(jnp.ones(int(WIDE.sum())), CSR.of(WIDE), WIDE.shape)}


def test_every_format_comes_back_from_a_file(tmp_path):
    nnopt.save(tmp_path / "x.nnopt", TREE)
    back = nnopt.load(tmp_path / "x.nnopt")
    assert_same(back, TREE, "loaded")
    nnopt.arrays.check(back, "test")


def test_every_format_comes_back_from_a_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, TREE)
        assert_same(checkpoints.restore(TREE)[0], TREE, "restored into a target")
        assert_same(checkpoints.restore()[0], TREE, "restored from the manifest")


def test_two_of_four_takes_the_entropy_of_the_choice():
    """log2(6) bits for four weights; the same mask, a bit an element, takes a half more."""
    values = jnp.ones(PATTERN.shape, jnp.int8)
    sizes = {
        format: len(container.write(store({"w": Masked(values, PATTERN, format=format)})))
        for format in ("2:4", "bitmask")
    }
    wanted = PATTERN.size / 4 * math.log2(6) / 8
    assert sizes["2:4"] < 1.02 * wanted + 300  # the description of the tree
    assert sizes["bitmask"] - sizes["2:4"] > 0.3 * wanted


@pytest.mark.parametrize("quantized", [False, True])
def test_rows_take_no_more_than_gaps(quantized):
    """Both are coded as the mask they stand for."""
    sizes = [len(container.write({"w": TREE[f"{name} {quantized}"]})) for name in ("csr", "gaps")]
    assert abs(sizes[0] - sizes[1]) < 40


def test_scipy_reads_rows():
    leaf = TREE["csr False"]
    theirs = scipy.sparse.csr_array(
        (leaf.values, leaf.support.columns.materialize(), leaf.support.starts), shape=leaf.shape
    )
    np.testing.assert_array_equal(theirs.toarray(), leaf.materialize())
