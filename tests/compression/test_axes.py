"""Factors follow the axes of a weight: contracted times output, for each index of batch axes."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec as P

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.arrays import Factored, Reshaped
from nnopt_jax.errors import SelectionError, ShapeError

low_rank = nnopt.compression.low_rank
SIZES = (4, 5, 2, 3)  # few shapes: each is compiled anew


def weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bound(tx, axes):
    return tx.bind(axes={"w": axes})


def shown(tx, leaf, **given):
    params = {"w": jnp.asarray(leaf)}
    return np.asarray(tx.apply(params, tx.init(params, **given))["w"])


def nearest(leaf, axes, rank):
    """The nearest weight of a rank for each batch index, by loops over NumPy's SVD in float64."""
    batch, rows, columns = (tuple(role) for role in (axes.batch, axes.contracted, axes.output))
    wanted = np.zeros(leaf.shape)
    for index in itertools.product(*(range(leaf.shape[axis]) for axis in batch)):
        place = [slice(None)] * leaf.ndim
        for axis, number in zip(batch, index, strict=True):
            place[axis] = number
        left = [axis for axis in range(leaf.ndim) if axis not in batch]
        order = [left.index(axis) for axis in (*rows, *columns)]
        part = np.asarray(leaf[tuple(place)], np.float64).transpose(order)
        matrix = part.reshape(np.prod([leaf.shape[axis] for axis in rows], dtype=int), -1)
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        best = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(part.shape)
        wanted[tuple(place)] = best.transpose(np.argsort(order))
    return wanted


@st.composite
def roles(draw):
    """Any weight of three or four axes, with any roles."""
    ndim = draw(st.integers(3, 4))
    order = draw(st.permutations(range(ndim)))
    batch = draw(st.integers(0, ndim - 2))
    split = draw(st.integers(batch + 1, ndim - 1))
    axes = Axes(tuple(order[batch:split]), tuple(order[split:]), tuple(order[:batch]))
    return SIZES[:ndim], axes


@given(roles())
@settings(max_examples=8, deadline=None)
def test_factors_are_of_contracted_times_output_for_any_roles(drawn):
    shape, axes = drawn
    leaf = weight(shape)
    params, tx = {"w": jnp.asarray(leaf)}, bound(low_rank(1), axes)
    sides = [int(np.prod([shape[a] for a in role])) for role in (axes.contracted, axes.output)]
    if sum(sides) >= np.prod(sides):
        with pytest.raises(ShapeError, match="no factors of two would be smaller"):
            tx.init(params)
        return
    state, found = jax.jit(lambda p: (s := tx.init(p), tx.apply(p, s)["w"]))(params)
    lead = tuple(shape[axis] for axis in axes.batch)
    factors = state.learned["w"][0]
    assert factors["u"].shape == (*lead, sides[0], 1)
    assert factors["v"].shape == (*lead, 1, sides[1])
    np.testing.assert_allclose(found, nearest(leaf, axes, 1), atol=1e-5)
    packed = jax.eval_shape(tx.pack, params, state)["w"]
    assert packed.shape == shape
    assert not packed.problems(shape)


QUERY, OUT = Axes(0, (1, 2)), Axes((0, 1), 2)
OIHW = Axes((2, 3, 1), 0)


@pytest.mark.parametrize(
    ("shape", "axes", "u", "v"),
    [
        ((32, 4, 6), QUERY, (32, 2), (2, 24)),
        ((4, 6, 32), OUT, (24, 2), (2, 32)),
        ((16, 24), Axes(1, 0), (24, 2), (2, 16)),
        ((3, 24, 16), Axes(1, 2, 0), (3, 24, 2), (3, 2, 16)),
        ((3, 32, 4, 6), Axes(1, (2, 3), 0), (3, 32, 2), (3, 2, 24)),
        ((3, 3, 4, 8), Axes((0, 1, 2), 3), (36, 2), (2, 8)),
        ((8, 4, 3, 3), OIHW, (36, 2), (2, 8)),
    ],
)
def test_shapes_of_factors(shape, axes, u, v):
    tx, params = bound(low_rank(2), axes), {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    factors = state.learned["w"][0]
    assert (factors["u"].shape, factors["v"].shape) == (u, v)


def test_a_weight_that_is_permuted_has_the_same_factors():
    """Roles decide, not places: all bits are equal, and the outcome is permuted alike."""
    leaf = weight((8, 3, 4))
    axes, order = QUERY, (2, 0, 1)
    moved = Axes(*(tuple(order.index(a) for a in role) for role in (axes.contracted, axes.output)))
    here, there = bound(low_rank(2), axes), bound(low_rank(2), moved)
    first, second = (
        tx.init({"w": jnp.asarray(x)}).learned
        for tx, x in ((here, leaf), (there, leaf.transpose(order)))
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(
        shown(there, leaf.transpose(order)), shown(here, leaf).transpose(order)
    )


def test_spatial_factors_of_a_kernel_in_another_order():
    hwio = weight((3, 3, 4, 8))
    wanted = shown(low_rank(3, form="spatial"), hwio).transpose(3, 2, 0, 1)
    found = shown(bound(low_rank(3, form="spatial"), OIHW), hwio.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found, wanted)


def test_masks_count_as_zero_and_stay_above_bound_factors():
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), low_rank(2)).bind(axes={"w": OUT})
    leaf = weight((3, 4, 8))
    params = {"w": jnp.asarray(leaf)}
    state = tx.init(params)
    mask = np.asarray(tx.encode(params, state)["w"].mask)
    wanted = np.where(mask, nearest(np.where(mask, leaf, 0), OUT, 2), 0)
    np.testing.assert_allclose(tx.apply(params, state)["w"], wanted, atol=1e-5)


