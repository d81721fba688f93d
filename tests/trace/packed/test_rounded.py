"""Products of rounded activations are those of the rounded numbers."""

from __future__ import annotations

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import nnopt_jax as nnopt
from nnopt_jax.arrays import Codebook, InputQuantized, Masked, Quantized, Reshaped

KEY = jax.random.key(5)


def drawn(*shape, seed=0):
    """By NumPy: each operation of JAX's own would be compiled for each shape."""
    draws = np.random.default_rng([seed, *shape])
    return jnp.asarray(draws.standard_normal(shape), jnp.float32)


def positive(*shape, seed=0):
    return jnp.asarray(np.exp(drawn(*shape, seed=seed)))


def zeros_of(*shape):
    """Zero points."""
    return jnp.asarray(np.round(9 * np.asarray(drawn(*shape))))


def whole(x):
    """Codes of eight bits."""
    return jnp.asarray(np.clip(np.round(40 * np.asarray(x)), -127, 127))


def rounded(x, axes, bits=8, scale=None):
    """NumPy's own: each row on the grid of its greatest magnitude, or on the one that is given."""
    x, high = np.asarray(x, np.float32), 2 ** (bits - 1) - 1
    if scale is None:
        top = np.abs(x).max(axes, keepdims=True)
        scale = top * np.float32(1 / high)
        scale = np.where(np.isfinite(scale) & (scale > 0), scale, np.float32(1))
    codes = np.clip(np.round(x * (np.float32(1) / np.float32(scale))), -high, high)
    return codes.astype(np.float64) * scale


def close(found, wanted, most=1e-5):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=most * np.nanmax(np.abs(wanted)), rtol=0)


def some(names, *everyday):
    """Cases; those that tell little beyond the everyday ones are slow."""
    return [
        pytest.param(name, marks=() if name in everyday else pytest.mark.slow) for name in names
    ]


def int8(w, bits=8, **settings):
    return nnopt.chain(
        nnopt.quantization.uniform(bits, **({"granularity": "channel"} | settings)),
        nnopt.quantization.quantize_activations(8),
    )


def packed_by(tx, params):
    return jax.jit(lambda params: tx.pack(params, tx.init(params, key=KEY)))(params)


def has_integers(run, *args):
    """Whether the program multiplies int8."""
    program = str(jax.make_jaxpr(run)(*args))
    return "preferred_element_type=int32" in program


def einsum(numbers, ndims):
    """The subscripts of a `dot_general`."""
    (left, right), (left_batch, right_batch) = numbers
    letters = iter(string.ascii_letters)
    first = [next(letters) for _ in range(ndims[0])]
    second = [next(letters) for _ in range(ndims[1])]
    for a, b in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        second[b] = first[a]
    out = [first[a] for a in left_batch]
    out += [c for a, c in enumerate(first) if a not in (*left, *left_batch)]
    out += [c for b, c in enumerate(second) if b not in (*right, *right_batch)]
    return f"{''.join(first)},{''.join(second)}->{''.join(out)}"


CONTRACTIONS = {
    "plain": ((5, 8), (8, 6), (((1,), (0,)), ((), ()))),
    "of columns": ((5, 8), (6, 8), (((1,), (1,)), ((), ()))),
    "one row": ((1, 8), (8, 6), (((1,), (0,)), ((), ()))),
    "no rows": ((0, 8), (8, 6), (((1,), (0,)), ((), ()))),
    "a vector": ((8,), (8, 6), (((0,), (0,)), ((), ()))),
    "sequences": ((2, 3, 8), (8, 2, 3), (((2,), (0,)), ((), ()))),
    "two axes": ((5, 4, 2), (2, 6, 4), (((2, 1), (0, 2)), ((), ()))),
    "first axis of the array": ((8, 5), (8, 6), (((0,), (0,)), ((), ()))),
    "experts": ((3, 5, 8), (3, 8, 6), (((2,), (1,)), ((0,), (0,)))),
    "experts of one row": ((3, 1, 8), (3, 8, 6), (((2,), (1,)), ((0,), (0,)))),
    "two batch axes": ((4, 5, 3, 8), (3, 8, 4, 6), (((3,), (1,)), ((2, 0), (0, 2)))),
    "outer": ((5,), (6,), (((), ()), ((), ()))),
}


