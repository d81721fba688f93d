from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from nnopt_jax.errors import RecipeError
from nnopt_jax.recipe import Call, TransformCall, build, load
from nnopt_jax.recipe.reader import dump, override, parse, unbuild

RAW = {
    "name": "demo",
    "model": {"source": "mine:net", "width": 8},
    "data": "mine:blobs",
    "stages": [
        {"name": "train", "epochs": 2},
        {
            "name": "prune",
            "epochs": 3,
            "transforms": [
                {"pruning.magnitude": {"sparsity": {"source": "optax:linear_schedule", "a": 1}}},
                "quantization.uniform",
            ],
        },
    ],
}


def test_a_recipe_is_typed():
    recipe = build(RAW)
    assert recipe.model == Call("mine:net", {"width": 8})
    assert recipe.stages[1].transforms == (
        TransformCall("pruning.magnitude", {"sparsity": Call("optax:linear_schedule", {"a": 1})}),
        TransformCall("quantization.uniform", {}),
    )
    assert recipe.folder == "runs/demo"


def test_resolved_recipes_read_as_themselves():
    recipe = build(RAW)
    assert build(parse(dump(unbuild(recipe)), "demo")) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "sede: unknown key. Did you mean seed?"),
        ({"seed": "one"}, "seed: given 'one' (a string), wanted a whole number"),
        ({"seed": True}, "seed: given True (true or false), wanted a whole number"),
        ({"model": "mine"}, "model: given 'mine', wanted package.module:callable"),
        ({"model": {"width": 8}}, "model: given a mapping, wanted package.module:callable"),
        ({"stages": {}}, "stages: given a mapping, wanted a list"),
        ({"stages": []}, "stages: given none, wanted one or more"),
        ({"stages": [3]}, "stages.0: given 3 (a whole number), wanted a mapping with the keys"),
        ({"stages": [{"name": "a"}]}, "stages.0.epochs: missing"),
        ({"batch_size": 0}, "batch_size: given 0, wanted 1 or more"),
        ({"name": "a/b"}, "name: given 'a/b', wanted a name that can be that of a folder"),
        ({"model": None}, "model: given nothing, wanted"),
    ],
)
def test_one_problem(change, message):
    with pytest.raises(RecipeError) as error:
        build(RAW | change)
    assert str(error.value).startswith(f"recipe: {message}")


def test_all_problems_come_together():
    stages = [{"name": "a", "epochs": "x", "transforms": [{"p": 1, "q": 2}]}, {"nam": "b"}]
    with pytest.raises(RecipeError) as error:
        build(RAW | {"stages": stages, "los": "m:f", "seed": None})
    text = str(error.value)
    assert text.startswith("recipe: 7 problems\n")
    for part in ("los: unknown", "seed: given nothing", "stages.0.epochs: given 'x'",
                 "stages.0.transforms.0: given a mapping, wanted one method",
                 "stages.1.nam: unknown key. Did you mean name?", "stages.1.name: missing",
                 "stages.1.epochs: missing"):  # fmt: skip
        assert part in text


def test_names_of_stages_are_unique():
    with pytest.raises(RecipeError, match=r"stages\.1\.name: 'a' is the name of an earlier"):
        build(RAW | {"stages": [{"name": "a", "epochs": 1}] * 2})


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("seed=7", ["seed"]),
        ("model.width=7", ["model", "width"]),
        ("data.dir=7", ["data", "dir"]),
        ("stages.1.epochs=7", ["stages", 1, "epochs"]),
        ("stages.prune.epochs=7", ["stages", 1, "epochs"]),
        (
            "stages.prune.transforms.0.pruning.magnitude.sparsity=7",
            ["stages", 1, "transforms", 0, "pruning.magnitude", "sparsity"],
        ),
        (
            "stages.prune.transforms.pruning.magnitude.every=7",
            ["stages", 1, "transforms", 0, "pruning.magnitude", "every"],
        ),
    ],
)
def test_overrides(setting, path):
    at = override(RAW, [setting])
    for key in path:
        at = at[key]
    assert at == 7
    assert RAW["stages"][1]["epochs"] == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("stages.9.epochs=1", "no element '9' among the 2 there"),
        ("name.a=1", "'demo' has no 'a' inside it"),
        ("seed=[1", "is not YAML"),
    ],
)
def test_overrides_that_lead_nowhere(setting, message):
    with pytest.raises(RecipeError) as error:
        override(RAW, [setting])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2E5", 2e5),
        ("-1.5e+3", -1500.0),
        ("70%", "70%"),
        ("1e", "1e"),
        ("12", 12),
        ("true", True),
        ("1.5", 1.5),
    ],
)
def test_numbers_are_read_as_written(text, value):
    assert parse(text, "demo") == value
    assert type(parse(text, "demo")) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back(value):
    assert parse(f"{value!r}", "demo") == value
    assert parse(dump({"x": value}), "demo") == {"x": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "the key 'a' is given twice"),
        ("a: [1", "is not YAML"),
        ("[a]: 1", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_what_is_not_yaml(text, message):
    with pytest.raises(RecipeError, match=r"recipe: demo\.yaml is not YAML") as error:
        parse(text, "demo.yaml")
    assert message in str(error.value)


def test_files_that_are_no_recipes(tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(RecipeError, match="holds a list, not a mapping"):
        load(tmp_path / "list.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="cannot read"):
        load(tmp_path / "binary.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load(tmp_path)
