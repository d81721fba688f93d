"""A pre-norm transformer as plain functions on nested dictionaries.

Its axes suit every kind of parallelism: data, tensor, parameter and pipeline.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.columns import brief_fields
from nnopt_jax.typing import Array, ArrayLike, Key


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The sizes and functions of the network, without parameters.

    Args:
        inputs: the size of the vocabulary, or the number of features of a position.
        classes: the number of logits.
        width: the number of features between blocks.
        heads: the number of attention heads, a divisor of `width`.
        hidden: the number of hidden units of a feed-forward layer.
        layers: the number of blocks.
        length: the greatest number of positions.
        causal: whether a position attends only to earlier ones; the network then returns logits for
            each position, and otherwise one row of logits for all positions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.zoo.transformer import Transformer
        >>> model = Transformer(inputs=28, classes=10, width=16, heads=2, hidden=32, layers=2)
        >>> params = model.init(jax.random.key(0))
        >>> model(params, jnp.ones((3, 28, 28, 1))).shape
        (3, 10)

    References:
        Vaswani et al., arXiv:1706.03762; normalization first: Xiong et al., arXiv:2002.04745.
    """

    inputs: int
    classes: int
    width: int = 64
    heads: int = 4
    hidden: int = 256
    layers: int = 4
    length: int = 28
    causal: bool = False

    __repr__ = brief_fields

    def init(self, key: Key) -> dict[str, Any]:
        """Draw random parameters, float32; blocks are named `block_0`, `block_1`, ..."""
        names = ("embed", "position", "head", *(f"block_{i}" for i in range(self.layers)))
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        params: dict[str, Any] = {
            "embed": {"kernel": _normal(keys["embed"], (self.inputs, self.width), self.inputs)},
            "position": 0.02 * jax.random.normal(keys["position"], (self.length, self.width)),
            "norm": {"scale": jnp.ones(self.width)},
            "head": {"kernel": _normal(keys["head"], (self.width, self.classes), self.width)},
        }
        return params | {name: self.init_block(keys[name]) for name in names[3:]}

    def init_block(self, key: Key) -> dict[str, Any]:
        """Draw random parameters of one block."""
        q, k, v, o, up, down = jax.random.split(key, 6)
        each = (self.width, self.heads, self.width // self.heads)
        return {
            "norm1": {"scale": jnp.ones(self.width)},
            "attention": {
                "query": {"kernel": _normal(q, each, self.width)},
                "key": {"kernel": _normal(k, each, self.width)},
                "value": {"kernel": _normal(v, each, self.width)},
                "out": {"kernel": _normal(o, (each[1], each[2], self.width), self.width)},
            },
            "norm2": {"scale": jnp.ones(self.width)},
            "up": {
                "kernel": _normal(up, (self.width, self.hidden), self.width),
                "bias": jnp.zeros(self.hidden),
            },
            "down": {
                "kernel": _normal(down, (self.hidden, self.width), self.hidden),
                "bias": jnp.zeros(self.width),
            },
        }

    def embed(self, params: Any, x: ArrayLike) -> Array:
        """Embed tokens (b, t), or features (b, t, ...) of total size `inputs`, as (b, t, d)."""
        x = jnp.asarray(x)
        kernel = params["embed"]["kernel"]
        if jnp.issubdtype(x.dtype, jnp.integer):
            h = kernel[x]
        else:
            h = x.reshape(*x.shape[:2], self.inputs) @ kernel
        return h + params["position"][None, : x.shape[1]]

    def block(self, params: Any, h: Array) -> Array:
        """Apply one block to (b, t, d)."""
        x = _norm(h, params["norm1"]["scale"])
        q, k, v = (
            jnp.einsum("btd,dhk->bthk", x, params["attention"][name]["kernel"])
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
        if self.causal:
            seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            scores = jnp.where(seen[None, None], scores, -1e30)
        mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)
        h = h + jnp.einsum("bthk,hkd->btd", mixed, params["attention"]["out"]["kernel"])
        x = _norm(h, params["norm2"]["scale"])
        x = jax.nn.gelu(x @ params["up"]["kernel"] + params["up"]["bias"][None, None])
        return h + x @ params["down"]["kernel"] + params["down"]["bias"][None, None]

    def head(self, params: Any, h: Array) -> Array:
        """Map (b, t, d) to logits (b, t, classes), or (b, classes) without `causal`."""
        h = _norm(h, params["norm"]["scale"])
        return (h if self.causal else h.mean(1)) @ params["head"]["kernel"]

    def __call__(self, params: Any, x: ArrayLike) -> Array:
        """Apply the whole network."""
        h = self.embed(params, x)
        for i in range(self.layers):
            h = self.block(params[f"block_{i}"], h)
        return self.head(params, h)


def row_transformer(key: Key, **sizes: Any) -> tuple[dict[str, Any], Transformer]:
    """Return a transformer over the rows of an image, with its parameters, for recipes.

    Args:
        key: the key of the parameters.
        **sizes: the sizes of `Transformer`; by default for images of 28 rows of 28 and ten classes.

    Returns:
        The parameters and the network.

    Example:
        >>> import jax
        >>> from nnopt_jax.zoo.transformer import row_transformer
        >>> params, _ = row_transformer(jax.random.key(0), layers=2)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        103488
    """
    model = Transformer(**{"inputs": 28, "classes": 10, **sizes})
    return model.init(key), model


def _normal(key: Key, shape: tuple[int, ...], fan_in: int) -> Array:
    return jax.random.normal(key, shape) / math.sqrt(fan_in)


def _norm(h: Array, scale: Array) -> Array:
    mean, variance = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    return (h - mean) * jax.lax.rsqrt(variance + 1e-6) * scale[None, None]
