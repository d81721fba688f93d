"""Rules as users write them."""

from __future__ import annotations

import pytest

from nnopt_jax.errors import SelectionError
from nnopt_jax.tree import resolve, selector

PATHS = dict.fromkeys(["conv_1/kernel", "conv_2/kernel", "head/bias", "head/kernel", "kernel"])


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("**", list(PATHS)),
        ("kernel", ["kernel"]),
        ("*/kernel", ["conv_1/kernel", "conv_2/kernel", "head/kernel"]),
        ("**/kernel", ["conv_1/kernel", "conv_2/kernel", "head/kernel", "kernel"]),
        ("conv_?/*", ["conv_1/kernel", "conv_2/kernel"]),
        ("head/**", ["head/bias", "head/kernel"]),
        ("re:bias|conv_2", ["conv_2/kernel", "head/bias"]),
        ("re:^kernel$", ["kernel"]),
        (lambda path, leaf: path.startswith("head"), ["head/bias", "head/kernel"]),
        (selector("head/*") & ~selector("*/bias"), ["head/kernel"]),
        (selector("kernel") | selector("*/bias"), ["head/bias", "kernel"]),
    ],
)
def test_rule(rule, chosen):
    assert resolve(rule, PATHS, "test") == chosen


def test_predicates_see_the_leaf():
    assert resolve(lambda path, leaf: leaf > 1, {"a": 1, "b": 2}, "test") == ["b"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (selector("a") & selector("b") | selector("c"), "Selector(('a' & 'b' | 'c'))"),
        (~(selector("a") & selector("b")), "Selector(~('a' & 'b'))"),
        (~selector("a") & selector("re:b"), "Selector(~'a' & 're:b')"),
    ],
)
def test_rules_are_shown_as_written(rule, text):
    assert repr(rule) == text


def test_no_leaves_at_all():
    with pytest.raises(SelectionError) as caught:
        resolve("**", {}, "test")
    assert str(caught.value) == (
        "test: rule '**' matched no leaf. 0 leaves considered; nnopt.tree.flatten(params) "
        "shows them, as does 'nnopt plan RECIPE --list'."
    )
