"""Three small networks whose training step the benchmarks time, with a batch for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax


class MLP(nn.Module):
    """784-1024-1024-10: small batches, so the step is bound by the memory of its weights."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps a batch of images to logits."""
        x = nn.relu(nn.Dense(1024)(x))
        x = nn.relu(nn.Dense(1024)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions and two dense layers, on 28x28x1.

    Pooling takes means: the gradient of maxima would be most of the step and hide the rest.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps a batch of images to logits."""
        for features in (16, 32):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


class Transformer(nn.Module):
    """A causal language model: 2 blocks of width 128, 4 heads, 256 symbols."""

    width: int = 128
    heads: int = 4
    blocks: int = 2
    symbols: int = 256

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps sequences of symbols to logits of the next."""
        x = nn.Embed(self.symbols, self.width)(tokens)
        for _ in range(self.blocks):
            x = x + self._attend(nn.LayerNorm()(x))
            h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(h)
        return nn.Dense(self.symbols)(nn.LayerNorm()(x))

    def _attend(self, x: jax.Array) -> jax.Array:
        # Plain matrices: one scale an output channel means the same to every library compared.
        q, k, v = (nn.Dense(self.width)(x).reshape(*x.shape[:2], self.heads, -1) for _ in range(3))
        mixed = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(x[..., 0]))
        return nn.Dense(self.width)(mixed.reshape(x.shape))


class Case(NamedTuple):
    """A network and what it is trained on.

    Args:
        model: the network.
        batch: `(inputs, labels)`.
    """

    model: nn.Module
    batch: tuple[jax.Array, jax.Array]

    def initial(self) -> Any:
        """The network's first parameters."""
        return jax.jit(self.model.init)(jax.random.key(0), self.batch[0])["params"]

    def loss(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mean cross-entropy of a batch."""
        logits = self.model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def cases() -> dict[str, Case]:
    """The networks by name, each with one fixed random batch.

    No batch is as large as a layer is wide: qwix tells weights from activations by their shape.
    """
    key = iter(jax.random.split(jax.random.key(1), 4))
    flat = jax.random.normal(next(key), (128, 784))
    images = jax.random.normal(next(key), (64, 28, 28, 1))
    labels = jax.random.randint(next(key), (128,), 0, 10)
    tokens = jax.random.randint(next(key), (8, 65), 0, 256)
    return {
        "mlp": Case(MLP(), (flat, labels)),
        "cnn": Case(CNN(), (images, labels[:64])),
        "transformer": Case(Transformer(), (tokens[:, :-1], tokens[:, 1:])),
    }
