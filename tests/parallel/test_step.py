"""One step on every mesh gives the gradients of one device."""

from __future__ import annotations

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.errors import CompositionError, SelectionError, ShapeError, ValueRangeError
from tests import tolerance
from tests.parallel import networks


def first_step(plan, loss=networks.loss, batch=None, params=None, **settings):
    """The loss and the gradients of the first step."""
    run = parallel.train_step(loss, networks.keep_gradients(), plan=plan, **settings)
    state = run.init(networks.params() if params is None else params)
    state, value = run(state, networks.batch() if batch is None else batch)
    return value, networks.gradients(state)


SIMPLE = ("dp8", "dp2 x tp4", "dp2 x fsdp4")
"""Meshes whose axes are all among those of others."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SIMPLE else ())
        for name in networks.MESHES
    ],
)
def test_gradients_are_those_of_one_device(name):
    value, found = first_step(networks.plan(networks.MESHES[name]))
    wanted_value, wanted = networks.reference()
    np.testing.assert_allclose(value, wanted_value, rtol=networks.within())
    assert networks.relative(found, wanted) < networks.within()


def test_accumulation_and_rematerialization_change_nothing():
    plan = networks.plan(networks.MESHES["dp2 x fsdp4"])
    value, found = first_step(plan, accumulate=2, remat=True)
    wanted_value, wanted = networks.reference()
    np.testing.assert_allclose(value, wanted_value, rtol=networks.within())
    assert networks.relative(found, wanted) < networks.within()


def test_explicit_axes_of_the_caller_are_left_alone():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), (AxisType.Explicit,) * 3)
    value, found = first_step(networks.plan(mesh), accumulate=2)
    wanted_value, wanted = networks.reference()
    np.testing.assert_allclose(value, wanted_value, rtol=networks.within())
    assert networks.relative(found, wanted) < networks.within()
    assert jax.tree.leaves(found)[0].sharding.mesh == mesh


def test_weighted_losses_of_unequal_micro_batches_are_one_mean():
    plan = networks.plan({"data": 4}, {"w": jnp.ones(3)})
    x = np.arange(24, dtype=np.float32).reshape(8, 3) / 10
    padded, weight = parallel.pad_batch(x[:5], 8)

    def loss(params, batch):
        rows, weight = batch
        each = jnp.square(rows @ params["w"])
        return parallel.Weighted((weight * each).sum(), weight.sum())

    value, found = first_step(plan, loss, (padded, weight), {"w": jnp.ones(3)}, accumulate=2)
    sums = x[:5].sum(1)
    np.testing.assert_allclose(value, (sums**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["w"], (2 * sums[:, None] * x[:5]).mean(0), rtol=1e-6)


def test_aux_is_averaged_and_each_micro_batch_has_a_key_of_its_own():
    def loss(params, batch, scale, key):
        drawn = jax.random.uniform(key)
        return scale * params["w"].sum() + 0.0 * batch.sum(), {"drawn": drawn}

    params = {"w": jnp.ones(2)}
    plan = networks.plan({"data": 2}, params)
    run = parallel.train_step(loss, optax.sgd(0.1), plan=plan, accumulate=2, has_aux=True)
    key = jax.random.key(3)
    _, (value, aux) = run(run.init(params), jnp.ones((4, 1)), 2.0, key=key)
    wanted = np.mean([jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)])
    assert value == 4.0
    np.testing.assert_allclose(aux["drawn"], wanted, rtol=1e-6)


def ways(path, axes):
    """Into how many shares a leaf of the transformer can be cut, thought out by hand."""
    tensor = axes.get("model", 1) if not re.search("norm|position|down/bias", path) else 1
    return tensor * axes.get("fsdp", 1)


@pytest.mark.parametrize("name", networks.MESHES)
def test_a_device_holds_its_share_and_no_more(name):
    axes = networks.MESHES[name]
    run = parallel.train_step(networks.loss, optax.adamw(1e-3), plan=networks.plan(axes))
    state = run.init(networks.params())
    moments = state.opt_state[0]
    for tree in (state.params, moments.mu.params, moments.nu.params):
        for path, x in nnopt.tree.flatten(tree).items():
            assert x.addressable_shards[0].data.nbytes * ways(path, axes) == x.nbytes, path
    held = collections.Counter()
    for x in jax.tree.leaves(state):
        for share in x.addressable_shards:
            held[share.device] += share.data.nbytes
    assert set(held.values()) == {sum(run.layout.device_bytes)}


def test_a_state_is_used_up_and_the_parameters_given_are_not():
    params = {"w": jnp.ones(8)}
    plan = networks.plan({"fsdp": 8}, params)
    run = parallel.train_step(lambda p, x: (x @ p["w"]).sum(), optax.sgd(0.1), plan=plan)
    before = run.init(params)
    run(before, jnp.ones((8, 8)))
    assert before.params["w"].is_deleted()
    assert not params["w"].is_deleted()
    with pytest.raises(CompositionError, match="params/w of the state was given away"):
        run(before, jnp.ones((8, 8)))
    with pytest.raises(CompositionError, match="state is not of this step; give what init"):
        run((params, (), ()), jnp.ones((8, 8)))


def test_leaves_without_elements_train_along():
    params = {"none": jnp.zeros((0, 8)), "w": jnp.ones(8)}
    plan = networks.plan({"fsdp": 8}, params)
    run = parallel.train_step(lambda p, x: (x @ p["w"]).sum(), optax.adam(0.1), plan=plan)
    state = run.init(params)
    for _ in range(2):
        state, _ = run(state, jnp.ones((8, 8)))
    assert state.params["none"].shape == (0, 8)


PRUNE_AND_ROUND = nnopt.chain(
    nnopt.pruning.magnitude(0.5, where="**/kernel", allocation="global"),
    nnopt.quantization.uniform(8, where="**/kernel"),
)


def test_prune_round_and_distill_on_a_mesh_as_on_one_device():
    # One layer: each leaf's histogram takes its time to compile.
    model = dataclasses.replace(networks.MODEL, layers=1)
    params, teacher = (jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 9))

    def loss(params, batch):
        """Half the labels, half a teacher."""
        student, taught = model(params, batch["x"]), model(teacher, batch["x"])
        labels = optax.softmax_cross_entropy_with_integer_labels(student, batch["y"]).mean()
        return 0.5 * labels + 0.5 * nnopt.transfer.distillation_loss(student, taught)

    found = []
    for axes in ({"data": 1}, {"fsdp": 4, "model": 2}):
        plan = networks.plan(axes, params)
        run = parallel.train_step(loss, networks.keep_gradients(), PRUNE_AND_ROUND, plan=plan)
        state = run.init(params)
        masks = jax.tree.map(np.asarray, state.state[0].rest)
        packed = jax.jit(PRUNE_AND_ROUND.encode)(state.params, state.state)
        codes = [
            np.asarray(leaf.values.codes)
            for leaf in jax.tree.leaves(packed, is_leaf=nnopt.arrays.is_node)
            if nnopt.arrays.is_node(leaf)
        ]
        state, _ = run(state, networks.batch())
        found.append((masks, codes, networks.gradients(state)))
    (masks, codes, grads), (other_masks, other_codes, other_grads) = found
    jax.tree.map(np.testing.assert_array_equal, masks, other_masks)
    jax.tree.map(np.testing.assert_array_equal, codes, other_codes)
    within = tolerance.relative(jax.grad(loss), params, networks.batch())
    assert networks.relative(other_grads, grads) < within


@pytest.mark.parametrize(("bits", "most"), [(8, 0.27), (4, 0.15)])
def test_packed_leaves_travel_packed(bits, most):
    params = {"kernel": jax.random.normal(jax.random.key(0), (512, 512))}
    tx = nnopt.quantization.grouped() if bits == 4 else nnopt.quantization.uniform(8)
    packed = tx.pack(params, tx.init(params))
    x, gathered = jnp.ones((8, 512)), {}
    for name, tree in (("dense", params), ("packed", packed)):
        plan = parallel.specs(tree, networks.mesh({"fsdp": 8}), least=0)
        forward = parallel.predict(lambda p, x: x @ p["kernel"], plan)
        placed = parallel.shard(tree, plan)
        found = parallel.collectives(forward.lower(placed, x).compile())
        assert set(found) == {"all-gather"}
        gathered[name] = found["all-gather"].bytes
        wanted = np.asarray(x @ nnopt.materialize(tree)["kernel"])
        np.testing.assert_allclose(forward(placed, x), wanted, rtol=1e-5, atol=1e-5)
    assert gathered["dense"] == 4 * 512 * 512
    assert gathered["packed"] <= most * gathered["dense"]


def test_adapters_train_over_a_packed_base_that_stays_as_it_is():
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 32))}
    tx = nnopt.quantization.grouped()
    base = tx.pack(params, tx.init(params))
    lora = nnopt.transfer.lora(rank=4, where="kernel")

    def loss(params, x):
        return jnp.square(x @ params["kernel"] - 1.0).mean()

    run = parallel.train_step(
        loss, optax.adam(1e-2), lora, plan=networks.plan({"fsdp": 8}, base), accumulate=2
    )
    state = run.init(base, key=jax.random.key(1))
    before = [np.asarray(x) for x in jax.tree.leaves(state.params)]
    values = []
    for _ in range(5):
        state, value = run(state, jnp.ones((16, 64)))
        values.append(float(value))
    assert values[-1] < values[0]
    for a, b in zip(before, jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_told():
    params = {"w": jnp.ones(8)}
    plan = networks.plan({"data": 8}, params)
    run = parallel.train_step(lambda p, x: (p["w"] * x).sum(), optax.sgd(0.1), plan=plan)
    with pytest.raises(ShapeError, match="12 rows do not divide into 8 shares; take a batch of 8"):
        run(run.init(params), jnp.ones((12, 1)))
    with pytest.raises(ShapeError, match="v: is not in the plan"):
        run.init(params | {"v": jnp.ones(1)})
    with pytest.raises(ShapeError, match=r"w: is float32\[4\], planned for float32\[8\]"):
        run.init({"w": jnp.ones(4)})
    with pytest.raises(ValueRangeError, match=r"accumulate=0 .*\n.*remat='yes'"):
        parallel.train_step(len, optax.sgd(0.1), plan=plan, accumulate=0, remat="yes")
    with pytest.raises(SelectionError, match="batch axis 'rows' is not in the mesh"):
        parallel.train_step(len, optax.sgd(0.1), plan=plan, batch_axes=["rows"])


def test_a_mesh_of_another_kind_of_maker_will_do():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    value, _ = first_step(networks.plan(mesh))
    np.testing.assert_allclose(value, networks.reference()[0], rtol=networks.within())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_inside_of_a_mesh_that_the_caller_has_set(kind):
    params = {"w": jnp.ones((16, 8))}
    x = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    def loss(params, x):
        return jnp.square(x @ params["w"]).mean()

    wanted, slope = jax.value_and_grad(loss)(params, x)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (kind,) * 2)
    with jax.set_mesh(mesh):
        plan = parallel.specs(params, mesh, least=0)
        value, found = first_step(plan, loss, jnp.asarray(x), params, accumulate=2)
        forward = parallel.predict(lambda params, x: x @ params["w"], plan)
        rows = forward(parallel.shard(params, plan), jnp.asarray(x[:5]))
        assert rows.shape == (5, 8)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(found["w"], slope["w"], rtol=1e-5)
    np.testing.assert_allclose(rows, x[:5] @ np.ones((16, 8)), rtol=1e-5, atol=1e-6)


def test_inside_of_another_mesh_than_the_plan_s():
    params, x = {"w": jnp.ones((16, 8))}, jnp.ones((16, 16))
    plan = networks.plan({"data": 2, "fsdp": 4}, params)
    run = parallel.train_step(lambda p, x: (x @ p["w"]).mean(), optax.adam(0.1), plan=plan)
    with jax.set_mesh(jax.make_mesh((8,), ("x",))):
        state, value = run(run.init(params), x)
        rows = parallel.predict(lambda p, x: x @ p["w"], plan)(params, x)
    assert value == 16.0
    np.testing.assert_allclose(state.params["w"], 0.9, rtol=1e-5)
    np.testing.assert_array_equal(rows, np.full((16, 8), 16.0))


def test_what_is_no_plan_and_no_optimizer_is_told():
    mesh = parallel.mesh(data=8)
    with pytest.raises(CompositionError, match="plan is of type Mesh; give what"):
        parallel.train_step(len, optax.sgd(0.1), plan=mesh)
    with pytest.raises(CompositionError, match="plan is None; give what"):
        parallel.predict(len, None)
    with pytest.raises(CompositionError, match="optimizer is the float"):
        parallel.train_step(len, 0.1, plan=networks.plan(mesh, {"w": jnp.ones(8)}))
    with pytest.raises(CompositionError, match="mesh is the int 8; give"):
        parallel.specs({"w": jnp.ones(8)}, 8)
