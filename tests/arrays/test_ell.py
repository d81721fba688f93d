"""Lists of sparse weights stand for what the sparse weights stand for, bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.sharding import PartitionSpec as P

import nnopt_jax as nnopt
from nnopt_jax.arrays import (
    BSR,
    ELL,
    BlockELL,
    Codebook,
    Factored,
    InputQuantized,
    Masked,
    Quantized,
    Reshaped,
    Sparse,
    Sum,
)

SHAPE = (12, 16)
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42], np.float32)
MASKS = ("drawn", "no row", "no column", "full column", "full", "empty", "one")
GRID = {
    "floats": lambda x: x,
    "table": lambda x: Codebook(jnp.abs(x * 3).astype(jnp.uint8) % 4, jnp.linspace(-1.0, 2.0, 4)),
    "integers": lambda x: Quantized(jnp.round(x), jnp.full((1, SHAPE[1]), 0.3)),
    "zero points": lambda x: Quantized(
        jnp.round(x), jnp.full((1, SHAPE[1]), 0.3), jnp.ones((1, SHAPE[1]))
    ),
}


def masked(kind, seed, part=0.2):
    mask = np.random.default_rng(seed).random(SHAPE) < part
    if kind == "no row":
        mask[3] = False
    if kind in ("no column", "full column"):
        mask[:, 5] = kind == "full column"
    if kind in ("full", "empty"):
        mask[:] = kind == "full"
    if kind == "one":
        mask[:] = False
        mask[7, 2] = True
    return mask


def bits(x):
    return np.asarray(x).view(np.uint16 if x.dtype == jnp.bfloat16 else np.uint32)


def same(left, right):
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    np.testing.assert_array_equal(bits(left.materialize()), bits(right.materialize()))


def shown(seed):
    """Values, some of them odd."""
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    values.ravel()[:12] = np.tile(ODD, 2)
    return values


@given(seed=st.integers(0, 2**16), kind=st.sampled_from(MASKS), part=st.sampled_from([0.1, 0.6]))
def test_lists_are_the_very_array(seed, kind, part):
    mask, values = masked(kind, seed, part), shown(seed)
    lists = ELL.of(values, mask)
    np.testing.assert_array_equal(bits(lists.materialize()), bits(np.where(mask, values, 0)))
    assert lists.problems(SHAPE) == []
    assert lists.indices.shape[0] == max(mask.sum(0).max(), 1)
    assert (np.diff(np.asarray(lists.indices), axis=0) > 0).all()


@given(
    seed=st.integers(0, 2**16),
    sizes=st.sampled_from([(4, 8), (1, 8), (12, 8)]),
    part=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_lists_of_blocks_are_the_very_array(seed, sizes, part):
    values = shown(seed)
    grid = np.random.default_rng(seed).random((12 // sizes[0], 16 // sizes[1])) < part
    mask = np.kron(grid, np.ones(sizes, bool)).astype(bool)
    lists = BlockELL.of(values, sizes, mask)
    np.testing.assert_array_equal(bits(lists.materialize()), bits(np.where(mask, values, 0)))
    assert lists.problems(SHAPE) == []
    assert lists.indices.shape[1] == max(grid.sum(0).max(), 1)


@pytest.mark.parametrize("grid", GRID)
@pytest.mark.parametrize("kind", ["drawn", "no column", "empty"])
def test_what_is_prepacked_is_what_was_packed(grid, kind):
    values = np.round(shown(0)) if grid == "floats" else np.round(2 * np.sin(np.arange(192.0)))
    values = jnp.asarray(values.reshape(SHAPE), jnp.float32)
    packed = Masked(GRID[grid](values), jnp.asarray(masked(kind, 0))).store()
    prepacked = nnopt.prepack({"w": packed})["w"]
    assert isinstance(prepacked, ELL)
    assert prepacked.bits < 32 * values.size
    same(prepacked, packed)


def pruned(dtype="float32", part=0.1):
    x = jax.random.normal(jax.random.key(0), SHAPE).astype(dtype)
    return Masked(x, jnp.asarray(masked("drawn", 0, part))).store()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_stays(dtype):
    packed = pruned(dtype)
    prepacked = nnopt.prepack({"w": packed})["w"]
    assert isinstance(prepacked, ELL)
    same(prepacked, packed)


@pytest.mark.parametrize(("sizes", "kind"), [((4, 8), BlockELL), ((1, 8), BlockELL), ((4, 4), ELL)])
def test_blocks_stay_blocks_where_outputs_lie_together(sizes, kind):
    mask = np.zeros(SHAPE, bool)
    mask[4 : 4 + sizes[0], 8 : 8 + sizes[1]] = True
    packed = Masked(jnp.ones(SHAPE), jnp.asarray(mask), format=sizes).store()
    assert isinstance(packed.support, BSR)
    prepacked = nnopt.prepack({"w": packed})["w"]
    assert type(prepacked) is kind
    assert prepacked.values.size == sizes[0] * sizes[1] * (16 // sizes[1])
    same(prepacked, packed)


def test_what_lies_around_stays():
    packed, factors = pruned(), Factored(jnp.ones((12, 1)), jnp.ones((1, 16)))
    grid = InputQuantized(Quantized(jnp.ones(SHAPE), jnp.ones((1, 16))))
    below = Masked(grid, jnp.asarray(masked("drawn", 0, 0.1))).store()
    tree = {"sum": Sum(packed, factors), "inputs": below, "rest": jnp.ones(3)}
    prepacked = nnopt.prepack(tree)
    assert type(prepacked["sum"].base) is ELL
    assert type(prepacked["inputs"]) is InputQuantized
    assert type(prepacked["inputs"].values) is ELL
    assert prepacked["rest"] is tree["rest"]
    for name in ("sum", "inputs"):
        same(prepacked[name], tree[name])


def test_what_has_no_lists_stays_what_it_is():
    kernel = Masked(jnp.ones((3, 3, 8, 8)), jnp.arange(576).reshape(3, 3, 8, 8) % 9 == 0).store()
    full = pruned(part=0.9)
    integers = Masked(jnp.ones(SHAPE, jnp.int32), jnp.asarray(masked("one", 0))).store()
    nothing = Masked(jnp.ones((0, 4)), jnp.ones((0, 4), bool)).store()
    tree = {"kernel": kernel, "full": full, "integers": integers, "nothing": nothing}
    assert all(leaf is tree[name] for name, leaf in nnopt.prepack(tree).items())
    inside = jax.jit(nnopt.prepack)({"w": pruned()})
    assert isinstance(inside["w"], Sparse)


def test_dense_makes_arrays_of_what_each_call_would_make_dense():
    large = jax.random.normal(jax.random.key(0), (256, 256))
    mask = jax.random.uniform(jax.random.key(1), (256, 256))
    table = Codebook(jnp.zeros(SHAPE, jnp.uint8), jnp.ones(2)).store()
    tree = {
        "few": Masked(large, mask < 0.01).store(),
        "half": Masked(large, mask < 0.5).store(),
        "kernel": Masked(jnp.ones((3, 3, 8, 8)), jnp.ones((3, 3, 8, 8), bool)).store(),
        "table": table,
        "small": pruned(),
        "grid": Quantized(jnp.ones((4, 4)), jnp.ones((1, 1))).store(),
    }
    prepacked = nnopt.prepack(tree, dense=True)
    kinds = {name: type(leaf) for name, leaf in prepacked.items()}
    assert kinds["few"] is ELL
    assert kinds["half"] is kinds["table"] is kinds["small"] is Reshaped
    assert kinds["grid"] is Quantized
    assert isinstance(prepacked["kernel"], jax.Array)
    for left, right in zip(
        jax.tree.leaves(nnopt.materialize(prepacked)),
        jax.tree.leaves(nnopt.materialize(tree)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_lists_are_saved_and_loaded(tmp_path):
    block = Masked(jnp.ones((8, 16)), jnp.arange(8)[:, None] < jnp.full((8, 16), 2)).store()
    prepacked = nnopt.prepack({"w": pruned(), "bf16": pruned("bfloat16"), "block": block})
    assert type(prepacked["block"]) is BlockELL
    nnopt.save(tmp_path / "lists.nnopt", prepacked)
    back = nnopt.load(tmp_path / "lists.nnopt")
    assert jax.tree.structure(back) == jax.tree.structure(prepacked)
    for name, leaf in prepacked.items():
        same(back[name], leaf)
    assert jax.tree.structure(nnopt.arrays.store(prepacked)) == jax.tree.structure(prepacked)


def test_members_are_lists_of_their_own():
    one, other = nnopt.prepack({"w": pruned()})["w"], nnopt.prepack({"w": pruned()})["w"]
    both = jax.tree.map(lambda *x: jnp.stack(x), one, other.replace(values=-other.values))
    dense = jax.vmap(nnopt.materialize)(both)
    np.testing.assert_array_equal(dense[0], -dense[1])
    np.testing.assert_array_equal(dense[0], one.materialize())


def test_lists_lie_whole_on_every_device():
    specs = nnopt.prepack({"w": pruned()})["w"].specs(P("a", "b"))
    assert (tuple(specs.indices), tuple(specs.values)) == ((), ())


def test_malformed_lists_say_why():
    lists = nnopt.prepack({"w": pruned()})["w"]
    assert lists.replace(shape=(12, 15)).problems((12, 15)) == [
        f"of shape (12, 15) has {lists.outline()}"
    ]
    assert lists.replace(shape=(1, 16)).problems((1, 16))
    assert lists.replace(indices=lists.indices.astype(float)).problems(SHAPE)
    blocks = BlockELL.of(jnp.ones((4, 8)), (2, 4))
    assert blocks.replace(indices=blocks.indices[:1]).problems((4, 8))
    assert blocks.replace(shape=(5, 8)).problems((5, 8))
    with pytest.raises(nnopt.errors.ArtifactError, match="w: ELL of shape"):
        nnopt.arrays.check({"w": lists.replace(shape=(12, 15))}, "load")
