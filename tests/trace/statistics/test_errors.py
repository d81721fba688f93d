"""What is wrong is told before anything runs, with what to type instead."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import (
    CompositionError,
    SelectionError,
    ShapeError,
    StatisticsError,
    ValueRangeError,
)
from nnopt_jax.trace import input_gram, input_histogram

PARAMS = {"deep": {"kernel": jnp.ones((6, 3)), "bias": jnp.ones(3)}, "count": jnp.int32(1)}
X = jnp.ones((2, 6))


def apply(p, x):
    return x @ p["deep"]["kernel"] + p["deep"]["bias"][None]


def observe(*statistics, function=apply, batches=(X,), **settings):
    graph = nnopt.graph(function, PARAMS, X)
    return graph.observe(PARAMS, batches, statistics or "input_absmax", **settings)


def test_batches_and_names():
    with pytest.raises(StatisticsError, match="there is no batch"):
        observe(batches=[])
    with pytest.raises(SelectionError) as error:
        observe("input_absmx", "fisher", 3)
    assert "no statistic 'input_absmx'. Did you mean input_absmax?" in str(error.value)
    assert "no statistic 3. Known: input_absmax" in str(error.value)
    with pytest.raises(SelectionError, match="'input_gram' is requested twice"):
        observe("input_gram", input_gram(block=3))
    with pytest.raises(SelectionError, match="no statistic is requested"):
        nnopt.graph(apply, PARAMS, X).observe(PARAMS, [X], ())
    with pytest.raises(SelectionError, match=r"'\*\*/kernl' matched no leaf. Nearest: deep/kernel"):
        observe(where="**/kernl")
    with pytest.raises(SelectionError, match="matched no leaf"):
        observe(where="count")  # no float
    with pytest.raises(ValueRangeError, match="block=0 is not a whole number"):
        input_gram(block=0)
    with pytest.raises(ValueRangeError, match="bins=300 is not a power of two"):
        input_histogram(300)


def test_leaves_that_nothing_meets():
    seen = observe()
    assert seen.lacking["input_absmax"] == {"deep/bias": "add does not sum over it"}
    with pytest.raises(StatisticsError, match="deep/bias: has no input_absmax: add does not sum"):
        observe(strict=True)
    seen = nnopt.graph(lambda p, x: x, {"w": X}, X).observe({"w": X}, [X])
    assert seen.lacking["input_absmax"] == {"w": "no step uses it"}


def test_blocks_must_divide():
    with pytest.raises(ShapeError, match="deep/kernel: input_gram: block 4 does not divide 6"):
        observe(input_gram(block=4))


def test_functions():
    with pytest.raises(CompositionError, match="int is not a function"):
        nnopt.graph(3, PARAMS, X)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        observe(function=lambda p: p)

    def branching(p, x):
        return apply(p, x) if x.sum() > 0 else x

    with pytest.raises(
        CompositionError,
        match=r"branching: test_errors.py:.* needs the value of an expression that",
    ):
        observe(function=branching)

    def branching_later(p, x):
        return branching(p, x) if len(x) > 2 else apply(p, x)

    with pytest.raises(
        CompositionError, match=r"branching_later: test_errors.py:.* depends on argument 2"
    ):
        observe(function=branching_later, batches=[X, jnp.ones((3, 6))])
    with pytest.raises(CompositionError, match="needs arrays, and a batch holds 'text'"):
        observe(batches=["text"])


def test_slopes_need_a_loss():
    with pytest.raises(StatisticsError, match=r"'gradient' need.* returns float32\[2,3\]"):
        observe("gradient")
    with pytest.raises(StatisticsError, match="returns int32"):
        observe("fisher", function=lambda p, x: p["count"])
    pair = lambda p, x: (apply(p, x).sum(), x)  # noqa: E731 - one line says it
    with pytest.raises(StatisticsError, match=r"returns float32\[\], float32\[2,6\]"):
        observe("fisher", function=pair)


def test_batches_of_another_shape_that_are_used_otherwise():
    def turned(p, x):
        return x @ p if x.shape[1] == 4 else x @ p.T

    w = np.ones((4, 3), "f")
    with pytest.raises(CompositionError, match="its use 0 is another one for batches of another"):
        nnopt.graph(turned, w, np.ones((2, 4), "f")).observe(
            w, [np.ones((2, 4), "f"), np.ones((2, 3), "f")], "input_gram"
        )


def test_progress_is_told_after_each_batch():
    told = []
    observe(batches=[X, X], progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    told.clear()
    observe(batches=(x for x in (X, X)), progress=lambda *at: told.append(at))
    assert told == [(1, None), (2, None)]


def test_tables():
    seen = observe("input_absmax", "input_gram")
    text = str(seen)
    assert "deep/kernel  2     dot_general  1" in text
    assert "float32[6,6]" in text
    table = str(seen.uses)
    assert "test_errors.py" in table
    assert table.splitlines()[0].split()[:5] == ["leaf", "use", "used", "by", "contracted"]
    assert set(seen) == {"input_absmax", "input_gram"}


def test_shapes_will_do_for_uses():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    found = nnopt.graph(apply, shapes, jax.ShapeDtypeStruct((2, 6), jnp.float32)).uses
    assert [(u.path, u.primitive) for u in found] == [
        ("deep/bias", "add"),
        ("deep/kernel", "dot_general"),
    ]
