"""Fake quantization of activations against PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.ops.grid import fit_grid, integer_range
from nnopt_jax.quantization import fake_quant

F32 = np.float32


@pytest.mark.reference
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [4, 8])
def test_fake_quant_agrees_to_the_bit(bits, granularity, symmetric):
    """Values everywhere; gradients except less than half a step beyond an end, as documented."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(30, 10)) + 0.3).astype(F32)
    block = (30, 10) if granularity == "tensor" else (30, 1)
    scale, zero = fit_grid(x / 2, bits, block, symmetric=symmetric)  # a half of the range
    low, high = integer_range(bits, symmetric=symmetric)
    slope = rng.normal(size=x.shape).astype(F32)
    shown, pull = jax.vjp(lambda x: fake_quant(x, scale, zero, bits=bits), jnp.asarray(x))
    zeros = np.zeros(scale.size, np.int32) if zero is None else np.array(zero, np.int32).ravel()
    there = torch.from_numpy(x).requires_grad_()
    if granularity == "tensor":
        wanted = torch.fake_quantize_per_tensor_affine(
            there, float(scale.item()), int(zeros[0]), low, high
        )
    else:
        parts = torch.from_numpy(np.array(scale).ravel()), torch.from_numpy(zeros)
        wanted = torch.fake_quantize_per_channel_affine(there, *parts, 1, low, high)
    np.testing.assert_array_equal(shown, wanted.detach().numpy())
    wanted.backward(torch.from_numpy(slope))
    assert there.grad is not None
    v = x / np.asarray(scale) + zeros[None, :]
    between = ((low - 0.5 <= v) & (v < low)) | ((high < v) & (v <= high + 0.5))
    got, other = np.asarray(pull(slope)[0]), there.grad.numpy()
    np.testing.assert_array_equal(got[~between], other[~between])
    assert not got[between].any()
    assert (other == 0).any()
    assert (other != 0).any()
