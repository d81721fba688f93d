"""Scales follow the axes of the product, whatever the layout; against loops in NumPy."""

from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from nnopt_jax import Axes
from nnopt_jax.arrays import Reshaped, UnevenGroups
from nnopt_jax.errors import ShapeError
from tests.quantization.matrices import (
    F32,
    Q,
    bound,
    oracle,
    shown,
    to_matrix,
)


def off_outputs(found: np.ndarray, w: np.ndarray, axes: Axes) -> float:
    """The mean over outputs of their relative errors, small outputs counting as large ones."""
    matrix = to_matrix(w, axes)
    error = np.linalg.norm(to_matrix(found, axes) - matrix, axis=-2)
    return float(np.mean(error / np.linalg.norm(matrix, axis=-2)))


def uneven(shape: tuple[int, ...], outputs: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal weights whose outputs are of sizes from 1 to 1/100."""
    rng = np.random.default_rng(seed)
    sizes = [n if axis in outputs else 1 for axis, n in enumerate(shape)]
    spread = 10.0 ** rng.uniform(-2, 0, sizes)
    return (rng.normal(size=shape) * spread).astype(F32)


# Of each: shape, axes, what was taken for the only axis of channels, shape of the scale.
LEAVES = {
    "attention query": ((128, 8, 16), Axes(0, (1, 2)), 2, (1, 8, 16)),
    "attention output": ((8, 16, 128), Axes((0, 1), 2), 1, (1, 1, 128)),
    "linear (out, in)": ((64, 96), Axes(1, 0), 1, (64, 1)),
    "convolution (out, in, h, w)": ((32, 16, 3, 3), Axes((2, 3, 1), 0), 3, (32, 1, 1, 1)),
    "pointwise (out, in, 1, 1)": ((128, 32, 1, 1), Axes((2, 3, 1), 0), 3, (128, 1, 1, 1)),
    "gates (4 h, in)": ((4 * 24, 40), Axes(1, 0), 1, (96, 1)),
    "experts": ((3, 40, 24), Axes(1, 2, batch_axis=0), 1, (3, 1, 24)),
    "scanned query": ((2, 32, 4, 8), Axes(1, (2, 3), batch_axis=0), 3, (2, 1, 4, 8)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_channels_are_outputs(name):
    """The lines of the table of guessed axes: error as by the right rule, far from the old one."""
    shape, axes, guessed, scale = LEAVES[name]
    w = uneven(shape, (*axes.batch, *axes.output))
    tx = bound(Q.uniform(4, granularity="channel"), axes)
    params = {"w": jnp.asarray(w)}
    state = tx.init(params)
    assert state.rest["w"][0]["scale"].shape == scale
    found = np.asarray(tx.apply(params, state)["w"])
    np.testing.assert_array_equal(found, oracle(w, axes, 4, "channel"))
    wrong = Axes(tuple(a for a in range(w.ndim) if a != guessed), guessed)
    assert off_outputs(found, w, axes) < 0.13
    assert off_outputs(oracle(w, wrong, 4, "channel"), w, axes) > 0.3
    by_axis = Q.uniform(4, granularity="channel", axis=guessed)  # as it was, where it is asked for
    np.testing.assert_array_equal(shown(by_axis, w), oracle(w, wrong, 4, "channel"))


def test_uneven_heads_have_scales_of_their_own():
    rng = np.random.default_rng(2)
    heads = np.geomspace(1, 0.01, 8)[:, None]
    w = (rng.normal(size=(128, 8, 16)) * heads).astype(F32)
    right, shared = Axes(0, (1, 2)), Axes((0, 1), 2)
    found = shown(bound(Q.uniform(4, granularity="channel"), right), w)
    np.testing.assert_array_equal(found, oracle(w, right, 4, "channel"))
    assert off_outputs(found, w, right) < 0.13
    assert off_outputs(oracle(w, shared, 4, "channel"), w, right) > 0.4


def test_a_wide_pointwise_kernel_has_a_scale_for_each_output():
    w = {"w": jax.ShapeDtypeStruct((1280, 320, 1, 1), "float32")}
    tx = bound(Q.uniform(8, granularity="channel"), Axes((2, 3, 1), 0))
    assert jax.eval_shape(tx.init, w).rest["w"][0]["scale"].shape == (1280, 1, 1, 1)


def test_gates_of_a_cell_keep_their_outputs():
    axes, rng = Axes(1, 0), np.random.default_rng(3)
    w, x = uneven((4 * 32, 48), (0,)), rng.normal(size=(64, 48)).astype(F32)
    found = shown(bound(Q.uniform(4, granularity="channel"), axes), w)

    def cosine(v: np.ndarray) -> float:
        wanted, got = x @ w.T, x @ v.T
        norms = np.linalg.norm(wanted, axis=0) * np.linalg.norm(got, axis=0)
        return float(np.mean((wanted * got).sum(0) / np.where(norms > 0, norms, 1)))

    assert cosine(found) > 0.98 > cosine(oracle(w, Axes(0, 1), 4, "channel"))


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=2)


@settings(max_examples=8, deadline=None, derandomize=True)  # each compiles its own shapes
@given(
    SIZES, SIZES, st.lists(st.integers(1, 2), max_size=1), st.randoms(use_true_random=False),
    st.one_of(st.sampled_from(["tensor", "channel"]), st.integers(1, 9)),
)  # fmt: skip
def test_any_layout_equals_the_matrix_permuted(inputs, outputs, batch, random, granularity):
    sizes = [*batch, *inputs, *outputs]
    order = list(range(len(sizes)))
    random.shuffle(order)  # axis i of the leaf is axis order[i] of (batch, contracted, output)
    place = np.argsort(order)
    b, c = len(batch), len(batch) + len(inputs)
    roles = (place[b:c], place[c:], place[:b])
    axes = Axes(*(tuple(map(int, role)) for role in roles))
    shape = tuple(sizes[axis] for axis in order)
    w = np.random.default_rng(random.randrange(99)).normal(size=shape).astype(F32)
    exact = {"scale_dtype": "float32"}
    how = {"granularity": granularity, **exact}
    if isinstance(granularity, int):
        how = {"group": granularity, **exact}
    tx = bound(Q.uniform(3, **how), axes)
    wanted = oracle(w, axes, 3, granularity)
    np.testing.assert_array_equal(shown(tx, w), wanted)
    params = {"w": jnp.asarray(w)}
    packed = tx.pack(params, tx.init(params))["w"]
    np.testing.assert_array_equal(packed.materialize(), wanted)
    inner = packed.base if isinstance(packed, Reshaped) else packed
    scales = inner.scale.values if isinstance(inner.scale, UnevenGroups) else inner.scale
    if isinstance(granularity, int):
        groups = -(-int(np.prod(inputs)) // granularity)
        assert scales.size == np.prod(batch, dtype=int) * groups * np.prod(outputs)


def test_formats_of_whole_groups_say_so_and_take_any_layout():
    for make in (Q.mxfp4, Q.grouped):
        tx = make(group=32).bind(axes={"*": Axes((0, 1), 2)})
        params = {"a": jnp.ones((3, 12, 5)), "b": jnp.ones((4, 12, 5)), "c": jnp.ones((4, 24, 5))}
        with pytest.raises(ShapeError, match="2 problems") as caught:
            tx.init(params)
        assert "a: groups of 32 do not divide axes 0, 1 of shape (3, 12, 5)" in str(caught.value)
        some = make(group=32).bind(axes={"*": Axes((0, 1), 2)}, misfit="skip").init(params)
        assert list(some.rest) == ["c"]
    w = np.random.default_rng(8).normal(size=(4, 24, 5)).astype(F32)
    tx, plain = Q.mxfp4(group=32).bind(axes={"w": Axes((0, 1), 2)}), Q.mxfp4(group=32)
    np.testing.assert_array_equal(shown(tx, w).reshape(96, 5), shown(plain, w.reshape(96, 5)))


@pytest.mark.parametrize(
    ("shape", "axes", "step"),
    [
        ((64, 512), Axes(1, 0), (1, 8)),  # (out, in): 64 outputs are one run
        ((64, 32, 16), Axes(0, (1, 2)), (1, 2, 1)),  # 512 outputs: 16 heads of 16 in a run
        ((3, 64, 40), Axes(1, 2, batch_axis=0), (3, 1, 1)),  # no run across layers
        ((64, 600), Axes(0, 1), (1, 3)),
        ((128, 1), Axes(0, 1), (1, 1)),
    ],
)
def test_second_scales_run_along_outputs(shape, axes, step):
    w = np.random.default_rng(9).normal(size=shape).astype(F32)
    tx = bound(Q.nf4(group=64, double=True), axes)
    params = {"w": jnp.asarray(w)}
    leaf = tx.encode(params, tx.init(params))["w"]
    assert leaf.scale.scale.shape == step
    matrix = to_matrix(w, axes)
    groups = matrix.reshape(*matrix.shape[:-2], -1, 64, matrix.shape[-1])
    far = np.abs(to_matrix(np.asarray(leaf.scale.materialize()), axes) - np.abs(groups).max(-2))
    assert far.max() <= np.abs(w).max() / 255 / 2 * 1.001


def test_one_scale_for_each_layer_when_bound():
    w = uneven((3, 8, 4), (0,), seed=1)
    layers = bound(Q.uniform(8), Axes(1, 2, batch_axis=0))
    assert layers.init({"w": jnp.asarray(w)}).rest["w"][0]["scale"].shape == (3, 1, 1)
    np.testing.assert_array_equal(shown(layers, w), oracle(w, Axes(1, 2, 0), 8, "tensor"))
    assert Q.uniform(8).init({"w": jnp.asarray(w)}).rest["w"][0]["scale"].shape == (1, 1, 1)


def test_groups_of_a_kernel_run_over_its_places():
    """Unbound, four axes are (h, w, in, out)."""
    w = np.random.default_rng(10).normal(size=(3, 3, 8, 5)).astype(F32)
    for group, scale in ((4, (3, 3, 2, 5)), (24, (3, 1, 1, 5)), (72, (1, 1, 1, 5))):
        tx = Q.uniform(4, group=group, scale_dtype=F32)
        assert tx.init({"w": jnp.asarray(w)}).rest["w"][0]["scale"].shape == scale
        wanted = oracle(w, Axes((0, 1, 2), 3), 4, group)
        np.testing.assert_array_equal(shown(tx, w), wanted)
    wanted = oracle(w, Axes((0, 1, 2), 3), 4, 20)  # across places of the kernel, and uneven
    np.testing.assert_array_equal(shown(Q.uniform(4, group=20, scale_dtype=F32), w), wanted)


def test_binary_heights_count_what_is_summed():
    cases = {(8, 3, 4): Axes(0, (1, 2)), (3, 4, 8): Axes((0, 1), 2), (12, 8): Axes(1, 0)}
    for shape, axes in cases.items():
        w = np.ones(shape, F32)
        found = shown(bound(Q.binary_connect(scale="glorot"), axes), w)
        np.testing.assert_allclose(found, np.sqrt(1.5 / (8 + 12)), rtol=1e-6)
    kernel = bound(Q.binary_connect(scale="glorot"), Axes((2, 3, 1), 0))
    found = shown(kernel, np.ones((8, 4, 3, 3), F32))
    np.testing.assert_allclose(found, np.sqrt(1.5 / (9 * 4 + 9 * 8)), rtol=1e-6)
    with pytest.raises(ShapeError, match="which of its axes a product sums over is not known"):
        Q.binary_connect(scale="glorot").init({"w": jnp.ones((8, 3, 4))})


def test_bound_transforms_work_under_the_transformations_of_jax():
    w = np.random.default_rng(11).normal(size=(2, 6, 20)).astype(F32)
    params, tx = {"w": jnp.asarray(w)}, bound(Q.uniform(4, group=8, scale_dtype=F32), Axes(1, 0))
    each = [shown(tx, layer) for layer in w]
    for layer, wanted in zip(w, each, strict=True):
        np.testing.assert_array_equal(oracle(layer, Axes(1, 0), 4, 8), wanted)
    state = jax.vmap(tx.init)(params)
    assert state.rest["w"][0]["scale"].shape == (2, 6, 3)
    np.testing.assert_array_equal(jax.vmap(tx.apply)(params, state)["w"], each)
    packed = jax.vmap(tx.encode)(params, state)["w"]
    assert packed.scale.shape == (2, 6, 20)
    np.testing.assert_array_equal(packed.materialize(), each)
    shapes = jax.eval_shape(lambda p: tx.pack(p, tx.init(p)), {"w": params["w"][0]})["w"]
    assert (shapes.scale.values.shape, shapes.scale.shape) == ((6, 3), (6, 20))

    mesh = jax.make_mesh((2,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("layers")

    def mine(part):
        return tx.apply({"w": part[0]}, tx.init({"w": part[0]}))["w"][None]

    parted = jax.jit(jax.shard_map(mine, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_array_equal(parted(params["w"]), each)
