"""Scales follow the axes of the product, whatever the layout; against loops in NumPy."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.arrays import Quantized, Reshaped, UnevenGroups
from nnopt_jax.errors import ShapeError

F32 = np.float32
Q = nnopt.quantization


def to_matrix(w: np.ndarray, axes: Axes) -> np.ndarray:
    batch = [w.shape[axis] for axis in axes.batch]
    inputs = np.prod([w.shape[axis] for axis in axes.contracted], dtype=int)
    return w.transpose(axes.order).reshape(*batch, inputs, -1)


def from_matrix(matrix: np.ndarray, axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    return matrix.reshape([shape[a] for a in axes.order]).transpose(np.argsort(axes.order))


def rounded(part: np.ndarray, bits: int) -> np.ndarray:
    """One block on a symmetric grid, in float32 as the formulas have it."""
    high = 2 ** (bits - 1) - 1
    scale = np.abs(part).max(initial=0) * F32(1 / high)
    scale = scale if scale > 0 else F32(1)
    return np.clip(np.rint(part * (F32(1) / scale)), -high, high) * scale


def oracle(w: np.ndarray, axes: Axes, bits: int, granularity: str | int) -> np.ndarray:
    matrix = to_matrix(w, axes)
    shown, inputs = matrix.copy(), matrix.shape[-2]
    group = inputs if isinstance(granularity, str) else granularity
    for batch in itertools.product(*map(range, matrix.shape[:-2])):
        if granularity == "tensor":
            shown[batch] = rounded(matrix[batch], bits)
            continue
        for start, out in itertools.product(range(0, inputs, group), range(matrix.shape[-1])):
            at = (*batch, slice(start, start + group), out)
            shown[at] = rounded(matrix[at], bits)
    return from_matrix(shown, axes, w.shape)


def bound(tx: nnopt.Transform, axes: Axes) -> nnopt.Transform:
    return tx.bind(axes={"w": axes})


def shown(tx: nnopt.Transform, w: np.ndarray) -> np.ndarray:
    params = {"w": jnp.asarray(w)}
    return np.asarray(tx.apply(params, tx.init(params))["w"])


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


@settings(max_examples=20, deadline=None, derandomize=True)
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
    how = {"group": granularity} if isinstance(granularity, int) else {"granularity": granularity}
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


METHODS = {
    "uniform": Q.uniform(4, group=8),
    "affine": Q.uniform(4, group=8, symmetric=False, scale_dtype=jnp.bfloat16),
    "percentile": Q.uniform(4, group=8, range="percentile", percent=90),
    "mse": Q.uniform(3, group=8, range="mse"),
    "nf4": Q.nf4(group=8),
    "nf4 double": Q.nf4(group=8, double=True),
    "fp4": Q.fp4(group=8),
    "xnor": Q.xnor(group=8),
    "twn": Q.twn(group=8),
    "ttq": Q.ttq(group=8),
    "lsq": Q.lsq(4, group=8),
}
LAYOUTS = {
    "shorter last group": ((20, 6), Axes(0, 1)),
    "(out, in), shorter last group": ((6, 20), Axes(1, 0)),
    "across heads, shorter last group": ((3, 12, 5), Axes((0, 1), 2)),
    "layers, shorter last group": ((2, 20, 6), Axes(1, 2, batch_axis=0)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_groups_of_any_layout(name, layout, tmp_path):
    """The law, files, and the same as on the matrix by itself, group by group."""
    shape, axes = LAYOUTS[layout]
    w = np.random.default_rng(5).normal(size=shape).astype(F32)
    tx, params = bound(METHODS[name], axes), {"w": jnp.asarray(w)}
    state = jax.jit(tx.init)(params)
    found = np.asarray(tx.apply(params, state)["w"])
    packed = tx.pack(params, state)
    np.testing.assert_array_equal(packed["w"].materialize(), found)
    nnopt.save(tmp_path / "w.nnopt", packed)
    loaded = nnopt.load(tmp_path / "w.nnopt")
    assert jax.tree.structure(loaded) == jax.tree.structure(packed)
    np.testing.assert_array_equal(nnopt.materialize(loaded)["w"], found)
    if name == "nf4 double":
        return  # second scales are of several groups
    matrix = to_matrix(w, axes)
    alone = METHODS[name].bind(axes={"w": Axes(matrix.ndim - 2, matrix.ndim - 1,
                                               tuple(range(matrix.ndim - 2)))})  # fmt: skip
    for start in range(0, matrix.shape[-2], 8):
        part = matrix[..., start : start + 8, :]
        whole = to_matrix(found, axes)[..., start : start + 8, :]
        np.testing.assert_allclose(shown(alone, part), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("axes", [Axes(0, 1), Axes(1, 0)])
def test_pruned_weights_have_no_say_in_the_last_group(axes):
    w = np.random.default_rng(6).normal(size=(20, 20)).astype(F32)
    w[:, :3] *= 9
    w[:3] *= 9
    mask = np.abs(w) < 3
    fixed = nnopt.transform.wrapping(
        "some", "**", init=lambda leaves, start: ({}, {p: jnp.asarray(mask) for p in leaves}),
        encode=lambda leaves, state, train: {
            p: nnopt.arrays.Masked(x, state.rest[p]) for p, x in leaves.items()
        },
    )  # fmt: skip
    tx = bound(nnopt.chain(fixed, Q.uniform(4, group=8)), axes)
    params = {"w": jnp.asarray(w)}
    state = tx.init(params)
    wanted = oracle(np.where(mask, w, 0), axes, 4, 8)
    np.testing.assert_array_equal(tx.apply(params, state)["w"], wanted)
    np.testing.assert_array_equal(tx.pack(params, state)["w"].materialize(), wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_pass_and_steps_learn_in_any_layout(layout):
    shape, axes = LAYOUTS[layout]
    w = np.random.default_rng(7).normal(size=shape).astype(F32)
    slope = np.cos(np.arange(w.size)).reshape(shape).astype(F32)
    params = {"w": jnp.asarray(w)}
    loss = lambda p: (p["w"] * slope).sum()  # noqa: E731
    tx = bound(Q.uniform(4, group=8), axes)
    _, grads = nnopt.value_and_grad(loss, tx)(params, tx.init(params))
    np.testing.assert_allclose(grads.train.params["w"], slope)

    tx = bound(Q.lsq(3, group=8), axes)
    state = tx.init(params)
    _, grads = nnopt.value_and_grad(loss, tx)(params, state)
    turn = (lambda x: np.asarray(x).T) if axes == Axes(1, 0) else np.asarray
    step = turn(state.learned["w"][0])  # (layers, groups, outputs)
    matrix, slopes = to_matrix(w, axes), to_matrix(slope, axes)
    wanted = np.zeros(step.shape)
    for at in np.ndindex(step.shape):
        rows = (*at[:-2], slice(8 * at[-2], 8 * at[-2] + 8), at[-1])
        v = matrix[rows] / step[at]
        pull = np.where((v > -4) & (v < 3), np.rint(v) - v, np.clip(np.rint(v), -4, 3))
        wanted[at] = (slopes[rows] * pull).sum() / np.sqrt(len(v) * 3)
    found = turn(grads.train.learned["w"][0])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


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
        tx = Q.uniform(4, group=group)
        assert tx.init({"w": jnp.asarray(w)}).rest["w"][0]["scale"].shape == scale
        wanted = oracle(w, Axes((0, 1, 2), 3), 4, group)
        np.testing.assert_array_equal(shown(tx, w), wanted)
    wanted = oracle(w, Axes((0, 1, 2), 3), 4, 20)  # across places of the kernel, and uneven
    np.testing.assert_array_equal(shown(Q.uniform(4, group=20), w), wanted)


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
    params, tx = {"w": jnp.asarray(w)}, bound(Q.uniform(4, group=8), Axes(1, 0))
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


def test_scales_of_uneven_groups_are_whole_on_every_device():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec("data", "model")
    params = {"w": jax.random.normal(jax.random.key(0), (20, 6))}
    for group, along in ((8, None), (5, "data")):
        tx = bound(Q.uniform(4, group=group), Axes(0, 1))
        state = tx.init(params)
        for at in (None, mesh):
            specs = nnopt.state_specs(tx, params, {"w": spec}, at)
            assert tuple(specs.rest["w"][0]["scale"]) == (along, "model")
            packed = tx.pack(params, state)
            below = nnopt.packed_specs(packed, {"w": spec}, at)["w"].scale
            assert tuple(below.values if along is None else below) == (along, "model")
        shardings = jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), specs)
        found = jax.jit(tx.init, out_shardings=shardings)(params)
        jax.tree.map(np.testing.assert_array_equal, found, state)


RUNS = {
    "x @ w": lambda w, x: x @ w,
    "w.T": lambda w, x: x @ w.T.T,
    "summed over outputs": lambda w, x: x[:, :6] @ w.T,
    "both sides": lambda w, x: jnp.concatenate([x, 2 * x], 1) @ jnp.concatenate([w, -w]),
    "side by side": lambda w, x: x @ jnp.concatenate([w, w], 1),
    "scaled": lambda w, x: x @ (w * 3),
    "rows": lambda w, x: w[jnp.array([19, 0, 3])],
    "columns": lambda w, x: x @ w[:, 1:3],
    "part of the inputs": lambda w, x: x[:, 3:19] @ w[3:19],
    "in another shape": lambda w, x: jnp.einsum("ri,iab->rab", x, w.reshape(20, 2, 3)),
    "cast": lambda w, x: x @ w.astype(jnp.bfloat16).astype(jnp.float32),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["uniform", "affine", "nf4", "ttq"])
def test_packed_products_and_movements_of_uneven_groups(name, run):
    tx, rng = METHODS[name], np.random.default_rng(12)
    params = {"w": jnp.asarray(rng.normal(size=(20, 6)).astype(F32))}
    packed = tx.pack(params, tx.init(params))
    for rows in (2, 40):
        x = jnp.asarray(rng.normal(size=(rows, 20)).astype(F32))
        function = lambda p, x: RUNS[run](p["w"], x)  # noqa: E731
        found = nnopt.materialize(nnopt.on_packed(function)(packed, x))
        wanted = function(nnopt.materialize(packed), x)
        most = 0.1 if run == "cast" else 2e-5  # what stays packed is rounded less
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=most)


def test_few_rows_are_multiplied_by_codes_of_uneven_groups():
    tx = Q.uniform(4, group=8)
    params = {"w": jnp.ones((20, 6)), "v": jnp.ones((2, 20, 6))}
    tx = tx.bind(axes={"w": Axes(0, 1), "v": Axes(1, 2, batch_axis=0)})
    packed = tx.pack(params, tx.init(params))

    def layers(p, x):
        return jax.lax.scan(lambda x, w: (jnp.pad(x @ w, ((0, 0), (0, 14))), 0), x, p["v"])[0]

    for function in (lambda p, x: x @ p["w"], layers, lambda p, x: x @ (2 * p["w"])):
        report = nnopt.on_packed(function).report(packed, jnp.ones((2, 20)))
        assert not report.dense, str(report)
        found = nnopt.on_packed(function)(packed, jnp.ones((2, 20)))
        np.testing.assert_allclose(found, function(nnopt.materialize(packed), jnp.ones((2, 20))))
    report = nnopt.on_packed(lambda p, x: x @ p["w"]).report(packed, jnp.ones((9, 20)))
    assert "more rows than entries in a group" in report.dense[0].reason


def test_groups_of_whole_heads_are_multiplied_packed():
    """Output projection (heads, head_dim, d): groups within a head, a head, several heads."""
    rng = np.random.default_rng(13)
    w, x = (rng.normal(size=shape).astype(F32) for shape in ((4, 16, 6), (2, 4, 16)))
    run = nnopt.on_packed(lambda p, x: jnp.einsum("rhd,hdo->ro", x, p["w"]))
    for group in (8, 16, 32):
        tx = bound(Q.uniform(4, group=group), Axes((0, 1), 2))
        packed = tx.pack({"w": jnp.asarray(w)}, tx.init({"w": jnp.asarray(w)}))
        assert not run.report(packed, x).dense
        wanted = np.einsum("rhd,hdo->ro", x, np.asarray(packed["w"].materialize()))
        np.testing.assert_allclose(run(packed, jnp.asarray(x)), wanted, rtol=1e-4, atol=1e-5)


def test_zero_points_of_inputs_are_subtracted_from_codes(monkeypatch):
    """One scale and zero point for each input, in products that pay as planes of integers."""
    monkeypatch.setattr("nnopt_jax.trace.packed.rules.planes.planes_pay", lambda *_: True)
    rng = np.random.default_rng(14)
    params = {"w": jnp.asarray(rng.normal(1, 1, size=(16, 6)).astype(F32))}
    tx = Q.uniform(8, symmetric=False, granularity="channel", axis=0)
    packed, x = tx.pack(params, tx.init(params)), jnp.asarray(rng.normal(size=(3, 16)).astype(F32))
    found = nnopt.on_packed(lambda p, x: x @ p["w"])(packed, x)
    np.testing.assert_allclose(found, x @ packed["w"].materialize(), rtol=1e-4, atol=1e-4)


def test_malformed_groups_are_named():
    good = UnevenGroups(jnp.ones((3, 6)), -2, 8, 20)
    codes = jnp.ones((20, 6), jnp.int8)
    assert not Quantized(codes, good).problems((20, 6))
    for bad, text in (
        (good.replace(group=5), "3 values for groups of 5 along an axis of 20"),
        (good.replace(group=0), "groups of 0 along axis -2"),
        (good.replace(axis=0), "along axis 0"),
        (good.replace(length=22), "which does not divide"),
    ):
        assert text in " ".join(Quantized(codes, bad).problems((20, 6)))
