"""Ranges of activations: gathered exactly, joined in any order, and turned into grids."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nnopt_jax import quantization
from nnopt_jax.errors import ShapeError, ValueRangeError
from nnopt_jax.quantization import (
    EmaRange,
    Range,
    absmax_grid,
    ema_grid,
    ema_range,
    kl_grid,
    merge_ranges,
    mse_grid,
    percentile_grid,
    update_range,
)

F32 = np.float32
OBSERVE = jax.jit(update_range)
RANDOM = np.random.default_rng(0)


def _same(a: Range, b: Range) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _seen(*batches: np.ndarray) -> Range:
    return functools.reduce(OBSERVE, map(jnp.asarray, batches), Range.start())


@settings(max_examples=10)
@given(x=arrays(F32, (3, 8), elements=st.floats(width=32)), order=st.permutations(range(3)))
def test_bins_are_those_of_numpy_in_any_order(x, order):
    """NaN, infinities, subnormals and the largest floats included."""
    whole = OBSERVE(Range.start(), x)
    _same(_seen(*(x[i] for i in order)), whole)
    parts = [OBSERVE(Range.start(), x[i]) for i in order]
    _same(merge_ranges(parts[0], merge_ranges(*parts[1:])), whole)
    finite = x[np.isfinite(x)].astype(np.float64)
    assert float(whole.ignored) == x.size - finite.size
    if not finite.size:
        assert whole.low > whole.high
        return
    # As for jax itself, numbers below the normal ones count as zero.
    finite = np.where(np.abs(finite) < np.finfo(F32).tiny, 0, finite)
    assert (whole.low, whole.high) == (finite.min(), finite.max())
    top = np.abs(finite).max()
    exponent = max(int(np.frexp(top)[1]), -100) if top else -100
    assert int(whole.exponent) == exponent
    width = 2.0 ** (exponent - 11)
    assert float(whole.width) == width
    wanted = np.bincount(np.floor(finite / width).astype(int) + 2048, minlength=4096)
    np.testing.assert_array_equal(whole.counts, wanted)


def test_inside_scan_vmap_and_on_a_mesh():
    x = jnp.asarray(RANDOM.normal(size=(4, 16, 8)), jnp.float32) * jnp.arange(1.0, 5)[:, None, None]
    whole = OBSERVE(Range.start(), x)
    scanned, _ = jax.lax.scan(lambda s, v: (update_range(s, v), None), Range.start(), x)
    _same(scanned, whole)
    apart = jax.vmap(lambda v: update_range(Range.start(), v))(x)
    _same(functools.reduce(merge_ranges, [jax.tree.map(lambda a, i=i: a[i], apart)
                                          for i in range(4)]), whole)  # fmt: skip
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "data")))
    _same(OBSERVE(Range.start(), split), whole)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(whole))


def test_bad_numbers_of_bins():
    with pytest.raises(ValueRangeError, match="bins=300 is not a power of two"):
        Range.start(300)
    with pytest.raises(ValueRangeError, match="bins=128 is not a whole number from 256 to 65536"):
        Range.start(128)
    with pytest.raises(ShapeError, match="256 bins and 512; start both with the same number"):
        merge_ranges(Range.start(256), Range.start(512))


def _samples(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    x = draw.normal(size=20000) if kind == "normal" else draw.standard_t(3, size=20000)
    return (np.abs(x) if kind == "normal" else x + 0.5).astype(F32)


@pytest.mark.parametrize("symmetric", [True, False])
def test_absmax_is_exact(symmetric):
    x = _samples("heavy")
    grid = absmax_grid(_seen(x), symmetric=symmetric)
    wide = np.abs(x).max() / F32(127) if symmetric else (x.max() - x.min()) / F32(255)
    np.testing.assert_allclose(grid.scale, wide, rtol=1e-6)
    assert symmetric == (grid.zero is None)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("percent", [90.0, 99.9])
def test_percentile_is_within_a_bin_of_sorting(percent, symmetric):
    x = _samples("heavy")
    state = _seen(x[:7000], x[7000:])
    grid = percentile_grid(state, percent, symmetric=symmetric)
    width, beyond = float(state.width), round(x.size * (1 - percent / 100))
    if symmetric:
        top, exact = float(grid.scale) * 127, np.sort(np.abs(x))[-1 - beyond]
        assert exact - 1e-5 <= top <= exact + width * 1.01
    else:
        span, exact = float(grid.scale) * 255, np.sort(x)[-1 - beyond] - np.sort(x)[beyond]
        assert exact - 1e-5 <= span <= exact + 2 * width * 1.01


def _histogram_error(state: Range, low: float, high: float, bits: int, symmetric: bool) -> float:
    """Squared error of the bins' centers, in double precision."""
    counts, width = np.asarray(state.counts, np.float64), float(state.width)
    centers = (np.arange(counts.size) - counts.size // 2 + 0.5) * width
    centers = np.clip(centers, float(state.low), float(state.high))
    top = 2 ** (bits - 1) - 1
    least = -top if symmetric else -top - 1
    scale = max(-low, high) / top if symmetric else (high - low) / (top - least)
    zero = 0.0 if symmetric else np.clip(np.rint(least - low / scale), least, top)
    codes = np.clip(np.rint(centers / scale) + zero, least, top)
    return float((counts * (centers - (codes - zero) * scale) ** 2).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_the_least_of_all_that_are_tried(bits, symmetric):
    state = _seen(_samples("heavy"))
    low, high = (float(min(state.low, 0)), float(max(state.high, 0)))
    steps = np.arange(1, 129) / 128 if symmetric else np.arange(1, 33) / 32
    pairs = [(f, f) for f in steps] if symmetric else [(f, g) for f in steps for g in steps]
    errors = [_histogram_error(state, f * low, g * high, bits, symmetric) for f, g in pairs]
    grid = mse_grid(state, bits, symmetric=symmetric)
    top, scale = 2 ** (bits - 1) - 1, float(grid.scale)
    zero = 0.0 if grid.zero is None else float(grid.zero)
    ends = (-top * scale, top * scale) if symmetric else ((-top - 1 - zero) * scale,
                                                          (top - zero) * scale)  # fmt: skip
    # The ends of a grid are those of the range up to the rounding of the zero point.
    got = _histogram_error(state, *ends, bits, symmetric)
    assert got <= min(errors) * 1.001
    assert bits == 8 or min(errors) < errors[-1] * 0.9, "the full range is as good: proves nothing"


def _migacz(counts: np.ndarray, levels: int) -> list[float]:
    """The divergence of every candidate, written as on the slides, one bin after another."""
    losses = []
    for bins in range(levels, counts.size + 1):
        p = counts[:bins].copy()
        p[-1] += counts[bins:].sum()
        sums, full = [0.0] * levels, [0] * levels
        for j in range(bins):
            sums[j * levels // bins] += counts[j]
            full[j * levels // bins] += counts[j] > 0
        q = np.array([sums[j * levels // bins] / full[j * levels // bins] if counts[j] else 0
                      for j in range(bins)])  # fmt: skip
        p, q = p / p.sum(), q / q.sum()
        if (q[p > 0] == 0).any():
            losses.append(np.inf)
        else:
            losses.append(float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()))
    return losses


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_kl_is_that_of_the_slides(kind):
    x = np.maximum(_samples(kind), 0)
    x[:8000] = 0  # as after a ReLU
    state = functools.reduce(OBSERVE, [jnp.asarray(x)], Range.start(512))
    counts = np.asarray(state.counts, np.float64)
    counts = counts[256:] + counts[:256][::-1]
    counts[0] = counts[1]
    losses = _migacz(counts, 32)
    top, most = 31 * float(kl_grid(state, 6).scale), float(x.max())
    edges = np.minimum(np.arange(32, 257) * float(state.width), most)
    best = edges[np.array(losses) <= min(losses) + 1e-6]
    assert np.abs(best - top).min() < 1e-5 * top
    assert kind == "normal" or edges[np.argmin(losses)] < most, (
        "the full range is as good: proves nothing"
    )
    affine = kl_grid(state, 6, symmetric=False)
    assert float(affine.zero) == -32
    np.testing.assert_allclose(affine.scale * 63, top, rtol=1e-5)


GRIDS = {"absmax": absmax_grid, "percentile": percentile_grid, "mse": mse_grid, "kl": kl_grid}


@pytest.mark.parametrize("name", GRIDS)
def test_nothing_seen_and_odd_values(name):
    for x in (np.zeros((0,), F32), np.zeros(8, F32), np.full(8, np.nan, F32)):
        grid = GRIDS[name](OBSERVE(Range.start(256), x), bits=4, symmetric=False)
        assert (float(grid.scale), float(grid.zero)) == (1, 0)
    for x in (np.full(8, 3e38, F32), np.array([1e-30, np.inf, np.nan], F32)):
        grid = GRIDS[name](OBSERVE(Range.start(256), x), bits=4, symmetric=False)
        assert 0 < grid.scale < np.inf
        assert -8 <= grid.zero <= 7
    with pytest.raises(ValueRangeError, match=rf"{name}_grid: bits=1 is not a whole number from 2"):
        GRIDS[name](Range.start(), bits=1)


def test_what_a_histogram_cannot_tell():
    with pytest.raises(
        ValueRangeError, match="mse_grid: bits=11 is not a whole number from 2 to 10"
    ):
        mse_grid(Range.start(), 11)
    with pytest.raises(ValueRangeError, match="percent=10 is not a number from 50 to 100"):
        percentile_grid(Range.start(), 10)


def test_moving_averages_have_their_closed_form():
    batches = RANDOM.normal(size=(6, 10)).astype(F32)
    decay, state = 0.8, EmaRange.start()
    for batch in [*batches, np.full(3, np.nan, F32)]:  # the last one changes nothing
        state = jax.jit(ema_range, static_argnums=2)(state, batch, decay)
    weights = (1 - decay) * decay ** np.arange(6)[::-1] / (1 - decay**6)
    low, high = state.ends()
    np.testing.assert_allclose(low, (weights * batches.min(1)).sum(), rtol=1e-5)
    np.testing.assert_allclose(high, (weights * batches.max(1)).sum(), rtol=1e-5)
    grid = ema_grid(state, symmetric=False)
    np.testing.assert_allclose(grid.scale, (high - low) / 255, rtol=1e-5)
    assert float(ema_grid(EmaRange.start()).scale) == 1
    one = ema_range(EmaRange.start(), batches[0], 0.99)
    np.testing.assert_allclose(one.ends()[1], batches[0].max(), rtol=1e-5)
    with pytest.raises(ValueRangeError, match="decay=1 never learns"):
        ema_range(state, batches[0], 1)


def test_the_former_name_says_the_new_one():
    with pytest.raises(AttributeError, match=r"observe is now nnopt_jax\..*update_range"):
        quantization.observe  # noqa: B018 - the access raises
