"""Ranks of masks against NumPy's cumulative sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.ops.masks import mask_rank


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (31,), (33, 3), (4096,), (3, 5, 1000)])
def test_counts_what_is_kept_before(shape: tuple[int, ...], share: float) -> None:
    mask = np.asarray(np.random.default_rng(0).random(shape) < share)
    flat = mask.ravel()
    found = mask_rank(jnp.asarray(mask))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.cumsum(flat) - flat)


def test_maps_over_masks() -> None:
    masks = np.random.default_rng(1).random((3, 70)) < 0.5
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(mask_rank))(jnp.asarray(masks)), np.cumsum(masks, 1) - masks
    )
