"""Recipes, plans and results print their settings and tables, and no arrays."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnopt_jax import recipe as recipes, report
from nnopt_jax.errors import RecipeError
from nnopt_jax.interop.flax import FlaxModel
from nnopt_jax.recipe.inputs import Examples, Splits
from nnopt_jax.recipe.measurement import Benchmark
from nnopt_jax.recipe.recipe_plan import Carry, RecipePlan, phases
from nnopt_jax.zoo import data as zoo_data

RECIPE = recipes.build({
    "name": "demo", "model": "mine:net", "data": "mine:blobs", "batch_size": 2,
    "stages": [{"name": "train", "epochs": 3},
               {"name": "prune", "epochs": 1,
                "transforms": [{"pruning.magnitude": {"sparsity": 0.5}}]}],
})  # fmt: skip
PARAMS = {"w": jnp.arange(32.0).reshape(4, 8), "b": jnp.zeros(8)}
MODEL = FlaxModel(
    PARAMS, {"batch_stats": {"mean": jnp.zeros(3)}}, lambda params, extra, x: (x, extra)
)
EXAMPLES = Examples(np.ones((4, 4), np.float32), np.zeros(4, np.int32))
LATENCY = report.Latency(202.99999999999272, 101.5, 200.1, 99.3, 1.9999)
LEAF = report.LeafRow("w", "float32[4,8]", (4, 8), 12, 1024, 1, tuple(np.arange(49.0)), (7,) * 48)
RESULT = report.Result(
    "demo",
    (report.Measure("test error", "%", 1.4000000000000001, 2.1, "read from the file"),
     report.Measure("on disk", "bytes", 1_066_440, 5_505, "194x smaller"),
     report.Measure("latency", "ms", 202.99999999999272, 0.5)),
    (LEAF,), ({"step": 1, "stage": "train", "loss": 0.5},), "name: demo", ("A remark.",),
)  # fmt: skip


def plan():
    data = Splits(EXAMPLES, None, EXAMPLES)
    nothing, key = (lambda *args: None), jax.random.key(0)
    return RecipePlan(RECIPE, data, MODEL, phases(RECIPE, 4), nothing, nothing, nothing, key, key)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (RECIPE, "Recipe('demo': mine:net on mine:blobs, 2 stages)"),
        (MODEL, "FlaxModel(40 parameters; other variables: batch_stats)"),
        (EXAMPLES, "Examples(x=float32[4,4], y=int32[4])"),
        (Carry(PARAMS, {}, (), None),
         "Carry(arrays of params: 2, extra: 0, state: 0, opt_state: 0)"),
        (LATENCY, "Latency(dense 203 ms, packed 102 ms, 2x as fast)"),
        (LEAF, "LeafRow(path='w', expression='float32[4,8]', shape=(4, 8), file_bytes=12, "
               "memory_bits=1024, zero...)"),
        (RESULT.measures[2], "Measure('latency': 203 ms -> 0.5 ms)"),
        (RESULT, "Result('demo': test error 1.40 % -> 2.10 %, on disk 1,066,440 -> 5,505)"),
        (Benchmark("runs/demo", {1: LATENCY, 8: LATENCY}, ("A remark.",)),
         "Benchmark('runs/demo': packed as fast as dense, by batch: 1: 2x, 8: 2x)"),
        (zoo_data.Split(*EXAMPLES), "Split(4 examples of shape (4,))"),
    ],
)  # fmt: skip
def test_repr_says_the_settings_on_one_line(value, text):
    assert repr(value) == text


def test_a_plan_shows_a_table_for_each_stage():
    made = plan()
    assert repr(made) == "RecipePlan('demo': 40 parameters, 2 stages, 8 steps)"
    assert repr(made.phases) == (
        "[Phase('train': steps 0 to 6, 0 transforms), Phase('prune': steps 6 to 8, 1 transforms)]"
    )
    text = str(made)
    assert text.startswith("Stage train: 6 steps, no transforms\n\nStage prune: 2 steps, ")
    assert "total" in text
    assert max(map(len, text.splitlines())) <= 100


def test_tables_of_results_and_benchmarks():
    bench = str(Benchmark("runs/demo", {8: LATENCY}, ("A remark.",)))
    for text in (str(RESULT), bench):
        assert max(map(len, text.splitlines())) <= 100
        assert text.endswith("\nA remark.")
        assert "999" not in text
    assert "test error" in str(RESULT)
    assert "2x as fast" in bench


def test_a_notebook_shows_the_table():
    shown = RESULT._repr_html_()
    assert shown.startswith("<b>demo</b><table>")
    assert "<td class=\"n\">203 ms</td>" in shown  # fmt: skip
    escaped = report.Result("<a>", (), (), (), "", ("<b>",))._repr_html_()
    assert escaped == "<b>&lt;a&gt;</b><p>&lt;b&gt;</p>"


@pytest.mark.parametrize(
    ("module", "name", "new"),
    [(recipes, "Link", "TransformCall"), (recipes, "Watch", "Callback"),
     (report, "Summary", "Result"), (report, "table", "result_table")],
)  # fmt: skip
def test_a_removed_name_says_the_new_one(module, name, new):
    with pytest.raises(AttributeError, match=f"{name} is now nnopt_jax.*{new}"):
        getattr(module, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(module, "nothing")  # noqa: B009


def test_all_mistakes_of_a_recipe_come_together(monkeypatch):
    made = SimpleNamespace(train=EXAMPLES, test=EXAMPLES)
    net = lambda: ({"w": jnp.ones((4, 2))}, lambda params, x: x @ params["w"])  # noqa: E731
    module = SimpleNamespace(blobs=lambda: made, net=net)
    monkeypatch.setitem(__import__("sys").modules, "mine", module)
    wrong = [{"quantization.uniform": {"bits": 99}}, {"pruning.magnitude": {"sparsity": 3}}]
    raw = {
        "name": "demo", "model": "mine:net", "data": "mine:blobs", "batch_size": 2,
        "parallel": {"mesh": {"data": 3}},
        "stages": [{"name": "a", "epochs": 1, "transforms": wrong}],
    }  # fmt: skip
    with pytest.raises(RecipeError) as error:
        recipes.prepare(recipes.build(raw))
    text = str(error.value)
    assert text.startswith("recipe: 3 problems\n")
    assert "bits=99" in text
    assert "sparsity=3" in text
    assert "data=3 takes 3 devices" in text
