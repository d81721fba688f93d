"""The error classes, the collector and the spelling help."""

from __future__ import annotations

import pytest

from nnopt_jax import errors


def test_every_error_is_caught_by_the_base_class():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    deliberate = [kind for kind in kinds if issubclass(kind, Exception)]
    assert len(deliberate) >= 10
    assert all(issubclass(kind, errors.NnoptError) for kind in deliberate)


def test_errors_are_builtin_errors_too():
    assert issubclass(errors.SelectionError, LookupError)
    assert issubclass(errors.CompositionError, TypeError)
    for kind in (errors.ShapeError, errors.ValueRangeError, errors.NonFiniteError):
        assert issubclass(kind, ValueError)


def test_nothing_found_raises_nothing():
    errors.Problems("who").raise_as(errors.ShapeError)


def test_many_problems_are_one_error():
    problems = errors.Problems("who")
    problems.add("a", "is odd")
    problems.add("", "the whole is odd")
    with pytest.raises(errors.ShapeError) as caught:
        problems.raise_as(errors.ShapeError)
    assert str(caught.value) == "who: 2 problems\n  a: is odd\n  the whole is odd"


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("wher", ["where", "mode"], " Did you mean where?"),
        ("zzz", ["b", "a", "a"], " Known: a, b."),
        ("zzz", [], ""),
        ("q", [f"n{i:02}" for i in range(13)], " Known: " + ", ".join(
            f"n{i:02}" for i in range(12)) + ", ...."),
    ],
)  # fmt: skip
def test_nearest(name, known, text):
    assert errors.nearest(name, known) == text
