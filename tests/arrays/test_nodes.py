"""What each node stands for, shows and costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.arrays import (
    BSR,
    CSR,
    ELL,
    Bits,
    BlockELL,
    Codebook,
    DeltaIndex,
    Factored,
    InputQuantized,
    LookupQuantized,
    Masked,
    NMIndex,
    Normalized,
    PackedTernary,
    Powers,
    Quantized,
    Reshaped,
    SoftCodebook,
    SoftThresholded,
    Sparse,
    Sum,
    UnevenGroups,
    is_node,
    materialize,
    refine,
    slots,
    store,
)
from nnopt_jax.arrays.nodes import NODE_TYPES

MASK = jnp.array([[True, False, True], [False, False, True]])
CODES = jnp.array([[1.0, -2.0, 0.0], [3.0, 4.0, -5.0]])
SCALE = jnp.array([[0.5, 1.0, 0.25]])
TABLE = jnp.array([-1.0, 0.0, 2.0])
INDICES = jnp.array([[0, 1, 2], [2, 2, 0]], jnp.uint8)

NODES = {
    "bits": Bits.of(INDICES, 2),
    "trits": PackedTernary.of(INDICES, 0),
    "powers": Powers(INDICES + jnp.uint8(126)),
    "levels": LookupQuantized(INDICES, SCALE, levels=(-1.0, 0.0, 0.5)),
    "gaps": DeltaIndex.of(MASK, 2),
    "rows": CSR.of(MASK),
    "groups": NMIndex.of(jnp.array([[True, False, True], [False, True, False]]), 1, 2),
    "blocks": BSR.of(jnp.array([[True, True, True], [False, False, False]]), (1, 3)),
    "gathered": ELL.of(jnp.where(MASK, CODES, 0.0), MASK),
    "gathered blocks": BlockELL.of(jnp.where(MASK, CODES, 0.0), (1, 3), MASK),
    "masked": Masked(CODES, MASK),
    "quantized": Quantized(CODES, SCALE, jnp.ones((1, 3))),
    "codebook": Codebook(INDICES, TABLE),
    "factored": Factored(jnp.ones((2, 1)), jnp.ones((1, 3))),
    "sum": Sum(CODES, Factored(jnp.ones((2, 1)), jnp.ones((1, 3)))),
    "normalized": Normalized(CODES, jnp.array([[1.0, 2.0, 3.0]])),
    "shrunk": SoftThresholded(CODES, jnp.float32(2)),
    "reshaped": Reshaped.of(Codebook(INDICES.T, TABLE), (1, 0)),
    "soft": SoftCodebook(0.9 * CODES, TABLE, jnp.float32(1e-3)),
    "input quantized": InputQuantized(CODES, jnp.array([[0.5]])),
    "uneven groups": UnevenGroups(jnp.array([[0.5, 2.0], [1.0, 3.0]]), group=2, length=3),
    "sparse": Masked(Codebook(INDICES, Quantized(TABLE, jnp.ones((1,)))), MASK).store(),
}

DENSE = {
    "bits": INDICES,
    "trits": INDICES,
    "powers": [[0.5, 1, 2], [2, 2, 0.5]],
    "levels": [[-0.5, 0, 0.125], [0.25, 0.5, -0.25]],
    "gaps": MASK,
    "rows": MASK,
    "groups": [[1, 0, 1], [0, 1, 0]],
    "blocks": [[1, 1, 1], [0, 0, 0]],
    "gathered": np.where(MASK, CODES, 0),
    "gathered blocks": np.where(MASK, CODES, 0),
    "masked": np.where(MASK, CODES, 0),
    "quantized": (np.asarray(CODES) - 1) * np.asarray(SCALE),
    "codebook": np.asarray(TABLE)[np.asarray(INDICES)],
    "factored": np.ones((2, 3)),
    "sum": np.asarray(CODES) + 1,
    "normalized": np.asarray(CODES) / np.linalg.norm(CODES, axis=0) * [1, 2, 3],
    "shrunk": [[0, 0, 0], [1, 2, -3]],
    "reshaped": np.asarray(TABLE)[np.asarray(INDICES)],
    "soft": [[0, -1, 0], [2, 2, -1]],
    "input quantized": CODES,
    "uneven groups": [[0.5, 0.5, 2], [1, 1, 3]],
    "sparse": np.where(MASK, np.asarray(TABLE)[np.asarray(INDICES)], 0),
}

REPRS = {
    "bits": "2-bit[2,3]",
    "trits": "1.6-bit[2,3]",
    "powers": "Powers(exponents uint8[2,3], 8 bits/weight)",
    "levels": "LookupQuantized(codes uint8[2,3], scale float32[1,3], 24 bits/weight)",
    "gaps": "gaps 2-bit[3]",
    "rows": "rows 2-bit[2] columns 2-bit[3]",
    "groups": "1:2 1-bit[1,3]",
    "blocks": "1x3 blocks 1-bit[2,1]",
    "gathered": "ELL(indices int32[2,3], values float32[2,3], 64 bits/weight)",
    "gathered blocks": "BlockELL(indices int32[1,2], values float32[1,3,2,1], 42.67 bits/weight)",
    "masked": "Masked(values float32[2,3], mask bool[2,3], 40 bits/weight)",
    "quantized": "Quantized(codes float32[2,3], scale float32[1,3], zero float32[1,3], "
    "64 bits/weight)",
    "codebook": "Codebook(indices uint8[2,3], table float32[3], 24 bits/weight)",
    "factored": "Factored(u float32[2,1], v float32[1,3], 26.67 bits/weight)",
    "sum": "Sum(base float32[2,3], delta Factored(u float32[2,1], v float32[1,3]), "
    "58.67 bits/weight)",
    "normalized": "Normalized(base float32[2,3], magnitude float32[1,3], 48 bits/weight)",
    "shrunk": "SoftThresholded(values float32[2,3], threshold float32[], 37.33 bits/weight)",
    "reshaped": "Reshaped(base Codebook(indices uint8[3,2], table float32[3]), 24 bits/weight)",
    "soft": "SoftCodebook(values float32[2,3], table float32[3], width float32[], "
    "53.33 bits/weight)",
    "input quantized": "InputQuantized(values float32[2,3], scale float32[1,1], 37.33 bits/weight)",
    "uneven groups": "UnevenGroups(values float32[2,2], 21.33 bits/weight)",
    "sparse": "Sparse(values Codebook(indices 1.6-bit[3], table Quantized(codes int8[3], "
    "scale float32[1])), support 1-bit[2,3], 12 bits/weight)",
}


@pytest.mark.parametrize("name", NODES)
def test_stands_for(name):
    node = NODES[name]
    dense = node.materialize()
    np.testing.assert_array_equal(dense, DENSE[name])
    assert (node.shape, node.dtype, node.ndim, node.size) == ((2, 3), dense.dtype, 2, 6)


@pytest.mark.parametrize("name", NODES)
def test_line(name):
    assert repr(NODES[name]) == REPRS[name]


def test_every_node_type_is_here():
    ours = {cls for cls in NODE_TYPES.values() if cls.__module__.startswith("nnopt_jax.")}
    assert {type(node) for node in NODES.values()} == ours


@pytest.mark.parametrize("name", NODES)
def test_sound_nodes_have_no_problems(name):
    assert NODES[name].problems((2, 3)) == []


@pytest.mark.parametrize("name", NODES)
def test_storing_keeps_the_array_and_storing_twice_changes_nothing(name):
    once = store({"w": NODES[name]})["w"]
    np.testing.assert_array_equal(once.materialize(), NODES[name].materialize())
    assert repr(store({"w": once})["w"]) == repr(once)
    assert once.bits <= NODES[name].bits


@pytest.mark.parametrize("name", NODES)
def test_nodes_pass_through_export(name):
    def function(node):
        return materialize(node) * 2, node

    program = export.export(jax.jit(function))(NODES[name])
    again = export.deserialize(program.serialize())
    doubled, same = again.call(NODES[name])
    np.testing.assert_array_equal(doubled, np.asarray(DENSE[name]) * 2)
    assert repr(same) == REPRS[name]


def test_lines_without_arrays_leave_out_the_cost():
    specs = NODES["masked"].specs(PartitionSpec("data"))
    assert repr(specs).startswith("Masked(values ")
    assert "bits/weight" not in repr(specs)


def test_malformed_bits_say_why():
    assert NODES["bits"].replace(width=17).problems((2, 3)) == ["has width 17 and layout 'flat'"]
    assert NODES["bits"].replace(layout="columns").problems((2, 3)) == [
        "has width 2 and layout 'columns'"
    ]
    assert NODES["bits"].replace(shape=(2, 9)).problems((2, 9)) == [
        "of shape (2, 9) needs uint8 words (5,), has uint8[2]"
    ]


def test_malformed_support_says_why():
    cut = NODES["sparse"].replace(shape=(3, 2))
    assert cut.problems((3, 2)) == ["of shape (3, 2) has support 1-bit[2,3]"]


def test_problems_inside_are_found():
    outer = Masked(Codebook(INDICES, jnp.ones((3, 1))), MASK)
    assert outer.problems((2, 3)) == ["has a table of shape (3, 1)"]


def test_slots_know_their_kind_and_mask():
    tree = Masked(Codebook(INDICES, TABLE), MASK)
    assert [(s.name, s.kind, s.mask) for s in slots(tree)] == [("values/table", "value", None)]
    (codes,) = slots(Masked(Quantized(CODES, SCALE), MASK))
    assert (codes.name, codes.kind) == ("values/codes", "code")
    np.testing.assert_array_equal(codes.mask, MASK)
    (inner,) = slots(Masked(Masked(CODES, MASK), ~MASK))
    assert not np.asarray(inner.mask).any()
    (table,) = slots(Quantized(Codebook(INDICES, TABLE), SCALE))
    assert (table.name, table.kind) == ("codes/table", "code")
    assert [s.name for s in slots(NODES["sum"])] == ["base"]
    assert slots(store({"w": NODES["quantized"]})["w"]) == []


def test_refine_keeps_every_node_above():
    refined = refine(Masked(CODES, MASK), lambda slot: Quantized(slot.array, SCALE))
    assert isinstance(refined, Masked)
    assert isinstance(refined.values, Quantized)
    assert jax.tree.structure(refine(refined, lambda slot: slot.array)) == jax.tree.structure(
        refined
    )


def test_carry_takes_the_gradient_and_is_not_stored():
    def shown(carry):
        return (Quantized(CODES, SCALE, carry=carry).materialize() * 3).sum()

    np.testing.assert_array_equal(jax.grad(shown)(CODES), np.full((2, 3), 3.0))
    assert Quantized(CODES, SCALE, carry=CODES).store().carry is None
    assert Codebook(INDICES, TABLE, CODES).store().carry is None


@pytest.mark.parametrize(
    ("mode", "slope"), [("select", MASK), ("straight_through", np.ones((2, 3)))]
)
def test_mask_meets_gradients(mode, slope):
    def shown(values):
        return Masked(values, MASK, mode=mode).materialize().sum()

    np.testing.assert_array_equal(jax.grad(shown)(CODES), np.asarray(slope, np.float32))


def test_sums_are_rounded_once():
    """The correction is just over half a step: rounded by itself first, it would be lost."""
    base = Quantized(jnp.ones((1, 1)), jnp.ones((1, 1)), dtype="bfloat16")
    delta = Factored(jnp.full((1, 1), 2.0**-8 + 2.0**-17), jnp.ones((1, 1)))
    assert float(Sum(base, delta).materialize()[0, 0]) == 1 + 2.0**-7


@pytest.mark.parametrize(
    ("width", "sparse", "form"),
    [(0.02, True, "gaps"), (0.5, False, "1-bit")],
)
def test_support_takes_the_smaller_form(width, sparse, form):
    mask = np.random.default_rng(0).random((50, 40)) < width
    stored = Masked(jnp.ones((50, 40)), jnp.asarray(mask)).store()
    assert isinstance(stored, Sparse)
    assert isinstance(stored.support, DeltaIndex) == sparse
    assert repr(stored.support).startswith(form)
    assert stored.support.bits <= mask.size


@pytest.mark.parametrize(
    ("name", "spec", "wanted"),
    [
        ("masked", ("a", None), {"values": ("a", None), "mask": ("a", None)}),
        ("quantized", ("a", "b"), {"codes": ("a", "b"), "scale": (None, "b"), "zero": (None, "b")}),
        ("codebook", ("a", "b"), {"indices": ("a", "b"), "table": ()}),
        ("factored", ("a", "b"), {"u": ("a", None), "v": (None, "b")}),
    ],
)
def test_specs_follow_the_weight(name, spec, wanted):
    """A lone entry along an axis, and a rank, are replicated."""
    given = NODES[name].specs(PartitionSpec(*spec))
    for field, axes in wanted.items():
        assert tuple(getattr(given, field)) == axes
    assert is_node(given)


def test_views_permute_the_axes_of_kernels():
    kernel = jnp.arange(120.0).reshape(2, 3, 4, 5)
    matrix = kernel.transpose(0, 2, 1, 3).reshape(8, 15)
    view = Reshaped(matrix, (2, 4, 3, 5), (0, 2, 1, 3), (2, 3, 4, 5))
    np.testing.assert_array_equal(view.materialize(), kernel)
    assert view.problems((2, 3, 4, 5)) == []
    (slot,) = slots(Masked(view, kernel % 7 == 0))
    np.testing.assert_array_equal(slot.mask, matrix % 7 == 0)


def test_views_of_the_same_layout_are_cut_by_a_mask_and_others_are_not():
    same = Masked(Reshaped.of(Quantized(CODES, SCALE)), MASK).store()
    assert isinstance(same, Sparse)
    turned = Masked(Reshaped.of(Quantized(CODES.T, SCALE.T), (1, 0)), MASK).store()
    assert isinstance(turned, Masked)
    for stored in (same, turned):
        np.testing.assert_array_equal(stored.materialize(), np.where(MASK, CODES * SCALE, 0))
        assert stored.problems((2, 3)) == []


def test_views_are_split_like_their_base_where_axes_only_change_places():
    spec = PartitionSpec("a", "b")
    assert tuple(Reshaped.of(CODES.T, (1, 0)).specs(spec).base) == ("b", "a")
    assert tuple(Reshaped.of(CODES).specs(spec).base) == ("a", "b")
    flat = Reshaped(CODES.reshape(6, 1), (2, 3), (0, 1), (2, 3))
    assert not any(flat.specs(spec).base)


def test_malformed_views_say_why():
    view = NODES["reshaped"]
    assert view.replace(axes=(0, 2)).problems((2, 3)) == [
        "has axes (0, 2) of a base seen in shape (3, 2)"
    ]
    assert view.replace(sizes=(4, 2)).problems((4, 2)) == [
        "of shape (4, 2) has a base of shape (3, 2), seen in shape (3, 2)"
    ]
    assert NODES["soft"].replace(width=jnp.ones(2)).problems((2, 3)) == [
        "has a table of shape (3,), width of (2,)"
    ]


@pytest.mark.parametrize("name", ["Gaps", "Levels", "Trits", "lay_out"])
def test_removed_names_say_what_to_type(name):
    with pytest.raises(AttributeError, match=rf"nnopt_jax\.arrays\.{name} is now nnopt\.\w"):
        getattr(nnopt.arrays, name)
