"""The plan: a table and its JSON, told from shapes alone."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import optax
import pytest

import nnopt_jax as nnopt

SHAPES = {
    "body": {
        "bias": jax.ShapeDtypeStruct((100,), jnp.float32),
        "kernel": jax.ShapeDtypeStruct((300, 100), jnp.float32),
    },
    "head": {"kernel": jax.ShapeDtypeStruct((100, 10), jnp.bfloat16)},
}


def test_table():
    tx = nnopt.chain(
        nnopt.pruning.magnitude(optax.linear_schedule(0.0, 0.9, 10)),
        nnopt.compression.codebook(16, where="body/kernel"),
    )
    lines = [line.split() for line in str(nnopt.plan(tx, SHAPES)).splitlines()]
    assert lines == [
        ["chain(pruning.magnitude,", "compression.codebook)"],
        ["leaf", "before", "after", "bytes"],
        ["body/bias", "float32[100]", "unchanged", "400", "->", "400"],
        ["body/kernel", "float32[300,100]", "Sparse(values", "Codebook(indices", "4-bit[3000],",
         "table", "float32[16]),", "support", "1-bit[300,100])", "120,000", "->", "<=", "5,314"],
        ["head/kernel", "bfloat16[100,10]", "Sparse(values", "bfloat16[100],", "support",
         "1-bit[100,10])", "2,000", "->", "<=", "325"],
        ["total", "31,100", "parameters", "122,400", "->", "<=", "6,039", "(>=", "20.3x)"],
    ]  # fmt: skip


def test_columns_line_up():
    table = str(nnopt.plan(nnopt.quantization.uniform(8), SHAPES)).splitlines()[1:]
    start = table[0].index("before")
    assert all(line[start - 1] == " " and line[start] != " " for line in table)


def test_json():
    plan = nnopt.plan(nnopt.quantization.uniform(8), SHAPES)
    read = json.loads(json.dumps(plan.to_json()))
    assert read["name"] == "quantization.uniform"
    assert read["rows"][1] == {
        "path": "body/kernel",
        "before": "float32[300,100]",
        "after": "Quantized(codes int8[300,100], scale float32[1,1])",
        "bits_before": 32 * 30000,
        "bits_after": 8 * 30000 + 32,
        "bound": False,
        "size": 30000,
        "note": "",
    }
    assert sum(row["bits_after"] for row in read["rows"]) == plan.bits_after


def test_plan_is_what_pack_does():
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype), SHAPES)
    tx = nnopt.quantization.uniform(4, granularity="channel")
    packed = tx.pack(params, tx.init(params))
    assert nnopt.plan(tx, SHAPES).bits_after == nnopt.tree.tree_bits(packed)


@pytest.mark.parametrize("sparsity", [0.5, 0.99])
def test_bound_holds(sparsity):
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype), SHAPES)
    for allocation in ("uniform", "global"):
        tx = nnopt.pruning.magnitude(sparsity, allocation=allocation)
        packed = tx.pack(params, tx.init(params))
        plan = nnopt.plan(tx, SHAPES)
        assert nnopt.tree.tree_bits(packed) <= plan.bits_after
        assert [row.bound for row in plan.rows] == [False, True, True]


def test_plan_of_packed_parameters():
    params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
    tx = nnopt.quantization.uniform(8)
    packed = tx.pack(params, tx.init(params))
    plan = nnopt.plan(nnopt.pruning.magnitude(0.5, where="bias"), packed)
    assert [row.before for row in plan.rows] == [
        "float32[4]",
        "Quantized(codes int8[8,4], scale float32[1,1])",
    ]
