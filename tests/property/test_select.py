"""Globs against a matcher that works on segments, and selectors against the logic of sets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from nnopt_jax.errors import SelectionError
from nnopt_jax.tree import resolve, selector

SEGMENTS = st.text("ab.[(", min_size=1, max_size=3)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
_PIECES = st.text("ab.[(*?", min_size=1, max_size=3).filter(lambda text: "**" not in text)
PATTERNS = st.lists(st.just("**") | _PIECES, min_size=1, max_size=4).map("/".join)


def _segment_matches(pattern: str, text: str) -> bool:
    """One segment, character by character."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_segment_matches(pattern[1:], text[i:]) for i in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and _segment_matches(pattern[1:], text[1:])


def _matches(pattern: list[str], path: list[str]) -> bool:
    """Whole paths, segment by segment; `**` takes any number of them."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[i:]) for i in range(len(path) + 1))
    return bool(path) and _segment_matches(pattern[0], path[0]) and _matches(pattern[1:], path[1:])


@settings(max_examples=300)
@given(PATTERNS, PATHS)
def test_glob_agrees_with_a_segment_matcher(pattern, path):
    wanted = _matches(pattern.split("/"), path.split("/"))
    assert selector(pattern)(path, None) == wanted


@given(PATHS)
def test_a_path_selects_itself_alone(path):
    literal = selector(path)
    assert literal(path, None)
    assert not literal(path + "a", None)
    assert not literal("a/" + path, None)


@given(PATTERNS, PATTERNS, st.lists(PATHS, unique=True, max_size=6))
def test_selectors_combine_like_sets(one, other, paths):
    def chosen(rule):
        return {path for path in paths if rule(path, None)}

    a, b = selector(one), selector(other)
    assert chosen(a & b) == chosen(a) & chosen(b)
    assert chosen(a | b) == chosen(a) | chosen(b)
    assert chosen(~a) == set(paths) - chosen(a)
    assert chosen(~(a & b)) == chosen(~a | ~b)


@given(PATTERNS, st.lists(PATHS, unique=True, min_size=1, max_size=6))
def test_resolve_keeps_order_or_raises(pattern, paths):
    leaves = dict.fromkeys(paths)
    wanted = [path for path in paths if _matches(pattern.split("/"), path.split("/"))]
    if wanted:
        assert resolve(pattern, leaves, "test") == wanted
        return
    with pytest.raises(SelectionError, match=r"test: rule .* matched no leaf\. Nearest: "):
        resolve(pattern, leaves, "test")
