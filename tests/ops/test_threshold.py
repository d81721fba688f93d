from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.threshold import kth_largest, top_k_mask, top_k_masks

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -3e-40, 2.0**-126, np.inf, -np.inf, np.nan, 1.0000001]
FLOATS = st.sampled_from(SPECIAL) | st.floats(width=32)


def reference(scores: list[np.ndarray], k: int, signed: bool) -> list[np.ndarray]:
    """Sorts magnitudes, or values, stably, NaN first."""
    flat = np.concatenate([s.astype(np.float64).ravel() for s in scores])
    flat = flat if signed else np.abs(flat)
    order = np.lexsort(
        (np.arange(flat.size), -np.nan_to_num(flat, posinf=np.inf, neginf=-np.inf), ~np.isnan(flat))
    )
    mask = np.zeros(flat.size, bool)
    mask[order[:k]] = True
    parts = np.split(mask, np.cumsum([s.size for s in scores])[:-1])
    return [m.reshape(s.shape) for m, s in zip(parts, scores, strict=True)]


def check(
    scores: list[np.ndarray], k: int, masks: list[jax.Array], *, signed: bool = False
) -> None:
    assert sum(int(m.sum()) for m in masks) == k
    for mask, wanted in zip(masks, reference(scores, k, signed), strict=True):
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, wanted)


@given(
    first=arrays(np.float32, (5, 7), elements=FLOATS),
    second=arrays(np.float32, 6, elements=FLOATS),
    k=st.integers(0, 42),
    signed=st.booleans(),
)
def test_several_arrays_special_values_and_ties(first, second, k, signed) -> None:
    scores = [first, np.zeros((0, 3), np.float32), second, np.float32(1.0)]
    masks = jax.jit(top_k_masks, static_argnames="signed")(scores, k, signed=signed)
    check(scores, k, masks, signed=signed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("values", ["normal", "ties", "negative", "extreme"])
def test_signed(dtype, values) -> None:
    draw = np.random.default_rng(7)
    x = {
        "normal": draw.standard_normal((30, 40)),
        "ties": draw.integers(-3, 4, (30, 40)),
        "negative": -np.exp(draw.normal(0, 5, (30, 40))),
        "extreme": draw.choice([-np.inf, -3e38, -1e-45, -0.0, 0.0, np.inf, np.nan], (30, 40)),
    }[values]
    with np.errstate(over="ignore"):
        scores = jnp.asarray(x.astype(np.float32), dtype)
    for k in (0, 1, 250, 600, 1199, 1200):
        check([np.asarray(scores)], k, [top_k_mask(scores, k, signed=True)], signed=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_dtypes(dtype, fraction) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((30, 40)), dtype)
    k = int(fraction * x.size)
    check([np.asarray(x)], k, [top_k_mask(x, k)])
    if k:
        wanted = np.sort(np.abs(np.asarray(x, np.float32)).ravel())[::-1][k - 1]
        found = kth_largest(x, k)
        assert found.dtype == x.dtype
        assert float(found) == wanted


def test_eager_equals_jit_and_counts_may_be_traced() -> None:
    x = np.random.default_rng(1).standard_normal(1000).round(1).astype(np.float32)
    traced = jax.jit(top_k_mask)
    for k in (0, 1, 500, 999, 1000):
        np.testing.assert_array_equal(traced(x, k), top_k_mask(x, k))
        check([x], k, [top_k_mask(x, k)])
    # Out of range, a traced count is clipped.
    assert not traced(x, -3).any()
    assert traced(x, 5000).all()


def test_kth_largest_of_nan_inf_and_scalar() -> None:
    x = np.array([np.nan, np.inf, 0.5], np.float32)
    found = [float(kth_largest(x, k)) for k in (1, 2, 3)]
    assert np.isnan(found[0])
    assert found[1:] == [np.inf, 0.5]
    assert kth_largest(np.float32(-2.0), 1) == 2.0


def test_all_equal_keeps_the_first() -> None:
    for value, signed in itertools.product((0.0, 3.0, -np.inf, np.nan), (False, True)):
        mask = top_k_mask(np.full((4, 5), value, np.float32), 7, signed=signed)
        np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(7))


def test_vmap() -> None:
    x = np.random.default_rng(2).integers(0, 4, (5, 6, 7)).astype(np.float32)
    masks = jax.vmap(top_k_mask, (0, 0))(x, np.array([0, 3, 10, 40, 42]))
    for row, k, mask in zip(x, (0, 3, 10, 40, 42), masks, strict=True):
        check([row], k, [mask])


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("decimals", [1, 7], ids=["ties", "distinct"])
def test_sharded_masks_are_equal_and_nothing_large_is_exchanged(shape, decimals) -> None:
    rng = np.random.default_rng(3)
    scores = [
        rng.standard_normal(s).round(decimals).astype(np.float32) for s in ((64, 32), (4096,))
    ]
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs = [P("a", "b"), P(("a", "b"))]
    placed = [
        jax.device_put(s, NamedSharding(mesh, spec)) for s, spec in zip(scores, specs, strict=True)
    ]
    find = jax.jit(lambda scores: top_k_masks(scores, 1000))
    masks = find(placed)
    check(scores, 1000, masks)
    for mask, score in zip(masks, placed, strict=True):
        assert mask.sharding.is_equivalent_to(score.sharding, score.ndim)
    text = find.lower(placed).compile().as_text()
    exchanged = re.findall(r"\w\d+\[([\d,]*)\][^ ]* all-(?:gather|reduce)\(", text)
    assert exchanged
    assert "all-to-all(" not in text
    for dims in exchanged:
        assert np.prod([int(d) for d in dims.split(",") if d], initial=1) <= 8


def test_bad_arguments() -> None:
    with pytest.raises(ValueRangeError, match="k=4 of 3 scores; give 0 to 3"):
        top_k_mask(np.ones(3, np.float32), 4)
    with pytest.raises(ValueRangeError, match="k=0 of 3 scores; give 1 to 3"):
        kth_largest(np.ones(3, np.float32), 0)
    with pytest.raises(ValueRangeError, match=r"(?s)2 problems.*scores 0 are int32.*k=-1"):
        top_k_masks([np.ones(3, np.int32)], -1)
