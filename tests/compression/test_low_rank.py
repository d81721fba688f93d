"""Factors of leaves: what they stand for, how many there are, and that they train."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import nnopt_jax as nnopt
from nnopt_jax.arrays import Factored, Masked, Reshaped
from nnopt_jax.errors import (
    CapacityError,
    CompositionError,
    NonFiniteError,
    ShapeError,
    ValueRangeError,
)

low_rank = nnopt.compression.low_rank
RNG = np.random.default_rng(0)
DENSE = jnp.asarray(RNG.normal(size=(12, 8)), jnp.float32)
CONV = jnp.asarray(RNG.normal(size=(3, 3, 4, 8)), jnp.float32)


def shown(tx, leaf, **options):
    params = {"kernel": leaf}
    return np.asarray(tx.apply(params, tx.init(params, **options))["kernel"])


def best(matrix, rank):
    """The nearest matrix of a rank, by SciPy in float64."""
    u, s, v = scipy.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_a_matrix_is_the_nearest_of_its_rank():
    np.testing.assert_allclose(shown(low_rank(3), DENSE), best(DENSE, 3), atol=1e-5)


def test_channel_form_reads_a_kernel_as_patches_times_outputs():
    wanted = best(np.asarray(CONV).reshape(36, 8), 2).reshape(CONV.shape)
    np.testing.assert_allclose(shown(low_rank(2), CONV), wanted, atol=1e-5)


def test_spatial_form_reads_a_kernel_as_columns_times_rows():
    matrix = np.einsum("hwio->hiwo", np.asarray(CONV)).reshape(12, 24)
    wanted = best(matrix, 3).reshape(3, 4, 3, 8)
    wanted = np.einsum("hiwo->hwio", wanted)
    np.testing.assert_allclose(shown(low_rank(3, form="spatial"), CONV), wanted, atol=1e-5)


def test_spatial_factors_are_a_column_and_a_row_of_filters():
    """The convolution by the kernel is that by the first factor, then by the second."""
    tx = low_rank(3, form="spatial")
    params = {"kernel": CONV}
    state = tx.init(params)
    factors = state.learned["kernel"][0]
    column = factors["u"].reshape(3, 4, 3)[:, None]  # (kh, 1, cin, r)
    row = factors["v"].reshape(3, 3, 8)[None]  # r, kw, cout
    row = jnp.transpose(row, (0, 2, 1, 3))  # (1, kw, r, cout)
    image = jnp.asarray(RNG.normal(size=(1, 7, 7, 4)), jnp.float32)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    whole = convolve(image, tx.apply(params, state)["kernel"])
    np.testing.assert_allclose(convolve(convolve(image, column), row), whole, atol=1e-3)


def test_stacked_matrices_have_factors_of_their_own():
    stack = jnp.stack([DENSE, 5 * DENSE[::-1]])
    got = shown(low_rank(2).bind(axes={"kernel": nnopt.Axes(1, 2, 0)}), stack)
    for i in range(2):
        np.testing.assert_allclose(got[i], best(stack[i], 2), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({"rank": 4}, 4),
        ({"ratio": 2.0}, 2),  # 96 / 2 = 48 numbers, 20 for each rank
        ({"bytes": 4 * 65}, 3),
        ({"bytes": 4 * 60}, 3),
        ({"bytes": 4 * 59}, 2),
    ],
)
def test_the_rank_is_the_greatest_within_the_budget(settings, rank):
    packed = nnopt.plan(low_rank(**settings), {"kernel": DENSE})
    assert packed.rows[0].bits_after == 32 * 20 * rank


@pytest.mark.parametrize("energy", [0.3, 0.7])
def test_energy_is_kept_and_no_rank_more(energy):
    tx = low_rank(energy=energy)
    params = {"kernel": DENSE}
    rank = tx.init(params).learned["kernel"][0]["u"].shape[1]
    squares = scipy.linalg.svdvals(np.asarray(DENSE, np.float64)) ** 2
    wanted = int(np.argmax(np.cumsum(squares) >= energy * squares.sum())) + 1
    assert rank == wanted
    leaf = tx.pack(params, tx.init(params))["kernel"]
    np.testing.assert_array_equal(leaf.materialize(), tx.apply(params, tx.init(params))["kernel"])


def test_energy_needs_values():
    tx = low_rank(energy=0.5)
    text = r"low_rank: kernel: the rank for energy=0\.5.* Give rank=, bytes= or ratio=, or call"
    for function in (jax.jit(tx.init), lambda params: nnopt.plan(tx, params)):
        with pytest.raises(CapacityError, match=text):
            function({"kernel": DENSE})


def test_randomized_factors_come_near_the_best():
    x = jnp.asarray(np.diag(0.6 ** np.arange(40.0)) @ RNG.normal(size=(40, 30)), jnp.float32)
    tx = low_rank(4, method="randomized")
    error = np.linalg.norm(shown(tx, x, key=jax.random.key(0)) - x)
    assert error < 1.01 * np.linalg.norm(best(x, 4) - x)
    with pytest.raises(ValueRangeError, match=r"tx\.init\(params, key=jax\.random"):
        tx.init({"kernel": x})


def test_masked_weights_count_as_zero_and_stay_zero():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), low_rank(3))
    params = {"kernel": DENSE}
    state = tx.init(params)
    leaf = tx.encode(params, state)["kernel"]
    assert isinstance(leaf, Masked)
    assert isinstance(leaf.values, Factored)
    kept = np.where(leaf.mask, DENSE, 0)
    np.testing.assert_allclose(leaf.values.materialize(), best(kept, 3), atol=1e-5)
    assert not np.asarray(tx.apply(params, state)["kernel"])[~np.asarray(leaf.mask)].any()


def test_factors_are_what_an_optimizer_trains():
    tx, params = low_rank(2), {"kernel": DENSE}
    state = tx.init(params)
    slopes = jnp.cos(jnp.arange(96.0)).reshape(12, 8)
    _, grads = nnopt.value_and_grad(lambda p: (p["kernel"] * slopes).sum(), tx)(params, state)
    factors, got = state.learned["kernel"][0], grads.train.learned["kernel"][0]
    np.testing.assert_allclose(got["u"], slopes @ factors["v"].T, atol=1e-5)
    np.testing.assert_allclose(got["v"], factors["u"].T @ slopes, atol=1e-5)
    assert not np.asarray(grads.train.params["kernel"]).any()


def test_leaves_that_would_not_shrink_stay_and_the_plan_says_so():
    params = {"big": DENSE, "small": jnp.ones((3, 3)), "bias": jnp.ones(5)}
    tx = low_rank(2, where="**")
    rows = {row.path: row.after for row in nnopt.plan(tx, params).rows}
    assert rows == {
        "big": "Factored(u float32[12,2], v float32[2,8])",
        "small": "unchanged",
        "bias": "unchanged",
    }
    shown = tx.apply(params, tx.init(params))
    np.testing.assert_array_equal(shown["small"], params["small"])
    with pytest.raises(ShapeError, match="bias, small: no factors of two would be smaller"):
        low_rank(2, where="re:small|bias").init(params)


def test_budgets_below_rank_one_are_named_with_their_leaves():
    params = {"a": DENSE, "b": CONV}
    with pytest.raises(ShapeError) as caught:
        low_rank(bytes=70).init(params)
    assert str(caught.value) == (
        "compression.low_rank: 2 problems\n"
        "  a: of rank 1 takes 80 bytes, more than bytes=70\n"
        "  b: of rank 1 takes 176 bytes, more than bytes=70"
    )
    with pytest.raises(ShapeError, match=r"a: of rank 1 is 4\.8 times smaller, less than ratio=5"):
        low_rank(ratio=5, where="a").init(params)
    assert nnopt.plan(low_rank(bytes=384), params).rows[0].after == "unchanged"  # fits already


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "rank=None and nothing else; give one of rank, energy, bytes, ratio."),
        ({"rank": 2, "ratio": 3}, "rank=2 with ratio; give one of rank, energy, bytes, ratio."),
        ({"rank": 0}, "rank=0 is not a whole number of 1 or more."),
        ({"energy": 1.5}, "energy=1.5 is not a number above 0 and at most 1."),
        ({"ratio": 1}, "ratio=1 is not a number above 1."),
        ({"rank": 2, "form": "row"}, "form='row' is not one of 'channel', 'spatial'."),
        (
            {"rank": 2, "stacked": 1},
            "stacked=1 is gone; batch axes say it: "
            "tx.bind(axes={path: nnopt.Axes(in_axis=1, out_axis=2, batch_axis=0)}).",
        ),
        (
            {"energy": 0.5, "method": "randomized"},
            "method='randomized' finds a rank that is given; with energy= use 'svd'.",
        ),
    ],
)
def test_settings_that_are_wrong(settings, text):
    with pytest.raises(ValueRangeError) as caught:
        low_rank(**settings)
    assert str(caught.value) == f"compression.low_rank: {text}"


@pytest.mark.parametrize(
    ("before", "word"),
    [
        (nnopt.compression.codebook(4), "shared"),
        (nnopt.quantization.uniform(8), "quantized"),
        (low_rank(2), "factored"),
    ],
)
def test_what_is_refined_already_is_not_factored(before, word):
    tx = nnopt.chain(before, low_rank(1))
    with pytest.raises(CompositionError, match=f"kernel: is {word} already; put compression"):
        tx.init({"kernel": DENSE})


@pytest.mark.parametrize("dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.float32])
@pytest.mark.parametrize("form", ["channel", pytest.param("spatial", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_kernels_obey_the_law_with_later_links(form, dtype):
    tx = nnopt.chain(
        low_rank(2, form=form), nnopt.compression.codebook(8), nnopt.quantization.uniform(8)
    )
    params = {"kernel": CONV.astype(dtype)}
    state = tx.init(params)
    packed = tx.pack(params, state)
    assert isinstance(packed["kernel"], Reshaped)
    assert packed["kernel"].shape == CONV.shape
    shown = tx.apply(params, state)["kernel"]
    assert shown.dtype == dtype
    np.testing.assert_array_equal(packed["kernel"].materialize(), shown)


def test_broken_weights_are_not_hidden_in_factors():
    with pytest.raises(NonFiniteError, match=r"kernel: 1 of .* values are NaN"):
        low_rank(2).init({"kernel": jnp.asarray(DENSE).at[0, 0].set(jnp.inf)})
