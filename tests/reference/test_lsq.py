"""Learned steps against PyTorch's automatic differentiation of the paper's pseudocode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt

F32 = np.float32
WEIGHTS = np.random.default_rng(3).normal(size=(12, 10)).astype(F32)
SLOPE = np.random.default_rng(4).normal(size=(12, 10)).astype(F32)


def _learned_step(torch, x, step, low, high, factor):
    """Appendix A of the paper: rounding passes the gradient, the step's is scaled."""
    step = (step - step * factor).detach() + step * factor
    v = torch.clamp(x / step, low, high)
    return ((v.round() - v).detach() + v) * step


@pytest.mark.reference
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_agrees_with_autograd(bits):
    torch = pytest.importorskip("torch")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    tx = nnopt.quantization.lsq(bits)
    params = {"w": jnp.asarray(WEIGHTS)}
    state = tx.init(params)
    step = torch.tensor(state.learned["w"][0].item(), requires_grad=True)
    x = torch.from_numpy(WEIGHTS).requires_grad_()
    shown = _learned_step(torch, x, step, low, high, (WEIGHTS.size * high) ** -0.5)
    shown.backward(torch.from_numpy(SLOPE))
    _, grads = nnopt.value_and_grad(lambda p: (p["w"] * SLOPE).sum(), tx)(params, state)
    np.testing.assert_allclose(tx.apply(params, state)["w"], shown.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads.train.params["w"], x.grad, rtol=1e-5)
    np.testing.assert_allclose(grads.train.learned["w"][0].item(), step.grad.item(), rtol=1e-4)


@pytest.mark.reference
def test_activations_agree_with_autograd():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(WEIGHTS).requires_grad_()
    step = torch.tensor(0.1, requires_grad=True)
    shown = _learned_step(torch, x, step, 0, 15, (10 * 15) ** -0.5)
    shown.backward(torch.from_numpy(SLOPE))
    got, pull = jax.vjp(
        lambda x, s: nnopt.quantization.lsq_activation(x, s, 4), jnp.asarray(WEIGHTS), 0.1
    )
    dx, dstep = pull(SLOPE)
    np.testing.assert_allclose(got, shown.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, x.grad, rtol=1e-5)
    np.testing.assert_allclose(dstep, step.grad.item(), rtol=1e-4)
