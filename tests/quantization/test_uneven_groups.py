"""Groups in any layout, the last one shorter: the law, files, masks, meshes, products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.arrays import Quantized, UnevenGroups
from tests.quantization.matrices import (
    F32,
    LAYOUTS,
    METHODS,
    Q,
    bound,
    oracle,
    shown,
    to_matrix,
)

HEADS = "across heads, shorter last group"
CASES = [
    # Each method and each layout is an everyday case; all pairs of them are slow ones.
    pytest.param(
        name, layout, marks=() if name == "uniform" or layout == HEADS else pytest.mark.slow
    )
    for name in METHODS
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("name", "layout"), CASES)
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
    tx = bound(nnopt.chain(fixed, Q.uniform(4, group=8, scale_dtype="float32")), axes)
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

    tx = bound(Q.lsq(3, group=8, scale_dtype="float32"), axes)
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
        assert not report.materialized, str(report)
        found = nnopt.on_packed(function)(packed, jnp.ones((2, 20)))
        np.testing.assert_allclose(found, function(nnopt.materialize(packed), jnp.ones((2, 20))))
    report = nnopt.on_packed(lambda p, x: x @ p["w"]).report(packed, jnp.ones((9, 20)))
    assert "more rows than entries in a group" in report.materialized[0].reason


def test_groups_of_whole_heads_are_multiplied_packed():
    """Output projection (heads, head_dim, d): groups within a head, a head, several heads."""
    rng = np.random.default_rng(13)
    w, x = (rng.normal(size=shape).astype(F32) for shape in ((4, 16, 6), (2, 4, 16)))
    run = nnopt.on_packed(lambda p, x: jnp.einsum("rhd,hdo->ro", x, p["w"]))
    for group in (8, 16, 32):
        tx = bound(Q.uniform(4, group=group), Axes((0, 1), 2))
        packed = tx.pack({"w": jnp.asarray(w)}, tx.init({"w": jnp.asarray(w)}))
        assert not run.report(packed, x).materialized
        wanted = np.einsum("rhd,hdo->ro", x, np.asarray(packed["w"].materialize()))
        np.testing.assert_allclose(run(packed, jnp.asarray(x)), wanted, rtol=1e-4, atol=1e-5)


def test_zero_points_of_inputs_are_subtracted_from_codes(monkeypatch):
    """One scale and zero point for each input, in products that pay as planes of integers."""
    monkeypatch.setattr(
        "nnopt_jax.arrays.products.integer_products.use_int8", lambda *_, **__: True
    )
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
