"""Recipes with a teacher: what the loss is, where the teacher comes from, and what goes wrong."""

from __future__ import annotations

import json
import sys
from textwrap import dedent

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import nnopt_jax as nnopt
from nnopt_jax import recipe as recipes
from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe import prepare
from nnopt_jax.recipe.inputs import batches
from nnopt_jax.recipe.reader import dump

MODULE = """
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np


def net(key, classes=3, inputs=6):
    params = {"w": 0.5 * jax.random.normal(key, (inputs, classes))}
    return params, lambda params, x: x @ params["w"]


def blobs():
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = np.float32(rng.normal(size=(96, 6)) * 0.5 + np.eye(6)[y] * 2)
    split = SimpleNamespace(x=x, y=y.astype(np.int32))
    return SimpleNamespace(train=split, test=split)


def brighter(x, key):
    return 2 * x
"""
TEACHER = {
    "name": "teacher", "model": "taught:net", "data": "taught:blobs", "batch_size": 16, "seed": 7,
    "optimizer": {"source": "optax:sgd", "learning_rate": 0.3},
    "stages": [{"name": "train", "epochs": 2}],
}  # fmt: skip
STUDENT = TEACHER | {
    "name": "student", "log_every": 1, "seed": 1, "augment": "taught:brighter",
    "distill": {"teacher": "teacher.yaml", "weight": 0.75,
                "loss": {"source": "nnopt_jax.transfer:distillation_loss", "temperature": 3.0}},
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "taught.py").write_text(dedent(MODULE))
    (tmp_path / "teacher.yaml").write_text(dump(TEACHER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("taught", None)


def test_the_loss_is_that_of_both(place):
    made = recipes.build(STUDENT)
    recipes.run(made)
    weights = nnopt.load("runs/student/teacher/model.nnopt")["w"]
    setup = prepare(made)
    x, y = next(batches(setup.data.train, 16, setup.order))
    mine = np.asarray(2 * x @ np.asarray(setup.model.params["w"]), np.float64)
    theirs = np.asarray(2 * x @ np.asarray(weights), np.float64)
    p, log_q = softmax(theirs / 3, -1), log_softmax(mine / 3, -1)
    apart = 9 * (p * (np.log(p) - log_q)).sum(-1).mean()
    alone = -log_softmax(mine, -1)[np.arange(16), y].mean()
    first = json.loads((place / "runs/student/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.75 * apart + 0.25 * alone, rel=1e-5)
    # Again: both runs are there. From the folder of the teacher: the same, bit for bit.
    before = (place / "runs/student/teacher/model.nnopt").stat().st_mtime_ns
    recipes.run(made)
    assert (place / "runs/student/teacher/model.nnopt").stat().st_mtime_ns == before
    told = STUDENT["distill"] | {"teacher": "runs/student/teacher"}
    recipes.run(recipes.build(STUDENT | {"distill": told, "output": "runs/other"}))
    one, other = (nnopt.load(f"runs/{name}/model.nnopt")["w"] for name in ("student", "other"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"teacher": "nowhere.yaml"}, "distill.teacher: .*cannot read nowhere.yaml"),
        ({"teacher": "empty"}, "distill.teacher: empty holds no finished run"),
        ({"weight": 1.5}, "distill.weight: given 1.5, wanted one from 0 to 1"),
        ({"wieght": 0.5}, "distill.wieght: unknown key. Did you mean weight?"),
        ({"loss": {"source": "nnopt_jax.transfer:distillation_loss", "temprature": 1}},
         "distill.loss.temprature: unknown key. Did you mean temperature"),
    ],
)  # fmt: skip
def test_mistakes(change, text, place):
    (place / "empty").mkdir()
    with pytest.raises(RecipeError, match=text):
        recipes.run(recipes.build(STUDENT | {"distill": STUDENT["distill"] | change}))
    assert not (place / "runs/student/model.nnopt").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"classes": 4}, r"shape \(2, 4\) for two images, the student \(2, 3\)"),
     ({"inputs": 5}, "does not take inputs of shape")],
)  # fmt: skip
def test_teachers_of_something_else(settings, text, place):
    model = {"source": "taught:net", **settings}
    (place / "other").mkdir()
    (place / "other" / "recipe.yaml").write_text(dump(TEACHER | {"model": model}))
    shape = (settings.get("inputs", 6), settings.get("classes", 3))
    nnopt.save("other/model.nnopt", {"w": jax.numpy.ones(shape)})
    distill = STUDENT["distill"] | {"teacher": "other"}
    with pytest.raises(RecipeError, match=text):
        recipes.run(recipes.build(STUDENT | {"distill": distill}))
