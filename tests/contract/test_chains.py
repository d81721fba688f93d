"""Chains of two, and the six orders of prune, share and quantize."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError
from tests.contract import cases, checks

TWICE = [
    key for key, pair in cases.PAIRS.items() if all(cases.entry(part).quantizes for part in pair)
]
MEANT = [key for key in cases.PAIRS if key not in TWICE]
WRAPPED = [key for key in MEANT if cases.entry(cases.PAIRS[key][0]).kind == "wrap"]
DENSE = {"dense": checks.example_params()["dense"]}


@pytest.mark.parametrize("key", MEANT)
def test_cell_of_the_table(key):
    checks.check_cell(cases.pair(key), DENSE)


@pytest.mark.parametrize("key", WRAPPED)
def test_later_links_keep_zeros(key):
    before, after = (cases.single(part) for part in cases.PAIRS[key])
    checks.check_keeps_zeros(before, after, DENSE)


@pytest.mark.slow
@pytest.mark.parametrize("key", MEANT)
def test_pair_obeys_when_compiled(key):
    tx = cases.pair(key)
    checks.check_law(tx, DENSE)
    checks.check_fixed_point(tx, DENSE)
    checks.check_counts(tx, DENSE)
    checks.check_finite(tx, DENSE, float("nan"))


@pytest.mark.parametrize("key", TWICE)
def test_quantizing_twice_is_an_error(key):
    with pytest.raises(CompositionError, match="is quantized already; quantize it once"):
        checks.begin(cases.pair(key), DENSE)


@pytest.mark.parametrize("order", cases.ORDERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_orders_obey(order, dtype):
    links = {
        "pruning.magnitude": nnopt.pruning.magnitude(0.5),
        "compression.codebook": nnopt.compression.codebook(4, learned=dtype == jnp.bfloat16),
        "quantization.uniform": nnopt.quantization.uniform(8, granularity="channel"),
    }
    tx = nnopt.chain(*(links[name] for name in cases.ORDERS[order]))
    params = checks.example_params(dtype)
    (checks.check_law if dtype == jnp.float32 else checks.check_law_eagerly)(tx, params)
    checks.check_keeps_levels(tx, params)
    checks.check_no_negative_zero(tx, params)
    packed = tx.pack(params, checks.begin(tx, params))
    shown = nnopt.materialize(packed)
    for name in ("dense", "head"):
        assert int((shown[name]["kernel"] == 0).sum()) >= 16


def test_orders_on_meshes():
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.5),
        nnopt.compression.codebook(4, every=2),
        nnopt.quantization.uniform(8),
    )
    checks.check_mesh(tx, checks.example_params())


def test_a_chain_inside_a_chain_is_the_flat_chain():
    links = (
        nnopt.pruning.magnitude(0.5),
        nnopt.compression.codebook(4, every=1),
        nnopt.quantization.uniform(8),
    )
    flat = nnopt.chain(*links)
    nested = nnopt.chain(links[0], nnopt.chain(*links[1:]))
    params = checks.example_params()
    results = []
    for tx in (flat, nested):
        now, state = params, checks.begin(tx, params)
        for _ in range(2):
            now, state = checks.advance(tx, checks.moved(now), state)
        results.append((now, tx.apply(now, state), tx.pack(now, state)))
    checks.assert_same(results[1], results[0], "nested")