@pytest.mark.parametrize(
    ("name", "weight_first"),
    [
        pytest.param(
            name,
            first,
            id=f"{name}-{'left' if first else 'right'}",
            marks=pytest.mark.slow if first and name not in ("experts", "one row") else (),
        )
        for name in CONTRACTIONS
        for first in (False, True)
    ],
)
def test_any_contraction(name, weight_first, pays):
    x_shape, w_shape, numbers = CONTRACTIONS[name]
    x, codes = drawn(*x_shape), whole(drawn(*w_shape, seed=1))
    (left, right), batches = numbers
    scale = positive(*(1 if i in right else n for i, n in enumerate(w_shape)), seed=2)
    node = InputQuantized(Quantized(codes, scale).store())
    close(node.materialize(), codes * scale)
    wanted = np.einsum(
        einsum(numbers, (x.ndim, len(w_shape))),
        rounded(x, left) if x.size else x,
        np.asarray(codes, np.float64) * scale,
    )
    swapped = (right, left), batches[::-1]
    run = nnopt.on_packed(
        (lambda w, x: lax.dot_general(w, x, swapped))
        if weight_first
        else (lambda w, x: lax.dot_general(x, w, numbers))
    )
    if weight_first:
        count, own = len(batches[0]), len(w_shape) - len(right) - len(batches[0])
        order = range(wanted.ndim)
        last = wanted.ndim - own
        wanted = wanted.transpose((*order[:count], *order[last:], *order[count:last]))
    found = jax.jit(run)(node, x)
    if wanted.size:
        close(found, wanted)
    assert found.shape == wanted.shape
    assert has_integers(run, node, x) is pays


def of_bits(bits, **more):
    high = 2 ** (bits - 1) - 1
    codes = jnp.asarray(np.clip(np.round(high / 2 * np.asarray(drawn(8, 6))), -high, high))
    return Quantized(codes, positive(1, 6, seed=1), low=-high, high=high, **more)


GRID, TABLE = of_bits(8), Quantized(jnp.array([-100.0, -7.0, 0.0, 90.0]), jnp.array([0.25]))
MASK = jnp.asarray(np.asarray(drawn(8, 6, seed=3)) > 0)
INDICES = jnp.asarray(np.arange(48).reshape(8, 6) % 4)
SHIFTED = of_bits(8, zero=zeros_of(1, 6))
GRIDS = {
    **{f"{bits} bits": of_bits(bits).store for bits in (2, 3, 5, 8)},
    "per tensor": lambda: GRID.replace(scale=jnp.array([[0.1]])),
    "zero points": lambda: SHIFTED,
    "uint8": lambda: packed_by(int8(None, symmetric=False), {"w": drawn(8, 6)})["w"].values,
    "masked": lambda: Masked(GRID, MASK),
    "masked zero points": lambda: Masked(SHIFTED, MASK),
    "sparse": lambda: Masked(GRID, MASK).store(),
    "table": lambda: Codebook(INDICES, TABLE),
    "pruned table": lambda: Masked(Codebook(INDICES, TABLE), MASK).store(),
    "turned": lambda: nnopt.prepack(GRID.store()),
}


