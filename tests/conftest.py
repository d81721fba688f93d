"""What tests of several folders ask for."""

from __future__ import annotations

import pytest

RULE = "nnopt_jax.arrays.input_quantized.use_int8"


@pytest.fixture(
    params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["integers", "floats"]
)
def pays(request, monkeypatch):
    """Small products as integers and as floats, whatever the table says of them."""
    monkeypatch.setattr(RULE, lambda *_, **__: request.param)
    return request.param


@pytest.fixture
def as_integers(monkeypatch):
    monkeypatch.setattr(RULE, lambda *_, **__: True)
