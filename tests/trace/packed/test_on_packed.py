"""Functions of packed leaves give what they give of the arrays those stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ArtifactError, CompositionError
from tests.trace.zoo.models import MODELS

KEY = jax.random.key(0)


def drawn(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape)


def packed_by(tx, params):
    return tx.pack(params, tx.init(params, key=KEY))


INT8 = nnopt.quantization.uniform(8)
KINDS = {
    "int8": INT8,
    "int4": nnopt.quantization.uniform(4),
    "per tensor": nnopt.quantization.uniform(8, granularity="tensor"),
    "uint8": nnopt.quantization.uniform(8, symmetric=False),
    "4-bit groups": nnopt.quantization.uniform(4, group=2),
    "nf4": nnopt.quantization.nf4(group=2),
    "binary": nnopt.quantization.binary_connect(),
    "codebook": nnopt.compression.codebook(8),
    "low rank": nnopt.compression.low_rank(2),
    "pruned": nnopt.pruning.magnitude(0.5),
    "adapters": nnopt.chain(INT8, nnopt.transfer.lora(2)),
}


def close(found, wanted, most=1e-5):
    scale = np.abs(np.asarray(wanted)).max()
    np.testing.assert_allclose(found, wanted, atol=most * scale, rtol=0)


SLOWLY = (
    "linen_conv", "linen_tied_embed", "linen_scan", "linen_lstm", "nnx_transformer", "programs",
    "llama", "experts",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["operators", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY)]
)
def test_packed_is_what_dense_is(name, kind):
    case = MODELS[name]()
    stacks = {p: x for p, x in nnopt.tree.flatten(case.params).items() if np.ndim(x) == 3}
    tx = KINDS[kind].bind(axes=dict.fromkeys(stacks, nnopt.Axes(1, 2, batch_axis=0)))
    packed = jax.jit(lambda params: packed_by(tx, params))(case.params)

    @jax.jit
    def both(packed, *args):
        run = nnopt.on_packed(case.apply)
        return run(packed, *args), case.apply(nnopt.materialize(packed), *args)

    close(*both(packed, *case.args))


def test_untouched_and_moved_leaves_come_back_packed():
    packed = packed_by(INT8, {"w": drawn(8, 4)})
    same, turned = nnopt.on_packed(lambda p: (p["w"], p["w"].T))(packed)
    assert isinstance(same, nnopt.arrays.Quantized)
    assert same.codes.dtype == turned.codes.dtype == jnp.int8
    np.testing.assert_array_equal(turned.materialize(), packed["w"].materialize().T)


def test_arguments_that_are_no_arrays_reach_the_function():
    def apply(params, x, *, train, name):
        assert train is True
        assert name == "relu"
        return getattr(jax.nn, name)(x @ params["w"])

    packed = packed_by(INT8, {"w": drawn(8, 4)})
    x = drawn(3, 8)
    found = nnopt.on_packed(apply)(packed, x, train=True, name="relu")
    close(found, jax.nn.relu(x @ packed["w"].materialize()))


def test_rules_of_derivatives_are_kept():
    @jax.custom_vjp
    def clipped(w, x):
        return x @ w

    clipped.defvjp(
        lambda w, x: (x @ w, w), lambda w, slope: (jnp.zeros_like(w), jnp.ones((3, 8)) * 7.0)
    )
    packed, x = packed_by(INT8, {"w": drawn(8, 4)}), drawn(3, 8)
    run = nnopt.on_packed(lambda p, x: clipped(p["w"], x))
    close(run(packed, x), x @ packed["w"].materialize())
    np.testing.assert_array_equal(jax.grad(lambda x: run(packed, x).sum())(x), np.full((3, 8), 7.0))
    assert not run.report(packed, x).materialized


def test_gradients_reach_activations_and_float_parts():
    packed = packed_by(KINDS["adapters"], {"w": drawn(8, 4)})
    x = drawn(3, 8)

    def loss(run):
        return jax.grad(lambda p, x: jnp.square(run(p, x)).sum(), (0, 1), allow_int=True)

    def apply(p, x):
        return jnp.tanh(x @ p["w"])

    found = jax.jit(loss(nnopt.on_packed(apply)))(packed, x)
    wanted = jax.jit(loss(lambda p, x: apply(nnopt.materialize(p), x)))(packed, x)
    compared = 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if a.dtype != jax.dtypes.float0:
            close(a, b)
            compared += 1
    assert compared == 4  # the scale, two factors, the activations


def test_one_compiled_function_is_traced_once():
    traces = []

    def apply(p, x):
        traces.append(1)
        return x @ p["w"]

    run = jax.jit(nnopt.on_packed(apply))
    packed = packed_by(INT8, {"w": drawn(8, 4)})
    for _ in range(3):
        run(packed, drawn(3, 8))
    assert len(traces) == 1


def test_members_are_mapped_over():
    members = jax.vmap(lambda w: packed_by(INT8, {"w": w}))(drawn(3, 8, 4))
    x = drawn(5, 8)
    found = jax.vmap(nnopt.on_packed(lambda p, x: x @ p["w"]), (0, None))(members, x)
    dense = jax.vmap(nnopt.materialize)(members)["w"]
    close(found, jnp.einsum("bi,mij->mbj", x, dense))


def test_rows_beyond_the_end_are_as_without_packing():
    packed = packed_by(INT8, {"w": drawn(8, 4)})

    def apply(p, at):
        return jnp.take(p["w"], at, axis=0), jnp.take(p["w"], at, axis=0, mode="clip")

    at = jnp.array([[0, 7], [8, -9]])
    found = nnopt.on_packed(apply)(packed, at)
    for one, wanted in zip(found, apply(nnopt.materialize(packed), at), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6)


def test_strict_names_leaf_primitive_and_line():
    packed = packed_by(INT8, {"deep": {"w": drawn(8, 4)}})
    run = nnopt.on_packed(lambda p: jnp.sin(p["deep"]["w"]), strict=True)
    text = r"deep/w: Quantized in sin at test_on_packed\.py:\d+ \(.*\): its outcome is returned"
    with pytest.raises(CompositionError, match=text):
        run(packed)
    with pytest.raises(CompositionError, match="int is not a function"):
        nnopt.on_packed(3)


@pytest.mark.parametrize(
    "asks",
    [
        lambda p: float(p["deep"]["w"][0, 0]),
        lambda p: 1 if p["deep"]["w"].sum() > 0 else 0,
        lambda p: np.asarray(p["deep"]["w"]),
        lambda p: list(range(p["deep"]["w"].astype(int)[0, 0])),
    ],
)
def test_a_value_that_is_asked_for_while_tracing_is_named(asks):
    packed = packed_by(INT8, {"deep": {"w": drawn(8, 4)}})
    text = "needs the value of an expression that depends on deep/w"
    text = rf"test_on_packed\.py:\d+ \(<lambda>\) {text}"
    with pytest.raises(CompositionError, match=text):
        nnopt.on_packed(asks)(packed)


@pytest.mark.parametrize(
    "closes",
    [
        lambda w: lambda x: x @ w,
        lambda w: lambda x: jnp.dot(w, x),
        lambda w: lambda x: x + w,
        lambda w: lambda x: w * 2 + x,
        lambda w: lambda x: x + w[0],
        lambda w: lambda x: -w,
        lambda w: lambda x: w @ x,
    ],
)
def test_an_expression_that_a_function_closes_over_is_refused(closes):
    packed = packed_by(INT8, {"w": drawn(4, 4)})
    with pytest.raises(CompositionError, match=r"Quantized\(.*\) is a packed parameter, not"):
        nnopt.on_packed(closes(packed["w"]))(drawn(4, 4))


@pytest.mark.parametrize(
    "asks",
    [np.asarray, np.sum, lambda w: np.ones((2, 4), np.float32) @ w, lambda w: np.exp(w)],
)
def test_numpy_takes_no_expression(asks):
    packed = packed_by(INT8, {"w": drawn(4, 4)})
    with pytest.raises(
        (CompositionError, TypeError), match=r"a packed parameter|not support ufuncs"
    ):
        asks(packed["w"])


def test_gradients_of_integers_can_be_printed():
    packed = packed_by(INT8, {"w": drawn(4, 4)})
    run = nnopt.on_packed(lambda p, x: jnp.square(x @ p["w"]).sum())
    slopes = jax.grad(run, allow_int=True)(packed, drawn(2, 4))
    assert repr(slopes["w"]).startswith("Quantized(codes float0[4,4], scale float32[1,1]")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda p, x: x[:, :3] @ p["deep"]["w"], TypeError),
        (lambda p, x: x @ p["deep"]["w"].materialize(), AttributeError),
        (lambda p, x: x @ p["deep"]["w"].codes, AttributeError),
        (lambda p, x: "text", TypeError),
    ],
)
def test_an_error_inside_tells_the_function_and_its_packed_leaves(wrong, error):
    packed = packed_by(INT8, {"deep": {"w": drawn(8, 4)}, "b": drawn(4)})
    with pytest.raises(error) as caught:
        nnopt.on_packed(wrong)(packed, drawn(2, 8))
    told = caught.value.__notes__[-1]
    assert "while <lambda> was traced, at " in told
    assert told.endswith("Packed leaves are plain arrays inside it: deep/w float32[8, 4].")


def test_leaves_whose_parts_do_not_fit_are_named():
    packed = packed_by(INT8, {"w": drawn(8, 4)})
    broken = {"a": packed["w"].replace(scale=jnp.ones((3, 1))), "b": packed["w"]}
    with pytest.raises(ArtifactError, match=r"on_packed: a: Quantized .*scale \(3, 1\)"):
        nnopt.on_packed(lambda p, x: x @ p["a"])(broken, drawn(2, 8))


@pytest.mark.parametrize("rounds", [False, True], ids=["weights", "activations too"])
def test_what_is_multiplied_many_times_alike_is_traced_once(as_integers, rounds, monkeypatch):
    monkeypatch.setattr(
        "nnopt_jax.arrays.products.integer_products.use_int8", lambda *_, **__: True
    )
    links = [nnopt.quantization.uniform(8, granularity="channel")]
    if rounds:
        links.append(nnopt.quantization.quantize_activations(8))
    tx = nnopt.chain(*links)
    params = {name: jax.random.normal(jax.random.key(i), (8, 8)) for i, name in enumerate("abcd")}
    packed = tx.pack(params, tx.init(params))

    def apply(params, x):
        for kernel in params.values():
            x = jnp.tanh(x @ kernel)
        return x

    found = jax.make_jaxpr(nnopt.on_packed(apply))(packed, jnp.ones((2, 8)))
    inner = [step.params["jaxpr"] for step in found.jaxpr.eqns if "jaxpr" in step.params]
    assert len(inner) == len(params)
    assert len({id(program) for program in inner}) == 1