AS_FLOATS = {
    "groups": lambda w: Quantized(whole(w), positive(2, 6)),
    "groups with zeros": lambda w: Quantized(whole(w), positive(2, 6), zeros_of(2, 6)),
    "rows": lambda w: Quantized(whole(w), positive(8, 1)),
    "16 bits": lambda w: packed_by(int8(w, 16), {"w": w})["w"].values,
    "arrays": lambda w: w,
    "a table of floats": lambda w: Codebook((jnp.arange(48) % 4).reshape(8, 6), jnp.arange(4.0)),
    "factors": lambda w: packed_by(nnopt.compression.low_rank(2), {"w": w})["w"],
    "a view": lambda w: Reshaped.of(w.T, (1, 0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_any_grid(name, pays):
    node, x = InputQuantized(GRIDS[name]()), drawn(5, 8, seed=9)
    run = nnopt.on_packed(lambda w, x: x @ w)
    wanted = rounded(x, 1) @ np.asarray(node.materialize(), np.float64)
    close(jax.jit(run)(node, x), wanted)
    assert has_integers(run, node, x) is pays


@pytest.mark.parametrize("name", some(AS_FLOATS, "groups", "arrays", "factors"))
def test_what_has_no_integers_is_rounded_all_the_same(name, as_integers):
    node, x = InputQuantized(AS_FLOATS[name](drawn(8, 6))), drawn(2, 8, seed=9)
    run = nnopt.on_packed(lambda w, x: x @ w)
    wanted = rounded(x, 1) @ np.asarray(node.materialize(), np.float64)
    close(jax.jit(run)(node, x), wanted)
    assert not has_integers(run, node, x)


@pytest.mark.parametrize(("bits", "scale"), [(2, None), (3, 0.02), (8, 0.02)])
def test_bits_of_activations(bits, scale, pays):
    grid = Quantized(whole(drawn(8, 6)), jnp.array([[0.1]]))
    node = InputQuantized(grid, None if scale is None else jnp.full((1, 1), scale), input_bits=bits)
    x = drawn(5, 8)
    wanted = rounded(x, 1, bits, scale) @ np.asarray(node.materialize(), np.float64)
    close(jax.jit(jax.jit(nnopt.on_packed(lambda w, x: x @ w)))(node, x), wanted)


def test_integers_are_exact(as_integers):
    """Activations and weights of whole numbers, and scales that are powers of two."""
    x = jnp.round(jnp.linspace(-127, 127, 3 * 4096)).reshape(3, 4096)
    x = x.at[:, 0].set(127)
    codes = jnp.round(126 * jnp.sin(jnp.arange(4096.0 * 2))).reshape(4096, 2)
    node = InputQuantized(Quantized(codes, jnp.array([[0.5, 2.0]])).store())
    found = jax.jit(nnopt.on_packed(lambda w, x: x @ w))(node, x)
    wanted = (np.asarray(x, np.int64) @ np.asarray(codes, np.int64)) * np.array([0.5, 2.0])
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_sums_that_32_bits_do_not_hold_are_left_to_floats(as_integers):
    node = InputQuantized(Quantized(jnp.full((70_000, 2), 127.0), jnp.ones((1, 1))).store())
    x = jnp.ones((2, 70_000))
    run = nnopt.on_packed(lambda w, x: x @ w)
    assert not has_integers(run, node, x)
    close(jax.jit(run)(node, x), np.full((2, 2), 127 * 70_000.0))


def test_rows_of_no_use(pays):
    """A row of zeros gives zeros, one with NaN gives NaN, others do not notice."""
    node = InputQuantized(Quantized(whole(drawn(8, 6)), jnp.ones((1, 1))).store())
    x = drawn(4, 8).at[0].set(0).at[1, 3].set(jnp.nan).at[2, 5].set(jnp.inf)
    found = np.asarray(jax.jit(nnopt.on_packed(lambda w, x: x @ w))(node, x))
    assert not found[0].any()
    assert np.isnan(found[1]).all()
    close(found[2:], rounded(x, 1)[2:] @ np.asarray(node.materialize(), np.float64))


def test_small_floats(pays):
    w, x = drawn(8, 6).astype(jnp.bfloat16), drawn(5, 8).astype(jnp.bfloat16)
    packed = packed_by(int8(w), {"w": w})
    found = jax.jit(nnopt.on_packed(lambda p, x: x @ p["w"]))(packed, x)
    assert found.dtype == jnp.bfloat16
    close(found, rounded(x, 1) @ np.asarray(packed["w"].materialize(), np.float64), 1e-2)
    wide = nnopt.on_packed(
        lambda p, x: jnp.dot(x, p["w"], preferred_element_type=jnp.float32)
    )(packed, x)  # fmt: skip
    assert wide.dtype == jnp.float32


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(8, use_bias=False)(x), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return layers()(x, None)[0]


def stats_for(params, magnitudes):
    return {"input_absmax": jax.tree.map(lambda _: magnitudes, params)}


@pytest.mark.parametrize("scale", ["dynamic", "static"])
def test_layers_of_a_stack_have_their_own_ranges(scale, pays):
    x, module = drawn(5, 8), Stack()
    params = module.init(KEY, x)
    tx = nnopt.chain(
        nnopt.quantization.uniform(8), nnopt.quantization.quantize_activations(8, scale=scale)
    )
    tops = jnp.array([2.0, 0.3, 0.1])
    stats = stats_for(params, tops) if tx.needs else None
    packed = tx.pack(params, tx.init(params, stats=stats))
    run = nnopt.on_packed(module.apply, strict=True)
    found = jax.jit(run)(packed, x)
    (kernels,) = jax.tree.leaves(nnopt.materialize(packed))
    for kernel, top in zip(np.asarray(kernels, np.float64), np.asarray(tops), strict=True):
        static = None if scale == "dynamic" else top * np.float32(1 / 127)
        x = (rounded(x, 1, 8, static) @ kernel).astype(np.float32)
    close(found, x)
    assert has_integers(run, packed, drawn(5, 8)) is pays


def test_experts_have_their_own_static_ranges(pays):
    w, x, tops = drawn(3, 8, 6), drawn(5, 3, 8), np.array([2.0, 0.3, 0.1], np.float32)
    tx = nnopt.chain(
        nnopt.quantization.uniform(8),
        nnopt.quantization.quantize_activations(8, scale="static"),
    )
    packed = tx.pack({"w": w}, tx.init({"w": w}, stats=stats_for({"w": w}, jnp.asarray(tops))))
    found = jax.jit(nnopt.on_packed(lambda p, x: jnp.einsum("bei,eio->beo", x, p["w"])))(packed, x)
    scale = (tops * np.float32(1 / 127))[None, :, None]
    wanted = np.einsum(
        "bei,eio->beo", rounded(x, 2, 8, scale), np.float64(packed["w"].materialize())
    )
    close(found, wanted)
    # Where the stack itself is summed over, the widest range serves all.
    found = jax.jit(nnopt.on_packed(lambda p, x: jnp.einsum("bei,eio->bo", x, p["w"])))(packed, x)
    wanted = np.einsum(
        "bei,eio->bo", rounded(x, 2, 8, scale.max()), np.float64(packed["w"].materialize())
    )
    close(found, wanted)


@pytest.mark.parametrize("scale", [None, 0.02], ids=["dynamic", "static"])
def test_images_are_rounded_one_by_one(scale):
    x = drawn(2, 6, 6, 3)
    module = nn.Conv(4, (3, 3), use_bias=False)
    params = module.init(KEY, x)
    packed = packed_by(int8(None), params)
    if scale is not None:
        packed = jax.tree.map(
            lambda leaf: leaf.replace(scale=jnp.full((1,) * 4, scale)),
            packed,
            is_leaf=lambda leaf: isinstance(leaf, InputQuantized),
        )
    shown = jnp.asarray(rounded(x, (1, 2, 3), 8, scale), jnp.float32)
    wanted = module.apply(nnopt.materialize(packed), shown)
    close(jax.jit(nnopt.on_packed(module.apply, strict=True))(packed, x), wanted)


MOVES = {
    "transposed": lambda w: w.T.T,
    "turned": lambda w: jnp.swapaxes(w, 0, 1).swapaxes(1, 0),
    "cut": lambda w: w[:, 1:5],
    "heads": lambda w: w.reshape(8, 2, 3),
    "expanded": lambda w: w[None][0],
    "cast": lambda w: w.astype(jnp.float32),
}


@pytest.mark.parametrize("name", some(MOVES, "transposed", "heads", "cut"))
def test_what_is_moved_keeps_its_rounding(name, as_integers):
    grid = Quantized(whole(drawn(8, 6)), positive(1, 6)).store()
    scale = 0.02
    node = InputQuantized(grid, jnp.full((1, 1), scale))
    x = drawn(5, 8)
    run = nnopt.on_packed(lambda w, x: jnp.tensordot(x, MOVES[name](w), 1), strict=True)
    wanted = np.tensordot(rounded(x, 1, 8, scale), np.float64(MOVES[name](node.materialize())), 1)
    close(jax.jit(run)(node, x), wanted)
    assert has_integers(run, node, x)


def test_members_are_mapped_over(pays):
    members = jax.vmap(lambda w: packed_by(int8(w), {"w": w}))(drawn(3, 8, 4))
    x = drawn(5, 8)
    found = jax.vmap(nnopt.on_packed(lambda p, x: x @ p["w"]), (0, None))(members, x)
    dense = np.float64(jax.vmap(nnopt.materialize)(members)["w"])
    close(found, np.einsum("bi,mij->mbj", rounded(x, 1), dense))
    found = jax.vmap(nnopt.on_packed(lambda p, x: x @ p["w"]), (None, 0))(
        jax.tree.map(lambda x: x[1], members), drawn(2, 5, 8)
    )
    close(found, rounded(drawn(2, 5, 8), 2) @ dense[1])


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2], ids=str)
def test_on_meshes(kind, as_integers):
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    w, x = drawn(8, 16), drawn(8, 8)
    packed = packed_by(int8(w), {"w": w})
    run = nnopt.on_packed(lambda p, x: x @ p["w"])
    wanted = rounded(x, 1) @ np.float64(packed["w"].materialize())
    with jax.set_mesh(devices):
        specs = nnopt.arrays.nodes.field_specs(packed["w"], PartitionSpec(None, "model"), devices)
        put = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(devices, spec)), packed["w"], specs
        )
        x = jax.device_put(x, NamedSharding(devices, PartitionSpec("data")))
        if kind == jax.sharding.AxisType.Explicit:
            run = jax.sharding.auto_axes(run, out_sharding=PartitionSpec())
        close(jax.jit(run)({"w": put}, x), wanted)


