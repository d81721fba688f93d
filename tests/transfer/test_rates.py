"""Layer-wise rates and labels against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import SelectionError, ValueRangeError
from nnopt_jax.transfer import labels, layerwise_rates

PARAMS = {
    "embed": jnp.ones(3),
    "layers": [{"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for _ in range(11)],
    "head": jnp.ones(4),
}
ORDER = ["embed", r"re:layers/(?P<index>\d+)/", "head"]


def test_rates_fall_by_the_decay_from_layer_to_layer():
    rates = layerwise_rates(PARAMS, ORDER, decay=0.65)
    multipliers = jax.tree.map(rates.multipliers.get, rates.labels)
    for layer in range(11):  # number 9 comes before 10
        wanted = 0.65 ** (12 - (layer + 1))
        assert multipliers["layers"][layer] == pytest.approx({"w": wanted, "b": wanted})
    assert multipliers["embed"] == pytest.approx(0.65**12)
    assert multipliers["head"] == 1.0


def test_layers_of_a_deep_network_come_by_number():
    params = {"layers": [{"w": 0.0} for _ in range(1000)]}
    rates = layerwise_rates(params, [r"re:layers/(?P<index>\d+)/"], decay=0.999)
    found = [rates.multipliers[layer["w"]] for layer in rates.labels["layers"]]
    np.testing.assert_allclose(found, 0.999 ** np.arange(999, -1, -1), rtol=1e-12)
    assert rates.labels["layers"][17] == {"w": "0018"}


def test_updates_are_scaled_whatever_the_optimizer():
    """Adam's first step is the rate, whatever the gradient."""
    rates = layerwise_rates(PARAMS, ORDER, decay=0.5)
    adam = optax.adam(1e-2, eps=0.0)
    apart = optax.multi_transform(
        {label: optax.adam(1e-2 * by, eps=0.0) for label, by in rates.multipliers.items()},
        rates.labels,
    )
    slopes = jax.tree.map(lambda x: 3 * x, PARAMS)
    whole, _ = adam.update(slopes, adam.init(PARAMS))
    parts, _ = apart.update(slopes, apart.init(PARAMS))
    for updates in (rates.scale(whole), parts):
        np.testing.assert_allclose(updates["embed"], -1e-2 * 0.5**12, rtol=1e-4)
        np.testing.assert_allclose(updates["layers"][10]["w"], -5e-3, rtol=1e-4)
        np.testing.assert_allclose(updates["head"], -1e-2, rtol=1e-4)


def test_arrays_of_an_expression_share_a_rate():
    tx = nnopt.quantization.uniform(4, where="head")
    base = tx.pack({"body": jnp.ones((2, 2)), "head": jnp.ones((4, 4))},
                   tx.init({"body": jnp.ones((2, 2)), "head": jnp.ones((4, 4))}))  # fmt: skip
    rates = layerwise_rates(base, ["head", "body"], decay=0.5)
    moving = nnopt.trainable(nnopt.transfer.freeze("body"), base, ()).params
    scaled = rates.scale(moving | {"body": jnp.ones((2, 2))})
    before, after = (jax.tree.leaves(tree["head"]) for tree in (moving, scaled))
    assert before
    for x, y in zip(before, after, strict=True):
        np.testing.assert_allclose(y, 0.5 * x)


def test_frozen_leaves_stay():
    told = labels(PARAMS, {"frozen": ["embed", "layers/0/**"], "fast": "head"}, default="slow")
    assert told["layers"][0] == {"w": "frozen", "b": "frozen"}
    parts = {"frozen": optax.set_to_zero(), "fast": optax.sgd(1.0), "slow": optax.sgd(0.1)}
    optimizer = optax.multi_transform(parts, told)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS))
    np.testing.assert_array_equal(updates["embed"], np.zeros(3))
    np.testing.assert_array_equal(updates["head"], -np.ones(4))
    np.testing.assert_allclose(updates["layers"][1]["w"], -0.1 * np.ones((2, 2)))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: layerwise_rates(PARAMS, ORDER, decay=1.5), ValueRangeError, "decay=1.5"),
        (lambda: layerwise_rates(PARAMS, ORDER[1:]), SelectionError, "embed: is in no group"),
        (lambda: layerwise_rates(PARAMS, [*ORDER, "hed"]), SelectionError, "Nearest: head"),
        (lambda: layerwise_rates(PARAMS, [*ORDER, "head"]), SelectionError, "in '13' and in '14'"),
        (lambda: labels(PARAMS, {"a": "embed", "b": "**"}), SelectionError, "embed: is in 'a' and"),
        (lambda: labels(PARAMS, {"a": "embd"}), SelectionError, "Nearest: embed"),
        (lambda: labels(PARAMS, ["embed"]), SelectionError, "is not a mapping"),
        (
            lambda: layerwise_rates(PARAMS, [r"re:^layers(/(?P<index>\d+))?|d$"]),
            SelectionError,
            "head: has None for the index",
        ),
        (
            lambda: layerwise_rates(PARAMS, [r"re:(?P<index>\w+)$"]),
            SelectionError,
            "head: has 'head' for the index",
        ),
    ],
)
def test_bad_input(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
