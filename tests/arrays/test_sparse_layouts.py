"""Supports against SciPy and NumPy, what they cost, and which of them is taken."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.sharding import PartitionSpec

from nnopt_jax.arrays import (
    BSR,
    CSR,
    Bits,
    DeltaIndex,
    Masked,
    NMIndex,
    Quantized,
    smallest_support,
    store,
)
from nnopt_jax.arrays.mask_format import support_of
from nnopt_jax.errors import CompositionError
from nnopt_jax.ops.masks import keep_n_of_m

RNG = np.random.default_rng(0)
VALUES = jnp.asarray(RNG.normal(size=(64, 48)).astype(np.float32))
MASKS = {
    "scattered": RNG.random((64, 48)) < 0.03,
    "half": RNG.random((64, 48)) < 0.5,
    "rows": (RNG.random((64, 256)) < 0.03) & (np.arange(64) % 8 == 5)[:, None],
    "2:4": np.asarray(keep_n_of_m(VALUES, 2, 4)),
    "blocks": np.kron(RNG.random((16, 6)) < 0.4, np.ones((4, 8))) > 0,
    "few blocks": np.kron(np.arange(96).reshape(16, 6) == 50, np.ones((4, 8))) > 0,
    "nothing": np.zeros((64, 48), bool),
    "all": np.ones((64, 48), bool),
}
FORMATS = ("bitmask", "gaps", "csr")


@pytest.mark.parametrize("name", MASKS)
def test_rows_are_those_of_scipy(name):
    theirs = scipy.sparse.csr_array(MASKS[name])
    ours = CSR.of(jnp.asarray(MASKS[name]))
    np.testing.assert_array_equal(ours.starts, theirs.indptr)
    np.testing.assert_array_equal(ours.columns.materialize(), theirs.indices)
    np.testing.assert_array_equal(ours.materialize(), MASKS[name])
    back = scipy.sparse.csr_array(
        (np.ones(ours.columns.size), ours.columns.materialize(), ours.starts),
        shape=MASKS[name].shape,
    )
    np.testing.assert_array_equal(back.toarray() > 0, MASKS[name])


def test_a_convolution_has_a_row_for_each_input_of_each_place():
    mask = RNG.random((3, 3, 4, 10)) < 0.2
    theirs = scipy.sparse.csr_array(mask.reshape(-1, 10))
    ours = CSR.of(jnp.asarray(mask))
    np.testing.assert_array_equal(ours.starts, theirs.indptr)
    np.testing.assert_array_equal(ours.materialize(), mask)


def test_rows_of_many_columns_take_whole_words():
    mask = np.zeros((2, 70_000), bool)
    mask[1, [3, 69_999]] = True
    ours = CSR.of(jnp.asarray(mask))
    assert ours.columns.dtype == jnp.uint32
    np.testing.assert_array_equal(ours.materialize(), mask)


def test_two_of_four_take_three_bits_for_four_weights():
    support = NMIndex.of(jnp.asarray(MASKS["2:4"]), 2, 4)
    choices = sorted(itertools.combinations(range(4), 2), key=lambda places: places[::-1])
    wanted = [
        [
            choices.index(tuple(np.flatnonzero(MASKS["2:4"][4 * i : 4 * i + 4, j])))
            for j in range(48)
        ]
        for i in range(16)
    ]
    np.testing.assert_array_equal(support.codes.materialize(), wanted)
    assert support.bits == 64 * 48 * 3 // 4 == sum(x.nbytes for x in jax.tree.leaves(support)) * 8
    np.testing.assert_array_equal(support.materialize(), MASKS["2:4"])


def test_more_choices_than_sixteen_bits_tell_apart():
    mask = keep_n_of_m(VALUES, 8, 32)
    support = support_of(mask, "8:32")
    assert (support.codes.width, support.high.width) == (16, 8)
    assert support.bits == 24 * VALUES.size // 32
    np.testing.assert_array_equal(support.materialize(), mask)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("scattered", DeltaIndex),
        ("half", Bits),
        ("rows", CSR),
        ("2:4", NMIndex),
        ("blocks", BSR),
        ("few blocks", BSR),
        ("nothing", DeltaIndex),
        ("all", BSR),
    ],
)
def test_the_smallest_is_taken(name, kind):
    mask = jnp.asarray(MASKS[name])
    taken = smallest_support(mask)
    assert type(taken) is kind
    np.testing.assert_array_equal(np.asarray(taken.materialize(), bool), MASKS[name])
    others = [support_of(mask, format) for format in FORMATS]
    others += [support_of(mask, "2:4")] if name == "2:4" else []
    others += [support_of(mask, (4, 8))] if "blocks" in name else []
    bits = [8 * sum(x.nbytes for x in jax.tree.leaves(other)) for other in others]
    measured = 8 * sum(x.nbytes for x in jax.tree.leaves(taken))
    assert measured == taken.bits <= min(bits)


@pytest.mark.parametrize("name", MASKS)
def test_costs_are_those_of_the_arrays(name):
    mask = MASKS[name]
    made = {DeltaIndex.cost(mask): DeltaIndex.of(mask), CSR.cost(mask): CSR.of(mask)}
    made[Bits.cost(mask.shape, 1)] = Bits.of(jnp.asarray(mask), 1)
    if name == "2:4":
        made[NMIndex.cost(mask.shape, 2, 4)] = NMIndex.of(jnp.asarray(mask), 2, 4)
    if "blocks" in name:
        made[BSR.cost(mask, (4, 8))] = BSR.of(jnp.asarray(mask), (4, 8))
    for cost, support in made.items():
        assert cost == 8 * sum(x.nbytes for x in jax.tree.leaves(support))


def test_grids_of_few_blocks_lie_as_gaps():
    assert isinstance(support_of(jnp.asarray(MASKS["few blocks"]), (4, 8)).kept, DeltaIndex)
    assert isinstance(support_of(jnp.asarray(MASKS["blocks"]), (4, 8)).kept, Bits)


@pytest.mark.parametrize(
    ("format", "outline"),
    [("bitmask", "1-bit"), ("gaps", "gaps"), ("csr", "rows"), ("2:4", "2:4"), ((4, 1), "4x1 bl")],
)
def test_a_format_can_be_forced(format, outline):
    mask = jnp.asarray(MASKS["blocks" if isinstance(format, tuple) else "2:4"])
    stored = store({"w": Masked(VALUES, mask, format=format)})["w"]
    assert stored.support.outline().startswith(outline)
    assert not stored.problems(stored.shape)
    np.testing.assert_array_equal(stored.materialize(), np.where(mask, VALUES, 0))


def test_patterns_pack_under_jit_as_they_do_outside():
    for format, name, count in (("2:4", "2:4", None), ((4, 8), "blocks", 32 * 40)):
        leaf = Masked(VALUES, jnp.asarray(MASKS[name]), count, format=format)
        stored = jax.jit(store)({"w": leaf})["w"]
        assert type(stored.support) is type(store({"w": leaf})["w"].support)
        np.testing.assert_array_equal(stored.materialize(), leaf.materialize())
    unknown = jax.jit(lambda leaf: store({"w": leaf}))(leaf.replace(format="csr"))["w"]
    assert isinstance(unknown.support, Bits)


def test_a_mask_without_the_pattern_is_refused():
    ones = jnp.ones((8, 4), bool).at[0, 0].set(False)
    for format, text in (
        ("2:4", r"store: w: keeps 3 of 4 in a group, and format 2:4 stores 2"),
        ((2, 2), r"store: w: keeps some of a block of \(2, 2\)"),
        ("3:5", r"groups of 5 do not divide axis 0 of shape \(8, 4\)"),
    ):
        with pytest.raises(CompositionError, match=text):
            store({"w": Masked(VALUES[:8, :4], ones, format=format)})


def test_a_mask_over_a_pattern_has_no_pattern():
    inner = Masked(VALUES, jnp.asarray(MASKS["2:4"]), format="2:4")
    outer = Masked(inner, jnp.asarray(MASKS["half"]), format="2:4")
    stored = store({"w": outer})["w"]
    assert not isinstance(stored.support, NMIndex)
    np.testing.assert_array_equal(stored.materialize(), outer.materialize())
    assert isinstance(store({"w": outer.replace(format="csr")})["w"].support, CSR)


def test_values_must_be_as_many_as_the_support_keeps():
    stored = store({"w": Masked(Quantized(jnp.round(VALUES), jnp.ones((1, 1))), MASKS["2:4"])})["w"]
    assert not stored.problems(stored.shape)
    short = stored.replace(values=stored.values.replace(codes=jnp.zeros(1535, jnp.int8)))
    assert short.problems(short.shape) == [
        "has values of shape (1535,) for the support 2:4 3-bit[16,48]"
    ]
    for values in (jnp.zeros((1536, 1)), jnp.zeros(64 * 48 + 1)):
        assert "has values of shape" in stored.replace(values=values).problems((64, 48))[0]


@pytest.mark.parametrize(
    ("support", "text"),
    [
        (CSR.of(MASKS["half"]).replace(shape=(63, 48)), "of 63 rows has rows 5-bit[64]"),
        (NMIndex.of(MASKS["2:4"], 2, 4).replace(shape=(60, 48)), "of shape (60, 48) has 2:4 3-bit"),
        (NMIndex.of(MASKS["2:4"], 2, 4).replace(m=5), "groups of 5 do not divide axis 0"),
        (NMIndex.of(MASKS["2:4"], 2, 4).replace(n=0), "0:4 is not a pattern"),
        (BSR.of(MASKS["blocks"], (4, 8)).replace(sizes=(4, 4)), "of shape (64, 48) has 4x4"),
        (BSR.of(MASKS["blocks"], (4, 8)).replace(sizes=(5, 8)), "blocks of (5, 8) do not"),
        (BSR.of(MASKS["blocks"], (4, 8)).replace(sizes=(0, 8)), "(0, 8) are not block sizes"),
    ],
)
def test_malformed_supports_say_why(support, text):
    assert text in support.problems(support.shape)[0]


def test_patterns_are_split_like_the_weight():
    spec = PartitionSpec("data", "model")
    assert tuple(NMIndex.of(MASKS["2:4"], 2, 4).specs(spec).codes.words) == ("data", "model")
    assert tuple(BSR.of(MASKS["blocks"], (4, 1)).specs(spec).kept.words) == ("data", "model")