@pytest.mark.parametrize("scale", [None, 0.01], ids=["dynamic", "static"])
def test_gradients_are_those_of_rounded_floats(scale, pays):
    """Straight through to the activations, within a static range, and to the weight's scale."""
    codes, grid_scale = whole(drawn(8, 6)), positive(1, 6)
    x, slope = drawn(5, 8), drawn(5, 6, seed=7)
    static = None if scale is None else jnp.full((1, 1), scale)

    def loss(x, grid_scale):
        node = InputQuantized(Quantized(codes, grid_scale), static)
        return (jax.jit(nnopt.on_packed(lambda w, x: x @ w))(node, x) * slope).sum()

    dx, ds = jax.jit(jax.grad(loss, (0, 1)))(x, grid_scale)
    inside = np.abs(x) <= 127 * 0.01 if scale else np.ones(x.shape, bool)
    w = np.float64(codes * grid_scale)
    close(dx, np.where(inside, np.float64(slope) @ w.T, 0))
    by_code = rounded(x, 1, 8, scale).T @ np.float64(slope)
    close(ds, (by_code * np.float64(codes)).sum(0, keepdims=True))
    assert scale is None or not inside.all()


LAID_OUT = {
    "int8": int8(None),
    "int4": int8(None, 4),
    "int8 alone": nnopt.quantization.uniform(8, granularity="channel"),
    "low rank": nnopt.compression.low_rank(2),
    "adapters": nnopt.chain(nnopt.quantization.uniform(8), nnopt.transfer.lora(2)),
}


