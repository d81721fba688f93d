"""Models of Flax: what meets each leaf is what the layers themselves were given."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nnopt_jax as nnopt
from nnopt_jax.tree import flatten

KEY = jax.random.key(0)


def observe(function, params, batches, names=("input_absmax",), **settings):
    graph = nnopt.graph(function, params, batches[0])
    return graph.observe(params, batches, names, **settings)


def drawn(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape)


def inputs_of_layers(apply):
    """(path of the kernel, input) of every Dense-like layer and convolution, as Flax calls them."""
    met = {}

    def see(call, args, kwargs, context):
        kinds = nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose
        if isinstance(context.module, kinds) and context.method_name == "__call__":
            path = "/".join(("params", *context.module.path, "kernel"))
            met.setdefault(path, []).append(np.asarray(args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        apply()
    return met


class Images(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.ConvTranspose(4, (2, 2), strides=(2, 2), transpose_kernel=True)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(16, 8, dtype=jnp.bfloat16)
        x = nn.LayerNorm()(embed(tokens))
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x)
        return embed.attend(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return carry + nn.Dense(8)(nn.relu(nn.Dense(16)(carry))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )(name="stack")(x, None)
        return nn.Dense(4)(x)


def gram(x):
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return x.T @ x


def close(found, wanted, rtol=1e-5):
    np.testing.assert_allclose(found, wanted, atol=rtol * np.abs(wanted).max())


@pytest.mark.parametrize("name", [pytest.param("images", marks=pytest.mark.slow), "attention"])
def test_layers_of_linen(name):
    model, x = {
        "images": (Images(), drawn(2, 6, 6, 2)),
        "attention": (Attention(), jnp.arange(10).reshape(2, 5) % 16),
    }[name]
    params = model.init(KEY, x)
    names = ("input_absmax", "input_range", "input_gram")
    seen = observe(model.apply, params, [x], names, where="**/kernel", strict=True)
    met = inputs_of_layers(lambda: model.apply(params, x))
    kernels = {path: leaf for path, leaf in flatten(params).items() if path.endswith("kernel")}
    assert met.keys() == kernels.keys() == seen["input_absmax"].keys()
    for path, (x,) in met.items():
        x = np.asarray(x, np.float32)
        close(seen["input_absmax"][path], np.abs(x).max(), 1e-6)
        kernel = kernels[path]
        if "Conv" in path:
            one = kernel[..., 0, :] if "Transpose" in path else kernel[..., 0]
            assert seen["input_gram"][path].shape[-1] == one.size
        else:  # heads are summed over as (head, its width)
            close(seen["input_gram"][path], gram(x.reshape(-1, len(seen["input_gram"][path]))))


def test_a_transposed_kernel_is_told_in_its_own_order():
    """Turned round, its inputs and outputs swapped; products with patches are the outcome."""
    model, x = nn.ConvTranspose(1, (2, 3), transpose_kernel=True, use_bias=False), drawn(2, 4, 4, 2)
    params = model.init(KEY, x)
    seen = observe(model.apply, params, [x], ("input_gram", "output_moments"))
    kernel = params["params"]["kernel"].reshape(-1)
    out = np.asarray(model.apply(params, x))
    close(kernel @ seen["input_gram"]["params/kernel"] @ kernel, np.square(out).sum())
    close(seen["output_moments"]["params/kernel"].mean.squeeze(), out.mean())


@pytest.mark.slow
def test_an_embedding_that_is_the_head_too():
    model, tokens = Attention(), jnp.arange(10).reshape(2, 5) % 16
    params = model.init(KEY, tokens)
    path = "params/Embed_0/embedding"
    found = nnopt.graph(model.apply, params, tokens).uses.of(path)
    assert [(use.primitive, use.contracted) for use in found] == [
        ("gather", (0,)),
        ("dot_general", (1,)),
    ]
    seen = observe(model.apply, params, [tokens], ("input_gram", "input_count"), where=path)
    assert seen["input_gram"][path].shape == (8, 8)
    np.testing.assert_array_equal(seen["input_count"][path][:, 0], np.arange(16) < 10)


def test_layers_of_a_scan():
    model, x = Stacked(), drawn(4, 8)
    params = model.init(KEY, x)
    seen = observe(model.apply, params, [x], ("input_absmax", "input_gram"), where="**/kernel")
    stack = params["params"]["stack"]
    for layer in range(3):
        one = jax.tree.map(lambda w, layer=layer: w[layer], stack)
        up, down = one["Dense_1"], one["Dense_0"]  # Flax counts as they are written
        hidden = nn.relu(x @ up["kernel"] + up["bias"][None])
        for name, met in (("Dense_1", x), ("Dense_0", hidden)):
            path = f"params/stack/{name}/kernel"
            close(seen["input_gram"][path][layer], gram(met))
            close(seen["input_absmax"][path][layer], np.abs(met).max())
        x = x + hidden @ down["kernel"] + down["bias"][None]
    close(seen["input_gram"]["params/Dense_0/kernel"], gram(x))
    (use,) = nnopt.graph(model.apply, params, x).uses.of("params/stack/Dense_0/kernel")
    assert (use.contracted, use.batch) == ((1,), (0,))


def test_steps_of_a_recurrent_network_are_added_up():
    model, x = nn.RNN(nn.LSTMCell(6)), drawn(2, 5, 4)
    params = model.init(KEY, x)
    seen = observe(model.apply, params, [x], "input_gram", where="**/kernel")
    out = np.asarray(model.apply(params, x))  # what the cell hands on to its next step
    before = np.concatenate([np.zeros((2, 1, 6)), out[:, :-1]], 1)
    for path, found in seen["input_gram"].items():
        close(found, gram(before if "/h" in path else np.asarray(x)))
    assert len(seen["input_gram"]) == 8


def test_members_that_are_mapped_over():
    model = nn.vmap(
        nn.Dense, variable_axes={"params": 1}, split_rngs={"params": True}, in_axes=0, out_axes=0
    )(features=2)
    x = drawn(3, 5, 4)
    params = model.init(KEY, x)
    seen = observe(model.apply, params, [x], ("input_absmax", "input_gram"), where="**/kernel")
    close(seen["input_absmax"]["params/kernel"], np.abs(x).max((1, 2))[None])
    close(seen["input_gram"]["params/kernel"], np.stack([gram(m) for m in x]))


def test_modules_of_nnx():
    model = nnx.Sequential(
        nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 4, rngs=nnx.Rngs(1))
    )
    graph, state = nnx.split(model)
    x = drawn(5, 8)
    seen = observe(
        lambda state, x: nnx.merge(graph, state)(x), state, [x], "input_gram", where="**/kernel"
    )
    hidden = nnx.relu(model.layers[0](x))
    for found, wanted in zip(seen["input_gram"].values(), (x, hidden), strict=True):
        close(found, gram(wanted))


@pytest.mark.parametrize("name", ["plain", "scanned"])
def test_static_scales_of_activations(name):
    """What is rounded by them is what is rounded by scales that NumPy finds."""
    x = drawn(6, 8)
    if name == "plain":
        params = {"a": drawn(8, 8), "b": drawn(8, 2)}

        def apply(p, x):
            return jnp.tanh(x @ p["a"]) @ p["b"]

        def by_hand(p, rounded):
            return rounded("b", np.tanh(rounded("a", x) @ p["a"])) @ p["b"]

    else:
        params = {"a": drawn(3, 8, 8)}

        def apply(p, x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["a"])[0]

        def by_hand(p, rounded):
            now = x
            for layer in range(3):
                now = np.tanh(rounded(("a", layer), now) @ p["a"][layer])
            return now

    tops = {}

    def watched(key, x):
        tops[key] = np.abs(x).max()
        return np.asarray(x)

    by_hand(params, watched)
    seen = observe(apply, params, [x[:3], x[3:]])
    tx = nnopt.quantization.quantize_activations(4, scale="static")
    packed = tx.pack(params, tx.init(params, stats=seen))
    found = jax.jit(nnopt.on_packed(apply))(packed, x)

    def rounded(key, x):
        scale = np.float32(tops[key]) / 7
        return np.clip(np.round(np.asarray(x) / scale), -7, 7) * scale

    np.testing.assert_allclose(found, by_hand(params, rounded), atol=1e-4)
    assert np.abs(found - apply(params, x)).max() > 1e-2  # it does round
