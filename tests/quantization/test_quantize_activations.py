"""Training with rounded activations, against models that round them by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import CompositionError, StatisticsError, ValueRangeError
from nnopt_jax.quantization import dynamic, fake_quant, quantize_activations, uniform
from nnopt_jax.transform.training import takes_expressions

KEY = jax.random.key(11)


def drawn(*shape, seed=0):
    draws = np.random.default_rng([seed, *shape])
    return jnp.asarray(draws.standard_normal(shape), jnp.float32)


def plain(x, name=""):
    return x


def mlp(params, x, act=plain):
    x = jnp.tanh(act(x, "a") @ params["a"] + params["bias"])
    return act(x, "b") @ params["b"]


def conv(params, x, act=plain):
    x = jax.lax.conv_general_dilated(
        act(x, "a"), params["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return act(jnp.tanh(x).reshape(x.shape[0], -1), "b") @ params["b"]


def stack(params, x, act=plain):
    def layer(x, w):
        return x + jnp.tanh(act(x, "a") @ w), None

    return act(jax.lax.scan(layer, x, params["a"])[0], "b") @ params["b"]


MODELS = {
    "mlp": (mlp, {"a": (8, 6), "b": (6, 4), "bias": (1, 6)}, (5, 8)),
    "conv": (conv, {"a": (3, 3, 2, 4), "b": (64, 4)}, (5, 4, 4, 2)),
    "stack": (stack, {"a": (3, 8, 8), "b": (8, 4)}, (5, 8)),
}
CHAINS = {
    "quantized": lambda act: (uniform(8, granularity="channel"), act),
    "pruned and quantized": lambda act: (nnopt.pruning.magnitude(0.5), uniform(4), act),
    "activations alone": lambda act: (act,),
}


def begun(name, chain, **settings):
    model, shapes, x_shape = MODELS[name]
    params = {key: 0.5 * drawn(*shape, seed=i) for i, (key, shape) in enumerate(shapes.items())}
    tx = nnopt.chain(*CHAINS[chain](quantize_activations(8, where="re:^[ab]$", **settings)))
    if name == "stack":
        tx = tx.bind(axes={"a": nnopt.Axes(1, 2, batch_axis=0)})
    return model, params, tx, drawn(*x_shape), drawn(x_shape[0], 4, seed=5)


def loss_of(model, act=plain):
    def loss(params, x, y):
        out = model(params, x, act)
        return jnp.square(out - y).mean()

    if act is not plain:
        loss.takes_expressions = False  # the model rounds by itself
    return loss


def by_hand(x, _):
    return dynamic(x, 8, tuple(range(1, x.ndim)))


def assert_close(found, wanted, most=1e-6):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=most * scale, rtol=0)


CASES = [
    pytest.param(
        name, chain, marks=() if "mlp" in name or chain == "quantized" else pytest.mark.slow
    )
    for name in MODELS
    for chain in CHAINS
]


@pytest.mark.parametrize(("name", "chain"), CASES)
def test_gradients_are_those_of_a_model_that_rounds_by_hand(name, chain, pays):
    model, params, tx, *batch = begun(name, chain)
    state = jax.jit(tx.init)(params)
    run = nnopt.value_and_grad(nnopt.on_packed(loss_of(model)), tx)
    found = jax.jit(run)(params, state, *batch)
    wanted = jax.jit(nnopt.value_and_grad(loss_of(model, by_hand), tx))(params, state, *batch)
    assert_close(found, wanted)
    value, plainly = wanted[0], jax.jit(loss_of(model))(jax.jit(tx.apply)(params, state), *batch)
    assert abs(value - plainly) > 1e-6 * abs(value)  # rounding is to be seen at all
    integers = "preferred_element_type=int32" in str(jax.make_jaxpr(run)(params, state, *batch))
    assert integers is (pays and chain != "activations alone")


@pytest.mark.slow
def test_a_static_range_clips_gradients(as_integers):
    model, params, tx, *batch = begun("mlp", "quantized", scale="static")
    tops = {"a": 0.7, "b": 0.4}
    stats = {"input_absmax": jax.tree.map(jnp.float32, tops)}
    state = tx.init(params, stats=stats)

    def clipped(x, name):
        return fake_quant(x, tops[name] * np.float32(1 / 127))

    run = nnopt.value_and_grad(nnopt.on_packed(loss_of(model)), tx)
    found = jax.jit(run)(params, state, *batch)
    wanted = jax.jit(nnopt.value_and_grad(loss_of(model, clipped), tx))(params, state, *batch)
    assert_close(found, wanted)


def test_what_is_trained_is_what_is_packed(as_integers):
    model, params, tx, x, _ = begun("mlp", "pruned and quantized")
    state = jax.jit(tx.init)(params)
    run = nnopt.on_packed(model)
    packed = jax.jit(run)(jax.jit(tx.pack)(params, state), x)
    loss = nnopt.on_packed(lambda params, x: (model(params, x).sum(), model(params, x)))
    (_, trained), _ = jax.jit(nnopt.value_and_grad(loss, tx, has_aux=True))(params, state, x)
    assert_close(trained, packed)


@pytest.mark.slow
def test_training_goes_on_through_steps(as_integers):
    """The loop of the README, compiled; the loss falls, and what is stored is as good."""
    model, params, tx, x, y = begun("mlp", "pruned and quantized")
    optimizer, loss = optax.sgd(0.1), nnopt.on_packed(loss_of(model))

    @jax.jit
    def one(params, state, opt_state):
        value, grads = nnopt.value_and_grad(loss, tx)(params, state, x, y)
        movable = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, movable)
        return (*nnopt.step(tx, params, state, updates, grads), opt_state), value

    state = jax.jit(tx.init)(params)
    carry, values = (params, state, optimizer.init(nnopt.trainable(tx, params, state))), []
    for _ in range(12):
        carry, value = one(*carry)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]
    packed = jax.jit(tx.pack)(*carry[:2])
    assert isinstance(packed["a"], nnopt.arrays.InputQuantized)
    assert float(jax.jit(loss)(packed, x, y)) < 0.7 * values[0]


@pytest.mark.parametrize(
    ("accumulate", "remat"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)]
)
def test_train_step_rounds_as_well(accumulate, remat, as_integers):
    model, params, tx, x, y = begun("mlp", "quantized")
    x, y = (jnp.concatenate([one, one])[:8] for one in (x, y))
    plan = nnopt.parallel.specs(
        params, nnopt.parallel.mesh(data=2, fsdp=2, devices=jax.devices()[:4]), least=0
    )

    def trained(loss):
        run = nnopt.parallel.train_step(
            loss, optax.sgd(1.0), tx, plan=plan, accumulate=accumulate, remat=remat
        )
        state, value = run(run.init(params), (x, y))
        return state.params, value

    by_itself = nnopt.on_packed(lambda params, batch: loss_of(model)(params, *batch))

    def reference(params, batch):
        return loss_of(model, by_hand)(params, *batch)

    reference.takes_expressions = False
    assert_close(trained(by_itself), trained(reference), 1e-5)


def test_a_loss_can_say_that_it_takes_expressions():
    model, params, tx, *batch = begun("mlp", "quantized")
    packed_loss = nnopt.on_packed(loss_of(model))

    def wrapped(params, x, y):
        return 2 * packed_loss(params, x, y)

    state = jax.jit(tx.init)(params)

    def value_of(loss):
        return jax.jit(nnopt.value_and_grad(loss, tx))(params, state, *batch)[0]

    value = value_of(packed_loss)
    with pytest.raises(
        CompositionError, match=r"a: rounds what it .* give nnopt\.on_packed\(loss\)"
    ):
        value_of(wrapped)
    wrapped.takes_expressions = True
    np.testing.assert_allclose(value_of(wrapped), 2 * value, rtol=1e-6)
    wrapped.takes_expressions = False
    assert abs(value_of(wrapped) - 2 * value) > 1e-5 * abs(value)


def test_what_jax_makes_of_a_packed_loss_takes_expressions_too():
    loss = nnopt.on_packed(loss_of(MODELS["mlp"][0]))
    for made in (loss, jax.jit(loss), jax.checkpoint(loss), functools.partial(loss)):
        assert takes_expressions(made) is True
    _, params, tx, *batch = begun("mlp", "quantized")
    state = jax.jit(tx.init)(params)
    values = [
        jax.jit(nnopt.value_and_grad(each, tx))(params, state, *batch)[0]
        for each in (loss, jax.jit(loss))
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_inputs_are_rounded_once():
    tx = nnopt.chain(uniform(8), quantize_activations(8), quantize_activations(4))
    with pytest.raises(CompositionError, match="w: rounds what it is multiplied with already"):
        tx.init({"w": drawn(4, 4)})


def test_gradients_at_what_the_model_saw_are_dense():
    model, params, tx, *batch = begun("mlp", "pruned and quantized")
    state = jax.jit(tx.init)(params)
    run = nnopt.value_and_grad(nnopt.on_packed(loss_of(model)), tx)
    _, grads = jax.jit(run)(params, state, *batch)
    shapes = jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, grads.dense) == shapes
    shown = jax.jit(tx.apply)(params, state)
    assert (np.asarray(grads.dense["a"])[np.asarray(shown["a"]) == 0] != 0).any()


def test_leaves_of_which_a_part_rounds_are_named():
    model, params, _, *batch = begun("mlp", "quantized")
    tx = nnopt.chain(quantize_activations(8, where="a"), nnopt.transfer.lora(2, where="a"))
    state = tx.init(params, key=KEY)
    with pytest.raises(CompositionError, match="value_and_grad: a: activations cannot be rounded"):
        nnopt.value_and_grad(nnopt.on_packed(loss_of(model)), tx)(params, state, *batch)


def test_static_ranges_of_layers():
    params = {"w": drawn(3, 8, 6)}
    tx = quantize_activations(8, scale="static")
    tops = jnp.array([1.27, 2.54, 0.0])
    packed = tx.pack(params, tx.init(params, stats={"input_absmax": {"w": tops}}))
    np.testing.assert_allclose(packed["w"].scale.ravel(), [0.01, 0.02, 1.0], rtol=1e-6)
    assert packed["w"].scale.shape == (3, 1, 1)
    planned = nnopt.plan(tx, params)
    assert "InputQuantized" in str(planned)


def test_bad_settings():
    with pytest.raises(ValueRangeError, match=r"bits=1 is not a whole number from 2 to 8"):
        quantize_activations(1)
    with pytest.raises(ValueRangeError, match="scale='fixed'"):
        quantize_activations(scale="fixed")
    tx = quantize_activations(scale="static")
    with pytest.raises(StatisticsError, match=r"needs the input_absmax of w; .*nnopt\.graph\("):
        tx.init({"w": drawn(8, 6)})
    for bad, text in {
        -1.0: r"w: input_absmax is -1\.0; give magnitudes",
        np.nan: r"w: input_absmax is nan; give magnitudes",
        (1.0, 2.0): r"w: input_absmax has shape \(2,\), the leaf \(8, 6\); give one magnitude",
    }.items():
        with pytest.raises(StatisticsError, match=text):
            tx.init({"w": drawn(8, 6)}, stats={"input_absmax": {"w": jnp.array(bad)}})


@pytest.mark.parametrize("range", ["percentile", "mse", "kl"])
def test_ranges_that_leave_outliers_out(range):
    """A leaf, and the layers of a scan: the grids of what NumPy's own copy of the inputs gives."""
    q, draws = nnopt.quantization, np.random.default_rng(1)
    x = draws.normal(size=(3, 1024, 4)).astype(np.float32)
    x[:, 0, 0] = 50.0  # an outlier in each layer
    params = {"w": drawn(4, 2), "layers": drawn(3, 4, 2)}

    def apply(p, x):
        _, out = jax.lax.scan(lambda c, each: (c, each[1] @ each[0]), 0, (p["layers"], x))
        return x[0] @ p["w"], out

    graph = nnopt.graph(apply, params, x)
    tx = q.quantize_activations(4, scale="static", range=range, percent=99.0, where="**")
    assert tx.needs == ("input_histogram",)
    state = tx.init(params, stats=graph.observe(params, [x], tx.needs))

    def wanted(values):
        seen = q.update_range(q.Range.start(), jnp.asarray(values))
        make = {
            "percentile": lambda: q.percentile_grid(seen, 99.0, 4),
            "mse": lambda: q.mse_grid(seen, 4),
            "kl": lambda: q.kl_grid(seen, 4),
        }
        return make[range]().scale

    np.testing.assert_allclose(state.rest["w"].ravel(), wanted(x[0]), rtol=1e-6)
    layers = [wanted(each) for each in x]
    np.testing.assert_allclose(state.rest["layers"].ravel(), layers, rtol=1e-6)
    assert state.rest["layers"].shape == (3, 1, 1)
    assert (state.rest["w"] * 7 < 25).all()  # the outlier does not decide


def test_ranges_ask_for_what_they_are_made_of():
    q = nnopt.quantization
    with pytest.raises(ValueRangeError, match="range='mse' goes with scale='static'"):
        q.quantize_activations(range="mse")
    tx = q.quantize_activations(scale="static", range="mse", where="**")
    with pytest.raises(StatisticsError, match="w: its input_histogram is float32"):
        tx.init({"w": drawn(4, 2)}, stats={"input_histogram": {"w": jnp.ones(())}})
