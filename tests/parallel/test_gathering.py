"""Parameters are gathered where they are used, and the gradients are those of one device."""

from __future__ import annotations

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.zoo.llama import Llama
from tests import tolerance
from tests.parallel import networks

SIZES = {"vocabulary": 64, "width": 32, "layers": 3, "heads": 4, "shared": 2, "hidden": 64}
IDS = jax.random.randint(jax.random.key(1), (16, 9), 0, 64)


def language_loss(model):
    def loss(params, ids):
        logits = model.apply(params, ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    return loss


def llama(**settings):
    model = Llama(**SIZES | settings)
    return model, jax.jit(model.init)(jax.random.key(0)), language_loss(model)


def on_mesh(loss, params, batch, axes=None, tx=None, optimizer=None, rules=(), **settings):
    """The loss, the state after a step, and the gradients that the optimizer got."""
    plan = parallel.specs(params, networks.mesh(axes or {"fsdp": 8}), rules, least=0)
    run = parallel.train_step(
        loss, optimizer or networks.keep_gradients(), tx, plan=plan, donate=False, **settings
    )
    start = run.init(params, key=jax.random.key(2))
    state, value = run(start, batch)
    return start, value, state.opt_state[0].trace


def assert_close(found, wanted, within):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert networks.relative(found, wanted) < within


@pytest.mark.parametrize("stacked", [False, True], ids=["listed", "stacked"])
@pytest.mark.parametrize("settings", [{}, {"remat": True}], ids=str)
@pytest.mark.parametrize("blocks", [False, True], ids=["kept", "recomputed"])
def test_the_gradients_of_a_language_model_are_those_of_one_device(stacked, settings, blocks):
    _, params, loss = llama(stacked=stacked, remat=blocks)
    wanted = jax.jit(jax.value_and_grad(loss))(params, IDS)
    within = tolerance.relative(jax.value_and_grad(loss), params, IDS)
    _, value, slope = on_mesh(loss, params, IDS, **settings)
    np.testing.assert_allclose(value, wanted[0], rtol=within)
    assert_close(slope.params, wanted[1], within)


@jax.custom_vjp
def own_product(x, w):
    return x @ w


own_product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def recurrent(params, x):
    carry, _ = lax.scan(lambda h, _: (jnp.tanh(h @ params["w"]), None), x, None, length=3)
    return carry


USES = {
    "moved": lambda p, x: x @ p["w"].T.reshape(4, 2, 8).swapaxes(0, 1).reshape(8, 8),
    "cast": lambda p, x: x @ (2.0 * p["w"].astype(jnp.bfloat16)).astype(jnp.float32),
    "sliced": lambda p, x: sum(x @ p["stack"][i] for i in range(3)),
    "summed": lambda p, x: x * jnp.square(p["w"]).sum() + x * p["w"].max(),
    "twice": lambda p, x: (x @ p["w"]) @ p["w"].T + p["w"][:1],
    "repeated": lambda p, x: x @ jnp.tile(p["w"], (1, 2)).reshape(8, 2, 8).sum(1),
    "carried": recurrent,
    "branches": lambda p, x: lax.cond(
        x.sum() > 1e9, lambda w: x @ w, lambda w: 2 * (x @ w), p["w"]
    ),
    "own derivative": lambda p, x: own_product(x, p["w"]),
    "compiled inside": lambda p, x: jax.jit(lambda w: x @ w)(p["w"]),
    "scanned": lambda p, x: lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, p["stack"])[0],
    "scanned backward": lambda p, x: lax.scan(
        lambda h, w: (jnp.sin(h @ w), h.sum()), x, p["stack"], reverse=True
    )[1][:, None, None],
    "scanned after a cast": lambda p, x: lax.scan(
        lambda h, w: (jnp.sin(h @ w), None), x, p["stack"].astype(jnp.float16).swapaxes(1, 2)
    )[0],
    "concatenated": lambda p, x: x @ jnp.concatenate([p["w"], p["stack"][1]]).reshape(8, 16)[:, :8],
}


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", USES)
def test_every_use_of_a_parameter_gathers_it(name, remat):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (8, 8)),
        "stack": jax.random.normal(keys[1], (3, 8, 8)),
    }
    x = jax.random.normal(keys[2], (8, 8))

    def loss(params, x):
        return jnp.square(USES[name](params, x)).mean()

    wanted = jax.jit(jax.value_and_grad(loss))(params, x)
    within = max(tolerance.relative(jax.value_and_grad(loss), params, x), 1e-6)
    if "cast" in name:
        within = 2e-2  # sums of halves, in another order
    _, value, slope = on_mesh(loss, params, x, remat=remat)
    np.testing.assert_allclose(value, wanted[0], rtol=within)
    assert_close(slope.params, wanted[1], within)


