from __future__ import annotations

import pytest

from nnopt_jax.errors import RecipeError, ValueRangeError
from nnopt_jax.recipe import Call, TransformCall
from nnopt_jax.recipe.resolver import call, find


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_thing_at_all\n")
    (tmp_path / "syntax_module.py").write_text("def (:\n")
    (tmp_path / "good_module.py").write_text(
        "value = 3\n"
        "def keep(*, a, b=2, **rest): return a, b, rest\n"
        "def seeded(key, width=1): return key, width\n"
        "def fails(): raise ValueError('no luck')\n"
        "from flax import nnx\n"
        "class Net(nnx.Module):\n"
        "    def __init__(self, hidden=2, *, rngs): self.made = (hidden, rngs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere:f", "loss: there is no module 'nowhere'"),
        ("nowhere.deep:f", "loss: there is no module 'nowhere'"),
        ("optax.nowhere:f", "loss: there is no module 'optax.nowhere'"),
        ("good_module:kep", "has no 'kep'. Did you mean keep?"),
        ("good_module:value", "is a int, not a callable"),
        ("broken_module:f", "importing broken_module failed: ModuleNotFoundError"),
        ("syntax_module:f", "importing syntax_module failed: SyntaxError"),
    ],
)
def test_names_that_lead_nowhere(modules, source, message):
    with pytest.raises(RecipeError) as error:
        find(source, "loss")
    assert message in str(error.value)


def test_calls_inside_calls(modules):
    inner = Call("good_module:keep", {"a": "50%", "c": [1, "10%"]})
    made = call(Call("good_module:keep", {"a": inner}), "x", steps=40)
    assert made == ((20, 2, {"c": [1, 4]}), 2, {})


def test_a_share_of_nothing(modules):
    with pytest.raises(RecipeError, match=r"data\.a: 50% is a fraction of a stage's steps"):
        call(Call("good_module:keep", {"a": "50%"}), "data")


def test_what_the_run_passes_is_given_where_it_is_asked_for(modules):
    passed = {"key": "the key", "rngs": "the rngs"}
    assert call(Call("good_module:seeded"), "model", passed=passed) == ("the key", 1)
    assert call(Call("good_module:keep", {"a": 1}), "model", passed=passed) == (1, 2, {})


def test_a_module_class_is_a_model_like_any_other(modules):
    passed = {"key": "the key", "rngs": "the rngs"}
    made = call(Call("good_module:Net", {"hidden": 7}), "model", passed=passed)
    assert made.made == (7, "the rngs")
    with pytest.raises(RecipeError, match=r"model\.hiden: unknown key. Did you mean hidden\?"):
        call(Call("good_module:Net", {"hiden": 7}), "model", passed=passed)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Call("good_module:keep"), "x.a: missing"),
        (Call("good_module:seeded", {"widht": 2}), "x.widht: unknown key. Did you mean width?"),
        (Call("good_module:fails"), "x: fails raised ValueError: no luck"),
    ],
)
def test_calls_that_fail(modules, what, message):
    with pytest.raises(RecipeError) as error:
        call(what, "x")
    assert message in str(error.value)


def test_transforms_of_the_registry_and_of_ones_own(modules):
    assert call(TransformCall("quantization.uniform", {"bits": 8}), "x", 10).name
    assert call(TransformCall("good_module:keep", {"a": 1}), "x", 10) == (1, 2, {})
    with pytest.raises(RecipeError, match=r"x: no method 'quantization\.unifrm'"):
        call(TransformCall("quantization.unifrm"), "x", 10)
    with pytest.raises(ValueRangeError):
        call(TransformCall("quantization.uniform", {"bits": 99}), "x", 10)
