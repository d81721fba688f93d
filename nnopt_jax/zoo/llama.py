"""The decoder of Llama, as a function of a plain tree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.columns import brief_fields
from nnopt_jax.transfer import rules
from nnopt_jax.typing import Array, ArrayLike, DTypeLike, Key, Params


@dataclasses.dataclass(frozen=True)
class Llama:
    """A causal language model with rotary positions and grouped-query attention.

    Args:
        vocabulary: the number of tokens.
        width: the width of the hidden states.
        layers: the number of blocks.
        heads: the number of attention heads of a block.
        shared: the number of heads of keys and values, a divisor of `heads`.
        hidden: the number of hidden units of each feed-forward network.
        base: the base of the wavelengths of rotary positions.
        epsilon: the number added to the mean square in normalization.
        stacked: whether the blocks are one tree of stacked weights, over which `apply` scans.
        remat: whether the backward pass recomputes the activations of each block.
        dtype: the dtype of hidden states; weights are cast to it where they are used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.zoo.llama import Llama
        >>> llama = Llama(vocabulary=100, width=8, layers=1, heads=2, shared=1, hidden=16)
        >>> params = jax.eval_shape(llama.init, jax.random.key(0))
        >>> jax.eval_shape(llama.apply, params, jnp.array([[1, 2, 3]])).shape
        (1, 3, 100)

    References:
        Touvron et al., arXiv:2302.13971, section 2.2; Su et al., arXiv:2104.09864, section 3.4;
        Ainslie et al., arXiv:2305.13245, section 2.2.
    """

    vocabulary: int = 32000
    width: int = 256
    layers: int = 4
    heads: int = 8
    shared: int = 4
    hidden: int = 688
    base: float = 10000.0
    epsilon: float = 1e-6
    stacked: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = brief_fields

    @property
    def size(self) -> int:
        """Return the width of one head."""
        return self.width // self.heads

    def init(self, key: Key) -> Params:
        """Draw weights with a standard deviation of 0.02; scales are one."""
        keys = iter(jax.random.split(key, 2 + 7 * self.layers))

        def dense(*shape: int) -> dict[str, Array]:
            return {"kernel": 0.02 * jax.random.normal(next(keys), shape, jnp.float32)}

        norm = {"scale": jnp.ones(self.width)}
        block = {name: (self.width, self.shared * self.size) for name in ("k", "v")}
        block |= {name: (self.width, self.hidden) for name in ("gate", "up")}
        block |= {"q": (self.width, self.width), "o": (self.width, self.width)}
        block |= {"down": (self.hidden, self.width)}
        layers = [
            {name: dense(*shape) for name, shape in block.items()}
            | {"attention_norm": norm, "norm": norm}
            for _ in range(self.layers)
        ]
        return {
            "embed": dense(self.vocabulary, self.width)["kernel"],
            "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers) if self.stacked else layers,
            "norm": norm,
            "head": dense(self.width, self.vocabulary),
        }

    def apply(self, params: Params, ids: ArrayLike) -> Array:
        """Return the logits of the next token at each position.

        Args:
            params: as `init` makes them.
            ids: (batch, tokens) integers.

        Returns:
            (batch, tokens, vocabulary) logits of the following token.
        """
        block = jax.checkpoint(self._block) if self.remat else self._block
        x = params["embed"].astype(self.dtype)[jnp.asarray(ids)]
        if self.stacked:
            x, _ = jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params["layers"])
        else:
            for layer in params["layers"]:
                x = block(x, layer)
        return self._dense(self._norm(x, params["norm"]), params["head"])

    def _block(self, x: Array, layer: Any) -> Array:
        x = x + self._attend(self._norm(x, layer["attention_norm"]), layer)
        y = self._norm(x, layer["norm"])
        y = jax.nn.silu(self._dense(y, layer["gate"])) * self._dense(y, layer["up"])
        return x + self._dense(y, layer["down"])

    def _dense(self, x: Array, dense: Any) -> Array:
        return x @ dense["kernel"].astype(self.dtype)

    def _attend(self, x: Array, layer: Any) -> Array:
        heads = {"q": self.heads, "k": self.shared, "v": self.shared}
        q, k, v = (
            self._dense(x, layer[name]).reshape(*x.shape[:2], count, self.size)
            for name, count in heads.items()
        )
        mixed = jax.nn.dot_product_attention(self._turn(q), self._turn(k), v, is_causal=True)
        return self._dense(mixed.reshape(x.shape), layer["o"])

    def _turn(self, x: Array) -> Array:
        """Apply rotary position embeddings to each head."""
        waves = self.base ** (-jnp.arange(0, self.size, 2, dtype=jnp.float32) / self.size)
        angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * waves[None]
        sine, cosine = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
        one, two = jnp.split(x, 2, -1)
        turned = jnp.concatenate([one * cosine - two * sine, two * cosine + one * sine], -1)
        return turned.astype(self.dtype)

    def _norm(self, x: Array, norm: Any) -> Array:
        square = jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True)
        unit = x * jax.lax.rsqrt(square + self.epsilon)
        return (unit * norm["scale"][None, None]).astype(self.dtype)


def names() -> list[rules.Rule]:
    """Return rules of `transfer.graft` for the weights of `transformers.LlamaForCausalLM`.

    Example:
        >>> from nnopt_jax.zoo import llama
        >>> len(llama.names())
        8
    """
    layer, block = r"model\.layers\.(\d+)\.", r"layers/\1/"
    return [
        rules.transpose(r"re:(proj|lm_head)\.weight"),
        rules.rename(r"model\.embed_tokens\.weight", "embed"),
        rules.rename(r"model\.norm\.weight", "norm/scale"),
        rules.rename(r"lm_head\.weight", "head/kernel"),
        rules.rename(rf"{layer}self_attn\.(\w)_proj\.weight", rf"{block}\2/kernel"),
        rules.rename(rf"{layer}mlp\.(\w+)_proj\.weight", rf"{block}\2/kernel"),
        rules.rename(rf"{layer}input_layernorm\.weight", rf"{block}attention_norm/scale"),
        rules.rename(rf"{layer}post_attention_layernorm\.weight", rf"{block}norm/scale"),
    ]