KERNELS = "re:layers/.*kernel"
BASES = {
    "float32": None,
    "int8": nnopt.quantization.uniform(8, where=KERNELS, granularity="channel"),
    "int4": nnopt.quantization.grouped(where=KERNELS),
}


@pytest.mark.parametrize("stacked", [False, True], ids=["listed", "stacked"])
@pytest.mark.parametrize("base", BASES)
def test_adapters_get_the_gradients_of_the_dense_sum_and_their_base_none(base, stacked):
    model, params, loss = llama(stacked=stacked)
    graph = nnopt.graph(model.apply, params, IDS[:, :-1])
    tx = nnopt.transfer.lora(2, where=KERNELS).bind(graph)
    if BASES[base] is not None:
        packing = BASES[base].bind(graph)
        params = packing.pack(params, packing.init(params))
    start, value, slope = on_mesh(loss, params, IDS, tx=tx)
    graded = jax.jit(nnopt.value_and_grad(loss, tx))
    params, state = jax.device_get((start.params, start.state))
    wanted_value, wanted = graded(params, state, IDS)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
    assert jax.tree.leaves(slope.params) == []
    assert_close(slope.learned, wanted.train.learned, 1e-4)


def compiled(loss, params, axes=None, tx=None, optimizer=None, **settings):
    plan = parallel.specs(params, networks.mesh(axes or {"fsdp": 8}), least=0)
    run = parallel.train_step(loss, optimizer or optax.adamw(1e-3), tx, plan=plan, **settings)
    return run.lower(run.abstract, IDS).compile()


def test_stacked_layers_are_gathered_one_at_a_time():
    _, params, loss = llama(stacked=True, remat=True)
    program = compiled(loss, params)
    once, every = (parallel.collectives(program, trips=trips) for trips in (False, True))
    stacks = [x for path, x in nnopt.tree.flatten(params).items() if path.startswith("layers/")]
    # Nine stacks, each gathered forward and backward in every iteration of three.
    assert every["all-gather"].count - once["all-gather"].count == 2 * 2 * len(stacks)
    sizes = sum(x.nbytes for x in stacks)
    assert every["all-gather"].bytes - once["all-gather"].bytes == 2 * sizes * 2 // 3


def test_packed_layers_travel_packed():
    model, params, loss = llama(stacked=True, remat=True)
    graph = nnopt.graph(model.apply, params, IDS[:, :-1])
    tx = nnopt.transfer.lora(2, where=KERNELS).bind(graph)
    packing = nnopt.quantization.uniform(8, where=KERNELS, granularity="channel").bind(graph)
    packed = packing.pack(params, packing.init(params))
    dense, small = (
        parallel.collectives(compiled(loss, tree, tx=tx), trips=True)["all-gather"].bytes
        for tree in (params, packed)
    )
    kernels = [x for path, x in nnopt.tree.flatten(params).items() if "kernel" in path]
    kernels = sum(x.nbytes for x in kernels if x.ndim == 3)
    codes = [x for x in jax.tree.leaves(packed) if x.dtype == jnp.int8]
    assert sum(x.nbytes for x in codes) * 4 == kernels
    # Twice, forward and backward: a quarter of the bytes, and scales.
    assert 2 * kernels * 0.65 < dense - small < 2 * kernels * 0.75


@pytest.mark.parametrize("blocks", [False, True], ids=["kept", "recomputed"])
def test_rematerialization_of_a_stack_never_takes_more_memory(blocks):
    _, params, loss = llama(stacked=True, remat=blocks)
    plain, again = (
        compiled(loss, params, remat=remat).memory_analysis().temp_size_in_bytes
        for remat in (False, True)
    )
    assert again <= plain if blocks else again < 0.9 * plain


