"""Magnitude pruning against sorting in NumPy, and against PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt


def _weights(seed: int, shape: tuple[int, ...], *, ties: bool) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.round(values) if ties else values


def _largest(weights: np.ndarray, kept: int) -> np.ndarray:
    """The mask by a stable sort: of equal magnitudes the lower index is kept."""
    order = np.argsort(-np.abs(weights).ravel(), kind="stable")
    mask = np.zeros(weights.size, bool)
    mask[order[:kept]] = True
    return mask.reshape(weights.shape)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.95, 1.0])
def test_uniform_allocation_is_a_sort(sparsity, ties):
    weights = _weights(0, (17, 9), ties=ties)
    tx = nnopt.pruning.magnitude(sparsity)
    params = {"w": jnp.asarray(weights)}
    shown = tx.apply(params, tx.init(params))["w"]
    mask = _largest(weights, round((1 - sparsity) * weights.size))
    np.testing.assert_array_equal(shown, np.where(mask, weights, 0))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.95])
def test_global_allocation_is_a_sort_of_all(sparsity, ties):
    leaves = [_weights(i, shape, ties=ties) for i, shape in enumerate([(5, 3), (8, 4), (2, 9)])]
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    mask = _largest(flat, round((1 - sparsity) * flat.size))
    tx = nnopt.pruning.magnitude(sparsity, allocation="global")
    params = [jnp.asarray(leaf) for leaf in leaves]
    shown = tx.apply(params, tx.init(params))
    got = np.concatenate([np.asarray(leaf).ravel() for leaf in shown])
    np.testing.assert_array_equal(got, np.where(mask, flat, 0))


def test_global_ties_do_not_depend_on_jit():
    """Twelve leaves: as text, `10` sorts before `2`."""
    params = [jnp.ones((2, 2)) for _ in range(12)]
    tx = nnopt.pruning.magnitude(0.5, allocation="global")
    state = jax.jit(tx.init)(params)
    fresh, _ = tx.update(params, state), state
    kept = [int((np.asarray(leaf) != 0).sum()) for leaf in fresh[0]]
    assert kept == [4] * 6 + [0] * 6


@pytest.mark.reference
@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_torch_prunes_the_same(amount):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    weights = _weights(1, (30, 20), ties=False)
    layer = torch.nn.Linear(20, 30, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
    prune.l1_unstructured(layer, "weight", amount=amount)
    tx = nnopt.pruning.magnitude(amount)
    params = {"w": jnp.asarray(weights)}
    shown = tx.apply(params, tx.init(params))["w"]
    np.testing.assert_array_equal(shown, layer.weight.detach().numpy())


@pytest.mark.reference
def test_torch_prunes_the_same_globally():
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    leaves = [_weights(2, (8, 20), ties=False), 3 * _weights(3, (12, 8), ties=False)]
    layers = [torch.nn.Linear(*leaf.shape[::-1], bias=False) for leaf in leaves]
    for layer, leaf in zip(layers, leaves, strict=True):
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(leaf))
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.7
    )
    params = [jnp.asarray(leaf) for leaf in leaves]
    tx = nnopt.pruning.magnitude(0.7, allocation="global")
    for shown, layer in zip(tx.apply(params, tx.init(params)), layers, strict=True):
        np.testing.assert_array_equal(shown, layer.weight.detach().numpy())
