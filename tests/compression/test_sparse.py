"""Leaves that hold zeros already, stored without them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import BSR, CSR, DeltaIndex, Masked, NMIndex, Quantized, Sparse
from nnopt_jax.errors import CompositionError, ShapeError, ValueRangeError

RNG = np.random.default_rng(0)
DENSE = RNG.normal(size=(16, 8)).astype(np.float32)
ZEROS = np.abs(DENSE) < 1
sparse = nnopt.compression.sparse


def params(kept, values=DENSE):
    return {"bias": jnp.ones(8), "kernel": jnp.asarray(np.where(kept, values, 0))}


def test_a_model_pruned_elsewhere_becomes_small():
    tree = params(~ZEROS)
    tx = sparse()
    state = tx.init(tree)
    packed = tx.pack(tree, state)
    assert packed["kernel"].values.shape == ((~ZEROS).sum(),)
    assert packed["bias"] is tree["bias"]
    np.testing.assert_array_equal(nnopt.materialize(packed)["kernel"], tree["kernel"])


def test_zeros_stay_while_the_rest_learns():
    tree = params(~ZEROS)
    tx = sparse()
    state = tx.init(tree)
    loss = lambda p: (p["kernel"] * 2.0).sum()  # noqa: E731
    _, grads = nnopt.value_and_grad(loss, tx)(tree, state)
    tree, state = nnopt.step(tx, tree, state, grads.train, grads)
    np.testing.assert_array_equal(tree["kernel"], np.where(ZEROS, 0, DENSE + 2))
    np.testing.assert_array_equal(tx.pack(tree, state)["kernel"].values, (DENSE + 2)[~ZEROS])


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("csr", CSR),
        pytest.param("gaps", DeltaIndex, marks=pytest.mark.slow),
        ("2:4", NMIndex),
        pytest.param((2, 2), BSR, marks=pytest.mark.slow),
        ([4, 8], BSR),
    ],
)
def test_the_mask_is_the_smallest_of_its_format_that_covers_all(format, kind):
    """One in four is not zero: 2:4 keeps a zero beside it, blocks keep all of theirs."""
    tree = params(np.arange(16)[:, None] % 4 == np.arange(8)[None] % 3)
    tx = sparse(format)
    packed = tx.pack(tree, tx.init(tree))["kernel"]
    assert isinstance(packed.support, kind)
    np.testing.assert_array_equal(packed.materialize(), tree["kernel"])
    kept = np.asarray(packed.support.materialize())
    blocks = kept.reshape(8, 2, 4, 2).any((1, 3))
    wanted = {"csr": 32, "gaps": 32, "2:4": 64, (2, 2): 4 * blocks.sum(), (4, 8): 128}
    key = format if isinstance(format, str) else tuple(format)
    assert kept.sum() == packed.values.size == wanted[key]


def test_more_than_a_group_holds_is_refused():
    with pytest.raises(
        CompositionError,
        match=r"compression\.sparse: kernel: has 4 of 4 in a group that are not zero, and format "
        r"2:4 stores 2; prune it first, as with pruning\.magnitude\(pattern='2:4'\)",
    ):
        sparse("2:4").init(params(DENSE != 0))


def test_groups_and_blocks_must_divide():
    with pytest.raises(ShapeError, match=r"kernel: groups of 5 do not divide axis 0 of shape"):
        sparse("2:5").init(params(ZEROS))
    with pytest.raises(ShapeError, match=r"kernel: blocks of \(3, 3\) do not divide"):
        sparse((3, 3)).init(params(ZEROS))


@pytest.mark.parametrize("format", ["coo", "5:4", "0:4", "32:64", (0, 4), (), 3, ("a", 4)])
def test_other_formats_are_refused(format):
    with pytest.raises(ValueRangeError, match=r"compression\.sparse: format=.* is not one of"):
        sparse(format)


def test_a_mask_of_an_earlier_link_stays_and_gets_the_format():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), sparse("csr"))
    tree = params(DENSE != 0)
    state = tx.init(tree)
    leaf = tx.encode(tree, state)["kernel"]
    assert not isinstance(leaf.values, Masked)
    assert isinstance(tx.pack(tree, state)["kernel"].support, CSR)
    with pytest.raises(CompositionError, match="in a group that are not zero"):
        nnopt.chain(nnopt.pruning.magnitude(0.25), sparse("2:4")).init(tree)


def test_a_mask_that_loses_the_pattern_is_refused_when_it_is_packed():
    tx = sparse((2, 2))
    whole = Masked(jnp.asarray(DENSE), jnp.ones((16, 8), bool))
    state = tx.init({"kernel": whole})
    holes = {"kernel": whole.replace(mask=jnp.asarray(ZEROS))}
    with pytest.raises(CompositionError, match=r"store: kernel: keeps some of a block of \(2, 2\)"):
        tx.pack(holes, state)
    packed = jax.jit(lambda p: tx.pack(p, state, capacities={"kernel": 128}))(holes)
    np.testing.assert_array_equal(packed["kernel"].materialize(), np.where(ZEROS, DENSE, 0))


def test_patterns_of_pruning_are_stored_as_what_they_are_under_jit_as_well():
    for pattern, kind in (("2:4", NMIndex), ((2, 4), BSR)):
        share = None if pattern == "2:4" else 0.5
        tx = nnopt.chain(nnopt.pruning.magnitude(share, pattern=pattern), sparse())
        tree = params(DENSE != 0)
        state = tx.init(tree)
        for pack in (tx.pack, jax.jit(tx.pack)):
            stored = pack(tree, state)["kernel"]
            assert isinstance(stored.support, kind)
            np.testing.assert_array_equal(stored.materialize(), tx.apply(tree, state)["kernel"])


def test_codes_of_zero_are_not_stored():
    tree = params(DENSE != 0)
    tx = nnopt.chain(nnopt.quantization.uniform(2), sparse())
    packed = tx.pack(tree, tx.init(tree))["kernel"]
    assert isinstance(packed.values, Quantized)
    assert packed.values.codes.shape == (int((packed.materialize() != 0).sum()),)


def test_sparse_storage_is_not_stored_again():
    tx = sparse()
    tree = params(~ZEROS)
    packed = tx.pack(tree, tx.init(tree))
    assert isinstance(packed["kernel"], Sparse)
    with pytest.raises(CompositionError, match=r"kernel: Sparse.* is in sparse storage already"):
        tx.pack(packed, tx.init(packed))
