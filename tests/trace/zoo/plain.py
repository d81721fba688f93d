"""Functions of dictionaries, written with JAX alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

from tests.trace.zoo.case import Case, drawn, tokens, weights


def operators() -> Case:
    """Operators, products of three, transposes, scaled and cut weights."""

    def apply(params, x):
        x = x @ params["a"] + jnp.tensordot(x, params["a"].T, 1)  # square, either way
        x = jnp.einsum("bi,ij,jk->bk", x, params["b"], params["c"])
        x = x @ (params["a"] * 2.0) + (params["c"].T @ x.T[:6]).T[:, :1]
        x = x + (params["e"][3] + params["a"][1:5].sum(0))[None]
        return jax.vmap(lambda x: params["a"] @ x)(jnp.tanh(x))

    shapes = weights(a=(8, 8), b=(8, 6), c=(6, 8), e=(16, 8))
    return Case(apply, shapes, (drawn(6, 8),), batched=False)


def programs() -> Case:
    """Programs inside of programs: jit, checkpoint, loops, branches, derivatives."""

    @jax.jit
    def inner(w, x):
        return jnp.tensordot(x, w, 1)

    @jax.custom_vjp
    def own(w, x):
        return x @ w

    own.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, 2.0 * g @ kept[0].T))

    def apply(params, x):
        a, b, c = params["a"], params["b"], params["c"]
        x = inner(a, x) + inner(b @ c, x)
        x = lax.cond(x.sum() > 0, lambda x: x @ a, lambda x: x - 1.0, x)
        x = lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ a), x)
        x = jax.checkpoint(lambda w, x: jnp.sin(x @ w))(b, x) @ c
        x, _ = lax.scan(lambda x, _: (jnp.tanh(x @ a), None), x, None, length=2)
        x = x + jax.grad(lambda x: jnp.sin(x @ a).sum())(x)
        return own(a, x)

    return Case(apply, weights(a=(8, 8), b=(8, 6), c=(6, 8)), (drawn(4, 8),))


def sharded_map() -> Case:
    """A product in `shard_map`, the weight in parts."""
    mesh = Mesh(jax.devices()[:2], ("model",))

    def apply(params, x):
        hidden = jax.shard_map(
            lambda w, x: jnp.tanh(x @ w), mesh=mesh,
            in_specs=(P(None, "model"), P()), out_specs=P(None, "model"),
        )(params["a"], x)  # fmt: skip
        return hidden @ params["b"]

    return Case(apply, weights(a=(8, 6), b=(6, 4)), (drawn(4, 8),), batched=False)


def _rotated(x, at):
    half = x.shape[-1] // 2
    angles = at[:, None, None] / 100.0 ** (jnp.arange(half)[None, None] / half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1
    )


def _root_normed(x, scale):
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale[None]


def _llama_weights():
    return weights(
        embed=(16, 8), scale=(8,), q=(8, 8), k=(8, 4), v=(8, 4), o=(8, 8),
        gate=(8, 12), up=(8, 12), down=(12, 8), head=(8, 16),
    )  # fmt: skip


def _attend(q, k, v, mask):
    """Two heads of queries on one of keys each, `q (t, 2, 4)`, `k`, `v (s, 1, 4)`."""
    k, v = jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1)
    scores = jnp.where(mask[None], jnp.einsum("thd,shd->hts", q, k) / 2.0, -1e9)
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(scores), v).reshape(q.shape[0], 8)


def _llama_block(p, x, at, attend):
    y = _root_normed(x, p["scale"])
    q, k, v = ((y @ p[name]).reshape(x.shape[0], -1, 4) for name in "qkv")
    x = x + attend(_rotated(q, at), _rotated(k, at), v) @ p["o"]
    y = _root_normed(x, p["scale"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def llama() -> Case:
    """Rotary positions, shared keys, gated units."""

    def one(p, row):
        at = jnp.arange(row.shape[0])
        mask = at[:, None] >= at[None]
        x = _llama_block(p, p["embed"][row], at, lambda q, k, v: _attend(q, k, v, mask))
        return _root_normed(x, p["scale"]) @ p["head"]

    return Case(
        lambda p, rows: jax.vmap(one, (None, 0))(p, rows), _llama_weights(), (tokens(4, 6),)
    )


def decoding() -> Case:
    """The same, token by token in a loop, keys and values kept."""
    length = 5

    def one(p, first):
        def write(state):
            at, token, keys, values, out = state
            now = jnp.arange(length)[None, :] <= at
            kept = []

            def attend(q, k, v):
                kept.append(lax.dynamic_update_slice(keys, k, (at, 0, 0)))
                kept.append(lax.dynamic_update_slice(values, v, (at, 0, 0)))
                return _attend(q, *kept, now)

            x = _llama_block(p, p["embed"][token][None], at[None], attend)
            logits = _root_normed(x, p["scale"]) @ p["head"]
            return at + 1, (token + 3) % 16, *kept, out.at[at].set(logits[0])

        empty = jnp.zeros((length, 1, 4))
        start = jnp.int32(0), first, empty, empty, jnp.zeros((length, 16))
        return lax.while_loop(lambda state: state[0] < length, write, start)[-1]

    def apply(p, first):
        return jax.vmap(one, (None, 0))(p, first)

    return Case(apply, _llama_weights(), (tokens(4),), differentiable=False)


def _conv(x, w, stride=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def resnet() -> Case:
    """Two residual blocks, the second of half the size."""

    def apply(p, x):
        x = jax.nn.relu(_conv(x, p["stem"]))
        x = jax.nn.relu(x + _conv(jax.nn.relu(_conv(x, p["a"])), p["b"]))
        y = _conv(jax.nn.relu(_conv(x, p["c"], 2)), p["d"])
        return jax.nn.relu(y + _conv(x, p["skip"], 2)).mean((1, 2)) @ p["head"]

    shapes = weights(
        stem=(3, 3, 1, 4), a=(3, 3, 4, 4), b=(3, 3, 4, 4), c=(3, 3, 4, 8), d=(3, 3, 8, 8),
        skip=(1, 1, 4, 8), head=(8, 3),
    )  # fmt: skip
    return Case(apply, shapes, (drawn(4, 8, 8, 1),))


def unet() -> Case:
    """Down and up again, what was before put beside what comes after."""

    def apply(p, x):
        first = jax.nn.relu(_conv(x, p["down"]))
        low = jax.nn.relu(_conv(first, p["low"], 2))
        up = jnp.repeat(jnp.repeat(low, 2, 1), 2, 2)
        return _conv(jax.nn.relu(_conv(jnp.concatenate([first, up], -1), p["up"])), p["out"])

    shapes = weights(down=(3, 3, 1, 4), low=(3, 3, 4, 6), up=(3, 3, 10, 4), out=(1, 1, 4, 1))
    return Case(apply, shapes, (drawn(4, 8, 8, 1),))


def vision() -> Case:
    """A vision transformer: patches, a class token, positions, one block of fused heads."""

    def apply(p, x):
        x = lax.conv_general_dilated(
            x, p["patch"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], -1, 8)
        first = jnp.broadcast_to(p["class"], (x.shape[0], 1, 8))
        x = jnp.concatenate([first, x], 1) + p["position"]
        q, k, v = (y.reshape(*y.shape[:-1], 2, 4) for y in jnp.split(x @ p["qkv"], 3, -1))
        mixed = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", mixed, v).reshape(x.shape) @ p["o"]
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
        return x[:, 0] @ p["head"]

    shapes = weights(patch=(4, 4, 1, 8), position=(1, 5, 8), qkv=(8, 24), o=(8, 8), up=(8, 16),
                     down=(16, 8), head=(8, 3)) | {"class": drawn(1, 1, 8)}  # fmt: skip
    return Case(apply, shapes, (drawn(4, 8, 8, 1),))


def mixer() -> Case:
    """Tokens are mixed along one axis, channels along the other."""

    def apply(p, x):
        y = jnp.swapaxes(x, 1, 2)
        x = x + jnp.swapaxes(jax.nn.gelu(y @ p["mix"]) @ p["back"], 1, 2)
        return (x + jax.nn.gelu(x @ p["up"]) @ p["down"]).mean(1) @ p["head"]

    shapes = weights(mix=(6, 10), back=(10, 6), up=(8, 16), down=(16, 8), head=(8, 3))
    return Case(apply, shapes, (drawn(4, 6, 8),))


def experts() -> Case:
    """A mixture of three experts, each token sent to the best."""

    def apply(p, x):
        gates = jax.nn.softmax(x @ p["route"])
        sent = jax.nn.one_hot(gates.argmax(-1), 3) * gates
        hidden = jax.nn.relu(jnp.einsum("bi,eij->ebj", x, p["up"]))
        return jnp.einsum("ebj,ejk,be->bk", hidden, p["down"], sent)

    return Case(apply, weights(route=(8, 3), up=(3, 8, 12), down=(3, 12, 8)), (drawn(4, 8),))


def layers_by_index() -> Case:
    """A stack of layers, each taken by its number, and two weights put side by side."""

    def apply(p, x):
        for layer in range(3):
            x = x + jnp.tanh(x @ p["layers"][layer])
        both = jnp.concatenate([p["left"], p["right"]], 1)
        return jnp.squeeze(x[:, None] @ both[None], 1)

    return Case(apply, weights(layers=(3, 8, 8), left=(8, 4), right=(8, 6)), (drawn(4, 8),))


MODELS = {
    "operators": operators,
    "programs": programs,
    "shard_map": sharded_map,
    "llama": llama,
    "decoding": decoding,
    "resnet": resnet,
    "unet": unet,
    "vision": vision,
    "mixer": mixer,
    "experts": experts,
    "layers_by_index": layers_by_index,
}
