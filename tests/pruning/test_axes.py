"""Patterns of masks follow the axes of a weight, whatever the order they lie in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import nnopt_jax as nnopt
from nnopt_jax import Axes
from nnopt_jax.arrays import Masked, Reshaped, Sparse
from nnopt_jax.arrays.node_description import describe
from nnopt_jax.errors import CompositionError, ShapeError
from nnopt_jax.pruning.patterns import BlockPattern, NOfM

DRAWS = np.random.default_rng(0)


def values(*shape):
    """Whole numbers, no two of one magnitude: means of blocks are exact, and nothing ties."""
    order = DRAWS.permutation(int(np.prod(shape))) + 1
    return (order * DRAWS.choice([-1, 1], order.size)).reshape(shape).astype(np.float32)


def two_of_four(matrix):
    """By hand, of `(batch, in, out)`."""
    batch, inputs, outputs = matrix.shape
    mask = np.zeros(matrix.shape, bool)
    for b in range(batch):
        for j in range(outputs):
            for start in range(0, inputs, 4):
                group = np.abs(matrix[b, start : start + 4, j])
                mask[b, start + np.argsort(-group)[:2], j] = True
    return mask


def mask_of(tx, leaf, axes):
    bound = tx.bind(axes={"w": axes})
    return np.asarray(bound.init({"w": jnp.asarray(leaf)}).rest["w"]["mask"])


def packed_alike(tx, params):
    """Packs, and checks the law; returns the packed leaf."""
    state = tx.init(params)
    packed = tx.pack(params, state)
    np.testing.assert_array_equal(nnopt.materialize(packed)["w"], tx.apply(params, state)["w"])
    return packed["w"]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((6, 8), Axes(1, 0)),  # Equinox: (out, in)
        ((8, 2, 3), Axes(0, (1, 2))),  # Flax's query: (in, heads, head_dim)
        ((2, 6, 5), Axes((0, 1), 2)),  # its output: (heads, head_dim, out)
        ((5, 4, 3, 3), Axes((2, 3, 1), 0)),  # a convolution of PyTorch: (out, in, h, w)
        ((2, 3, 8), Axes(2, 1, 0)),  # stacked (out, in)
    ],
    ids=str,
)
def test_two_of_four_run_along_what_is_summed_over(shape, axes):
    w = values(*shape)
    order = (*axes.batch, *axes.contracted, *axes.output)
    sizes = [int(np.prod([shape[i] for i in role])) for role in (axes.batch, axes.contracted)]
    wanted = two_of_four(w.transpose(order).reshape(*sizes, -1))
    mask = mask_of(nnopt.pruning.magnitude(pattern="2:4"), w, axes)
    np.testing.assert_array_equal(mask.transpose(order).reshape(wanted.shape), wanted)
    tx = nnopt.pruning.magnitude(pattern="2:4").bind(axes={"w": axes})
    packed = packed_alike(tx, {"w": jnp.asarray(w)})
    assert 3 * w.size // 4 <= packed.support.bits < 3 * w.size // 4 + 16  # 3 bits for four weights


@st.composite
def permuted(draw):
    """A weight as a stack of matrices, the roles of its axes, and another order of its axes."""
    batch = draw(st.lists(st.integers(1, 2), max_size=1))
    inputs = draw(st.sampled_from([(4,), (8,), (2, 4), (2, 6), (3, 2, 2)]))
    outputs = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=2))
    shape = (*batch, *inputs, *outputs)
    roles = np.split(np.arange(len(shape)), [len(batch), len(batch) + len(inputs)])
    order = draw(st.permutations(range(len(shape))))
    return shape, [tuple(map(int, role)) for role in roles], order


@settings(max_examples=5, deadline=None)  # each compiles its own shapes
@given(permuted(), st.sampled_from(["2:4", "1:4", (2, 1), (4, 2), (2,)]))
def test_a_permuted_weight_has_the_permuted_mask(case, pattern):
    shape, (batch, inputs, outputs), order = case
    if pattern == (4, 2) and int(np.prod([shape[i] for i in outputs])) % 2:
        pattern = (4, 1)
    if pattern == (2,) and int(np.prod([shape[i] for i in outputs])) % 2:
        pattern = (1,)
    w = values(*shape)
    sparsity = None if isinstance(pattern, str) else 0.5
    tx = nnopt.pruning.magnitude(sparsity, pattern=pattern)
    place = [order.index(axis) for axis in range(len(shape))]
    moved = Axes(*(tuple(place[axis] for axis in role) for role in (inputs, outputs, batch)))
    straight = mask_of(tx, w, Axes(inputs, outputs, batch))
    turned = mask_of(tx, w.transpose(order), moved)
    np.testing.assert_array_equal(turned, straight.transpose(order))
    packed_alike(tx.bind(axes={"w": moved}), {"w": jnp.asarray(w.transpose(order))})


def test_blocks_are_inputs_by_outputs():
    w = values(4, 6)  # (out, in): blocks of 3 inputs by 2 outputs lie as (2, 3)
    mask = mask_of(nnopt.pruning.magnitude(0.5, pattern=(3, 2)), w, Axes(1, 0))
    means = np.abs(w).reshape(2, 2, 2, 3).mean((1, 3))
    wanted = np.isin(means, np.sort(means.ravel())[2:])
    np.testing.assert_array_equal(mask, np.kron(wanted, np.ones((2, 3), bool)))
    tx = nnopt.pruning.magnitude(0.5, pattern=(3, 2)).bind(axes={"w": Axes(1, 0)})
    packed = packed_alike(tx, {"w": jnp.asarray(w)})
    assert packed.support.sizes == (2, 3)


def test_flattened_axes_hold_blocks_of_whole_inner_axes():
    assert BlockPattern((6, 2)).block((3, 2, 8), Axes((0, 1), 2)) == (3, 2, 2)
    assert "do not divide" in (BlockPattern((4, 2)).misfit((3, 2, 8), Axes((0, 1), 2)) or "")
    assert "do not divide" in (BlockPattern((2, 3)).misfit((4, 8), Axes(1, 0)) or "")


def test_where_nothing_is_known_kernels_are_flax_ones():
    conv = values(3, 3, 4, 5)  # (h, w, in, out)
    tx = nnopt.pruning.magnitude(pattern="2:4")
    mask = np.asarray(tx.init({"w": jnp.asarray(conv)}).rest["w"]["mask"])
    np.testing.assert_array_equal(mask.reshape(1, 36, 5), two_of_four(conv.reshape(1, 36, 5)))
    # Groups that pass the end of an axis, which "along the axis before the last" could not.
    odd = values(2, 2, 3, 5)
    mask = np.asarray(tx.init({"w": jnp.asarray(odd)}).rest["w"]["mask"])
    np.testing.assert_array_equal(mask.reshape(1, 12, 5), two_of_four(odd.reshape(1, 12, 5)))
    packed_alike(tx, {"w": jnp.asarray(odd)})


def test_a_leaf_of_three_axes_needs_to_say_which_are_summed_over():
    params = {"a": jnp.ones((4, 2, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 2, 2))}
    for pattern in ("2:4", (2, 2), (2,)):
        tx = nnopt.pruning.magnitude(None if pattern == "2:4" else 0.5, pattern=pattern)
        with pytest.raises(ShapeError, match=r"2 problems(.|\n)*a: has shape(.|\n)*c: has shape"):
            tx.init(params)
    assert set(nnopt.pruning.magnitude(0.5).init(params).rest) == {"a", "b", "c"}
    threes = nnopt.pruning.magnitude(0.5, pattern=(1, 2, 2), where="re:[ac]")
    assert set(threes.init(params).rest) == {"a", "c"}


def test_what_groups_do_not_divide_is_named_or_skipped():
    params = {"a": jnp.ones((6, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 3))}
    axes = {"*": Axes(1, 0)}
    tx = nnopt.pruning.magnitude(pattern="2:4")
    with pytest.raises(ShapeError, match=r"c: groups of 4 do not divide axis 1 of shape \(8, 3\)"):
        tx.bind(axes=axes).init(params)
    skipping = tx.bind(axes=axes, misfit="skip")
    assert set(skipping.init(params).rest) == {"a", "b"}
    notes = {row.path: row.note for row in nnopt.plan(skipping, params).rows}
    assert notes == {
        "a": "",
        "b": "",
        "c": "skipped: groups of 4 do not divide axis 1 of shape (8, 3)",
    }
    with pytest.raises(ShapeError, match=r"3 problems(.|\n)*a: groups of 5(.|\n)*c: groups of 5"):
        nnopt.pruning.magnitude(pattern="2:5").bind(axes=axes, misfit="skip").init(params)


@pytest.mark.parametrize("wrapped", ["jit", "vmap", "eval_shape"])
def test_under_transformations_of_jax(wrapped):
    w = values(3, 6, 8)
    tx = nnopt.pruning.magnitude(pattern="2:4").bind(axes={"w": Axes(1, 0)})

    def shown(leaf):
        params = {"w": leaf}
        return tx.apply(params, tx.init(params))["w"]

    wanted = np.stack([np.where(two_of_four(x.T[None])[0].T, x, 0) for x in w])
    if wrapped == "vmap":
        np.testing.assert_array_equal(jax.vmap(shown)(w), wanted)
    elif wrapped == "jit":
        np.testing.assert_array_equal(jax.jit(shown)(w[0]), wanted[0])
        packed = jax.jit(lambda p: tx.pack(p, tx.init(p)))({"w": w[0]})
        np.testing.assert_array_equal(nnopt.materialize(packed)["w"], wanted[0])
    else:
        state = jax.eval_shape(tx.init, {"w": w[0]})
        assert state.rest["w"]["mask"].shape == (6, 8)


def test_a_shard_of_a_weight_is_pruned_along_the_same_axes():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    w = values(6, 8)  # (out, in), outputs in halves
    graph = Model({"w": w}, {"w": Axes(1, 0)})
    tx = nnopt.pruning.magnitude(pattern="2:4").bind(graph)

    def shown(leaf):
        return tx.apply({"w": leaf}, tx.init({"w": leaf}))["w"]

    found = jax.shard_map(shown, mesh=mesh, in_specs=spec, out_specs=spec)(w)
    np.testing.assert_array_equal(found, np.where(two_of_four(w.T[None])[0].T, w, 0))


class Model:
    """What binding asks of a graph."""

    def __init__(self, params, found):
        from nnopt_jax.transform.binding import AxesTable

        self.params = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
        self.axes = AxesTable(found, {}, {}, {})


def test_training_and_files_keep_the_pattern(tmp_path):
    w = values(6, 8)
    params = {"w": jnp.asarray(w)}
    tx = nnopt.chain(
        nnopt.pruning.magnitude(pattern="2:4"),
        nnopt.quantization.uniform(8, where="w"),
    ).bind(axes={"w": Axes(1, 0)})
    state = tx.init(params)

    def loss(p, x):
        return jnp.square(x @ p["w"].T).sum()

    _, grads = nnopt.value_and_grad(loss, tx)(params, state, jnp.ones((2, 8)))
    updates = jax.tree.map(lambda g: -0.01 * g, grads.train)
    params, state = nnopt.step(tx, params, state, updates, grads)
    packed = packed_alike(tx, params)
    assert isinstance(packed, Sparse)
    assert isinstance(packed.support, Reshaped)
    nnopt.save(tmp_path / "a.nnopt", tx.pack(params, state))
    loaded = nnopt.load(tmp_path / "a.nnopt")
    np.testing.assert_array_equal(nnopt.materialize(loaded)["w"], tx.apply(params, state)["w"])
    x = jnp.asarray(values(3, 8))
    run = nnopt.on_packed(lambda p, x: x @ p["w"].T)
    np.testing.assert_allclose(run(loaded, x), x @ tx.apply(params, state)["w"].T, rtol=1e-5)
    specs = nnopt.packed_specs(loaded, {"w": jax.sharding.PartitionSpec("data")})
    assert jax.tree.structure(specs) == jax.tree.structure(loaded)


def test_a_mask_without_the_pattern_is_not_stored_as_one():
    w = jnp.asarray(values(6, 8))
    pattern, axes = NOfM(2, 4), Axes(1, 0)
    mask = pattern.spread(pattern.choose(pattern.pool(jnp.abs(w), axes)), w.shape, axes)
    wrong = mask.at[0, 0].set(~mask[0, 0])
    roles = ((1,), (0,), ())
    with pytest.raises(CompositionError, match="in a group, and format 2:4 stores 2"):
        nnopt.arrays.store({"w": Masked(w, wrong, format="2:4", roles=roles)})


def test_masks_of_conventional_axes_are_described_as_before():
    masked = Masked(jnp.ones((4, 2)), jnp.ones((4, 2), bool))
    assert set(describe(masked)["static"]) == {"capacity", "mode", "format"}
    assert describe(masked.replace(roles=((1,), (0,), ())))["static"]["roles"] == ((1,), (0,), ())


@pytest.mark.parametrize(
    ("groups", "axes", "single"),
    [
        ("outputs", Axes(1, 0), (0,)),
        ("inputs", Axes(1, 0), (1,)),
        ("outputs", Axes(0, 1, 2), (1, 2)),
    ],
    ids=str,
)
def test_group_lasso_takes_outputs_and_inputs(groups, axes, single):
    shape = (4, 6) if not axes.batch else (3, 4, 2)
    w = values(*shape)
    tx = nnopt.pruning.proximal(0.5, penalty="group_lasso", groups=groups).bind(axes={"w": axes})
    params, state = tx.update({"w": jnp.asarray(w)}, tx.init({"w": jnp.asarray(w)}))
    others = tuple(axis for axis in range(len(shape)) if axis not in single)
    norms = np.sqrt((w.astype(np.float64) ** 2).mean(others))
    limit = np.sort(norms.ravel())[norms.size // 2 - 1]
    wanted = w * np.expand_dims(np.maximum(1 - limit / norms, 0), others)
    np.testing.assert_allclose(params["w"], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(tx.apply(params, state)["w"], params["w"])


def test_static_ranges_of_experts_lie_along_their_axis():
    params = {"w": jnp.asarray(values(4, 3, 5))}  # (in, experts, out)
    tx = nnopt.quantization.quantize_activations(8, scale="static")
    bound = tx.bind(axes={"w": Axes(0, 2, 1)})
    tops = np.array([1.0, 2.0, 4.0], np.float32)
    for seen in (tops, tops[None]):  # by batch axis, and as `observe` lays it out
        scale = bound.init(params, stats={"input_absmax": {"w": seen}}).rest["w"]
        np.testing.assert_allclose(scale, tops.reshape(1, 3, 1) / 127, rtol=1e-6)
    with pytest.raises(nnopt.errors.StatisticsError, match=r"w: input_absmax has shape \(4,\)"):
        bound.init(params, stats={"input_absmax": {"w": np.ones(4, np.float32)}})
