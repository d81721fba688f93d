"""The encoder of BERT, as a function of a plain tree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.columns import brief_fields
from nnopt_jax.transfer import rules
from nnopt_jax.typing import Array, ArrayLike, Key, Params


@dataclasses.dataclass(frozen=True)
class Bert:
    """A BERT encoder, by default of the size of MiniLM-L6.

    Args:
        vocabulary: the number of tokens.
        width: the width of the hidden states.
        layers: the number of blocks.
        heads: the number of attention heads of a block.
        hidden: the number of hidden units of each feed-forward network.
        positions: the length of the longest sequence.
        segments: the number of segments.
        epsilon: the number added to the variance in normalization.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nnopt_jax.zoo.bert import Bert
        >>> bert = Bert(vocabulary=100, width=8, layers=1, heads=2, hidden=16, positions=10)
        >>> params = jax.eval_shape(bert.init, jax.random.key(0))
        >>> jax.eval_shape(bert.apply, params, jnp.array([[1, 2, 3]])).shape
        (1, 3, 8)

    References:
        Devlin et al., arXiv:1810.04805; Vaswani et al., arXiv:1706.03762, section 3.
    """

    vocabulary: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    segments: int = 2
    epsilon: float = 1e-12

    __repr__ = brief_fields

    def init(self, key: Key) -> Params:
        """Draw weights with a standard deviation of 0.02; biases are zero and scales are one."""
        keys = iter(jax.random.split(key, 3 + 6 * self.layers))

        def normal(*shape: int) -> Array:
            return 0.02 * jax.random.normal(next(keys), shape, jnp.float32)

        def dense(inputs: int, outputs: int) -> dict[str, Array]:
            return {"kernel": normal(inputs, outputs), "bias": jnp.zeros(outputs)}

        norm = {"scale": jnp.ones(self.width), "bias": jnp.zeros(self.width)}
        sizes = {"token": self.vocabulary, "position": self.positions, "segment": self.segments}
        block = {name: (self.width, self.width) for name in ("query", "key", "value", "out")}
        block |= {"up": (self.width, self.hidden), "down": (self.hidden, self.width)}
        return {
            "embed": {name: normal(size, self.width) for name, size in sizes.items()}
            | {"norm": norm},
            "layers": [
                {name: dense(*shape) for name, shape in block.items()}
                | {"attention_norm": norm, "norm": norm}
                for _ in range(self.layers)
            ],
        }

    def apply(self, params: Params, ids: ArrayLike, mask: ArrayLike | None = None) -> Array:
        """Encode tokens; all belong to the first segment.

        Args:
            params: as `init` makes them.
            ids: (batch, tokens) integers.
            mask: (batch, tokens), true where a token counts; None for all.

        Returns:
            (batch, tokens, width) the hidden states of the last block.
        """
        ids, embed = jnp.asarray(ids), params["embed"]
        x = embed["token"][ids] + embed["position"][: ids.shape[1]][None]
        x = self._norm(x + embed["segment"][0][None, None], embed["norm"])
        seen = None if mask is None else jnp.asarray(mask, bool)[:, None, None, :]
        for layer in params["layers"]:
            x = self._norm(x + self._attend(x, layer, seen), layer["attention_norm"])
            inner = jax.nn.gelu(_dense(x, layer["up"]), approximate=False)
            x = self._norm(x + _dense(inner, layer["down"]), layer["norm"])
        return x

    def _attend(self, x: Array, layer: Any, seen: Array | None) -> Array:
        shape = (*x.shape[:2], self.heads, self.width // self.heads)
        parts = (_dense(x, layer[name]).reshape(shape) for name in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(*parts, mask=seen)
        return _dense(mixed.reshape(x.shape), layer["out"])

    def _norm(self, x: Array, norm: Any) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        scale, bias = norm["scale"][None, None], norm["bias"][None, None]
        return centered * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


def _dense(x: Array, layer: Any) -> Array:
    return x @ layer["kernel"] + layer["bias"][None, None]


def names() -> list[rules.Rule]:
    """Return rules of `transfer.graft` for the weights of `transformers.BertModel`.

    Example:
        >>> from nnopt_jax.zoo import bert
        >>> bert.names()[0]
        drop('re:pooler|position_ids')
    """
    layer, block = r"encoder\.layer\.(\d+)\.", r"layers/\1/"
    return [
        rules.drop("re:pooler|position_ids"),
        rules.transpose(r"re:encoder.*(dense|query|key|value)\.weight"),
        rules.rename(r"embeddings\.word_embeddings\.weight", "embed/token"),
        rules.rename(r"embeddings\.position_embeddings\.weight", "embed/position"),
        rules.rename(r"embeddings\.token_type_embeddings\.weight", "embed/segment"),
        rules.rename(r"embeddings\.LayerNorm\.(\w+)", r"embed/norm/\1"),
        rules.rename(rf"{layer}attention\.self\.(\w+)\.(\w+)", rf"{block}\2/\3"),
        rules.rename(rf"{layer}attention\.output\.dense\.(\w+)", rf"{block}out/\2"),
        rules.rename(rf"{layer}attention\.output\.LayerNorm\.(\w+)", rf"{block}attention_norm/\2"),
        rules.rename(rf"{layer}intermediate\.dense\.(\w+)", rf"{block}up/\2"),
        rules.rename(rf"{layer}output\.dense\.(\w+)", rf"{block}down/\2"),
        rules.rename(rf"{layer}output\.LayerNorm\.(\w+)", rf"{block}norm/\2"),
        rules.rename(r"(.*norm)/weight", r"\1/scale"),
        rules.rename(r"(.*)/weight", r"\1/kernel"),
    ]
