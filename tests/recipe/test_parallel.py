"""Recipes on a mesh: what one device gives, and what does not fit."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax import recipe as recipes
from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe import Callback, prepare
from nnopt_jax.tree import flatten

MODULE = """
from types import SimpleNamespace
import jax, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16, name="hidden")(x)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(3, name="out")(jax.nn.relu(x))


def blobs():
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = np.float32(rng.normal(size=(96, 8)) * 0.5 + np.eye(8)[y] * 2)
    split = SimpleNamespace(x=x, y=y.astype(np.int32))
    return SimpleNamespace(train=split, test=split)


def brighter(x, key):
    return x * (1 + jax.random.uniform(key))
"""
RECIPE = {
    "name": "spread", "model": "spread_model:Net", "data": "spread_model:blobs", "batch_size": 16,
    "augment": "spread_model:brighter", "log_every": 3,
    "optimizer": {"source": "optax:sgd", "learning_rate": 0.1},
    "stages": [
        {"name": "train", "epochs": 1},
        {"name": "prune", "epochs": 1, "transforms": [
            {"pruning.taylor": {"sparsity": 0.5, "where": "**/kernel"}},
            {"quantization.uniform": {"bits": 8}}]},
    ],
}  # fmt: skip
MESH = {
    "mesh": {"data": 2, "fsdp": 2, "model": 2},
    "rules": [{"where": "hidden/kernel", "split": [None, "model"]},
              {"where": "out/kernel", "split": ["model"]}],
    "least": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "spread_model.py").write_text(dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_gives():
    found = {}
    for name, extra in (("one", {}), ("mesh", {"parallel": MESH})):
        summary = recipes.run(recipes.build(RECIPE | extra | {"output": name}))
        losses = [row["loss"] for row in summary.rows]
        found[name] = losses, flatten(nnopt.materialize(nnopt.load(f"{name}/model.nnopt")))
    np.testing.assert_allclose(found["mesh"][0], found["one"][0], rtol=2e-5)
    for path, leaf in found["one"][1].items():
        np.testing.assert_allclose(found["mesh"][1][path], leaf, rtol=1e-3, atol=1e-3, err_msg=path)


class StopsAt(Callback):
    """Is killed where a stage begins."""

    def __init__(self, name):
        self.name = name

    def stage(self, name, place, steps, done):
        if name == self.name:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_where_its_shares_lay():
    recipes.run(recipes.build(RECIPE | {"parallel": MESH, "output": "whole"}))
    stopped = recipes.build(RECIPE | {"parallel": MESH, "output": "stopped"})
    with pytest.raises(KeyboardInterrupt):
        recipes.run(stopped, callback=StopsAt("prune"))
    recipes.run(stopped)
    one, other = (nnopt.load(f"{name}/model.nnopt") for name in ("whole", "stopped"))
    for path, leaf in flatten(nnopt.materialize(one)).items():
        np.testing.assert_array_equal(flatten(nnopt.materialize(other))[path], leaf)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mesh": {"data": 3}}, "parallel.mesh: data=3 takes 3 devices, and there are 8"),
        ({"mesh": [8]}, "parallel.mesh: given a list, wanted a mapping"),
        ({"rules": [{"where": "hiden/*", "split": ["model"]}]}, "matched no leaf. Nearest: hidden"),
        ({"rules": [{"where": "out/kernel", "split": [None, "model"]}]}, "size 3 into 2"),
        ({"mesh": {"data": 8}, "rules": []}, None),
        ({"rule": []}, "parallel.rule: unknown key. Did you mean rules?"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(change, told):
    if told is None:
        assert prepare(recipes.build(RECIPE | {"parallel": MESH | change})).placement is not None
        with pytest.raises(RecipeError, match="12 rows do not divide into 8 shares"):
            prepare(recipes.build(RECIPE | {"parallel": MESH | change, "batch_size": 12}))
        return
    with pytest.raises(RecipeError, match=told):
        prepare(recipes.build(RECIPE | {"parallel": MESH | change}))
