"""What a user reads when something is wrong: the exact texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Bits, Codebook, Factored, Masked, Quantized, Sum, abstract, check
from nnopt_jax.errors import (
    ArtifactError,
    CapacityError,
    CompositionError,
    NnoptError,
    NonFiniteError,
    SelectionError,
    ShapeError,
    ValueRangeError,
)

PARAMS = {
    "decoder": {"bias": jnp.zeros(4), "kernel": jnp.ones((6, 4))},
    "encoder": {"bias": jnp.zeros(6), "kernel": jnp.ones((10, 6))},
}
magnitude = nnopt.pruning.magnitude
codebook = nnopt.compression.codebook
uniform, mxfp4 = nnopt.quantization.uniform, nnopt.quantization.mxfp4


def said(kind, function, *args, **settings):
    """The text of the error that a call raises."""
    with pytest.raises(kind) as caught:
        function(*args, **settings)
    assert isinstance(caught.value, NnoptError)
    return str(caught.value)


def test_rule_that_matches_nothing():
    assert said(SelectionError, magnitude(0.5, where="decoder/kernl").init, PARAMS) == (
        "pruning.magnitude: rule 'decoder/kernl' matched no leaf. Nearest: decoder/kernel, "
        "encoder/kernel, decoder/bias. 4 leaves considered; nnopt.tree.flatten(params) "
        "shows them, as does 'nnopt plan RECIPE --list'."
    )


def test_combined_rule_is_shown_as_written():
    rule = nnopt.tree.selector("**/kernel") & ~nnopt.tree.selector("re:coder")
    text = said(SelectionError, magnitude(0.5, where=rule).init, PARAMS)
    assert text.startswith(
        "pruning.magnitude: rule '**/kernel' & ~'re:coder' matched no leaf. Nearest: "
    )


def test_predicate_that_matches_nothing():
    def convolutions(path, leaf):
        return leaf.ndim == 4

    text = said(SelectionError, uniform(8, where=convolutions).init, PARAMS)
    assert text.startswith("quantization.uniform: rule convolutions matched no leaf.")


def test_restriction_that_matches_nothing():
    text = said(SelectionError, nnopt.at("head/*", magnitude(0.5)).init, PARAMS)
    assert text.startswith("at('head/*', pruning.magnitude): rule 'head/*' matched no leaf.")


def test_regular_expression_that_does_not_compile():
    assert said(SelectionError, nnopt.tree.selector, "re:(") == (
        "selector: 're:(' is not a regular expression: missing ), unterminated subpattern at "
        "position 0"
    )


def test_rule_of_the_wrong_type():
    assert said(SelectionError, nnopt.tree.selector, 3) == (
        "selector: 3 is neither a glob, 're:...' nor a predicate. Write e.g. where='**/kernel'."
    )


def test_groups_that_do_not_divide_are_all_listed():
    assert said(ShapeError, mxfp4(group=4).init, PARAMS) == (
        "quantization.mxfp4: 2 problems\n"
        "  decoder/kernel: groups of 4 do not divide axis 0 of shape (6, 4), and its format holds "
        "whole groups only; give a group that divides 6\n"
        "  encoder/kernel: groups of 4 do not divide axis 0 of shape (10, 6), and its format holds "
        "whole groups only; give a group that divides 10"
    )


def test_leaves_of_unknown_axes_are_all_listed():
    params = {"key": jnp.ones((8, 2, 4)), "out": {"kernel": jnp.ones((2, 4, 8))}}
    ways = (
        "which of its axes a product sums over is not known; give "
        "tx.bind(nnopt.graph(apply, params, *inputs)) or tx.bind(axes={%r: "
        "nnopt.Axes(in_axis=..., out_axis=...)})"
    )
    assert said(ShapeError, uniform(4, granularity="channel").init, params) == (
        "quantization.uniform: 2 problems\n"
        f"  key: has shape (8, 2, 4), and {ways % 'key'}\n"
        f"  out/kernel: has shape (2, 4, 8), and {ways % 'out/kernel'}"
    )


def test_axes_of_another_rank():
    tx = uniform(4).bind(axes={"encoder/kernel": nnopt.Axes(0, (1, 2))})
    text = said(ShapeError, tx.init, PARAMS)
    assert text.startswith("quantization.uniform: encoder/kernel: Axes(0, (1, ")
    assert text.endswith("and shape (10, 6) has axes 0 to 1; name every axis once")


def test_axis_that_is_not_there():
    tx = uniform(8, granularity="channel", axis=2, where="encoder/kernel")
    assert said(ShapeError, tx.init, PARAMS) == (
        "quantization.uniform: encoder/kernel: axis 2 is not one of the axes of shape (10, 6)"
    )


def test_more_clusters_than_entries():
    assert said(ShapeError, codebook(25, where="decoder/kernel").init, PARAMS) == (
        "compression.codebook: decoder/kernel: has 24 entries for 25 clusters; "
        "give at most that many"
    )


def test_slot_inside_a_leaf_is_named():
    tx = nnopt.chain(codebook(4, where="decoder/kernel"), codebook(8, where="decoder/kernel"))
    assert said(ShapeError, tx.init, PARAMS) == (
        "compression.codebook: decoder/kernel (table): has 4 entries for 8 clusters; "
        "give at most that many"
    )


def test_quantizing_twice():
    assert said(CompositionError, nnopt.chain(uniform(8), uniform(4)).init, PARAMS) == (
        "quantization.uniform: 2 problems\n"
        "  decoder/kernel: is quantized already; quantize it once\n"
        "  encoder/kernel: is quantized already; quantize it once"
    )


@pytest.mark.parametrize("tx", [uniform(4), codebook(2)], ids=["uniform", "codebook"])
def test_refining_a_stored_leaf(tx):
    packed = uniform(8).pack(PARAMS, uniform(8).init(PARAMS))
    text = said(CompositionError, tx.init, packed)
    assert text == (
        f"{tx.name}: decoder/kernel: Quantized(codes int8[6,4], scale float32[1,1]) is in storage "
        "form and has nothing to refine. Apply the transform to the parameters it was packed from."
    )


def test_count_that_is_data_under_jit():
    tx = magnitude(0.5, allocation="global")
    state = tx.init(PARAMS)
    assert said(CapacityError, jax.jit(tx.pack), PARAMS, state) == (
        "store: decoder/kernel: how many values are kept depends on data, which is unknown under "
        "jax.jit. Pack outside of jit, or give capacities={'decoder/kernel': <at most this many>}."
    )


def test_capacity_that_is_too_small():
    tx = magnitude(0.5)
    state = tx.init(PARAMS)
    text = said(CapacityError, tx.pack, PARAMS, state, capacities={"decoder/kernel": 3})
    assert text == "store: decoder/kernel: keeps 12 values, capacity is 3."


def test_capacity_of_an_unknown_leaf():
    tx = magnitude(0.5)
    state = tx.init(PARAMS)
    text = said(SelectionError, tx.pack, PARAMS, state, capacities={"decoder/kernl": 3})
    assert text == (
        "store: capacities name 'decoder/kernl'. Did you mean decoder/kernel, encoder/kernel?"
    )


def test_nan_in_codes():
    broken = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), PARAMS)
    tx = uniform(8)
    assert said(NonFiniteError, tx.pack, broken, tx.init(PARAMS)) == (
        "quantization.uniform: pack: 2 problems\n"
        "  decoder/kernel: 6 of 24 values are NaN or infinite, codes hold none; "
        "see where training diverged\n"
        "  encoder/kernel: 10 of 60 values are NaN or infinite, codes hold none; "
        "see where training diverged"
    )


@pytest.mark.parametrize("tx", [magnitude(0.5), uniform(8)], ids=["wrap", "refine"])
def test_state_of_another_tree(tx):
    state = tx.init(PARAMS)
    renamed = {"decoders": PARAMS["decoder"], "encoder": PARAMS["encoder"]}
    assert said(SelectionError, tx.apply, renamed, state) == (
        f"{tx.name}: the state was made for a leaf 'decoder/kernel', which the parameters lack. "
        "Did you mean decoders/kernel, encoder/kernel?"
    )


def test_paths_that_collide():
    tree = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    assert said(SelectionError, nnopt.tree.flatten, tree) == (
        "tree.flatten: paths 'a/b' name more than one leaf. "
        "Rename a key so that every leaf has a path of its own."
    )
    assert said(SelectionError, magnitude(0.5, where="**").init, tree).startswith("tree.flatten")


def test_leaf_without_a_spec():
    specs = {"decoder": {"bias": None, "kernel": None}}
    assert said(SelectionError, nnopt.state_specs, magnitude(0.5), PARAMS, specs) == (
        "state_specs: no spec for 'encoder/bias'. Did you mean decoder/bias? Give a tree of "
        "PartitionSpec of the structure of the parameters, PartitionSpec() for replicated leaves."
    )


SETTINGS = {
    "sparsity": (
        lambda: magnitude(1.5),
        "pruning.magnitude: sparsity=1.5 is not a number from 0 to 1, nor a schedule.",
    ),
    "sparsity nan": (
        lambda: magnitude(float("nan")),
        "pruning.magnitude: sparsity=nan is not a number from 0 to 1, nor a schedule.",
    ),
    "sparsity as text": (
        lambda: magnitude("0.5"),
        "pruning.magnitude: sparsity='0.5' is not a number from 0 to 1, nor a schedule.",
    ),
    "no sparsity": (
        lambda: magnitude(),
        "pruning.magnitude: sparsity=None does not say how much to prune; give a number from 0 to "
        "1, or a schedule.",
    ),
    "sparsity and pattern": (
        lambda: magnitude(0.7, pattern="2:4"),
        "pruning.magnitude: sparsity=0.7 with pattern='2:4', which leaves 0.5 zeros; leave "
        "sparsity out.",
    ),
    "pattern": (
        lambda: magnitude(0.5, pattern="4:2"),
        "pruning.magnitude: pattern='4:2' is neither None, 'n:m' with n <= m <= 64, nor block "
        "sizes such as (4, 4), nor 'per_output', nor 'coupled'.",
    ),
    "allocation": (
        lambda: magnitude(0.5, allocation="layer"),
        "pruning.magnitude: allocation='layer' is not one of 'uniform', 'erk', 'global', 'lamp'.",
    ),
    "all of them": (
        lambda: magnitude(2, mode="sotf"),
        "pruning.magnitude: 2 problems\n"
        "  sparsity=2 is not a number from 0 to 1, nor a schedule.\n"
        "  mode='sotf' is not one of 'hard', 'soft', 'frozen'. Did you mean soft?",
    ),
    "mode": (
        lambda: magnitude(0.5, mode="firm"),
        "pruning.magnitude: mode='firm' is not one of 'hard', 'soft', 'frozen'.",
    ),
    "every": (
        lambda: magnitude(0.5, every=0),
        "pruning.magnitude: every=0 is not a whole number of 1 or more.",
    ),
    "clusters": (
        lambda: codebook(0),
        "compression.codebook: clusters=0 is not a whole number from 1 to 65536.",
    ),
    "iterations": (
        lambda: codebook(4, iterations=-1, every=0),
        "compression.codebook: 2 problems\n"
        "  iterations=-1 is not a whole number of 0 or more.\n"
        "  every=0 is not a whole number of 1 or more.",
    ),
    "bits": (
        lambda: uniform(1),
        "quantization.uniform: bits=1 is not a whole number from 2 to 16.",
    ),
    "group beside granularity": (
        lambda: uniform(8, granularity="channel", group=64),
        "quantization.uniform: group=64 is given beside granularity='channel'; give group=64 "
        "alone.",
    ),
    "axis": (
        lambda: uniform(8, axis=0),
        "quantization.uniform: axis=0 goes only with granularity='channel'; leave it out.",
    ),
    "granularity": (
        lambda: uniform(8, granularity="row"),
        "quantization.uniform: granularity='row' is not one of 'tensor', 'channel'.",
    ),
    "group": (
        lambda: uniform(8, group=0),
        "quantization.uniform: group=0 is not a whole number of 1 or more.",
    ),
    "refresh": (
        lambda: uniform(8, every=0),
        "quantization.uniform: every=0 is not a whole number of 1 or more.",
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_out_of_range(setting):
    make, text = SETTINGS[setting]
    assert said(ValueRangeError, make) == text


def test_all_wrong_shapes_come_before_any_weight_moves():
    """`plan` computes nothing, and finds what `init` would."""
    shapes = jax.eval_shape(lambda: PARAMS)
    tx = nnopt.chain(magnitude(optax.linear_schedule(0.0, 0.5, 10)), mxfp4(group=4))
    text = said(ShapeError, nnopt.plan, tx, shapes)
    assert text.count("do not divide") == 2


def test_malformed_nodes_are_all_listed():
    tree = {
        "codes": Quantized(jnp.ones((4, 6)), jnp.ones((3, 1))),
        "factors": Factored(jnp.ones((4, 2)), jnp.ones((3, 4))),
        "mask": Masked(jnp.ones((2, 2)), jnp.ones((2, 3), bool)),
        "packed": Bits(jnp.zeros(2, jnp.uint8), 4, 0, (10,)),
        "table": Codebook(jnp.zeros((2, 2), jnp.uint8), jnp.ones((2, 2))),
        "terms": Sum(jnp.ones((2, 2)), jnp.ones((2, 3))),
        "wide": Quantized(jnp.ones((2, 2)), jnp.ones((1, 1)), low=9, high=3),
    }
    assert said(ArtifactError, check, tree, "load") == (
        "load: 7 problems\n"
        "  codes: Quantized has scale (3, 1), which does not divide (4, 6)\n"
        "  factors: Factored has factors (4, 2) and (3, 4)\n"
        "  mask: Masked has values (2, 2) and mask (2, 3)\n"
        "  packed: Bits of shape (10,) needs uint8 words (5,), has uint8[2]\n"
        "  table: Codebook has a table of shape (2, 2)\n"
        "  terms: Sum has terms (2, 2) and (2, 3)\n"
        "  wide: Quantized has codes from 9 to 3"
    )


DESCRIPTIONS = {
    "node": (
        {"node": "Mask", "version": 1, "static": {}, "fields": {}},
        "manifest: unknown node 'Mask'. Did you mean Masked?",
    ),
    "version": (
        {"node": "Masked", "version": 99, "static": {}, "fields": {}},
        "manifest: Masked has version 99, this library reads 1. "
        "Read the file with the version of nnopt_jax that wrote it.",
    ),
    "field": (
        {"node": "Masked", "version": 1, "static": {"shift": 1}, "fields": {}},
        "manifest: Masked has no field ['shift'].",
    ),
    "container": ({"set": []}, "manifest: unknown container 'set'."),
    "shape": (["float32", [2, -1]], "manifest: [2, -1] is not a shape."),
    "dtype": (["float33", [2]], "manifest: 'float33' is not a dtype."),
}


@pytest.mark.parametrize("wrong", DESCRIPTIONS)
def test_malformed_description(wrong):
    description, text = DESCRIPTIONS[wrong]
    assert said(ArtifactError, abstract, description) == text


@pytest.mark.parametrize("junk", [3, "x", {}, {"a": 1, "b": 2}, [1, 2, 3], {"dict": []}, [[], []]])
def test_junk_is_an_artifact_error(junk):
    assert said(ArtifactError, abstract, junk).startswith("manifest: ")
