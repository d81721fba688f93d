"""Names of leaves in containers that the properties do not draw."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nnopt_jax.arrays import Masked, is_node
from nnopt_jax.errors import SelectionError
from nnopt_jax.tree import diff, flatten, path_string, unflatten


class _Pair(NamedTuple):
    left: object
    right: object


def test_a_lone_leaf_has_the_empty_path():
    assert flatten(3.0) == {"": 3.0}
    assert path_string(()) == ""


def test_named_tuples_are_named_by_field():
    assert list(flatten(_Pair({"b": 1, "a": 2}, [3]))) == ["left/a", "left/b", "right/0"]


def test_none_is_no_leaf():
    assert flatten({"a": None, "b": 1}) == {"b": 1}


def test_variables_are_named_without_their_value_attribute():
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert list(flatten(nnx.state(layer))) == ["bias", "kernel"]


def test_only_a_trailing_value_attribute_is_dropped():
    keys = (jax.tree_util.GetAttrKey("value"), jax.tree_util.DictKey("value"))
    assert path_string(keys) == "value/value"


def test_nodes_are_leaves_on_request():
    tree = {"w": Masked(jnp.ones(2), jnp.ones(2, bool))}
    assert list(flatten(tree)) == ["w/values", "w/mask"]
    assert list(flatten(tree, is_node)) == ["w"]
    assert unflatten(tree, {"w": 5}, is_node) == {"w": 5}


def test_all_colliding_paths_are_named():
    tree = {"a/b": 1, "a": {"b": 1, "c": 1}, "a/c": 2}
    with pytest.raises(SelectionError, match="paths 'a/b', 'a/c' name more than one leaf"):
        flatten(tree)


def test_diff_tells_shape_dtype_and_type():
    left = {"a": jnp.ones((2, 3)), "b": jnp.ones(2, jnp.bfloat16), "c": 1}
    right = {"a": jnp.ones((3, 2)), "b": jnp.ones(2), "c": "x"}
    assert diff(left, right) == [
        "a: float32[2,3] against float32[3,2]",
        "b: bfloat16[2] against float32[2]",
        "c: int against str",
    ]