def test_later_links_see_matrices_and_a_file_keeps_all(tmp_path):
    tx = nnopt.chain(low_rank(2), nnopt.quantization.uniform(8)).bind(axes={"w": QUERY})
    params = {"w": jnp.asarray(weight((24, 3, 4)))}
    state = jax.jit(tx.init)(params)
    packed = tx.pack(params, state)
    assert isinstance(packed["w"], Reshaped)
    assert isinstance(packed["w"].base, Factored)
    nnopt.save(tmp_path / "w.nnopt", packed)
    loaded = nnopt.load(tmp_path / "w.nnopt")["w"]
    np.testing.assert_array_equal(loaded.materialize(), tx.apply(params, state)["w"])


def test_bound_factors_are_made_for_many_models_at_once():
    tx = bound(low_rank(2), QUERY)
    leaves = jnp.asarray(weight((3, 12, 3, 4)))
    found = jax.jit(jax.vmap(lambda w: tx.apply({"w": w}, tx.init({"w": w}))["w"]))(leaves)
    for one, leaf in zip(np.asarray(found), np.asarray(leaves), strict=True):
        np.testing.assert_allclose(one, nearest(leaf, QUERY, 2), atol=1e-5)


def test_factors_are_made_inside_shard_map():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = bound(low_rank(1), Axes(1, (2, 3), 0))
    leaf = weight((2, 8, 2, 3))

    def each(w):
        return tx.apply({"w": w}, tx.init({"w": w}))["w"]

    split = jax.shard_map(each, mesh=mesh, in_specs=P("model"), out_specs=P("model"))
    found = jax.jit(split)(jnp.asarray(leaf))
    np.testing.assert_allclose(found, nearest(leaf, Axes(1, (2, 3), 0), 1), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axes", "spec", "u", "v"),
    [
        ((32, 4, 6), QUERY, P("data", "model"), ("data", None), (None, None)),
        ((4, 6, 32), OUT, P("model", None, "data"), (None, None), (None, "data")),
        ((16, 24), Axes(1, 0), P("data", "model"), ("model", None), (None, "data")),
        ((2, 24, 16), Axes(1, 2, 0), P("data", "model"), ("data", "model", None), ("data", None)),
    ],
)
def test_factors_keep_the_partition_of_whole_axes(shape, axes, spec, u, v):
    tx, params = bound(low_rank(2), axes), {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state, packed = jax.eval_shape(lambda p: (tx.init(p), tx.pack(p, tx.init(p))), params)
    told = nnopt.state_specs(tx, params, {"w": spec})
    assert jax.tree.structure(state) == jax.tree.structure(told, is_leaf=lambda x: type(x) is P)
    leaf = nnopt.packed_specs(packed, {"w": spec})["w"]
    node = leaf.base if isinstance(leaf, Reshaped) else leaf
    learned = told.learned["w"][0]
    for found, wanted in ((learned["u"], u), (learned["v"], v), (node.u, u), (node.v, v)):
        ndim = max(len(found), len(wanted))  # what is left out is whole
        assert [*found, *[None] * (ndim - len(found))] == [*wanted, *[None] * (ndim - len(wanted))]


def test_three_axes_without_roles_are_an_error_with_both_ways_out():
    params = {"q": jnp.zeros((8, 2, 4)), "k": jnp.zeros((8, 2, 4)), "fc": jnp.zeros((8, 8))}
    with pytest.raises(ShapeError) as caught:
        low_rank(1).init(params)
    lines = str(caught.value).splitlines()
    assert lines[0] == "compression.low_rank: 2 problems"
    for name, text in zip("kq", sorted(lines[1:]), strict=True):
        assert text.startswith(f"  {name}: has shape (8, 2, 4), and which of its axes a product")
        assert "tx.bind(nnopt.graph(apply, params, *inputs))" in text
        assert f"tx.bind(axes={{'{name}': nnopt.Axes(in_axis=..., out_axis=...)}})" in text
    found = low_rank(1).bind(misfit="skip").init(params)
    assert set(found.rest) == {"fc"}


def test_ties_are_still_checked_and_handed_back_once_they_are_bound():
    tx = nnopt.compression.tie({"b": "a"}).bind(axes={"**": Axes(0, 1)})
    with pytest.raises(SelectionError, match="there is no leaf 'b'"):
        tx.init({"a": jnp.ones((2, 3))})
    slopes = tx.back({"a": jnp.ones((2, 3)), "b": jnp.full((2, 3), 2.0)})
    np.testing.assert_array_equal(slopes["a"], np.full((2, 3), 3.0))


@pytest.mark.parametrize(
    ("shape", "axes", "learned"),
    [
        pytest.param((3, 24), Axes(1, 0), True, marks=pytest.mark.slow),
        ((2, 12, 3), Axes((1, 0), 2), False),
    ],
)
def test_codebooks_of_channels_are_those_of_each_channel_alone(shape, axes, learned, tmp_path):
    """Each output is shared as a leaf of its own would be, and the file gives all bits back."""
    leaf = np.round(weight(shape) * 8) / 8
    tx = bound(nnopt.compression.codebook(4, scope="channel", learned=learned), axes)
    params = {"w": jnp.asarray(leaf)}
    state = jax.jit(tx.init)(params)
    found = np.asarray(tx.apply(params, state)["w"])
    alone = nnopt.compression.codebook(4, where="**")
    shared = jax.jit(lambda p: alone.apply(p, alone.init(p)))
    for number in range(3):
        part = np.take(leaf, number, axes.out_axis).ravel()
        wanted = shared({"w": jnp.asarray(part)})["w"]
        ours = np.take(found, number, axes.out_axis).ravel()
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
    packed = tx.pack(params, state)
    sizes = [3 if axis == axes.out_axis else 1 for axis in range(len(shape))]
    assert packed["w"].table.shape == (*sizes, 4)
    nnopt.save(tmp_path / "w.nnopt", packed)
    np.testing.assert_array_equal(nnopt.load(tmp_path / "w.nnopt")["w"].materialize(), found)
    spec = P(*("model" if size == 3 else None for size in sizes))
    assert tuple(nnopt.packed_specs(packed, {"w": spec})["w"].table) == (*spec, None)


def test_masks_and_grids_go_with_codebooks_of_channels():
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.5),
        nnopt.compression.codebook(3, scope="channel", learned=True),
        nnopt.quantization.uniform(8),
    ).bind(axes={"w": Axes(1, 0)})
    params = {"w": jnp.asarray(weight((3, 24)))}
    state = jax.jit(tx.init)(params)
    shown = np.asarray(tx.apply(params, state)["w"])
    assert (shown == 0).sum() >= 36
    assert all(len(set(row[row != 0])) <= 3 for row in shown)
    np.testing.assert_array_equal(nnopt.materialize(tx.pack(params, state))["w"], shown)


def test_gradients_of_a_channels_table_are_sums_over_its_clusters():
    tx = bound(nnopt.compression.codebook(2, scope="channel", learned=True), Axes(1, 0))
    leaf = np.array([[0.0, 0.0, 8.0, 8.0], [1.0, 5.0, 5.0, 5.0]], np.float32)
    params, slopes = {"w": jnp.asarray(leaf)}, np.arange(8.0, dtype=np.float32).reshape(2, 4)
    state = tx.init(params)
    _, grads = nnopt.value_and_grad(lambda p: (p["w"] * slopes).sum(), tx)(params, state)
    np.testing.assert_array_equal(grads.train.learned["w"][0], [[[1.0, 5.0]], [[4.0, 18.0]]])


def test_too_few_weights_of_a_channel_are_named():
    tx = bound(nnopt.compression.codebook(16, scope="channel"), Axes(1, 0))
    with pytest.raises(ShapeError, match="w: has 8 entries in a channel for 16 clusters"):
        tx.init({"w": jnp.zeros((64, 8))})
