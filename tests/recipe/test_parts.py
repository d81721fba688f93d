"""The parts of a run, one by one: data, batches, stages, folders."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import adapt
from nnopt_jax.recipe import build
from nnopt_jax.recipe.inputs import Examples, batches, model_graph, open_data
from nnopt_jax.recipe.recipe_plan import Carry, phases
from nnopt_jax.recipe.run_folder import RunFolder

RAW = {"name": "demo", "model": "m:f", "data": "fixed_data:make", "batch_size": 2}
STAGES = [{"name": "train", "epochs": 1}]


def test_batches_cover_an_epoch_once_each():
    split = Examples(np.arange(10), np.arange(10) * 2)
    feed = batches(split, 3, jax.random.key(1))
    first, second = ([next(feed) for _ in range(3)] for _ in range(2))
    for epoch in (first, second):
        seen = np.concatenate([x for x, _ in epoch])
        assert len(set(seen.tolist())) == 9
        np.testing.assert_array_equal(np.concatenate([y for _, y in epoch]), seen * 2)
    assert [x.tolist() for x, _ in first] != [x.tolist() for x, _ in second]


@pytest.mark.parametrize("start", [0, 1, 3, 7, 12])
def test_batches_go_on_where_they_stopped(start):
    split = Examples(np.arange(10), np.arange(10))
    whole = batches(split, 3, jax.random.key(1))
    for _ in range(start):
        next(whole)
    later = batches(split, 3, jax.random.key(1), start=start)
    for _ in range(5):
        np.testing.assert_array_equal(next(whole).x, next(later).x)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SimpleNamespace(train=None, test=None), "2 problems"),
        (SimpleNamespace(x=1), "gave none with arrays x and y"),
        (([1], [2]), "gave none with arrays x and y"),
    ],
)
def test_data_that_is_none(monkeypatch, data, message):
    module = SimpleNamespace(make=lambda: data)
    monkeypatch.setitem(__import__("sys").modules, "fixed_data", module)
    with pytest.raises(RecipeError, match=message):
        open_data(build(RAW | {"stages": STAGES}))


def test_splits_whose_lengths_differ(monkeypatch):
    bad = SimpleNamespace(x=np.zeros((4, 2)), y=np.zeros(3, int))
    module = SimpleNamespace(make=lambda: SimpleNamespace(train=bad, test=bad))
    monkeypatch.setitem(__import__("sys").modules, "fixed_data", module)
    with pytest.raises(RecipeError, match="train: 4 inputs and 3 labels"):
        open_data(build(RAW | {"stages": STAGES}))


def test_links_keep_their_states_in_later_stages():
    stages = [
        {"name": "prune", "epochs": 1, "transforms": [{"pruning.magnitude": {"sparsity": 0.5}}]},
        {"name": "quantize", "epochs": 1, "transforms": ["quantization.uniform"]},
    ]
    prune, quantize = phases(build(RAW | {"stages": stages}), examples=4)
    assert (prune.first, prune.last, quantize.first, quantize.last) == (0, 2, 2, 4)
    key = jax.random.key(0)
    carry = prune.begin(Carry({"w": jnp.array([[3.0, 1.0]])}, {}, (), None), key, {})
    carry = carry._replace(params={"w": jnp.array([[1.0, 3.0]])})
    later = quantize.begin(carry, key, {})
    assert later.state[0] is carry.state[0]
    assert quantize.tx.apply(later.params, later.state)["w"].tolist() == [[1.0, 0.0]]


def test_shares_are_those_of_the_own_stage():
    schedule = {"source": "optax:linear_schedule", "init_value": 1.0, "end_value": 0.0}
    optimizer = {
        "source": "optax:sgd",
        "learning_rate": schedule | {"transition_steps": "50%"},
    }
    stages = [
        {"name": "a", "epochs": 2, "optimizer": optimizer},
        {"name": "b", "epochs": 4, "optimizer": optimizer},
    ]
    for phase, steps in zip(phases(build(RAW | {"stages": stages}), 20), (20, 40), strict=True):
        state = phase.optimizer.init(jnp.zeros(()))
        rates = []
        for _ in range(steps // 2 + 1):
            update, state = phase.optimizer.update(jnp.ones(()), state)
            rates.append(-float(update))
        assert rates[0] == 1.0
        assert rates[-2] > 0.0
        assert rates[-1] == 0.0


def test_a_folder_holds_one_recipe(tmp_path):
    folder = RunFolder(tmp_path / "run")
    recipe = build(RAW | {"stages": STAGES})
    folder.check_same(recipe)
    folder.claim(recipe, fresh=False)
    folder.check_same(recipe)
    folder.check_same(build(RAW | {"stages": STAGES, "output": "elsewhere"}))
    with pytest.raises(RecipeError, match="seed: 0 there, 5 here"):
        folder.check_same(build(RAW | {"stages": STAGES, "seed": 5}))
    with pytest.raises(RecipeError, match=r"stages: \[.*\] there, \[.*\] here"):
        folder.check_same(build(RAW | {"stages": [*STAGES, {"name": "b", "epochs": 1}]}))
    folder.artifact.write_text("old")
    folder.claim(build(RAW | {"stages": STAGES, "seed": 5}), fresh=True)
    assert not folder.artifact.exists()
    assert folder.finished() is None


def test_a_recipe_binds_its_transforms_to_the_graph_of_its_model():
    params = {"body": jnp.ones((4, 8)), "head": jnp.ones((2, 4))}  # (out, in)
    model = adapt((params, lambda p, x: x @ p["body"].T @ p["head"].T), None, None)
    graph = model_graph(model, jnp.ones((3, 8)))
    transforms = [{"pruning.magnitude": {"pattern": "2:4"}}]
    stages = [{"name": "prune", "epochs": 1, "transforms": transforms}]
    (phase,) = phases(build(RAW | {"stages": stages}), 4, graph)
    state = phase.tx.init(params)
    assert set(state[0].rest) == {"body"}
    mask = np.asarray(state[0].rest["body"]["mask"])
    np.testing.assert_array_equal(mask, np.tile([True, True, False, False], (4, 2)))
