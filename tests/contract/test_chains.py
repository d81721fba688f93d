"""Chains of two, and the six orders of prune, share and quantize."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError
from tests.contract import cases, checks

REFUSED = [key for key in cases.PAIRS if cases.refusal(key)]
MEANT = [key for key in cases.PAIRS if key not in REFUSED]
WRAPPED = [key for key in MEANT if cases.entry(cases.PAIRS[key][0]).kind == "wrap"]
ALL = checks.example_params()
DENSE = {"dense": ALL["dense"]}


def cells(keys):
    """Cells as parameters; those of two special methods run with `-m slow`."""
    return [pytest.param(key, marks=cases.marks(key)) for key in keys]


def params_of(key):
    return ALL if cases.replaces(key) else DENSE


@pytest.mark.parametrize("key", cells(MEANT))
def test_cell_of_the_table(key):
    checks.check_cell(cases.pair(key), params_of(key))


@pytest.mark.parametrize("key", cells(WRAPPED))
def test_later_links_keep_zeros(key):
    checks.check_keeps_zeros(*cases.links(key), params_of(key))


@pytest.mark.slow
@pytest.mark.parametrize("key", MEANT)
def test_pair_obeys_when_compiled(key):
    tx, params = cases.pair(key), params_of(key)
    checks.check_law(tx, params)
    checks.check_fixed_point(tx, params)
    checks.check_counts(tx, params)
    checks.check_finite(tx, params, float("nan"))


@pytest.mark.parametrize("key", REFUSED)
def test_a_pair_without_meaning_is_an_error(key):
    before, after = (cases.single(part) for part in cases.PAIRS[key])
    with pytest.raises(CompositionError, match=cases.refusal(key)):
        checks.begin(nnopt.chain(before, after), ALL)


@pytest.mark.parametrize("order", cases.ORDERS)
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(jnp.float32, id="float32"),
        pytest.param(jnp.bfloat16, id="bfloat16", marks=pytest.mark.slow),
    ],
)
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


NAMED = {
    "prune, share, quantize": (
        nnopt.pruning.magnitude(0.5),
        nnopt.compression.codebook(4, every=2),
        nnopt.quantization.uniform(8),
    ),
    "prune, low rank": (nnopt.pruning.magnitude(0.5), nnopt.compression.low_rank(2)),
    "low rank, quantize": (nnopt.compression.low_rank(2), nnopt.quantization.uniform(8)),
    "low rank, share, quantize": (
        nnopt.compression.low_rank(2),
        nnopt.compression.codebook(4, scope="tree", every=2),
        nnopt.quantization.uniform(8),
    ),
}


LONG = "low rank, share, quantize"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == LONG else ()) for name in NAMED]
)
def test_named_chains_on_meshes(name):
    checks.check_mesh(nnopt.chain(*NAMED[name]), DENSE | {"steps": ALL["steps"]})


@pytest.mark.parametrize("name", [name for name in NAMED if "low rank" in name])
def test_named_chains_obey(name):
    before, *after = NAMED[name]
    tx = nnopt.chain(before, *after)
    checks.check_law(tx, DENSE)
    checks.check_fixed_point(tx, DENSE)
    checks.check_keeps_levels(tx, DENSE)
    checks.check_no_negative_zero(tx, DENSE)
    checks.check_keeps_zeros(before, nnopt.chain(*after), DENSE)


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