def test_a_step_of_adapters_costs_no_gradient_of_the_base():
    _, params, loss = llama()
    tx = nnopt.transfer.lora(1, where=KERNELS)
    steps = [
        compiled(loss, params, {"fsdp": 1}, tx, optax.sgd(1.0)).cost_analysis()["flops"]
        for tx in (tx, None)
    ]
    kernels = sum(x.size for path, x in nnopt.tree.flatten(params).items() if "kernel" in path)
    kernels -= params["head"]["kernel"].size
    rows = IDS[:, :-1].size
    # The gradient of a kernel costs as much as its product; rank 1 adds little.
    assert steps[1] - steps[0] > 0.8 * 2 * rows * kernels


def test_a_frozen_leaf_whose_gradient_is_read_keeps_it():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    tx = nnopt.chain(nnopt.transfer.freeze("w"), nnopt.pruning.taylor(0.5))
    batch = jax.random.normal(jax.random.key(1), (8, 8))

    def loss(params, x):
        return jnp.square(x @ params["w"]).mean()

    stats = {"gradient": jax.grad(loss)(params, batch)}

    def after(axes):
        plan = parallel.specs(params, networks.mesh(axes), least=0)
        run = parallel.train_step(loss, optax.sgd(0.0), tx, plan=plan)
        state = run.init(params, stats=stats)
        for _ in range(3):
            state, _ = run(state, batch)
        return jax.device_get(state.state)

    state = tx.init(params, stats=stats)
    graded = nnopt.value_and_grad(loss, tx)
    opt = optax.sgd(0.0)
    own, opt_state = params, opt.init(nnopt.trainable(tx, params, state))
    for _ in range(3):
        _, grads = graded(own, state, batch)
        updates, opt_state = opt.update(grads.train, opt_state)
        own, state = nnopt.step(tx, own, state, updates, grads)
    for axes in ({"fsdp": 1}, {"fsdp": 8}):
        for a, b in zip(jax.tree.leaves(after(axes)), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_loss_whose_steps_cannot_be_moved_is_reported_and_trained():
    params = {"w": jnp.ones((8, 8))}

    def loss(params, x):
        out = x @ params["w"]
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        one = jax.experimental.io_callback(lambda: np.float32(1.0), shape, ordered=True)
        return one * out.mean()

    with pytest.warns(UserWarning, match="gathered in front of loss, not where it uses them"):
        _, value, slope = on_mesh(loss, params, jnp.ones((8, 8)), {"fsdp": 1}, remat=True)
    assert value == 8.0
    np.testing.assert_allclose(slope.params["w"], np.full((8, 8), 1 / 8))


def test_a_strict_loss_complains_of_packed_leaves_it_materializes():
    params = {"w": jnp.ones((8, 8))}
    tx = nnopt.quantization.uniform(8)
    packed = tx.pack(params, tx.init(params))
    loss = nnopt.on_packed(lambda p, x: jnp.sort(x @ jnp.sort(p["w"])).mean(), strict=True)
    plan = parallel.specs(packed, networks.mesh({"fsdp": 8}), least=0)
    run = parallel.train_step(loss, optax.sgd(1.0), plan=plan)
    with pytest.raises(nnopt.errors.CompositionError, match="w: Quantized in dot_general"):
        run.lower(run.abstract, jax.ShapeDtypeStruct((8, 8), jnp.float32))


@pytest.mark.parametrize("wrap", [lambda f: f, nnopt.on_packed], ids=["decoded", "on packed"])
def test_predictions_of_a_packed_stack_are_those_of_one_device(wrap):
    model, params, _ = llama(stacked=True)
    graph = nnopt.graph(model.apply, params, IDS)
    tx = nnopt.quantization.grouped(where=KERNELS).bind(graph)
    packed = tx.pack(params, tx.init(params))
    plan = parallel.specs(packed, networks.mesh({"fsdp": 8}), least=0)
    found = parallel.predict(wrap(model.apply), plan)(parallel.shard(packed, plan), IDS)
    wanted = jax.jit(model.apply)(nnopt.materialize(packed), IDS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
