"""What callers hand over wrongly: keys, statistics, gradients, states, transforms, leaves."""

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
from nnopt_jax.transform import Grads

PARAMS = {"k": jnp.ones((6, 4))}
KEY = jax.random.key(0)
magnitude, snip = nnopt.pruning.magnitude(0.5), nnopt.pruning.snip(0.5)
uniform = nnopt.quantization.uniform(8)
tables = nnopt.compression.codebook(2)


@pytest.mark.parametrize("key", [0, "0", np.uint32(0), np.zeros(2, np.int32), KEY[None]])
def test_no_key(key):
    with pytest.raises(ValueRangeError, match=r"random_mask: key is .*one key, jax.random.key\(0"):
        nnopt.pruning.random_mask(0.5).init(PARAMS, key=key)
    with pytest.raises(ValueRangeError, match="johnson_lindenstrauss: key is "):
        nnopt.compression.johnson_lindenstrauss(key, 8, 2)


def test_an_old_key_is_one():
    nnopt.pruning.random_mask(0.5).init(PARAMS, key=jax.random.PRNGKey(0))


@pytest.mark.parametrize("stats", ["gradient", [1], {1: PARAMS}])
def test_no_statistics(stats):
    with pytest.raises(StatisticsError, match=r"snip: stats is .* give the dictionary by name"):
        snip.init(PARAMS, stats=stats)


@pytest.mark.parametrize("shape", [(4, 6), (1, 4), ()])
def test_statistics_and_gradients_of_another_shape(shape):
    wrong = {"k": np.ones(shape)}
    with pytest.raises(ShapeError, match=r"snip: k: has shape \(6, 4\), and its gradient has shap"):
        snip.init(PARAMS, stats={"gradient": wrong})
    with pytest.raises(ShapeError, match=r"magnitude: k: has shape \(6, 4\), and its gradient has"):
        magnitude.update(PARAMS, magnitude.init(PARAMS), grads=Grads(None, wrong))


@pytest.mark.parametrize("tx", [magnitude, nnopt.chain(magnitude), nnopt.at("k", magnitude)])
@pytest.mark.parametrize("grads", [PARAMS, 0, (PARAMS, PARAMS)])
def test_gradients_without_their_other_half(tx, grads):
    with pytest.raises(StatisticsError, match=r"takes what nnopt\.value_and_grad returned"):
        tx.update(PARAMS, tx.init(PARAMS), grads=grads)


@pytest.mark.parametrize(
    ("tx", "state"),
    [
        (magnitude, None),
        (magnitude, (1, 2, 3)),
        (magnitude, uniform.init(PARAMS)),
        (uniform, magnitude.init(PARAMS)),
        (tables, (magnitude.init(PARAMS),)),
        (nnopt.chain(magnitude, uniform, tables), magnitude.init(PARAMS)),
        (nnopt.chain(magnitude, uniform), (magnitude.init(PARAMS),)),
        (nnopt.chain(magnitude), None),
    ],
)
def test_state_of_something_else(tx, state):
    with pytest.raises(CompositionError, match=r"give the state that tx\.init made"):
        tx.apply(PARAMS, state)
    with pytest.raises(CompositionError, match=r"give the state that tx\.init made"):
        tx.update(PARAMS, state)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (5, "the int 5, no transform"),
        (nnopt.pruning.magnitude, r"call it: magnitude\(...\)"),
        ([magnitude], "one by one"),
    ],
)
def test_no_transform(given, text):
    with pytest.raises(CompositionError, match=text):
        nnopt.plan(given, PARAMS)
    with pytest.raises(CompositionError, match=f"chain: link 2 is .*{text}"):
        nnopt.chain(magnitude, given)
    with pytest.raises(CompositionError, match=f"at: .*{text}"):
        nnopt.at("k", given)


@pytest.mark.parametrize("tx", [magnitude, uniform, tables])
def test_leaves_that_are_no_arrays_are_all_listed(tx):
    with pytest.raises(CompositionError) as caught:
        tx.init({**PARAMS, "s": 1.0, "f": str})
    assert "s: is the float 1.0; make it an array: jnp.asarray(1.0)" in str(caught.value)
    assert "f: is of type type; leave it out" in str(caught.value)


@pytest.mark.parametrize("score", [lambda *_: None, lambda *_: "x", lambda path, w, g: 1j * w])
def test_scores_that_are_none(score):
    with pytest.raises(ShapeError, match=r"k: score returned .* return one real score for each"):
        nnopt.pruning.saliency(0.5, score=score).init(PARAMS)


def test_score_of_one_argument():
    with pytest.raises(ValueRangeError, match=r"is no function \(path, weight, gradient\)"):
        nnopt.pruning.saliency(0.5, score=lambda weight: weight)


def test_predicate_of_one_argument():
    with pytest.raises(SelectionError, match=r"<lambda> is no predicate \(path, leaf\)"):
        nnopt.tree.selector(lambda p: True)
