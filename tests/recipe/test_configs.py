"""Every recipe of the project fits one screen, says what it prints, and is right."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from nnopt_jax.interop.flax import adapt
from nnopt_jax.recipe import load, resolver
from nnopt_jax.recipe.recipe_plan import phases
from nnopt_jax.transform import plan
from nnopt_jax.tree import flatten

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))


def parameters(recipe):
    """The shapes of what a recipe trains, whatever kind of model it is."""
    made = resolver.call(recipe.model, "model", passed={"key": jax.random.key(0)})
    image = np.zeros((1, 28, 28, 1), "float32")
    return jax.eval_shape(lambda key: adapt(made, image, key).params, jax.random.key(0))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_of_the_project(path):
    text = path.read_text()
    name = path.relative_to(ROOT)
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert len(text.splitlines()) <= 48
    assert any(f"nnopt run {name}" in line for line in header)
    assert any("prints: test error" in line for line in header)
    recipe = load(path)
    assert recipe.name == path.stem
    resolver.check(recipe)
    params = parameters(recipe)
    last = phases(recipe, 4000)[-1]
    assert {row.path for row in plan(last.tx, params).rows} == set(flatten(params))


def test_the_page_of_results_says_what_recipes_of_transfer_and_meshes_say():
    made = runpy.run_path(str(ROOT / "benchmarks/rows_transfer.py"))
    assert made["markdown"]() in (ROOT / "docs/results.md").read_text()


def test_there_are_recipes():
    assert len(CONFIGS) >= 4
