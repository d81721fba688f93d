"""Recipes that begin with the layers of another network, and files that hold the program."""

from __future__ import annotations

import json
import subprocess
import sys
from textwrap import dedent

import jax
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax import recipe as recipes
from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe import prepare
from nnopt_jax.recipe.dependencies import required_runs, warm_start
from nnopt_jax.recipe.inputs import batches
from nnopt_jax.recipe.reader import dump

MODULE = """
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn


def net(key, layers=2, width=4):
    keys = jax.random.split(key, layers + 2)
    block = lambda key: {"up": {"kernel": jax.random.normal(key, (width, width)) / 2},
                         "down": {"kernel": jnp.eye(width)}}
    params = {f"block_{i}": block(keys[i]) for i in range(layers)}
    params["inside"] = {"kernel": jax.random.normal(keys[-2], (6, width)) / 2}
    params["head"] = {"kernel": jax.random.normal(keys[-1], (width, 3)) / 2}

    def apply(params, x):
        h = x @ params["inside"]["kernel"]
        for i in range(layers):
            block = params[f"block_{i}"]
            h = h + jnp.tanh(h @ block["up"]["kernel"]) @ block["down"]["kernel"]
        return h @ params["head"]["kernel"]

    return params, apply


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4, name="in")(x))
        return nn.Dense(3, name="out")(x)


def blobs():
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = np.float32(rng.normal(size=(96, 6)) * 0.5 + np.eye(6)[y] * 2)
    split = SimpleNamespace(x=x, y=y.astype(np.int32))
    return SimpleNamespace(train=split, test=split)
"""
DEEP = {
    "name": "deep", "model": {"source": "begun:net", "layers": 4}, "data": "begun:blobs",
    "batch_size": 16, "optimizer": {"source": "optax:sgd", "learning_rate": 0.1},
    "stages": [{"name": "train", "epochs": 1}],
}  # fmt: skip
START = {"run": "deep.yaml", "layers": "block_{index}"}
SHALLOW = DEEP | {"name": "shallow", "model": "begun:net", "start": START, "log_every": 1}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "begun.py").write_text(dedent(MODULE))
    (tmp_path / "deep.yaml").write_text(dump(DEEP))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("begun", None)


def begun(start, model="begun:net"):
    """The parameters that a recipe's training starts from."""
    made = recipes.build(SHALLOW | {"start": start, "model": model})
    setup = prepare(made)
    (one,) = required_runs(made)
    return warm_start(made.start, one.model(setup.data).params, setup.model)


def test_it_starts_from_the_run_that_is_run_first(place):
    summary = recipes.run(recipes.build(SHALLOW))
    deep = nnopt.load("runs/shallow/start/model.nnopt")
    ours = {"block_0": deep["block_0"], "block_1": deep["block_2"]}
    theirs = {name: deep[name] for name in ("inside", "head")}
    # The first loss, by hand, of the first batch that the seed draws.
    setup = prepare(recipes.build(SHALLOW))
    x, y = next(batches(setup.data.train, 16, setup.order))
    logits = np.asarray(setup.model.apply(ours | theirs, {}, x)[0], np.float64)
    loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), y]
    assert summary.rows[0]["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    # The same run again needs nothing; one from its folder ends with the same weights.
    recipes.run(recipes.build(SHALLOW))
    told = {"start": START | {"run": "runs/shallow/start"}, "output": "runs/other"}
    recipes.run(recipes.build(SHALLOW | told))
    one, other = (nnopt.load(f"runs/{name}/model.nnopt") for name in ("shallow", "other"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert "start:" in (place / "runs/shallow/recipe.yaml").read_text()


def test_layers_by_number_by_depth_and_in_silence():
    recipes.run(recipes.build(DEEP))
    deep = nnopt.load("runs/deep/model.nnopt")
    same = {"source": "begun:net", "layers": 4}
    assert begun({"run": "runs/deep"}, same).params.keys() == deep.keys()
    last = begun(START | {"run": "runs/deep", "how": "last"}).params
    np.testing.assert_array_equal(last["block_0"]["up"]["kernel"], deep["block_2"]["up"]["kernel"])
    grown = START | {"run": "runs/deep", "how": "stack", "zero": ["down/**"]}
    model = begun(grown, {"source": "begun:net", "layers": 6})
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    before = prepare(recipes.build(DEEP)).model.apply(deep, {}, x)[0]
    np.testing.assert_allclose(model.apply(model.params, {}, x)[0], before, rtol=1e-6)
    assert not np.asarray(model.params["block_4"]["down"]["kernel"]).any()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"run": "nowhere.yaml"}, "start.run: .*cannot read nowhere.yaml"),
        ({"run": "."}, "start.run: . holds no finished run"),
        ({"layers": "blocks_{index}"}, "start: layers: .*blocks_"),
        ({"layers": None}, "(?s)start: .*block_2"),
        ({"how": "evenly"}, "start.how: given 'evenly', wanted one of first, last"),
        ({"layers": None, "zero": ["down/**"]}, "start.zero: is for new layers"),
        ({"lairs": "block"}, "start.lairs: unknown key. Did you mean layers?"),
    ],
)
def test_mistakes(change, text, place):
    with pytest.raises(RecipeError, match=text):
        recipes.run(recipes.build(SHALLOW | {"start": START | change}))
    assert not (place / "runs/shallow/model.nnopt").exists()


