"""Binary and ternary methods: values, gradients, clipping, draws, and what masks rule out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError

W = np.random.default_rng(4).normal(0, 0.6, (12, 4)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(W)}
SLOPE = np.random.default_rng(5).normal(size=(12, 4)).astype(np.float32)
METHODS = {
    "binary_connect": nnopt.quantization.binary_connect,
    "xnor": nnopt.quantization.xnor,
    "twn": nnopt.quantization.twn,
    "ttq": nnopt.quantization.ttq,
}


def _grads(tx, params=PARAMS, state=None):
    state = tx.init(params) if state is None else state
    return nnopt.value_and_grad(lambda p: (p["kernel"] * SLOPE).sum(), tx)(params, state)[1].train


def _shown(tx, params=PARAMS):
    return np.asarray(tx.apply(params, tx.init(params))["kernel"])


def _keeps(mask):
    """A transform that keeps certain weights."""
    return nnopt.transform.wrapping(
        "keeps",
        "**",
        init=lambda leaves, start: ({}, {path: jnp.asarray(mask) for path in leaves}),
        encode=lambda leaves, state, train: {
            path: nnopt.arrays.Masked(leaf, state.rest[path]) for path, leaf in leaves.items()
        },
    )


def test_binary_connect_shows_signs_and_clips_what_is_behind():
    tx = nnopt.quantization.binary_connect(scale=0.5)
    state = tx.init(PARAMS)
    np.testing.assert_array_equal(tx.apply(PARAMS, state)["kernel"], np.where(W >= 0, 0.5, -0.5))
    moved, _ = tx.update(PARAMS, state)
    np.testing.assert_array_equal(moved["kernel"], np.clip(W, -0.5, 0.5))
    np.testing.assert_allclose(_grads(tx).params["kernel"], SLOPE)


def test_binary_connect_scales_by_glorot():
    params = {"conv": jnp.ones((3, 3, 4, 8))}
    tx = nnopt.quantization.binary_connect(scale="glorot")
    shown = tx.apply(params, tx.init(params))["conv"]
    np.testing.assert_allclose(shown, np.sqrt(1.5 / (9 * 4 + 9 * 8)), rtol=1e-6)


def test_binary_connect_draws_by_the_hard_sigmoid():
    chance = np.repeat(np.array([0.0, 0.25, 0.5, 0.9, 1.0], np.float32), 4000).reshape(5, -1)
    params = {"kernel": jnp.asarray(2 * chance - 1)}
    tx = nnopt.quantization.binary_connect(stochastic=True)
    state = tx.init(params, key=jax.random.key(1))
    drawn = np.asarray(nnopt.materialize(tx.encode(params, state, train=True))["kernel"])
    assert set(np.unique(drawn)) == {-1, 1}
    np.testing.assert_allclose((drawn > 0).mean(1), chance[:, 0], atol=0.03)
    assert (drawn[0] < 0).all()
    assert (drawn[-1] > 0).all()
    again = nnopt.materialize(tx.encode(params, state, train=True))["kernel"]
    np.testing.assert_array_equal(again, drawn)  # until the next update
    _, later = tx.update(params, state)
    other = nnopt.materialize(tx.encode(params, later, train=True))["kernel"]
    assert 0.1 < (np.asarray(other) != drawn)[2].mean() < 0.9
    decided = tx.apply(params, state)["kernel"]
    np.testing.assert_array_equal(decided, np.where(chance >= 0.5, 1, -1))


def test_binary_connect_wants_a_key_to_draw():
    tx = nnopt.quantization.binary_connect(stochastic=True)
    with pytest.raises(ValueRangeError, match=r"give tx.init\(params, key="):
        tx.init(PARAMS)


@pytest.mark.isa
@pytest.mark.parametrize(("granularity", "rows"), [("tensor", 12), ("channel", 12), (4, 4)])
def test_xnor_is_sign_times_mean(granularity, rows):
    shares = {"group": 4} if granularity == 4 else {"granularity": granularity}
    tx = nnopt.quantization.xnor(**shares, scale_dtype=jnp.float32)
    columns = (0, 1) if granularity == "tensor" else 1
    alpha = np.abs(W).reshape(12 // rows, rows, 4).mean(columns if columns == 1 else (1, 2))
    alpha = np.broadcast_to(np.repeat(alpha.reshape(12 // rows, -1), rows, 0), W.shape)
    np.testing.assert_allclose(_shown(tx), np.where(W >= 0, alpha, -alpha), rtol=1e-6)


def test_xnor_gradient_is_that_of_the_paper():
    alpha = np.abs(W).mean(0)
    wanted = SLOPE * (1 / 12 + alpha * (np.abs(W) <= 1))
    assert (np.abs(W) > 1).any()
    np.testing.assert_allclose(
        _grads(nnopt.quantization.xnor()).params["kernel"], wanted, rtol=1e-5
    )


def test_xnor_counts_what_a_mask_keeps():
    mask = np.random.default_rng(6).random(W.shape) < 0.5
    tx = nnopt.chain(_keeps(mask), nnopt.quantization.xnor())
    count = mask.sum(0)
    alpha = (np.abs(W) * mask).sum(0) / count
    np.testing.assert_allclose(_shown(tx), np.where(W >= 0, alpha, -alpha) * mask, rtol=1e-6)
    wanted = SLOPE * (1 / count + alpha * (np.abs(W) <= 1)) * mask
    np.testing.assert_allclose(_grads(tx).params["kernel"], wanted, rtol=1e-5)


@pytest.mark.isa
@pytest.mark.parametrize("masked", [False, True])
def test_twn_is_the_formula_of_the_paper(masked):
    mask = np.random.default_rng(7).random(W.shape) < (0.5 if masked else 2)
    tx = nnopt.quantization.twn(granularity="channel")
    wanted = np.zeros_like(W)
    for j in range(4):
        kept = W[mask[:, j], j]
        beyond = np.abs(kept) > 0.7 * np.abs(kept).mean()
        column = np.zeros_like(kept)
        column[beyond] = np.sign(kept[beyond]) * np.abs(kept)[beyond].mean()
        wanted[mask[:, j], j] = column
    np.testing.assert_allclose(_shown(nnopt.chain(_keeps(mask), tx)), wanted, rtol=1e-6)
    assert (wanted == 0).any()


def test_twn_threshold_is_near_the_optimum():
    """The 0.7 of the paper: no other share gives a much smaller error on normal weights."""
    w = np.random.default_rng(8).normal(size=(100, 100)).astype(np.float32)

    def error(t):
        return np.square(_shown(nnopt.quantization.twn(t), {"kernel": jnp.asarray(w)}) - w).mean()

    best = min(error(t) for t in (0.5, 0.6, 0.8, 0.9))
    assert error(0.7) < best * 1.01


def test_ttq_learns_two_scales():
    tx = nnopt.quantization.ttq(0.3)
    state = tx.init(PARAMS)
    limit = 0.3 * np.abs(W).max()
    above, below = limit < W, -limit > W
    learned = state.learned["kernel"][0]
    np.testing.assert_allclose(learned["positive"], [[W[above].mean()]], rtol=1e-6)
    np.testing.assert_allclose(learned["negative"], [[-W[below].mean()]], rtol=1e-6)
    moved = {"positive": jnp.full((1, 1), 2.0), "negative": jnp.full((1, 1), 0.5)}
    state = state._replace(learned={"kernel": (moved,)})
    shown = np.asarray(tx.apply(PARAMS, state)["kernel"])
    np.testing.assert_array_equal(shown, np.where(above, 2, np.where(below, -0.5, 0)))
    grads = _grads(tx, state=state)
    scales = grads.learned["kernel"][0]
    np.testing.assert_allclose(scales["positive"], [[SLOPE[above].sum()]], rtol=1e-5)
    np.testing.assert_allclose(scales["negative"], [[-SLOPE[below].sum()]], rtol=1e-5)
    slope = np.where(above, 2, np.where(below, 0.5, 1))
    np.testing.assert_allclose(grads.params["kernel"], SLOPE * slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "codes", "scales"),
    [("binary_connect", 6, 1), ("xnor", 6, 4), ("twn", 10, 1), ("ttq", 10, 2)],
)
def test_stored_bytes(name, codes, scales):
    """48 codes take a bit each, or a fifth of a byte."""
    tx = METHODS[name]()
    packed = jax.tree.leaves(tx.pack(PARAMS, tx.init(PARAMS)))
    assert sum(x.nbytes for x in packed if x.dtype == jnp.uint8) == codes
    assert sum(x.nbytes for x in packed) == codes + 4 * scales


@pytest.mark.parametrize("name", ["xnor", "twn", "ttq"])
def test_dead_and_broken_channels_stay_alone(name):
    tx = METHODS[name](granularity="channel")
    clean = {"kernel": PARAMS["kernel"].at[:, 0].set(0)}
    shown = _shown(tx, clean)
    assert not shown[:, 0].any()
    broken = {"kernel": clean["kernel"].at[3, 0].set(jnp.nan)}
    seen = _shown(tx, broken)
    np.testing.assert_array_equal(seen[:, 1:], shown[:, 1:])
    assert np.isnan(seen[3, 0])
    grads = _grads(tx, clean)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("name", "settings", "texts"),
    [
        ("binary_connect", {"scale": 0, "stochastic": 1}, ("scale=0 is not", "stochastic=1 is")),
        ("binary_connect", {"scale": "glorut"}, ("Did you mean glorot",)),
        ("xnor", {"group": 0}, ("group=0",)),
        ("twn", {"threshold": -1, "granularity": "row"}, ("threshold=-1", "granularity='row'")),
        ("ttq", {"threshold": 2, "axis": 99}, ("threshold=2", "axis=99")),
    ],
)
def test_settings_are_refused_all_at_once(name, settings, texts):
    with pytest.raises(ValueRangeError) as caught:
        METHODS[name](**settings)
    assert all(text in str(caught.value) for text in texts)
