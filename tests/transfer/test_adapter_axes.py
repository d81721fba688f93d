"""Adapters follow the axes of a weight, and run as two thin products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.errors import ShapeError
from nnopt_jax.transfer import dora, freeze, lora

KEY = jax.random.key(0)
QUERY, OUT = Axes(0, (1, 2)), Axes((0, 1), 2)


def weight(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def bound(tx, axes):
    return tx.bind(axes={"w": axes})


def stirred(state):
    """The state with all that is learned away from zero."""
    draws = iter(range(1, 9))
    draw = lambda x: weight(x.shape, next(draws)) + 0.1  # noqa: E731
    return state._replace(learned=jax.tree.map(draw, state.learned))


def test_queries_of_an_attention_have_factors_of_2048_numbers():
    tx = bound(lora(8), QUERY)
    params = {"w": jax.ShapeDtypeStruct((128, 8, 16), jnp.float32)}
    state = jax.eval_shape(lambda p: tx.init(p, key=KEY), params)
    assert sum(x.size for x in jax.tree.leaves(state.learned)) == 128 * 8 + 8 * 128 == 2048


@st.composite
def roles(draw):
    """Any weight of two to four axes, with any roles."""
    ndim = draw(st.integers(2, 4))
    order = draw(st.permutations(range(ndim)))
    batch = draw(st.integers(0, ndim - 2))
    split = draw(st.integers(batch + 1, ndim - 1))
    axes = Axes(tuple(order[batch:split]), tuple(order[split:]), tuple(order[:batch]))
    return (4, 5, 2, 3)[:ndim], axes  # few shapes: each is compiled anew


def letters(axes):
    """The subscripts of a weight, and of the two factors, each axis apart."""
    name = "abcd"
    batch, rows, columns = (
        "".join(name[axis] for axis in role) for role in (axes.batch, axes.contracted, axes.output)
    )
    whole = name[: len(axes.order)]
    return f"{batch}{rows}r,{batch}r{columns}->{whole}"


def product(learned, shape, axes):
    """What is added to a weight, by `einsum` in float64."""
    sizes = [[shape[axis] for axis in role] for role in (axes.batch, axes.contracted, axes.output)]
    a = np.asarray(learned["a"], np.float64).reshape(*sizes[0], *sizes[1], -1)
    b = np.asarray(learned["b"], np.float64).reshape(*sizes[0], -1, *sizes[2])
    return np.einsum(letters(axes), a, b)


@given(roles())
@settings(max_examples=6, deadline=None)
def test_lora_and_dora_for_any_roles(drawn):
    """What DoRA shows is what LoRA shows, with lengths of its own."""
    shape, axes = drawn
    leaf = weight(shape)
    params = {"w": leaf}
    plain, turning = (bound(adapter(2, alpha=6), axes) for adapter in (lora, dora))
    state = stirred(jax.eval_shape(lambda p: turning.init(p, key=KEY), params))
    learned = state.learned["w"]
    lengths = [1 if axis in axes.contracted else n for axis, n in enumerate(shape)]
    assert learned["magnitude"].shape == tuple(lengths)
    wanted = np.asarray(leaf, np.float64) + 3 * product(learned, shape, axes)
    shown = jax.jit(lambda p, s: (plain.apply(p, s)["w"], turning.apply(p, s)["w"]))
    added, turned = shown(params, state)
    np.testing.assert_allclose(added, wanted, rtol=1e-4, atol=1e-4)
    norm = np.sqrt(np.square(wanted).sum(axes.contracted, keepdims=True))
    wanted = np.asarray(learned["magnitude"]) * wanted / norm
    np.testing.assert_allclose(turned, wanted, rtol=1e-4, atol=1e-4)


def test_first_factors_fill_the_bound_of_the_true_fan_in():
    """Of the output projection `(heads, head_dim, out)` all heads are inputs."""
    params = {"w": weight((4, 64, 8))}
    a = bound(lora(4), OUT).init(params, key=KEY).learned["w"]["a"]
    assert a.shape == (256, 4)
    assert 0.95 / 16 < np.abs(a).max() <= 1 / 16


def test_a_weight_that_is_permuted_has_the_same_adapter():
    leaf, order = weight((8, 3, 4)), (1, 2, 0)
    moved = Axes(2, (0, 1))
    here, there = bound(lora(2), QUERY), bound(lora(2), moved)
    first = here.init({"w": leaf}, key=KEY)
    second = there.init({"w": leaf.transpose(order)}, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, first.learned, second.learned)
    shown = here.apply({"w": leaf}, stirred(first))["w"].transpose(order)
    moved_alike = there.apply({"w": leaf.transpose(order)}, stirred(second))["w"]
    np.testing.assert_array_equal(moved_alike, shown)


def scanned(params, x):
    return jax.lax.scan(lambda c, w: (jnp.einsum("bi,ihd->bhd", c, w).reshape(5, 24) / 9, None),
                        x, params["w"])[0]  # fmt: skip


USES = {
    "query": ((24, 4, 6), QUERY, lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["w"])),
    "output": (
        (4, 6, 24), OUT, lambda p, x: jnp.einsum("bhd,hdo->bo", x.reshape(5, 4, 6), p["w"])
    ),
    "output, turned": (
        (4, 24, 6),
        Axes((0, 2), 1),
        lambda p, x: jnp.einsum("bhd,hod->ob", x.reshape(5, 4, 6), p["w"]),
    ),
    "Equinox linear": ((16, 24), Axes(1, 0), lambda p, x: jax.vmap(lambda v: p["w"] @ v)(x)),
    "experts": (
        (3, 24, 16), Axes(1, 2, 0),
        lambda p, x: jnp.einsum("ebi,eio->ebo", jnp.stack([x] * 3), p["w"]),
    ),
    "experts, turned": (
        (3, 16, 24), Axes(2, 1, 0),
        lambda p, x: jnp.einsum("ebi,eoi->ebo", jnp.stack([x] * 3), p["w"]),
    ),
    "experts of heads": (
        (3, 24, 4, 6), Axes(1, (2, 3), 0),
        lambda p, x: jnp.einsum("ebi,eihd->ebhd", jnp.stack([x] * 3), p["w"]),
    ),
    "scanned queries": ((3, 24, 4, 6), Axes(1, (2, 3), 0), scanned),
    "one scanned query": ((1, 24, 4, 6), Axes(1, (2, 3), 0), scanned),
    "permuted query": (
        (24, 4, 6), QUERY, lambda p, x: jnp.einsum("bi,hdi->bdh", x, p["w"].transpose(1, 2, 0))
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_factors_are_multiplied_one_after_the_other(use):
    """Packed, without a dense product, and with the gradients of the dense function."""
    shape, axes, apply = USES[use]
    tx, params, x = bound(lora(2), axes), {"w": weight(shape)}, weight((5, 24), 9)
    state = stirred(jax.eval_shape(lambda p: tx.init(p, key=KEY), params))
    run = nnopt.on_packed(apply)

    def loss(function):
        return lambda p, x: jnp.sin(function(p, x)).sum()

    @jax.jit
    def both(params, state, x):
        dense = nnopt.value_and_grad(loss(apply), tx)(params, state, x)[1].train.learned
        thin = nnopt.value_and_grad(loss(run), tx)(params, state, x)[1].train.learned
        outs = apply(tx.apply(params, state), x), run(tx.pack(params, state), x)
        return outs, (dense, thin)

    assert not run.report(jax.eval_shape(tx.pack, params, state), x).materialized
    (dense, thin), slopes = both(params, state, x)
    np.testing.assert_allclose(thin, dense, rtol=1e-4, atol=1e-3)
    for dense, thin in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(thin, dense, rtol=1e-3, atol=1e-2)


def test_no_array_of_the_size_of_the_product_is_made():
    """The program of a query has two products, none of which is as large as the weight."""
    tx, params = bound(nnopt.compression.low_rank(2), QUERY), {"w": weight((24, 4, 6))}
    packed = tx.pack(params, tx.init(params))
    run = nnopt.on_packed(lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["w"]))
    text = str(jax.make_jaxpr(run)(packed, jnp.ones((5, 24))))
    assert text.count("dot_general") == 2
    assert "f32[24,24]" not in text
    assert "f32[24,4,6]" not in text


def test_a_part_of_a_merged_axis_is_summed_over_densely():
    tx, params = bound(nnopt.compression.low_rank(2), QUERY), {"w": weight((24, 4, 6))}
    packed = tx.pack(params, tx.init(params))
    apply = lambda p, x: jnp.einsum("bh,ihd->bid", x, p["w"])  # noqa: E731
    x, run = weight((5, 4)), nnopt.on_packed(apply)
    assert "it is a view of another shape" in str(run.report(packed, x))
    wanted = apply(nnopt.materialize(packed), x)
    np.testing.assert_allclose(run(packed, x), wanted, rtol=1e-5, atol=1e-5)


def test_adapters_of_bound_weights_are_kept_in_files(tmp_path):
    """Of `(out, in)` and of heads alike: a file gives all bits of the factors back."""
    base = {"w": weight((16, 24)), "q": weight((24, 3, 4))}
    tx = lora(2).bind(axes={"w": Axes(1, 0), "q": QUERY})
    state = stirred(tx.init(base, key=KEY))
    nnopt.transfer.save_adapter(tmp_path / "a.nnopt", tx.pack(base, state), base)
    found = nnopt.transfer.load_adapter(tmp_path / "a.nnopt", base)
    jax.tree.map(np.testing.assert_array_equal, nnopt.materialize(found), tx.apply(base, state))
    assert found["w"].delta.base.u.shape == (24, 2)
    assert found["q"].delta.base.v.shape == (2, 12)


@pytest.mark.parametrize("adapter", [lora, dora])
def test_three_axes_without_roles_are_an_error(adapter):
    params = {"q": jnp.zeros((8, 2, 4)), "fc": jnp.ones((8, 8))}
    text = r"q: has shape \(8, 2, 4\), and which of its axes .* is not known; give tx\.bind"
    with pytest.raises(ShapeError, match=text):
        adapter(2).init(params, key=KEY)
    assert set(adapter(2).bind(misfit="skip").init(params, key=KEY).rest) == {"fc"}


def test_bound_adapters_still_freeze():
    params = {"w": jnp.ones((8, 2, 4)), "b": jnp.ones(3)}
    for tx in (lora(2, where="w"), dora(2, where="w"), freeze()):
        assert bound(tx, QUERY).frozen(params) == {"w", "b"}


def test_adapters_are_made_under_transformations():
    tx = bound(lora(2), QUERY)
    leaves = weight((3, 8, 2, 4))
    eager = tx.init({"w": leaves[0]}, key=KEY)
    traced = jax.jit(lambda p: tx.init(p, key=KEY))({"w": leaves[0]})
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(traced), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    many = jax.vmap(lambda w: tx.init({"w": w}, key=KEY).learned["w"]["a"])(leaves)
    np.testing.assert_allclose(many, jnp.stack([eager.learned["w"]["a"]] * 3), rtol=1e-6)
