"""NF4, FP4, MXFP4 and grouped integers: errors, blocks that are dead or broken, double scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Powers, Quantized
from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.ops.lookup_tables import E2M1, NF4

W = np.random.default_rng(4).normal(0, 0.05, (64, 8)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(W)}
METHODS = {
    "nf4": nnopt.quantization.nf4,
    "fp4": nnopt.quantization.fp4,
    "mxfp4": nnopt.quantization.mxfp4,
    "grouped": nnopt.quantization.grouped,
}


def _leaf(tx, params=PARAMS):
    return tx.encode(params, tx.init(params))["kernel"]


@pytest.mark.parametrize(
    ("name", "levels", "scale"),
    [("nf4", NF4, lambda top: top), ("fp4", E2M1, lambda top: top / 6),
     ("mxfp4", E2M1, lambda top: 2.0 ** (np.floor(np.log2(top)) - 2))],
)  # fmt: skip
def test_takes_the_nearest_level_of_each_block(name, levels, scale):
    exact = {} if name == "mxfp4" else {"scale_dtype": jnp.float32}
    shown = np.asarray(_leaf(METHODS[name](group=16, **exact)).materialize())
    blocks = W.reshape(4, 16, 8)
    unit = scale(np.abs(blocks).max(1, keepdims=True))
    points = (unit[..., None] * np.array(levels)).reshape(4, 1, 8, -1)
    off = np.abs(points - blocks[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(shown.reshape(blocks.shape) - blocks), off, atol=1e-7)


def test_double_quantized_scales():
    tx = nnopt.quantization.nf4(group=16, double=True)
    leaf = _leaf(tx)
    assert isinstance(leaf.scale, Quantized)
    plain = np.abs(W.reshape(4, 16, 8)).max(1)
    scale = np.asarray(leaf.scale.materialize())
    assert np.abs(scale - plain).max() <= plain.max(1).max() / 255 / 2 * 1.001
    stored = leaf.store()
    assert stored.scale.codes.dtype == jnp.uint8
    assert stored.scale.scale.shape == (4, 1)
    np.testing.assert_array_equal(stored.materialize(), leaf.materialize())
    big = {"kernel": jax.ShapeDtypeStruct((512, 512), "float32")}
    tx = nnopt.quantization.nf4(double=True)
    packed = jax.eval_shape(lambda params: tx.pack(params, tx.init(params)), big)["kernel"]
    assert packed.bits / packed.size == 4 + 8 / 64 + 32 / (64 * 256)  # 4.127, QLoRA section 3


def test_exponents_are_stored_in_eight_bits():
    packed = nnopt.quantization.mxfp4().pack(PARAMS, nnopt.quantization.mxfp4().init(PARAMS))
    assert isinstance(packed["kernel"].scale, Powers)
    assert packed["kernel"].bits / W.size == 4.25


@pytest.mark.parametrize("name", METHODS)
def test_dead_and_broken_blocks_stay_alone(name):
    tx = METHODS[name](group=16)
    whole = np.asarray(_leaf(tx).materialize())
    for bad in (0.0, 1e-42):
        dead = {"kernel": PARAMS["kernel"].at[:16, 2].set(bad)}
        shown = np.asarray(_leaf(tx, dead).materialize())
        assert not shown[:16, 2].any()
        assert not np.signbit(shown[:16, 2]).any()
        np.testing.assert_array_equal(shown[16:], whole[16:])
    for bad in (np.nan, np.inf):
        broken = {"kernel": PARAMS["kernel"].at[5, 2].set(bad)}
        shown = np.asarray(_leaf(tx, broken).materialize())
        keep = np.ones(W.shape, bool)
        keep[:16, 2] = False
        np.testing.assert_array_equal(shown[keep], whole[keep])
        assert np.isfinite(np.delete(shown[:16, 2], 5)).all()
        assert np.isnan(shown[5, 2]) == np.isnan(bad) or not np.isfinite(shown[5, 2])


@pytest.mark.parametrize("name", METHODS)
def test_pruned_weights_have_no_say(name):
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5, mode="soft"), METHODS[name](group=16))
    _, state = tx.init(PARAMS)
    small = jnp.where(tx.encode(PARAMS, tx.init(PARAMS))["kernel"].mask, PARAMS["kernel"], 0.0)
    _, other = tx.init({"kernel": small})
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_groups_that_do_not_divide_are_named():
    params = {"a": jnp.ones((20, 2)), "b": jnp.ones((64, 2)), "c": {"d": jnp.ones((3, 3, 9, 2))}}
    for name, tx in METHODS.items():
        if name in ("nf4", "fp4"):
            assert tx(group=32).init(params).rest["a"][0].shape == (1, 2)
            continue
        with pytest.raises(ShapeError) as caught:
            tx(group=32).init(params)
        text = str(caught.value)
        assert f"quantization.{name}: 2 problems" in text
        assert "a: groups of 32 do not divide axis 0 of shape (20, 2)" in text
        assert "c/d: groups of 32 do not divide axes 0, 1, 2 of shape (3, 3, 9, 2)" in text
        assert "give a group that divides 81" in text


def test_settings_are_refused_all_at_once():
    with pytest.raises(ValueRangeError, match="Did you mean q4_0") as caught:
        nnopt.quantization.grouped("q4_1", granularity=-1)
    assert "granularity=-1" in str(caught.value)
    with pytest.raises(ValueRangeError, match="double=2 is neither"):
        nnopt.quantization.nf4(double=2)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: nnopt.quantization.uniform(4, group=64, scale_dtype=jnp.float16), 4.25),
        (lambda: nnopt.quantization.uniform(3, group=32), 3.5),
        (lambda: nnopt.quantization.uniform(2, group=64, scale_dtype=jnp.float16), 1.85),
        (lambda: nnopt.quantization.fp4(group=64, scale_dtype=jnp.float16), 4.25),
        (lambda: nnopt.quantization.nf4(), 4.25),
        (lambda: nnopt.quantization.grouped(), 4.5),
        (lambda: nnopt.quantization.grouped("q8_0"), 8.5),
        (lambda: nnopt.quantization.mxfp4(), 4.25),
        (lambda: nnopt.quantization.xnor(group=64, scale_dtype=jnp.float16), 1.25),
        (lambda: nnopt.quantization.twn(group=64, scale_dtype=jnp.float16), 1.85),
        (lambda: nnopt.quantization.ttq(), 1.6 + 64 / 512),
    ],
)  # fmt: skip
def test_stored_bits_of_methods(make, wanted):
    """Counted from the bytes of the arrays; 64 inputs are one group of 64 or two of 32."""
    tx = make()
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    counted = 8 * sum(np.asarray(x).nbytes for x in jax.tree.leaves(packed)) / W.size
    assert counted == pytest.approx(wanted, abs=8 / W.size)  # the last byte of trits is not full
