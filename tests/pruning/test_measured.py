"""Measured sparsity against NumPy, of trees in every form."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ValueRangeError

W = np.random.default_rng(2).normal(size=(3, 8, 6)).astype(np.float32)
W[np.abs(W) < 0.5] = 0
W[..., 4] = 0
measure = nnopt.pruning.measure_sparsity


def test_counts_and_measures():
    row = measure({"w": jnp.asarray(W)}).rows[0]
    x = np.abs(W.astype(np.float64)).ravel()
    ratio = x.sum() / np.sqrt((x**2).sum())
    assert (row.size, row.zeros, row.masked) == (144, int((W == 0).sum()), None)
    assert (row.outputs, row.zero_outputs) == (6, 1)
    assert row.hoyer == pytest.approx((12 - ratio) / 11)
    assert row.effective == pytest.approx(ratio**2)
    assert row.sparsity == (W == 0).mean()


@pytest.mark.parametrize(
    ("x", "hoyer", "effective"),
    [([1, 1, -1, 1], 0, 4), ([0, 0, 5, 0], 1, 1), ([0, 0], None, 0), ([7], None, 1), ([], None, 0)],
)
def test_ends_of_the_measures(x, hoyer, effective):
    row = measure([jnp.array(x, jnp.float32)]).rows[0]
    assert row.hoyer == (None if hoyer is None else pytest.approx(hoyer, abs=1e-12))
    assert row.effective == pytest.approx(effective)


def test_patterns():
    two_of_four = measure({"w": jnp.asarray(W), "odd": jnp.ones(3)}, pattern="2:4")
    count = (W.reshape(3, 2, 4, 6) != 0).sum(2)
    assert (two_of_four.rows[-1].groups, two_of_four.rows[-1].good_groups) == (
        36, int((count <= 2).sum()))  # fmt: skip
    assert two_of_four.rows[0].groups is None
    blocks = measure({"w": jnp.asarray(W)}, pattern=(4, 1)).rows[0]
    assert (blocks.groups, blocks.good_groups) == (36, int((count == 0).sum()))
    with pytest.raises(ValueRangeError, match="pattern='4:2'"):
        measure({}, pattern="4:2")


def test_every_form_of_a_tree_says_the_same():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.quantization.uniform(2))
    params = {"kernel": jnp.asarray(W[0] + 0.01), "step": jnp.arange(2)}
    state = tx.init(params)
    trained, packed = tx.encode(params, state), tx.pack(params, state)
    rows = [measure(tree).rows for tree in (trained, packed)]
    assert rows[0] == rows[1]
    kernel = rows[0][0]
    assert kernel.masked == 24
    assert kernel.zeros == int((np.asarray(tx.apply(params, state)["kernel"]) == 0).sum()) > 24
    dense = measure(tx.apply(params, state)).rows[0]
    assert (dense.masked, dense.zeros) == (None, kernel.zeros)


def test_nested_masks_are_one():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.25), nnopt.pruning.magnitude(0.5, every=None))
    params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
    state = tx.init(params)
    for tree in (tx.encode(params, state), tx.pack(params, state)):
        assert measure(tree).total.masked == 8


def test_the_total_is_of_all_laid_end_to_end():
    tree = {"a": jnp.asarray(W), "b": jnp.asarray(W[0, 0]), "key": jax.random.key(0)}
    together = np.concatenate([W.ravel(), W[0, 0]])
    table = measure(tree)
    alone = measure([jnp.asarray(together)]).rows[0]
    assert table.total.zeros == alone.zeros
    assert table.total.hoyer == pytest.approx(alone.hoyer)
    told = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert told["total"]["zeros"] == alone.zeros
    assert [row["path"] for row in told["rows"]] == ["a", "b"]
    broken = measure([jnp.array([jnp.nan, 0.0])]).to_json()["total"]
    assert (broken["hoyer"], broken["zeros"]) == (None, 1)
    assert len(str(table).splitlines()) == 4
