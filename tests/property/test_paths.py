"""Paths name leaves one to one, in JAX's own order, through any nesting of containers."""

from __future__ import annotations

import jax
from hypothesis import given, strategies as st

from nnopt_jax.tree import diff, flatten, unflatten

NAMES = st.text("abcxyz_0", min_size=1, max_size=4)
TREES = st.recursive(
    st.integers(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(NAMES, inner, max_size=3),
    ),
    max_leaves=8,
)


def _names(tree, prefix=()):
    """Leaves by path, spelled by hand."""
    if isinstance(tree, dict):
        return {p: x for key in sorted(tree) for p, x in _names(tree[key], (*prefix, key)).items()}
    if isinstance(tree, (list, tuple)):
        return {
            p: x for i, item in enumerate(tree) for p, x in _names(item, (*prefix, str(i))).items()
        }
    return {"/".join(prefix): tree}


@given(TREES)
def test_flatten_names_every_leaf(tree):
    leaves = flatten(tree)
    assert list(leaves.items()) == list(_names(tree).items())
    assert list(leaves.values()) == jax.tree.leaves(tree)


@given(TREES)
def test_unflatten_inverts_flatten(tree):
    assert unflatten(tree, flatten(tree)) == tree
    changed = unflatten(tree, {path: str(leaf) for path, leaf in flatten(tree).items()})
    assert changed == jax.tree.map(str, tree)


@given(TREES)
def test_a_tree_does_not_differ_from_itself(tree):
    assert diff(tree, tree) == []
    assert len(diff({"a": tree}, {"b": tree})) == 2 * len(jax.tree.leaves(tree))
