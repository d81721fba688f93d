"""Leaves that are all zero, constant, scalar, empty, of one element, and of small dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ShapeError
from tests.contract import cases, checks

LEAVES = {
    "zeros": jnp.zeros((8, 4)),
    "constant": jnp.full((8, 4), -0.3),
    "bfloat16": jax.random.normal(jax.random.key(0), (8, 4)).astype(jnp.bfloat16),
    "float16": jnp.asarray(np.asarray(jax.random.normal(jax.random.key(1), (8, 4)), np.float16)),
    "tiny": jnp.full((8, 4), 1e-44).at[0].set(-1e-45),
    "huge": jnp.full((8, 4), 1e38).at[0].set(-1e38),
    "scalar": jnp.float32(1.5),
    "one": jnp.full((1,), -2.0),
    "no_rows": jnp.zeros((0, 4)),
    "no_columns": jnp.zeros((8, 0)),
}


FIRST = [
    pytest.param(case, marks=() if cases.first(case) else pytest.mark.slow) for case in cases.SINGLE
]
UNUSUAL = [
    pytest.param(
        case,
        leaf,
        marks=() if cases.first(case) else pytest.mark.slow,
    )
    for case in cases.SINGLE
    if not cases.replaces(case)
    for leaf in LEAVES
]


@pytest.mark.parametrize(("case", "leaf"), UNUSUAL)
def test_unusual_leaf(case, leaf):
    name, settings = cases.SINGLE[case]
    tx = cases.build(name, **settings, where="**")
    params = {"leaf": LEAVES[leaf]}
    if LEAVES[leaf].shape != (8, 4) and (said := _misfit(tx, params)):
        assert "leaf" in said
        return
    state = checks.begin(tx, params)
    checks.check_law_eagerly(tx, params)
    params, state = checks.advance(tx, params, state)
    shown = tx.apply(params, state)["leaf"]
    assert shown.dtype == LEAVES[leaf].dtype
    assert shown.shape == LEAVES[leaf].shape
    assert np.isfinite(np.asarray(shown, np.float32)).all()


def _misfit(tx, params):
    """What the method says of a shape that does not fit it, if it says anything."""
    try:
        checks.begin(tx, params)
    except ShapeError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "case", [c for c in cases.SINGLE if cases.entry(c).shows_zeros and not cases.replaces(c)]
)
def test_zeros_are_shown_as_zeros(case):
    name, settings = cases.SINGLE[case]
    tx = cases.build(name, **settings)
    params = {"leaf": LEAVES["zeros"]}
    shown = tx.apply(params, checks.begin(tx, params))["leaf"]
    assert not np.asarray(shown).any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("method", cases.registry.METHODS)
def test_small_dtypes_when_compiled(method, dtype):
    checks.check_law(cases.single(f"{method}-0"), checks.example_params(dtype))


@pytest.mark.parametrize("case", FIRST)
def test_strict_promotion(case):
    """No method leans on silent promotion."""
    tx, params = cases.single(case), checks.example_params()
    with jax.numpy_dtype_promotion("strict"):
        state = checks.begin(tx, params)
        params, state = checks.advance(tx, params, state)
        tx.apply(params, state)
        nnopt.materialize(tx.pack(params, state))
