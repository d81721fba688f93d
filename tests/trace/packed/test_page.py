"""What docs/packed.md says is so: its code runs, its report is printed, its table is true."""

from __future__ import annotations

import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt

TEXT = (pathlib.Path(__file__).parents[3] / "docs" / "packed.md").read_text()
KEY = jax.random.key(0)
MATRIX, STACK, KERNEL = ((32, 16), (4, 32, 16), (3, 3, 32, 16))


def convolved(w, x):
    order = jax.lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=order)


USES = {
    "`x @ w`": (MATRIX, lambda w, x: x @ w, (1, 32)),
    "`x @ w.T`": (MATRIX, lambda w, x: x @ w.T, (1, 16)),
    "convolution": (KERNEL, convolved, (2, 4, 4, 32)),
    "`w[ids]`": (MATRIX, lambda w, x: w[x.astype(int)], (5,)),
    "`w.T`": (MATRIX, lambda w, x: w.T, ()),
    "`w[1]` of a stack": (STACK, lambda w, x: w[1], ()),
    "cast": (MATRIX, lambda w, x: w.astype(jnp.bfloat16), ()),
}


def table():
    below = TEXT.partition("<!-- tests/trace/packed/test_page.py -->")[2].strip().splitlines()
    lines = itertools.takewhile(lambda line: line.startswith("| "), below)
    rows = [line.strip("| \n").split(" | ") for line in lines]
    return rows[0][1:], {row[0].strip("`"): row[1:] for row in rows[2:]}


def test_the_code_runs_and_prints_the_report(capsys):
    first, second, third = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    scope = {}
    exec(compile(first, "model.py", "exec"), scope)
    printed = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)[1]
    assert capsys.readouterr().out == printed
    dense = nnopt.materialize(scope["packed"])
    wanted = scope["apply"](dense, scope["tokens"])
    np.testing.assert_allclose(scope["logits"], wanted, rtol=1e-4, atol=1e-4)
    exec(compile(second, "model.py", "exec"), scope)
    up, down = (np.asarray(nnopt.materialize(scope["rounded"])[name]) for name in ("up", "down"))
    hidden = np.maximum(np.ones((4, 32)) @ up, 0)  # ones are on every grid
    scale = hidden.max(-1, keepdims=True) / 127
    shown = np.rint(hidden / scale) * scale
    np.testing.assert_allclose(scope["logits"], shown @ down, rtol=1e-4, atol=1e-4)
    assert np.abs(shown @ down - hidden @ down).max() > 1e-2
    exec(compile(third, "model.py", "exec"), scope)
    np.testing.assert_allclose(scope["logits"], wanted, rtol=1e-4, atol=1e-4)
    report = nnopt.on_packed(scope["apply"]).report(scope["ready"], scope["tokens"])
    assert not report.materialized


@pytest.mark.parametrize("name", table()[1])
def test_a_row_of_the_table_is_true(name):
    columns, rows = table()
    assert columns == list(USES)
    tx = eval(f"nnopt.{name}", {"nnopt": nnopt})
    for column, told in zip(columns, rows[name], strict=True):
        shape, function, given = USES[column]
        params = {"w": jax.random.normal(KEY, shape)}
        layers = {"axes": {"w": nnopt.Axes(1, 2, batch_axis=0)}}
        bound = tx.bind(**layers) if shape == STACK else tx
        packed = jax.eval_shape(lambda p, t=bound: t.pack(p, t.init(p, key=KEY)), params)
        run = nnopt.on_packed(lambda p, x, f=function: f(p["w"], x))
        report = run.report(packed, jax.ShapeDtypeStruct(given, jnp.float32))
        assert ("dense" if report.materialized else "packed") == told.split(",")[0], column


def test_groups_are_for_few_rows():
    tx, params = nnopt.quantization.uniform(8, group=8), {"w": jnp.ones(MATRIX)}
    packed = jax.eval_shape(lambda p: tx.pack(p, tx.init(p)), params)
    run = nnopt.on_packed(lambda p, x: x @ p["w"])
    made_dense = [
        len(run.report(packed, jax.ShapeDtypeStruct((rows, 32), jnp.float32)).materialized)
        for rows in (8, 9)
    ]
    assert made_dense == [0, 1]
