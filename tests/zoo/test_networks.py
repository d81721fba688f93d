"""The networks against SciPy's correlation and plain NumPy, and Linen against NNX."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate

from nnopt_jax.zoo import convnet, lenet

NETWORKS = {
    "lenet_300_100": (lenet.lenet_300_100, lenet.lenet_300_100_nnx, (28, 28, 1), 266_610),
    "lenet5": (lenet.lenet5, lenet.lenet5_nnx, (28, 28, 1), 431_080),
    "net": (convnet.net, convnet.net_nnx, (32, 32, 3), 16_858_506),
}


def relu(x):
    return np.maximum(x, 0)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def conv(x, layer, mode):
    kernel = layer["kernel"]
    full = [correlate(x, kernel[..., o], mode=mode) for o in range(kernel.shape[-1])]
    # Correlating over the channel axis as well leaves the wanted sum in its middle (or only) slot.
    return np.stack([f[..., f.shape[-1] // 2] for f in full], axis=-1) + layer["bias"]


def pool(x, reduce):
    h, w, c = x.shape
    return reduce(x.reshape(h // 2, 2, w // 2, 2, c), axis=(1, 3))


def by_hand(name, p, x):
    if name == "lenet_300_100":
        x = relu(dense(relu(dense(x.ravel(), p["fc1"])), p["fc2"]))
        return dense(x, p["fc3"])
    if name == "lenet5":
        x = pool(conv(x, p["conv1"], "valid"), np.max)
        x = pool(conv(x, p["conv2"], "valid"), np.max)
    else:
        x = relu(conv(x, p["conv1"], "same"))
        x = pool(relu(conv(x, p["conv2"], "same")), np.mean)
    return dense(relu(dense(x.ravel(), p["fc1"])), p["fc2"])


def drawn(name):
    """Linen module, abstract NNX module, parameters as NumPy arrays, two images."""
    linen, nnx_maker, shape, _ = NETWORKS[name]
    rng = np.random.default_rng(0)
    images = rng.random((2, *shape), np.float32)
    abstract = jax.eval_shape(linen().init, jax.random.key(0), images)["params"]
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32) / np.sqrt(leaf.size**0.5), abstract
    )
    return linen(), nnx.eval_shape(lambda: nnx_maker(nnx.Rngs(0))), params, images


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_count(name):
    _, abstract, params, _ = drawn(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == NETWORKS[name][3]
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
        == (NETWORKS[name][3])
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_linen_computes_what_the_paper_draws(name):
    module, _, params, images = drawn(name)
    got = module.apply({"params": params}, images)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    want = np.stack([by_hand(name, wide, image.astype(np.float64)) for image in images])
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_nnx_takes_the_same_parameters(name):
    module, abstract, params, images = drawn(name)
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, params)
    got = nnx.merge(graph, state)(images)
    np.testing.assert_array_equal(got, module.apply({"params": params}, images))


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_set_the_width_of_the_logits(name):
    linen, nnx_maker, shape, _ = NETWORKS[name]
    images = np.zeros((1, *shape), np.float32)
    logits, _ = jax.eval_shape(linen(classes=3).init_with_output, jax.random.key(0), images)
    assert logits.shape == (1, 3)
    last = jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: nnx_maker(nnx.Rngs(0), classes=3))))
    assert any(leaf.shape == (3,) for leaf in last)


@pytest.mark.parametrize("make", [lenet.lenet_300_100, lenet.lenet_300_100_nnx])
def test_lenet_300_100_at_a_quarter_of_its_width(make):
    if make is lenet.lenet_300_100:
        image = np.zeros((1, 28, 28, 1), np.float32)
        params = jax.eval_shape(make(width=0.25).init, jax.random.key(0), image)["params"]
        shapes = [params[f"fc{i}"]["kernel"].shape for i in (1, 2, 3)]
    else:
        net = nnx.eval_shape(lambda: make(nnx.Rngs(0), width=0.25))
        shapes = [getattr(net, f"fc{i}").kernel.shape for i in (1, 2, 3)]
    assert shapes == [(784, 75), (75, 25), (25, 10)]
