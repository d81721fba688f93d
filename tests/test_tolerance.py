"""The bounds that tests of float32 sums take, by counts and sums that are known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import tolerance

ROWS, SQUARE = np.ones((3, 5), np.float32), np.ones((4, 4), np.float32)


def image_product(x):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, jnp.ones((2, 2, 3, 8)), (1, 1), "SAME", dimension_numbers=dims
    )


@pytest.mark.parametrize(
    ("function", "x", "count"),
    [
        (lambda x: x @ np.ones((5, 7), np.float32), ROWS, 5),
        (lambda x: jnp.tanh(x @ np.ones((5, 7), np.float32)).sum(), ROWS, 5 + 1 + 3 * 7),
        (lambda x: lax.scan(lambda c, _: (c @ x, None), x, length=6)[0], SQUARE, 6 * 4),
        (lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: -x, x), SQUARE, 2 + 4),
        (image_product, np.ones((1, 4, 4, 3), np.float32), 1 + 2 * 2 * 3),
        (lambda x: jnp.argmax(x, -1) + 1, ROWS, 0),
    ],
    ids=["product", "sum", "loop", "branches", "convolution", "integers"],
)  # fmt: skip
def test_roundings_along_the_longest_path(function, x, count):
    assert tolerance.roundings(function, x) == count


@pytest.mark.isa
def test_orders_of_a_sum_are_within_it_and_a_missing_number_is_not():
    numbers = np.random.default_rng(0).uniform(1, 2, 1024).astype(np.float32)
    exact = numbers.astype(np.float64).sum()
    bound = tolerance.relative(jnp.sum, numbers) * exact
    sums = [jax.jit(jnp.sum)(numbers), np.cumsum(numbers)[-1], np.cumsum(numbers[::-1])[-1]]
    assert np.ptp(np.asarray(sums, np.float64)) < bound
    assert exact - float(jnp.sum(numbers[1:])) > bound
