"""Uniform quantization against plain NumPy and PyTorch's fake quantization."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt

F32 = np.float32


def _weights(shape: tuple[int, ...] = (12, 10)) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(F32)


def _blocks(w: np.ndarray, granularity: str | int) -> list[tuple[slice, slice]]:
    rows, columns = w.shape
    if granularity == "tensor":
        return [(slice(0, rows), slice(0, columns))]
    if granularity == "channel":
        return [(slice(0, rows), slice(j, j + 1)) for j in range(columns)]
    group = int(granularity)
    return [
        (slice(i, i + group), slice(j, j + 1))
        for i in range(0, rows, group)
        for j in range(columns)
    ]


def _rounded(block: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """One block by the formula of the docstring, in float32."""
    high = 2 ** (bits - 1) - 1
    if symmetric:
        scale = F32(np.abs(block).max() / F32(high))
        return np.clip(np.rint(block * (F32(1) / scale)), -high, high) * scale
    low = -high - 1
    top, bottom = F32(max(block.max(), 0)), F32(min(block.min(), 0))
    scale = F32(top / F32(high - low) - bottom / F32(high - low))
    zero = np.clip(np.rint(F32(low) - bottom / scale), low, high)
    codes = np.clip(np.rint(block * (F32(1) / scale)) + zero, low, high)
    return (codes - zero) * scale


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_agrees_with_numpy(bits, granularity, symmetric):
    weights = _weights()
    shares = {"group": 4} if granularity == 4 else {"granularity": granularity}
    tx = nnopt.quantization.uniform(bits, symmetric=symmetric, scale_dtype="float32", **shares)
    params = {"w": jnp.asarray(weights)}
    shown = tx.apply(params, tx.init(params))["w"]
    wanted = np.empty_like(weights)
    for block in _blocks(weights, granularity):
        wanted[block] = _rounded(weights[block], bits, symmetric)
    np.testing.assert_allclose(shown, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_error_is_half_a_step_at_most(bits):
    weights = _weights()
    tx = nnopt.quantization.uniform(bits, granularity="channel")
    params = {"w": jnp.asarray(weights)}
    shown = np.asarray(tx.apply(params, tx.init(params))["w"], np.float64)
    step = np.abs(weights).max(0) / (2 ** (bits - 1) - 1)
    assert (np.abs(shown - weights) <= step / 2 * (1 + 1e-4)).all()


def _torch_fake(torch, x, leaf):
    """What PyTorch makes of the grid that a leaf lies on, per tensor or per channel."""
    scale = np.array(leaf.scale).ravel()
    zero = np.zeros(scale.shape) if leaf.zero is None else np.array(leaf.zero).ravel()
    ends = leaf.low, leaf.high
    if scale.size == 1:
        return torch.fake_quantize_per_tensor_affine(x, float(scale[0]), int(zero[0]), *ends)
    parts = torch.from_numpy(scale), torch.from_numpy(zero.astype(np.int32))
    return torch.fake_quantize_per_channel_affine(x, *parts, 1, *ends)


@pytest.mark.reference
@pytest.mark.parametrize("range", ["absmax", "percentile"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_torch_agrees_to_the_bit(bits, granularity, symmetric, range):
    """Values and gradients, of weights inside the range and (by percentile) of some outside."""
    torch = pytest.importorskip("torch")
    weights = _weights()
    settings = {"granularity": granularity, "symmetric": symmetric, "range": range}
    tx = nnopt.quantization.uniform(bits, **settings, percent=90)
    params = {"w": jnp.asarray(weights)}
    state = tx.init(params)
    x = torch.from_numpy(weights).requires_grad_()
    wanted = _torch_fake(torch, x, tx.encode(params, state)["w"])
    np.testing.assert_array_equal(tx.apply(params, state)["w"], wanted.detach().numpy())
    slope = np.random.default_rng(4).normal(size=weights.shape).astype(F32)
    wanted.backward(torch.from_numpy(slope))
    _, grads = nnopt.value_and_grad(lambda p: (p["w"] * slope).sum(), tx)(params, state)
    assert x.grad is not None
    np.testing.assert_array_equal(grads.train.params["w"], x.grad.numpy())
    assert (range == "absmax") == bool((x.grad != 0).all()), "no weight outside: proves little"
