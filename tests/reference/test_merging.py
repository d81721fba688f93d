"""Merges against PEFT's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nnopt_jax.transfer import task_arithmetic, ties

F32 = np.float32


@pytest.fixture
def peft():
    pytest.importorskip("torch")
    return pytest.importorskip("peft.utils.merge_utils")


def tensors(arrays):
    import torch

    return [torch.from_numpy(np.array(x)) for x in arrays]


def differences():
    return list(np.random.default_rng(0).normal(size=(3, 32, 48)).astype(F32))


WEIGHTS = [0.5, 0.3, 0.9]


@pytest.mark.reference
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties(peft, density):
    import torch

    deltas = differences()
    found = ties(np.zeros((32, 48), F32), deltas, WEIGHTS, density=density, vote="unweighted")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of density 1
        wanted = peft.ties(tensors(deltas), torch.tensor(WEIGHTS), density)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.reference
def test_task_arithmetic(peft):
    import torch

    deltas = differences()
    found = task_arithmetic(np.zeros((32, 48), F32), deltas, WEIGHTS)
    wanted = peft.task_arithmetic(tensors(deltas), torch.tensor(WEIGHTS))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-6)