@pytest.mark.parametrize("name", some(LAID_OUT, "int4", "low rank"))
def test_what_is_prepacked_is_the_same(name, as_integers):
    packed = packed_by(LAID_OUT[name], {"w": drawn(8, 16)})
    turned = nnopt.prepack(packed, where="w")
    np.testing.assert_array_equal(turned["w"].materialize(), packed["w"].materialize())
    assert (8, 16) not in [leaf.shape for leaf in jax.tree.leaves(turned)]
    nnopt.arrays.check(turned, "test")
    run = nnopt.on_packed(lambda p, x: x @ p["w"], strict=True)
    close(jax.jit(run)(turned, drawn(5, 8)), run(packed, drawn(5, 8)))
    back = nnopt.on_packed(lambda p, x: x @ p["w"].T)
    close(back(turned, drawn(5, 16)), back(packed, drawn(5, 16)))


@pytest.mark.parametrize("name", some(["int8", "int4"], "int4"))
def test_layers_stay_prepacked(name, as_integers):
    tx = LAID_OUT[name].bind(axes={"w": nnopt.Axes(1, 2, batch_axis=0)})
    packed = packed_by(tx, {"w": drawn(2, 8, 16)})
    turned = nnopt.prepack(packed)

    def layers(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w)[:, 8:], x @ w), x, p["w"])

    run = nnopt.on_packed(layers, strict=True)
    run = jax.jit(run)
    pairs = zip(run(turned, drawn(5, 8)), run(packed, drawn(5, 8)), strict=True)
    for one, wanted in pairs:
        close(one, wanted)