def test_a_recipe_that_starts_from_itself_is_refused(place):
    told = dump(SHALLOW | {"start": START | {"run": "itself.yaml"}})
    (place / "itself.yaml").write_text(told)
    with pytest.raises(RecipeError, match="is this recipe itself"):
        recipes.run(recipes.load("itself.yaml"))


ALONE = """
import sys
import numpy as np
import nnopt_jax as nnopt
model = nnopt.transfer.load_model(sys.argv[1])
np.save("logits.npy", model(np.load("x.npy")))
assert "begun" not in sys.modules and "flax" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["begun:net", "begun:Normalized"])
def test_the_file_runs_without_the_code(model, place):
    prune = {"pruning.magnitude": {"sparsity": 0.5, "where": "**/kernel"}}
    stages = [{"name": "train", "epochs": 1, "transforms": [prune]}]
    made = recipes.build(DEEP | {"model": model, "program": True, "stages": stages})
    recipes.run(made)
    found = nnopt.load("runs/deep/model.nnopt")
    variables = nnopt.materialize(found)
    extra = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
    setup = prepare(made)
    x = setup.data.test.x[:5]
    shown = variables["params"] if extra else variables
    wanted = setup.model.apply(shown, extra, x)[0]
    logits = nnopt.transfer.load_model("runs/deep/model.nnopt")(x)
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
    held = json.loads((place / "runs/deep/result.json").read_text())
    disk = next(m for m in held["measures"] if m["name"] == "on disk")
    assert disk["after"] == (place / "runs/deep/model.nnopt").stat().st_size
    assert nnopt.inspect("runs/deep/model.nnopt").program_bytes > 0
    if not extra:  # in a process that has no code of the network
        np.save("x.npy", x)
        (place / "begun.py").unlink()
        subprocess.run([sys.executable, "-c", ALONE, "runs/deep/model.nnopt"], check=True)
        np.testing.assert_array_equal(np.load("logits.npy"), logits)


def test_a_program_that_cannot_be_written_is_told_before_training(place):
    (place / "begun.py").write_text(
        dedent(MODULE) + "\n\ndef fixed(key):\n"
        "    def apply(params, x):\n"
        "        return x @ params['w'] * (1.0 if int(x.shape[0]) > 1 else 2.0)\n\n"
        "    return {'w': jnp.ones((6, 3))}, apply\n"
    )
    made = recipes.build(DEEP | {"model": "begun:fixed", "program": True})
    with pytest.raises(RecipeError, match="program: the model cannot be written"):
        recipes.run(made)
    assert not (place / "runs").exists()


def test_recipes_that_start_from_each_other_are_refused(place):
    for name, other in [("one", "two"), ("two", "one")]:
        told = SHALLOW | {"name": name, "start": START | {"run": f"{other}.yaml"}}
        (place / f"{name}.yaml").write_text(dump(told))
    with pytest.raises(RecipeError, match=r"one\.yaml is this recipe itself, or builds upon it"):
        recipes.run(recipes.load("one.yaml"))
