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
    tx = nnopt.quantization.uniform(bits, granularity=granularity, symmetric=symmetric)
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


@pytest.mark.reference
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_torch_per_tensor_agrees_to_the_bit(bits, symmetric):
    torch = pytest.importorskip("torch")
    params = {"w": jnp.asarray(_weights())}
    tx = nnopt.quantization.uniform(bits, symmetric=symmetric)
    leaf = tx.encode(params, tx.init(params))["w"]
    zero = 0 if leaf.zero is None else int(leaf.zero.item())
    wanted = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(_weights()), float(leaf.scale.item()), zero, leaf.low, leaf.high
    )
    np.testing.assert_array_equal(leaf.materialize(), wanted.numpy())


@pytest.mark.reference
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_torch_per_channel_agrees_to_the_bit(bits, symmetric):
    torch = pytest.importorskip("torch")
    params = {"w": jnp.asarray(_weights())}
    tx = nnopt.quantization.uniform(bits, granularity="channel", symmetric=symmetric)
    leaf = tx.encode(params, tx.init(params))["w"]
    scale = torch.from_numpy(np.array(leaf.scale).ravel())
    zeros = np.zeros(scale.shape) if leaf.zero is None else np.array(leaf.zero).ravel()
    wanted = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(_weights()),
        scale,
        torch.from_numpy(zeros.astype(np.int32)),
        1,
        leaf.low,
        leaf.high,
    )
    np.testing.assert_array_equal(leaf.materialize(), wanted.numpy())
