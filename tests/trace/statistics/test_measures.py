"""What is measured at products is what NumPy finds in what meets them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nnopt_jax as nnopt
from nnopt_jax.trace import input_absmax, input_gram, input_histogram

DRAW = np.random.default_rng(0)
ALL = (
    "input_absmax", "input_range", "input_moments", "input_histogram", "input_gram",
    "output_moments",
)  # fmt: skip


def observe(function, params, batches, names, **settings):
    graph = nnopt.graph(function, params, batches[0])
    return graph.observe(params, batches, names, **settings)


def whole(*shape):
    """Whole numbers, whose products and sums floats hold exactly."""
    return DRAW.integers(-4, 5, shape).astype(np.float32)


def check_moments(found, values, axis=0):
    """Of values in rows along the first axis."""
    np.testing.assert_allclose(np.squeeze(found.mean), values.mean(0).squeeze(), atol=1e-6)
    np.testing.assert_allclose(np.squeeze(found.variance), values.var(0).squeeze(), atol=1e-5)
    assert float(found.count) == len(values)


def test_everything_at_once_over_batches_of_two_shapes():
    params = {"w": whole(5, 3), "b": whole(3)}
    batches = [whole(8, 5), whole(8, 5), whole(3, 5)]
    traces = []

    def apply(p, x):
        traces.append(x.shape)
        return jnp.tanh(x @ p["w"] + p["b"][None])

    seen = observe(apply, params, batches, ALL)
    assert traces == [(8, 5), (8, 5), (3, 5)]  # for the graph, then for each shape
    x = np.concatenate(batches)
    assert seen["input_absmax"]["w"] == np.abs(x).max()
    assert tuple(seen["input_range"]["w"]) == (x.min(), x.max())
    np.testing.assert_array_equal(seen["input_gram"]["w"], x.T @ x)
    check_moments(seen["input_moments"]["w"], x)
    assert seen["input_moments"]["w"].mean.shape == (5, 1)
    check_moments(seen["output_moments"]["w"], x @ params["w"])
    assert seen["output_moments"]["w"].mean.shape == (1, 3)
    histogram = seen["input_histogram"]["w"]
    assert histogram.counts.sum() == x.size
    assert (histogram.low, histogram.high, histogram.exponent) == (x.min(), x.max(), 3)
    edges = np.linspace(-8, 8, histogram.counts.size + 1)
    np.testing.assert_array_equal(histogram.counts, np.histogram(x, edges)[0])
    assert seen.batches == 3
    assert seen.rows["w"] == 19
    assert seen.lacking["input_gram"] == {"b": "add does not sum over it"}


def test_moments_far_from_zero_do_not_cancel():
    """Sums of squares would lose all digits of the variance."""
    batches = [1e4 + DRAW.normal(size=(50, 2)).astype(np.float32) for _ in range(4)]
    seen = observe(lambda p, x: x @ p, np.ones((2, 2), "f"), batches, "input_moments")
    x = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(seen["input_moments"][""].variance[:, 0], x.var(0), rtol=1e-4)


def test_inputs_in_bfloat16_are_summed_in_float32():
    x = jnp.asarray(whole(600, 2), jnp.bfloat16)

    def apply(p, x):
        return x @ p["w"].astype(jnp.bfloat16)

    seen = observe(apply, {"w": whole(2, 2)}, [x], ("input_gram", "input_moments"))
    exact = np.asarray(x, np.float32)
    np.testing.assert_array_equal(seen["input_gram"]["w"], exact.T @ exact)
    np.testing.assert_allclose(seen["input_moments"]["w"].mean[:, 0], exact.mean(0), atol=1e-6)


def test_blocks_along_the_diagonal():
    x, w = whole(9, 6), whole(6, 2)
    seen = observe(lambda p, x: x @ p["w"], {"w": w}, [x], input_gram(block=3))
    found = seen["input_gram"]["w"]
    np.testing.assert_array_equal(found, [(x.T @ x)[:3, :3], (x.T @ x)[3:, 3:]])
    seen = observe(lambda p, x: x @ p["w"], {"w": w}, [x], input_gram(block=64))
    np.testing.assert_array_equal(seen["input_gram"]["w"], [x.T @ x])


def test_each_channel_has_a_magnitude_of_its_own():
    x = whole(9, 6)
    what = input_absmax(channel=True)
    seen = observe(lambda p, x: x @ p["w"].T, {"w": whole(2, 6)}, [x], what)
    np.testing.assert_array_equal(seen["input_absmax"]["w"], np.abs(x).max(0)[None])


def moved(w):
    """What a leaf of (4, 6) may become on the way to a product with four columns of something."""
    yield "transposed", (lambda w: w.T.T), slice(None)
    yield "cast", (lambda w: w.astype(jnp.bfloat16).astype(jnp.float32)), slice(None)
    yield "two axes for one", (lambda w: w.reshape(2, 2, 6).reshape(4, 6)), slice(None)
    yield "scaled", (lambda w: -2.0 * w / 3.0), slice(None)
    yield "cut", (lambda w: w[:, 1:3]), slice(None)
    yield "split", (lambda w: jnp.split(w, 2, axis=1)[1]), slice(None)
    yield "one more axis", (lambda w: w[:, None].reshape(4, 6)), slice(None)
    yield "backwards", (lambda w: w[::-1, ::-1]), slice(None, None, -1)
    yield "stopped", lax.stop_gradient, slice(None)


@pytest.mark.parametrize(("name", "move", "order"), [pytest.param(*c, id=c[0]) for c in moved(0)])
def test_moved_leaves_keep_their_own_axes(name, move, order):
    x = whole(7, 4)
    seen = observe(lambda p, x: x @ move(p["w"]), {"w": whole(4, 6)}, [x], "input_gram")
    mine = x[:, order]  # the columns as the leaf's rows lie
    np.testing.assert_array_equal(seen["input_gram"]["w"], mine.T @ mine)
    assert [use.contracted for use in seen.uses] == [(0,)]


def test_parts_of_axes_are_told():

    def apply(p, x):
        return (x[:, :2] @ p["w"][1:3, :2], x @ p["w"].T[1:2].T)

    first, second = nnopt.graph(apply, {"w": whole(4, 6)}, whole(7, 4)).uses
    assert (first.contracted, first.partial) == ((0,), (0, 1))
    assert (second.contracted, second.partial) == ((0,), (1,))


def test_several_axes_are_summed_over_in_the_order_of_the_leaf():
    """The product has them in another order, and one of them is split in two."""
    x, w = whole(5, 2, 3, 4), whole(4, 6, 2)

    def apply(p, x):
        return jnp.einsum("bijk,kjio->bo", x, p["w"].reshape(4, 3, 2, 2))

    seen = observe(apply, {"w": w}, [x], ("input_gram", "input_moments"))
    rows = x.transpose(0, 3, 2, 1).reshape(5, 24)
    np.testing.assert_array_equal(seen["input_gram"]["w"], rows.T @ rows)
    mean = seen["input_moments"]["w"].mean
    np.testing.assert_allclose(mean, rows.mean(0).reshape(4, 6, 1), atol=1e-6)


def test_axes_that_go_along_stack():
    """Experts: the leaf has their axis in the middle."""
    x, w = whole(5, 3, 4), whole(4, 3, 2)

    def apply(p, x):
        return jnp.einsum("bei,ieo->beo", x, p["w"])

    seen = observe(apply, {"w": w}, [x], ALL)
    np.testing.assert_array_equal(seen["input_absmax"]["w"], np.abs(x).max((0, 2))[None])
    for e in range(3):
        np.testing.assert_array_equal(seen["input_gram"]["w"][e], x[:, e].T @ x[:, e])
        histogram = jax.tree.map(lambda h, e=e: h[e], seen["input_histogram"]["w"])
        assert (histogram.low, histogram.high) == (x[:, e].min(), x[:, e].max())
    mean = seen["input_moments"]["w"].mean
    np.testing.assert_allclose(mean[:, :, 0], x.mean(0).T, atol=1e-6)
    out = np.einsum("bei,ieo->beo", x, w)
    np.testing.assert_allclose(seen["output_moments"]["w"].mean[0], out.mean(0), atol=1e-5)
    (use,) = seen.uses
    assert (use.contracted, use.batch) == ((0,), (1,))


def test_mapped_functions_have_rows_for_every_entry():
    x, w = whole(3, 5, 4), whole(4, 2)

    def apply(p, x):
        return jax.vmap(jax.vmap(lambda x: p["w"].T @ x))(x)

    seen = observe(apply, {"w": w}, [x], "input_gram")
    rows = x.reshape(15, 4)
    np.testing.assert_array_equal(seen["input_gram"]["w"], rows.T @ rows)


def test_tied_leaves_have_a_use_each_and_lookups_are_counted():
    tokens, head = np.array([[1, 3, 3], [0, 3, 1]]), whole(4, 4)
    embed = whole(6, 4)

    def apply(p, tokens):
        return p["embed"][tokens] @ p["head"] @ p["embed"].T

    params = {"embed": embed, "head": head}
    seen = observe(apply, params, [tokens, tokens], ("input_gram", "input_count"))
    assert [(u.primitive, u.contracted) for u in seen.uses.of("embed")] == [
        ("gather", (0,)),
        ("dot_general", (1,)),
    ]
    x = (embed[tokens] @ head).reshape(-1, 4)
    np.testing.assert_array_equal(seen["input_gram"]["embed"], 2 * x.T @ x)
    np.testing.assert_array_equal(seen.by_use["input_gram"][("embed", 1)], 2 * x.T @ x)
    assert ("embed", 0) not in seen.by_use["input_gram"]
    counts = np.bincount(tokens.ravel(), minlength=6)
    np.testing.assert_array_equal(seen["input_count"]["embed"], 2 * counts[:, None])


def test_rows_that_are_not_there_are_not_counted():
    at = np.array([0, 5, 9, -1])

    def apply(p, at):
        return (jnp.take(p, at, axis=0), jnp.take(p, at, axis=0, mode="clip"))

    seen = observe(apply, whole(6, 2), [at], "input_count")
    np.testing.assert_array_equal(seen.by_use["input_count"][("", 0)][:, 0], [1, 0, 0, 0, 0, 2])
    np.testing.assert_array_equal(seen.by_use["input_count"][("", 1)][:, 0], [2, 0, 0, 0, 0, 2])


def test_uses_along_different_axes_are_not_joined():
    w, x = whole(4, 4), whole(7, 4)

    def apply(p, x):
        return (x @ p["w"], 3 * x @ p["w"].T)

    seen = observe(apply, {"w": w}, [x], ("input_gram", "input_absmax"))
    assert seen["input_absmax"]["w"] == 3 * np.abs(x).max()
    assert "w" not in seen["input_gram"]
    assert "along (0,) and (1,)): see by_use" in seen.lacking["input_gram"]["w"]
    np.testing.assert_array_equal(seen.by_use["input_gram"][("w", 0)], x.T @ x)
    np.testing.assert_array_equal(seen.by_use["input_gram"][("w", 1)], 9 * x.T @ x)


def test_two_leaves_that_meet_are_inputs_of_each_other():
    a, b = whole(5, 2), whole(2, 3)
    seen = observe(lambda p, x: x @ (p["a"] @ p["b"]), {"a": a, "b": b}, [whole(4, 5)],
                         "input_gram")  # fmt: skip
    np.testing.assert_array_equal(seen["input_gram"]["a"], b @ b.T)
    np.testing.assert_array_equal(seen["input_gram"]["b"], a.T @ a)


def patches(x, kernel, strides, padding, dilation=(1, 1), spread=(1, 1)):
    """(rows, kernel, kernel, channels) of images (n, h, w, c), by loops."""
    n, h, w, c = x.shape
    wide = np.zeros((n, (h - 1) * spread[0] + 1, (w - 1) * spread[1] + 1, c), x.dtype)
    wide[:, :: spread[0], :: spread[1]] = x
    wide = np.pad(wide, ((0, 0), *padding, (0, 0)))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    rows = [
        wide[:, i : i + span[0] : dilation[0], j : j + span[1] : dilation[1]]
        for i in range(0, wide.shape[1] - span[0] + 1, strides[0])
        for j in range(0, wide.shape[2] - span[1] + 1, strides[1])
    ]
    return np.stack(rows, 1).reshape(-1, *kernel, c)


CONVOLUTIONS = {
    "plain": {"window_strides": (1, 1), "padding": ((1, 1), (1, 1))},
    "strides": {"window_strides": (2, 1), "padding": ((0, 0), (1, 0))},
    "dilated": {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "rhs_dilation": (2, 2)},
    "transposed": {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)},
    "groups": {
        "window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "feature_group_count": 2,
    },
    "depthwise": {
        "window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "feature_group_count": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_meet_patches(name):
    how = CONVOLUTIONS[name]
    groups = how.get("feature_group_count", 1)
    x, w = whole(2, 5, 4, 4), whole(3, 3, 4 // groups, 8)

    def apply(p, x):
        return lax.conv_general_dilated(
            x, p["w"], dimension_numbers=("NHWC", "HWIO", "NHWC"), **how
        )

    seen = observe(apply, {"w": w}, [x], ALL)
    rows = patches(
        x, (3, 3), how["window_strides"], how["padding"],
        how.get("rhs_dilation", (1, 1)), how.get("lhs_dilation", (1, 1)),
    )  # fmt: skip
    gram = seen["input_gram"]["w"]
    grams = []
    for g in range(groups):
        own = rows[..., g * (4 // groups) : (g + 1) * (4 // groups)].reshape(len(rows), -1)
        grams.append(own.T @ own)
    np.testing.assert_array_equal(gram, grams if groups > 1 else grams[0])
    assert seen["input_absmax"]["w"] == np.abs(x).max()
    mean = x.mean((0, 1, 2)).reshape(groups, -1)  # of each output those of its group
    mean = np.repeat(mean, 8 // groups, 0).T[None, None] if groups > 1 else mean[0][:, None]
    np.testing.assert_allclose(
        np.broadcast_to(seen["input_moments"]["w"].mean, w.shape),
        np.broadcast_to(mean, w.shape), atol=1e-6,
    )  # fmt: skip
    out = np.asarray(apply({"w": w}, x)).reshape(-1, 8)
    np.testing.assert_allclose(seen["output_moments"]["w"].mean.ravel(), out.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        seen["output_moments"]["w"].variance.ravel(), out.var(0), rtol=1e-5, atol=1e-4
    )


def test_other_layouts_of_images_and_kernels():
    x, w = whole(2, 4, 5, 4), whole(8, 4, 3, 3)

    def apply(p, x):
        return lax.conv(x, p["w"], (1, 1), "VALID")

    seen = observe(apply, {"w": w}, [x], "input_gram")
    rows = patches(x.transpose(0, 2, 3, 1), (3, 3), (1, 1), ((0, 0), (0, 0)))
    rows = rows.transpose(0, 3, 1, 2).reshape(len(rows), -1)
    np.testing.assert_array_equal(seen["input_gram"]["w"], rows.T @ rows)
    (use,) = seen.uses
    assert use.contracted == (1, 2, 3)


def test_packed_leaves_are_observed_as_what_they_stand_for():
    tx, x = nnopt.quantization.uniform(8), whole(6, 4)
    params = {"a": whole(4, 4), "b": whole(4, 2)}
    packed = tx.pack(params, tx.init(params))

    def apply(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    seen = observe(apply, packed, [x], ("input_gram", "gradient")[:1])
    hidden = np.maximum(x @ np.asarray(packed["a"].materialize()), 0)
    np.testing.assert_allclose(seen["input_gram"]["b"], hidden.T @ hidden, rtol=1e-5)


def test_a_histogram_may_have_fewer_bins_and_feeds_grids():
    x = DRAW.normal(size=(500, 4)).astype(np.float32)
    seen = observe(lambda p, x: x @ p, np.ones((4, 2), "f"), [x], input_histogram(256))
    grid = nnopt.quantization.percentile_grid(seen["input_histogram"][""], 100.0)
    np.testing.assert_allclose(grid.scale * 127, np.abs(x).max(), rtol=1e-6)
