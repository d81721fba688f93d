"""What is found, told, chosen and asked for wrongly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))


def apply(p, x):
    return jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"][None]) @ p["fc2"]["kernel"]


PARAMS = {"fc1": {"bias": drawn(4), "kernel": drawn(3, 4)}, "fc2": {"kernel": drawn(4, 2)}}
X = drawn(5, 3)


@pytest.fixture(scope="module")
def graph():
    return nnopt.graph(apply, PARAMS, X)


def test_the_table(graph):
    assert str(graph.coupled).splitlines() == [
        "dimension     units  each  members",
        "fc1/kernel:1  4      3     fc1/bias:0 fc1/kernel:1 fc2/kernel:0",
        "frozen        because",
        "fc1/kernel:0  input argument 2",
        "fc2/kernel:1  output",
    ]


def test_members_and_where_units_lie(graph):
    found = graph.coupled["fc1/kernel:1"]
    assert found.members == (("fc1/bias", 0), ("fc1/kernel", 1), ("fc2/kernel", 0))
    assert found.elements == 3
    assert found.exchangeable
    for at in found.indices.values():
        np.testing.assert_array_equal(at, np.arange(4)[:, None])


def test_shapes_will_do(graph):
    shapes = jax.eval_shape(lambda *args: args, PARAMS, X)
    assert nnopt.graph(apply, *shapes).coupled.names == graph.coupled.names


@pytest.mark.parametrize(("reduce", "of"), [("sum", np.sum), ("mean", np.mean), ("max", np.max)])
def test_scores_are_over_the_elements_of_a_unit(graph, reduce, of):
    found = graph.coupled.scores(jax.tree.map(jnp.abs, PARAMS), reduce)["fc1/kernel:1"]
    p = jax.tree.map(np.abs, jax.tree.map(np.asarray, PARAMS))
    wanted = [
        of([p["fc1"]["bias"][j], *p["fc1"]["kernel"][:, j], *p["fc2"]["kernel"][j]])
        for j in range(4)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_best_are_chosen(graph):
    scores = {"fc1/kernel:1": [3.0, 1.0, 4.0, 2.0]}
    for part, multiple, wanted in ((0.5, 1, [1, 0, 1, 0]), (0.1, 1, [0, 0, 1, 0]),
                                   (0.5, 3, [1, 0, 1, 1]), (1.0, 8, [1, 1, 1, 1])):  # fmt: skip
        found = graph.coupled.choose(scores, part, multiple)["fc1/kernel:1"]
        np.testing.assert_array_equal(found, np.array(wanted, bool))


def test_booleans_and_numbers_are_the_same_choice(graph):
    one = graph.mask(PARAMS, {"fc1/kernel:1": np.array([True, False, False, True])})
    two = graph.mask(PARAMS, {"fc1/kernel:1": [0, 3]})
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one["fc1"]["bias"][np.array([1, 2])], 0)
    np.testing.assert_array_equal(one["fc1"]["bias"][0], PARAMS["fc1"]["bias"][0])


# What is given, the error, and words of it.
WRONG = [
    (
        {"fc1/kernl:1": [0]},
        SelectionError,
        "'fc1/kernl:1' is not a dimension. Did you mean fc1",
    ),
    ({"a": [0], "b": [0]}, SelectionError, "2 problems"),
    ({"fc1/kernel:1": []}, ValueRangeError, "no unit of 4 is left; keep at least one"),
    ({"fc1/kernel:1": [False] * 4}, ValueRangeError, "no unit of 4 is left"),
    ({"fc1/kernel:1": [True] * 3}, ValueRangeError, r"booleans of shape \(3,\), where \(4,\)"),
    ({"fc1/kernel:1": [0, 4]}, ValueRangeError, r"not all in 0\.\.3"),
    ({"fc1/kernel:1": 0.5}, ValueRangeError, "give booleans"),
]


@pytest.mark.parametrize(("keep", "error", "words"), WRONG)
def test_wrong_choices(graph, keep, error, words):
    for ask in (graph.mask, graph.shrink):
        with pytest.raises(error, match=words):
            ask(PARAMS, keep)


def test_wrong_parameters(graph):
    kernel = PARAMS["fc2"]["kernel"]
    packed = nnopt.quantization.uniform(8)
    stored = packed.pack(PARAMS, packed.init(PARAMS))
    for params, error, words in (
        ({"fc1": PARAMS["fc1"]}, SelectionError, "fc2/kernel: is missing"),
        (PARAMS | {"fc3": kernel}, SelectionError, "fc3: is not a leaf of the graph"),
        (PARAMS | {"fc2": {"kernel": kernel.T}}, ShapeError, r"fc2/kernel: has shape \(2, 4\)"),
        (stored, CompositionError, r"give nnopt\.materialize"),
    ):
        with pytest.raises(error, match=words):
            graph.shrink(params, {"fc1/kernel:1": [0]})
    small = graph.shrink(PARAMS, {"fc1/kernel:1": [0]})
    with pytest.raises(ShapeError, match="fc2/kernel: has shape"):
        small.apply(PARAMS, X)


def test_wrong_orders_parts_and_names(graph):
    with pytest.raises(ValueRangeError, match="is not a permutation of 4 units"):
        graph.permute(PARAMS, {"fc1/kernel:1": [0, 0, 1, 2]})
    with pytest.raises(ValueRangeError, match=r"keep=1\.5"):
        graph.coupled.choose(graph.coupled.scores(PARAMS), 1.5)
    with pytest.raises(ValueRangeError, match="give 'sum', 'mean' or 'max'"):
        graph.coupled.scores(PARAMS, "median")
    with pytest.raises(SelectionError, match="is not a dimension"):
        graph.coupled["fc9"]
    with pytest.raises(ValueRangeError, match="keep is a float; give units by name"):
        graph.mask(PARAMS, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueRangeError, match="keep='half' is not a fraction"):
        graph.coupled.choose(graph.coupled.scores(PARAMS), "half")  # type: ignore[arg-type]


def test_units_that_meet_different_constants_keep_their_order():
    ordered = nnopt.graph(
        lambda p, x: (x @ p["a"] * jnp.arange(4.0)[None]) @ p["b"],
        {"a": drawn(3, 4), "b": drawn(4, 2)}, X,
    )  # fmt: skip
    with pytest.raises(ValueRangeError, match="cannot change places"):
        ordered.permute({"a": drawn(3, 4), "b": drawn(4, 2)}, {"a:1": [1, 0, 2, 3]})


@pytest.mark.slow
def test_a_large_transformer_is_read_in_two_seconds():
    import time

    from nnopt_jax.zoo.transformer import Transformer

    model = Transformer(inputs=1000, classes=10, width=768, heads=12, hidden=3072, layers=12)
    params = jax.eval_shape(model.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    times = []
    for _ in range(3):
        start = time.process_time()
        found = nnopt.graph(model.__call__, params, ids).coupled
        times.append(time.process_time() - start)
    assert len(found.dimensions) > 12
    assert min(times) < 2
