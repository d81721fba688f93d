"""Mask to support to mask, in every format, for any mask."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

from nnopt_jax.arrays import NMIndex, smallest_support
from nnopt_jax.arrays.mask_format import support_of
from nnopt_jax.errors import CompositionError
from nnopt_jax.ops.masks import keep_n_of_m

SHAPES = st.sampled_from([(), (12,), (8, 6), (2, 4, 3), (0, 4)])
FORMATS = ["smallest", "bitmask", "gaps", "csr", (1,), (2, 3)]


@st.composite
def masks(draw):
    """Bools of any density, some of them made of blocks or rows."""
    shape = draw(SHAPES)
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    mask = rng.random(shape) < density
    if draw(st.booleans()) and mask.ndim > 1:
        mask &= mask[..., :1, :]
    return mask


@given(st.sampled_from(FORMATS), masks())
def test_round_trip(format, mask):
    try:
        support = support_of(jnp.asarray(mask), format)
    except CompositionError:
        assert isinstance(format, tuple)
        return
    assert support.shape == mask.shape
    assert not support.problems(mask.shape)
    np.testing.assert_array_equal(np.asarray(support.materialize()).astype(bool), mask)


@settings(max_examples=10)
@given(masks())
def test_nothing_is_smaller_than_the_smallest(mask):
    bits = [support_of(jnp.asarray(mask), format).bits for format in ("bitmask", "gaps", "csr")]
    assert smallest_support(jnp.asarray(mask)).bits <= min(bits)


@settings(max_examples=6)
@given(st.sampled_from([(2, 4), (4, 4)]), st.integers(0, 2**16))
def test_n_of_m(pair, seed):
    n, m = pair
    scores = np.random.default_rng(seed).normal(size=(12, 5)).astype(np.float32)
    mask = keep_n_of_m(jnp.asarray(scores), n, m)
    support = support_of(mask, f"{n}:{m}")
    assert isinstance(support, NMIndex)
    assert support.least == support.most == int(mask.sum()) == 60 * n // m
    assert not support.problems((12, 5))
    np.testing.assert_array_equal(support.materialize(), mask)
