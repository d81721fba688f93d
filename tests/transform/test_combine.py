"""Chains, restrictions, and what transforms are shown."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked, Quantized
from nnopt_jax.errors import CompositionError
from nnopt_jax.transform import refresh_when, wrapping

PARAMS = {
    "body": {"kernel": jax.random.normal(jax.random.key(0), (6, 4))},
    "head": {"kernel": jax.random.normal(jax.random.key(1), (6, 4))},
}


def _recorder(name, seen, where="**"):
    """A transform that changes nothing and notes the dense leaves its update is shown."""

    def update(leaves, state, now):
        seen[name] = {path: np.asarray(leaf) for path, leaf in leaves.items()}, now.grads
        return {}, state.rest

    return wrapping(
        name,
        where,
        init=lambda leaves, start: ({}, dict.fromkeys(leaves, jnp.int32(0))),
        encode=lambda leaves, state, train: leaves,
        update=update,
    )


def test_the_empty_chain_changes_nothing():
    tx = nnopt.chain()
    state = tx.init(PARAMS)
    assert tx.update(PARAMS, state) == (PARAMS, ())
    assert tx.apply(PARAMS, state) is not PARAMS
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, tx.pack(PARAMS, state), PARAMS))


def test_links_are_shown_what_stands_before_them():
    seen = {}
    tx = nnopt.chain(
        _recorder("first", seen),
        nnopt.pruning.magnitude(0.5),
        nnopt.chain(_recorder("inner", seen), nnopt.quantization.uniform(4)),
        _recorder("last", seen),
    )
    params, state = tx.update(PARAMS, tx.init(PARAMS))
    path = "head/kernel"
    np.testing.assert_array_equal(seen["first"][0][path], PARAMS["head"]["kernel"])
    np.testing.assert_array_equal(seen["inner"][0][path], params["head"]["kernel"])
    np.testing.assert_array_equal(seen["last"][0][path], tx.apply(params, state)["head"]["kernel"])
    assert (seen["inner"][0][path] == 0).sum() == 12


def test_hard_masks_inside_a_nested_chain_move_the_parameters():
    inner = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.quantization.uniform(8))
    tx = nnopt.chain(nnopt.pruning.magnitude(0.25, where="body/*"), inner)
    params, state = tx.update(PARAMS, tx.init(PARAMS))
    assert (params["head"]["kernel"] == 0).sum() == 12
    shown = tx.apply(params, state)
    assert all((shown[name]["kernel"] == 0).sum() >= 12 for name in shown)


def test_gradients_at_the_model_reach_every_link():
    seen = {}
    tx = nnopt.chain(_recorder("all", seen), nnopt.at("head/*", _recorder("part", seen)))
    state = tx.init(PARAMS)
    _, grads = nnopt.value_and_grad(lambda p: 2 * p["head"]["kernel"].sum(), tx)(PARAMS, state)
    nnopt.step(tx, PARAMS, state, jax.tree.map(jnp.zeros_like, grads.train), grads)
    assert set(seen["all"][1]) == {"body/kernel", "head/kernel"}
    assert set(seen["part"][1]) == {"head/kernel"}
    np.testing.assert_array_equal(seen["part"][1]["head/kernel"], np.full((6, 4), 2.0))


def test_restriction_leaves_the_rest_alone():
    tx = nnopt.at(
        "head/*", nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.quantization.uniform(8))
    )
    params, state = tx.update(PARAMS, tx.init(PARAMS))
    encoded = tx.encode(params, state)
    assert encoded["body"]["kernel"] is params["body"]["kernel"]
    assert params["body"]["kernel"] is PARAMS["body"]["kernel"]
    assert isinstance(encoded["head"]["kernel"], Masked)
    assert isinstance(encoded["head"]["kernel"].values, Quantized)
    assert tx.capacities(PARAMS) == {"head/kernel": 12}
    assert tx.name == "at('head/*', chain(pruning.magnitude, quantization.uniform))"


def test_restrictions_nest_and_name_leaves_in_full():
    tx = nnopt.at("**", nnopt.at("head/**", nnopt.pruning.magnitude(0.5)))
    assert list(tx.init(PARAMS).rest) == ["head/kernel"]


def test_different_rules_for_different_leaves():
    tx = nnopt.chain(
        nnopt.at("body/*", nnopt.quantization.uniform(4)),
        nnopt.at("head/*", nnopt.quantization.uniform(8)),
    )
    packed = tx.pack(PARAMS, tx.init(PARAMS))
    assert packed["body"]["kernel"].high == 7
    assert packed["head"]["kernel"].high == 127


def test_capacities_of_a_chain_are_the_least():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.75), nnopt.pruning.magnitude(0.5, where="head/*"))
    assert tx.capacities(PARAMS) == {"body/kernel": 6, "head/kernel": 6}


def test_exactness_of_a_chain():
    exact, tolerant = nnopt.pruning.magnitude(0.5), nnopt.compression.codebook(4)
    assert nnopt.chain(exact, exact).exact
    assert not nnopt.chain(exact, tolerant).exact
    assert not nnopt.at("**", tolerant).exact


def test_state_shared_with_a_longer_chain_is_an_error():
    short, long = (
        nnopt.chain(nnopt.pruning.magnitude(0.5)),
        nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.quantization.uniform(8)),
    )
    with pytest.raises(CompositionError, match="of 1 transforms, and there are 2; give the state"):
        long.apply(PARAMS, short.init(PARAMS))


@pytest.mark.parametrize("needed", [True, False])
def test_refreshing_traced_and_known_conditions_agree(needed):
    def choose(condition):
        return refresh_when(condition, lambda: jnp.float32(1), jnp.float32(2))

    for made in (choose(needed), choose(jnp.bool_(needed)), jax.jit(choose)(needed)):
        assert float(made) == (1 if needed else 2)


def test_the_state_of_other_parameters_packs_nothing():
    tx = nnopt.pruning.magnitude(0.5)
    state = tx.init({"kernel": jnp.ones((8, 6))})
    with pytest.raises(nnopt.errors.ShapeError, match=r"kernel: has shape \(3, 3\).*\(8, 6\)"):
        tx.pack({"kernel": jnp.ones((3, 3))}, state)


def test_links_of_one_key_draw_apart():
    params = {"kernel": jnp.ones((64, 64))}
    tx = nnopt.chain(nnopt.pruning.random_mask(0.5), nnopt.pruning.random_mask(0.5))
    first, second = tx.init(params, key=jax.random.key(0))
    both = first.rest["kernel"]["mask"] & second.rest["kernel"]["mask"]
    assert 0.2 < float(both.mean()) < 0.3  # a quarter; half, were they one
    alone = nnopt.pruning.random_mask(0.5).init(params, key=jax.random.key(0))
    np.testing.assert_array_equal(first.rest["kernel"]["mask"], alone.rest["kernel"]["mask"])
