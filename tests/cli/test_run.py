"""A user's own network and data through the command line, from the folder they lie in."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax import artifact
from nnopt_jax.recipe.reader import parse


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.run.iterdir()}
    assert names == {"checkpoints", "metrics.jsonl", "model.nnopt", "recipe.yaml", "report.html",
                     "result.json"}  # fmt: skip
    assert parse((finished.run / "recipe.yaml").read_text(), "")["seed"] == 0


def test_metrics_have_a_row_for_every_logged_step(finished):
    steps = [row["step"] for row in rows(finished.run)]
    assert steps == [*range(5, 91, 5)]
    assert all({"stage", "epoch", "loss", "sparsity"} <= row.keys() for row in rows(finished.run))


def test_the_file_is_read_without_the_model(finished):
    packed = artifact.load(finished.run / "model.nnopt")
    dense = jax.tree.map(np.asarray, nnopt.materialize(packed))
    hidden = dense["hidden"]["kernel"]
    assert hidden.shape == (6, 8)
    assert (hidden == 0).sum() == 24
    assert len(np.unique(hidden[hidden != 0])) <= 4
    # The network by hand is the network of the run.
    result = json.loads((finished.run / "result.json").read_text())
    error = next(m["after"] for m in result["measures"] if m["name"] == "test error")
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = np.float32(rng.normal(size=(240, 6)) * 0.5 + np.eye(6)[y] * 2)[200:]
    inner = np.maximum(x @ hidden + dense["hidden"]["bias"], 0)
    logits = inner @ dense["out"]["kernel"] + dense["out"]["bias"]
    assert error == pytest.approx(100 * np.mean(np.argmax(logits, -1) != y[200:]))


def test_a_second_run_prints_the_same_table_at_once(finished):
    before = (finished.run / "model.nnopt").stat().st_mtime_ns
    status, out, err = finished.nnopt("run", "recipe.yaml")
    assert status == 0
    assert "finished run" in err
    assert re.search(r"on disk +\S+ +[\d,]+", out)
    assert "test error" in out
    assert (finished.run / "model.nnopt").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused(finished):
    status, _, err = finished.nnopt("run", "recipe.yaml", "--set", "stages.prune.epochs=9")
    assert status == 2
    assert "stages.1.epochs: 3 there, 9 here" in err
    assert "--fresh" in err


def test_plan_shows_each_stage(project):
    status, out, _ = project.nnopt("plan", "recipe.yaml")
    assert status == 0
    assert "Stage train: 30 steps, no transforms" in out
    assert "hidden/kernel" in out
    assert "Sparse(" in out


def test_inspect_and_diff(finished, capsys):
    from nnopt_jax.cli import main

    file = str(finished.run / "model.nnopt")
    assert main(["inspect", file]) == 0
    out = capsys.readouterr().out
    assert "hidden/kernel" in out
    assert f"{(finished.run / 'model.nnopt').stat().st_size:,}" in out
    assert main(["diff", file, str(finished.run)]) == 0
    assert "equal" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [pytest.param("linen", marks=pytest.mark.slow), "pair"])
def test_other_kinds_of_models(project, kind):
    (project.folder / "other.py").write_text('''
import jax, jax.numpy as jnp
from flax import linen

class Net(linen.Module):
    """With all that is not a parameter: running means and dropout."""

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x))
        x = linen.Dropout(0.1, deterministic=not train)(jax.nn.relu(x))
        return linen.Dense(3)(x)

def linen_net():
    return Net()

def pair(key):
    w = jax.random.normal(key, (6, 3)) * 0.1
    return {"w": w, "b": jnp.zeros(3)}, lambda params, x: x @ params["w"] + params["b"]
'''.replace("linen_net", "linen_" if kind == "linen" else "unused"))  # fmt: skip
    (project.folder / "short.yaml").write_text("""
name: short
model: other:%s
data: mine:blobs
batch_size: 16
optimizer: {source: optax:adam, learning_rate: 1e-2}
stages:
  - {name: quantize, epochs: 1, transforms: [quantization.uniform]}
""" % ("linen_" if kind == "linen" else "pair"))  # fmt: skip
    status, out, err = project.nnopt("run", "short.yaml", "--set", "output=out")
    assert status == 0, err
    assert "test error" in out
    loaded = artifact.load(project.folder / "out" / "model.nnopt")
    assert (set(loaded) == {"params", "batch_stats"}) == (kind == "linen")
