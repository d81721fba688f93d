"""What callers hand over wrongly: keys, statistics, gradients, states, transforms, leaves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax import quantization as q
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
        (5, "the int 5, not a transform"),
        (nnopt.pruning.magnitude, r"call it: magnitude\(...\)"),
        ([magnitude], "one by one"),
    ],
)
def test_no_transform(given, text):
    with pytest.raises(CompositionError, match=text):
        nnopt.plan(given, PARAMS)
    with pytest.raises(CompositionError, match=f"chain: transform 2 is .*{text}"):
        nnopt.chain(magnitude, given)
    with pytest.raises(CompositionError, match=f"at: .*{text}"):
        nnopt.at("k", given)


@pytest.mark.parametrize("tx", [magnitude, uniform, tables])
def test_numbers_are_all_listed_and_functions_pass_through(tx):
    with pytest.raises(CompositionError) as caught:
        tx.init({**PARAMS, "s": 1.0, "t": 2, "f": str})
    assert "s: is the float 1.0; make it an array: jnp.asarray(1.0)" in str(caught.value)
    assert "t: is the int 2; make it an array: jnp.asarray(2)" in str(caught.value)
    assert "f:" not in str(caught.value)
    params = {**PARAMS, "f": str}
    assert tx.apply(params, tx.init(params))["f"] is str


@pytest.mark.parametrize("score", [lambda *_: None, lambda *_: "x", lambda path, w, g: 1j * w])
def test_scores_that_are_none(score):
    with pytest.raises(ShapeError, match=r"k: score returned .* return one real score for each"):
        nnopt.pruning.saliency(0.5, score=score).init(PARAMS)


def test_score_of_one_argument():
    with pytest.raises(ValueRangeError, match=r"is not a function \(path, weight, gradient\)"):
        nnopt.pruning.saliency(0.5, score=lambda weight: weight)


def test_predicate_of_one_argument():
    with pytest.raises(SelectionError, match=r"<lambda> is not a predicate \(path, leaf\)"):
        nnopt.tree.selector(lambda p: True)


def test_keys_of_two_types():
    with pytest.raises(SelectionError, match="Give the keys of a dictionary one type"):
        magnitude.init({0: jnp.ones((2, 2)), "0": jnp.ones((2, 2))})


def test_keys_of_two_types_in_a_file(tmp_path):
    with pytest.raises(SelectionError, match="Give the keys of a dictionary one type"):
        nnopt.save(tmp_path / "model.nnopt", {0: jnp.ones(2), "0": jnp.ones(2)})


@pytest.mark.parametrize("given", [{"k": "x"}, {"k": 16.0}, {"k": -1}, {"k": True}, ["k"], 5])
def test_capacities_that_are_no_counts(given):
    with pytest.raises(ValueRangeError, match="store: capacities"):
        magnitude.pack(PARAMS, magnitude.init(PARAMS), capacities=given)


@pytest.mark.parametrize("use", [nnopt.load, nnopt.inspect, lambda path: nnopt.save(path, PARAMS)])
def test_no_path(use):
    with pytest.raises(ValueRangeError, match="path is of type NoneType; give the name of a file"):
        use(None)


def test_a_limit_that_is_no_number():
    with pytest.raises(ValueRangeError, match="max_bytes='1' is not a whole number"):
        nnopt.load("model.nnopt", max_bytes="1")


SEEN = q.Range.start()
ONES = jnp.ones((2, 2))
ROUNDINGS = [
    lambda x: q.fake_quant(x, 0.5),
    lambda x: q.fake_quant(ONES, x),
    q.dynamic,
    lambda x: q.lsq_activation(x, 0.5),
    q.lsq_step,
    lambda x: q.update_range(SEEN, x),
    lambda x: q.ema_range(q.EmaRange.start(), x),
]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("x", ["text", None, np.arange(4)])
def test_activations_that_are_no_floats(rounding, x):
    with pytest.raises(ValueRangeError, match=r"^quantization.* is .*; give floats\.$"):
        rounding(x)


@pytest.mark.parametrize("grid", [(0.0,), (-1.0,), (np.nan,), (1.0, 0.5), (1.0, 300), (1.0, "a")])
def test_grids_that_are_none(grid):
    with pytest.raises(ValueRangeError, match=r"fake_quant: (scale|zero)="):
        q.fake_quant(ONES, *grid)


def test_a_scalar_has_no_axes():
    with pytest.raises(ValueRangeError, match="axis=-1 of a scalar, which has no axes; give None"):
        q.dynamic(1.0, axis=-1)


GRIDS = [q.absmax_grid, q.percentile_grid, q.mse_grid, q.kl_grid, q.ema_grid]


@pytest.mark.parametrize("grid", GRIDS)
def test_ranges_that_are_none(grid):
    with pytest.raises(ValueRangeError, match=r"state is the int 3; give what .* returned"):
        grid(3)
    with pytest.raises(ValueRangeError, match=r"bits=\[8\] is not a whole number"):
        grid(q.EmaRange.start() if grid is q.ema_grid else SEEN, bits=[8])


@pytest.mark.parametrize("x", [None, 5, "x", np.zeros((6, 0))])
def test_no_data_of_components(x):
    with pytest.raises(ShapeError, match=r"compression\.pca: "):
        nnopt.compression.pca(x, 1)


def test_no_examples_at_all():
    with pytest.raises(ValueRangeError, match="there are no data"):
        nnopt.compression.pca(np.zeros((0, 6)), 1)


def test_no_projection():
    with pytest.raises(CompositionError, match="project: projection is of type dict without"):
        nnopt.compression.project({}, ONES)
    with pytest.raises(CompositionError, match="projected: the parameters are not"):
        nnopt.compression.projected(lambda params, x: x)(PARAMS, ONES)
    with pytest.raises(ValueRangeError, match="learned='no' is neither True nor False"):
        nnopt.compression.projected(lambda params, x: x, learned="no")
