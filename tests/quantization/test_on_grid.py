"""Any grid goes with any granularity, range and rounding, or an error says why not."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ScaleError, ValueRangeError
from nnopt_jax.ops.lookup_tables import NF4
from nnopt_jax.quantization import grids, on_grid, ranges, rounding
from nnopt_jax.quantization.grids import GRIDS
from nnopt_jax.quantization.ranges import RANGES
from nnopt_jax.quantization.rounding import ROUNDINGS

W = np.random.default_rng(3).standard_normal((32, 6)).astype(np.float32)
PARAMS = {"w": jnp.asarray(W)}


def values(tx, params=PARAMS):
    return np.asarray(tx.apply(params, tx.init(params, key=jax.random.key(0)))["w"], np.float64)


def nearest(w, scale, levels):
    """The nearest level of each weight, in float64."""
    points = np.asarray(levels)[None, None] * scale[..., None]
    return np.take_along_axis(points, np.abs(points - w[..., None]).argmin(-1)[..., None], -1)[
        ..., 0
    ]


def test_nf4_with_searched_ranges_is_the_best_of_eighty():
    got = values(on_grid("nf4", granularity="channel", range="mse"))
    w, largest = W.astype(np.float64), np.abs(W).max(0, keepdims=True)
    tried = [nearest(w, np.float32(1 - i / 80) * largest, NF4) for i in range(80)]
    errors = np.stack([np.square(x - w).sum(0) for x in tried])
    best = np.square(got - w).sum(0)
    np.testing.assert_allclose(best, errors.min(0), rtol=1e-5)
    plain = values(on_grid("nf4", granularity="channel"))
    assert (best <= np.square(plain - w).sum(0)).all()
    assert best.sum() < np.square(plain - w).sum()


def test_lsq_on_nf4_learns_scales_by_its_gradient():
    tx = on_grid("nf4", range="learned", granularity="channel")
    state = tx.init(PARAMS)
    step = np.asarray(state.learned["w"][0], np.float64)
    above = 8  # values of NF4 above zero
    np.testing.assert_allclose(step[0], 2 * np.abs(W).mean(0) * np.sqrt(above), rtol=1e-5)

    def loss(params):
        return (params["w"] * jnp.asarray(W[::-1])).sum()

    _, grads = nnopt.value_and_grad(loss, tx)(PARAMS, state)
    got = np.asarray(grads.train.learned["w"][0])[0]
    v = W / step
    hat = nearest(W.astype(np.float64), np.broadcast_to(step, W.shape), NF4) / step
    slope = np.where((v > -1) & (v < 1), hat - v, np.sign(v)) * above**2 / np.sqrt(32 * above)
    np.testing.assert_allclose(got, (slope * W[::-1]).sum(0), rtol=2e-3, atol=2e-3)


def test_stochastic_rounding_is_unbiased_in_training_and_nearest_in_storage():
    for grid in (grids.uniform(3), grids.nf4()):
        tx = on_grid(grid, granularity="tensor", rounding="stochastic")
        state = tx.init(PARAMS, key=jax.random.key(1))
        total = np.zeros_like(W)
        encode = functools.partial(tx.encode, PARAMS, train=True)
        trains = jax.jit(lambda s, encode=encode: nnopt.materialize(encode(s))["w"])
        for _ in range(400):
            total += np.asarray(trains(state))
            _, state = tx.update(PARAMS, state)
        gap = np.abs(W).max() / 3 if grid.levels is None else np.abs(W).max() * 0.32
        assert np.abs(total / 400 - W).max() < 5 * gap / 2 / np.sqrt(400)
        plain = values(on_grid(grid, granularity="tensor"))
        np.testing.assert_array_equal(values(tx), plain)


def test_learned_rounding_lowers_the_error_of_a_layer():
    x = jnp.asarray(
        np.random.default_rng(5).standard_normal((256, 32)) @ np.triu(np.ones((32, 32)))
    )
    x = x.astype(jnp.float32)
    wanted = x @ PARAMS["w"]

    def loss(params):
        return jnp.square(x @ params["w"] - wanted).mean()

    tx = on_grid(grids.uniform(3), granularity="channel", rounding="learned")
    state = tx.init(PARAMS)
    first = float(loss(tx.apply(PARAMS, state)))
    np.testing.assert_allclose(first, float(loss({"w": jnp.asarray(values(
        on_grid(grids.uniform(3), granularity="channel")), jnp.float32)})), rtol=1e-5)  # fmt: skip
    optimizer = optax.sgd(0.02)
    learned, best = state.learned, first
    opt_state = optimizer.init(learned)
    for _ in range(60):
        _, grads = nnopt.value_and_grad(loss, tx)(PARAMS, state._replace(learned=learned))
        signs = jax.tree.map(jnp.sign, grads.train.learned)
        updates, opt_state = optimizer.update(signs, opt_state)
        learned = optax.apply_updates(learned, updates)
        best = min(best, float(loss(tx.apply(PARAMS, state._replace(learned=learned)))))
    assert best < 0.5 * first


@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_every_combination_packs_what_it_applies_or_says_why_not(grid):
    worked = 0
    for reach, rounds, size in itertools.product(RANGES, ROUNDINGS, ({}, {"group": 8})):
        try:
            tx = on_grid(grid, range=reach, rounding=rounds, **size)
        except ValueRangeError:
            continue
        worked += 1
        if rounds == "stochastic" and size:  # the others have shown it
            continue
        state = tx.init(PARAMS, key=jax.random.key(0))
        packed = tx.pack(PARAMS, state)
        np.testing.assert_array_equal(
            np.asarray(nnopt.materialize(packed)["w"]), np.asarray(tx.apply(PARAMS, state)["w"])
        )
    assert worked >= 4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: on_grid("nf5"), "grid='nf5' is not one of .* Did you mean nf4"),
        (lambda: on_grid(8), "is not a Grid; give one, or a name"),
        (lambda: on_grid("nf4", range="mean"), "would clip half of the weights"),
        (
            lambda: on_grid("nf4", range="threshold"),
            "gives weights one of three values, but the grid is nf4",
        ),
        (lambda: on_grid(grids.uniform(4, symmetric=False), range="learned"), "zero point"),
        (lambda: on_grid(grids.uniform(4, symmetric=False), double=True), "stores scales alone"),
        (
            lambda: on_grid("ternary", range="threshold", rounding="stochastic"),
            "range threshold.* rule of its own",
        ),
        (lambda: on_grid("int4", range="gguf"), "q4_0 and q8_0"),
        (lambda: on_grid("q4_0", double=True), "double=True does not apply to q4_0.., whose"),
        (lambda: on_grid("q4_0", rounding="stochastic"), "grid q4_0.. has a rule of its own"),
        (lambda: on_grid("nf4", range="fixed", double=True), "range=fixed.* double=True cannot"),
        (lambda: on_grid("nf4", scale_dtype="e8m0", double=True), "these are powers of two"),
        (
            lambda: on_grid("mxfp4", scale_dtype="float32"),
            "not a dtype in which mxfp4.. stores its scales",
        ),
        (lambda: on_grid("int4", rounding="nearst"), "Did you mean nearest"),
        (lambda: on_grid(grids.codebook((1.0, 0.0))), "not 2 to 256 ascending numbers"),
        (lambda: nnopt.quantization.uniform(4, granularity=64), "write group=64"),
    ],
)
def test_what_has_no_meaning_says_why(make, text):
    with pytest.raises(ValueRangeError, match=text):
        make()


def test_scales_that_underflow_are_named_together():
    params = {"a": PARAMS["w"] * 1e-8, "b": PARAMS["w"], "c": PARAMS["w"] * 1e-9}
    with pytest.raises(ScaleError, match=r"(?s)a: .*give scale_dtype='bfloat16' or.*c: ") as caught:
        nnopt.quantization.uniform(4, group=16).init(params)
    assert "b:" not in str(caught.value)
    tx = nnopt.quantization.uniform(4, group=16, scale_dtype="bfloat16")
    assert np.abs(np.asarray(tx.apply(params, tx.init(params))["a"])).max() > 0


def test_a_codebook_of_ones_own_is_stored_in_two_bits():
    tx = on_grid(grids.codebook((-1.0, -0.2, 0.2, 1.0)), granularity="channel")
    packed = tx.pack(PARAMS, tx.init(PARAMS))["w"]
    assert packed.bits == 2 * W.size + 32 * 6
    got = values(tx)
    scale = np.broadcast_to(np.abs(W).max(0, keepdims=True).astype(np.float64), W.shape)
    np.testing.assert_allclose(got, nearest(W, scale, (-1.0, -0.2, 0.2, 1.0)), rtol=1e-6)


def test_choices_are_values():
    assert grids.uniform(4) == grids.uniform(4) != grids.uniform(3)
    assert repr(ranges.percentile(99)) == "percentile(percent=99)"
    assert repr(rounding.stochastic()) == "stochastic()"
    assert repr(grids.uniform(4)) == "uniform(bits=4, symmetric=True)"
    assert hash(ranges.mse()) == hash(ranges.mse())