@pytest.mark.parametrize("kind", ["four bits", "masked"])
def test_what_cannot_follow_a_movement_is_rounded_all_the_same(pays, kind):
    """Codes of four bits lie in words, which cannot be turned, and go on in bytes."""
    node = packed_by(int8(None, 4), {"w": drawn(8, 16)})["w"]
    if kind == "masked":
        node = InputQuantized(Masked(drawn(8, 16), drawn(8, 16) > 0)).store()
    run = nnopt.on_packed(lambda w, x: x @ w.T)
    close(
        jax.jit(run)(node, drawn(5, 16)),
        rounded(drawn(5, 16), 1) @ np.float64(node.materialize()).T,
    )
    dense = {use.primitive for use in run.report(node, drawn(5, 16)).materialized}
    assert dense == ({"transpose"} if kind == "masked" else set())


def test_stacks_that_cannot_be_cut_are_rounded_all_the_same(pays):
    mask = drawn(2, 8, 8) > 0
    node = InputQuantized(Masked(drawn(2, 8, 8), mask)).store()
    x = drawn(5, 8)
    run = nnopt.on_packed(lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    found = jax.jit(run)(node, x)
    for w in np.float64(node.materialize()):
        x = (rounded(x, 1) @ w).astype(np.float32)
    close(found, x)
    assert {use.primitive for use in run.report(node, drawn(5, 8)).materialized} == {"scan"}


def test_planes_are_as_good_as_floats(monkeypatch):
    monkeypatch.setattr(
        "nnopt_jax.arrays.products.integer_products.use_int8", lambda *_, **__: True
    )
    x, codes = drawn(5, 512), whole(drawn(512, 6))
    for zero in (None, zeros_of(1, 6)):
        node = Quantized(codes, positive(1, 6), zero).store()
        run = nnopt.on_packed(lambda w, x: x @ w)
        close(jax.jit(run)(node, x), np.float64(x) @ np.float64(node.materialize()), 1e-6)
        assert has_integers(run, node, x)
        slope = jax.jit(jax.grad(lambda x: run(node, x).sum()))(x)  # noqa: B023 - called here
        close(slope, np.tile(np.float64(node.materialize()).sum(1), (5, 1)))
        small = x.astype(jnp.bfloat16)
        found = jax.jit(run)(node.replace(dtype="bfloat16"), small)
        assert found.dtype == jnp.bfloat16
        close(found, np.float64(small) @ np.float64(node.materialize()), 5e-3)
    found = np.asarray(jax.jit(run)(node, x.at[1, 2].set(jnp.nan)))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3, 4]]).all()


def test_parts_of_a_sparse_weight_round_their_inputs_too():
    """The parts of a sparse weight are arrays, and products with them still round."""
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.quantization.quantize_activations(4))
    params = {"w": jax.random.normal(jax.random.key(0), (8, 6))}
    packed, x = tx.pack(params, tx.init(params)), jax.random.normal(jax.random.key(1), (5, 8))
    parts = nnopt.on_packed(lambda p, x: [x @ part for part in jnp.split(p["w"], 3, 1)])
    whole = nnopt.on_packed(lambda p, x: x @ p["w"])(packed, x)
    np.testing.assert_allclose(jnp.concatenate(parts(packed, x), 1), whole, rtol=1e-5, atol=1e-6)
    assert np.abs(whole - x @ nnopt.materialize(packed)["w"]).max() > 1e-3
