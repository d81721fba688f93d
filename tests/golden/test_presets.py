"""Every preset computes what it did in version 0.1.0, bit for bit."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import presets
from tests.golden.values import Values, array_of, values_of

# Their sums and products are taken in the order that a processor's vectors suggest.
ROUNDED = (
    "compression.dkm",
    "quantization.uniform-7",
    "quantization.twn-0",
    "quantization.ttq",
    "pruning.proximal-1",
    "pruning.proximal-2",
    "transfer.lora",
    "transfer.dora",
)


@functools.cache
def wanted() -> dict[str, Values]:
    return presets.read(presets.FILE)


def test_every_run_is_stored() -> None:
    assert set(wanted()) == set(presets.RUNS)


def marked(name: str) -> object:
    """Each preset runs every day on plain kernels; other cases and trees are slow."""
    everyday = name.endswith("-0-dense") or name == "pruning.structured-0-network"
    return pytest.param(name, marks=() if everyday else pytest.mark.slow)


@pytest.mark.parametrize("name", [marked(name) for name in presets.RUNS])
def test_preset_computes_what_it_did(name: str) -> None:
    got, old = values_of(presets.run(name)), wanted()[name]
    assert [(path, dtype, x.shape) for path, (dtype, x) in got.items()] == [
        (path, dtype, x.shape) for path, (dtype, x) in old.items()
    ]
    for path, (dtype, bits) in got.items():
        if bits.tobytes() == old[path][1].tobytes():
            continue
        assert name.startswith(ROUNDED), f"{path}: bits differ"
        one, other = (array_of(dtype, x) for x in (bits, old[path][1]))
        assert jnp.issubdtype(one.dtype, jnp.floating), f"{path}: codes differ"
        np.testing.assert_allclose(
            one.astype(np.float64), other.astype(np.float64), rtol=2e-6, atol=2e-7, err_msg=path
        )
