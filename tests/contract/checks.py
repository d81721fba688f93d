"""What every transform must obey, as plain functions that raise AssertionError.

The suite runs them over the registry; the planted faults show that each of them can fail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nnopt_jax as nnopt
from nnopt_jax.arrays import (
    Codebook,
    Factored,
    InputQuantized,
    LookupQuantized,
    Masked,
    Normalized,
    Quantized,
    Sum,
    is_node,
)
from nnopt_jax.arrays.masked import raise_mask
from nnopt_jax.arrays.nodes import compactable, materialize
from nnopt_jax.errors import CapacityError, NonFiniteError, SelectionError
from nnopt_jax.ops.grid import expand
from nnopt_jax.trace.statistics import Moments
from nnopt_jax.transform.measured import SLOPES
from nnopt_jax.tree import flatten

_MADE_OF_PARTS = (Factored, Sum, Normalized)

KEY = 7  # makes the key that every `init` is given


def example_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Two matrices, a vector, and integers that no method may touch."""
    first, second, third = jax.random.split(jax.random.key(3), 3)
    return {
        "dense": {
            "bias": jax.random.normal(third, (4,)).astype(dtype),
            "kernel": jax.random.normal(first, (8, 4)).astype(dtype),
        },
        "head": {"kernel": jax.random.normal(second, (8, 4)).astype(dtype)},
        "steps": jnp.arange(3),
    }


def moved(params: Any, by: float = 0.05) -> Any:
    """The parameters after some other step: a state made before is stale."""

    def move(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        wave = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
        return x + jnp.asarray(by * wave, x.dtype)

    return jax.tree.map(move, params)


def slopes(params: Any, rate: float = 3.0) -> Any:
    """A gradient for each leaf, of some size and either sign."""
    return jax.tree.map(
        lambda x: jnp.asarray(np.cos(rate * np.arange(x.size)).reshape(x.shape), jnp.float32),
        params,
    )


def moments(leaf: jax.Array) -> Moments:
    """Moments of inputs that differ, in the shape in which a graph observes them."""
    rows = (*leaf.shape[:-1], 1) if leaf.ndim > 1 else leaf.shape
    mean = np.sin(np.arange(1, 1 + np.prod(rows, dtype=int))).reshape(rows).astype(np.float32)
    return Moments(jnp.float32(8), jnp.asarray(mean), jnp.asarray(mean * mean))


def begin(tx: nnopt.Transform, params: Any) -> Any:
    """The first state, with a key and all statistics that the transform uses."""
    dense = nnopt.materialize(params)
    stats = {name: slopes(dense, 1.0 + i) for i, name in enumerate(SLOPES)}
    stats["input_absmax"] = jax.tree.map(lambda x: jnp.float32(2.0), dense)
    stats["input_moments"] = {path: moments(x) for path, x in flatten(dense).items()}
    used = {name: stats[name] for name in dict.fromkeys((*tx.needs, *tx.takes))}
    return tx.init(params, stats=used, key=jax.random.key(KEY))


def advance(tx: nnopt.Transform, params: Any, state: Any, **settings: Any) -> Any:
    """One update, with gradients at what the model saw."""
    grads = nnopt.Grads(train=None, dense=slopes(params))
    return tx.update(params, state, grads=grads, **settings)


def bits_of(x: Any) -> np.ndarray:
    """The bits of an array: NaN equals NaN, and -0 differs from 0."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    host = np.atleast_1d(np.asarray(x))
    return host.view(np.uint8)


def assert_same(got: Any, wanted: Any, what: str) -> None:
    """Both trees have one structure, one dtype and one shape a leaf, and the same bits."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted), f"{what}: structures differ"
    pairs = zip(flatten(got).items(), jax.tree.leaves(wanted), strict=True)
    for (path, one), other in pairs:
        assert one.dtype == other.dtype, f"{what}: {path}: {one.dtype} against {other.dtype}"
        assert one.shape == other.shape, f"{what}: {path}: {one.shape} against {other.shape}"
        assert np.array_equal(bits_of(one), bits_of(other)), f"{what}: {path}: values differ"


def assert_close(got: Any, wanted: Any, what: str, tolerance: float = 1e-6) -> None:
    """As `assert_same`, floats within a tolerance."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted), f"{what}: structures differ"
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype, f"{what}: {one.dtype} against {other.dtype}"
        if jnp.issubdtype(one.dtype, jnp.floating):
            one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
            assert np.allclose(one, other, rtol=tolerance, atol=tolerance), f"{what}: not close"
        else:
            assert np.array_equal(one, other), f"{what}: integers differ"


def check_law(tx: nnopt.Transform, params: Any) -> None:
    """`materialize(pack) == apply`, eager and compiled, fresh, stale, and after updates."""
    apply, materialize, pack = (
        jax.jit(tx.apply),
        jax.jit(nnopt.materialize),
        _compiled_pack(tx, params),
    )
    for when, now, state in _moments(tx, params):
        packed = tx.pack(now, state)
        assert_same(nnopt.materialize(packed), tx.apply(now, state), f"{when}, eager")
        if when == "stale":  # once: the sizes of packed arrays may differ, which compiles anew
            assert_same(materialize(packed), apply(now, state), "packed eagerly, shown compiled")
        assert_same(materialize(pack(now, state)), apply(now, state), f"{when}, packed compiled")


def _moments(tx: nnopt.Transform, params: Any) -> Iterator[tuple[str, Any, Any]]:
    state = begin(tx, params)
    yield "fresh", params, state
    yield "stale", moved(params), state
    for _ in range(3):
        params, state = advance(tx, moved(params), state)
    yield "updated", params, state
    yield "updated and stale", moved(params), state


def _compiled_pack(tx: nnopt.Transform, params: Any) -> Callable[..., Any]:
    """`pack` under jit, told how many values leaves keep where it asks for that."""
    abstract = jax.eval_shape(functools.partial(begin, tx), params)
    room: dict[str, int] = {}
    for path, leaf in flatten(params).items():
        try:
            jax.eval_shape(functools.partial(tx.pack, capacities=room), params, abstract)
            break
        except CapacityError:
            room[path] = leaf.size
    return jax.jit(functools.partial(tx.pack, capacities=room))


def check_law_eagerly(tx: nnopt.Transform, params: Any) -> None:
    """The law alone, for leaves whose shapes are not worth a compilation."""
    state = begin(tx, params)
    for now in (params, moved(params)):
        shown = nnopt.materialize(tx.pack(now, state))
        assert_same(shown, tx.apply(now, state), "eager")


def check_capacity(tx: nnopt.Transform, params: Any) -> None:
    """Where counts are data, `pack` under jit names the leaf; where not, it succeeds."""
    state = begin(tx, params)
    nodes = flatten(tx.encode(params, state), is_node)
    unknown = {path for path, leaf in nodes.items() if _count_unknown(leaf)}
    said = _refusal(CapacityError, lambda: jax.eval_shape(tx.pack, params, state))
    assert said or not unknown, f"packs {unknown} under jit, not knowing how many values are kept"
    assert said is None or any(path in said for path in unknown), f"names no leaf: {said}"


def _count_unknown(leaf: Any) -> bool:
    if not is_node(leaf):
        return False
    leaf = leaf.replace(values=raise_mask(leaf.values)) if isinstance(leaf, Masked) else leaf
    whole = isinstance(leaf, Masked) and not isinstance(leaf.values, Masked)
    if whole and not compactable(leaf.values):
        return _count_unknown(leaf.values)
    if isinstance(leaf, Masked):  # of nested masks, one that is counted bounds them all
        return leaf.capacity is None and (
            _count_unknown(leaf.values) or not isinstance(leaf.values, Masked)
        )
    return any(_count_unknown(field) for _, field in leaf.fields())


def check_fixed_point(tx: nnopt.Transform, params: Any) -> None:
    """The state keeps structure, shapes, dtypes and weak types, so that a scan can carry it."""

    def signature(tree: Any) -> Any:
        return jax.tree.structure(tree), [
            (x.shape, x.dtype, bool(x.weak_type)) for x in jax.tree.leaves(tree)
        ]

    def one(carry: Any, _: None) -> tuple[Any, None]:
        return advance(tx, *carry), None

    before = params, jax.eval_shape(functools.partial(begin, tx), params)
    after = jax.eval_shape(lambda carry: advance(tx, *carry), before)
    assert signature(before[1])[1] == signature(after[1])[1], "update changes arrays of the state"
    assert signature(before[1]) == signature(after[1]), "update changes the state's structure"
    assert not any(weak for *_, weak in signature(before[1])[1]), "the state is weakly typed"
    assert signature(jax.eval_shape(lambda: params)) == signature(after[0]), "params change type"
    scanned, _ = jax.jit(lambda c: jax.lax.scan(one, c, length=3))((params, begin(tx, params)))
    carry = params, begin(tx, params)
    for _ in range(3):
        carry = advance(tx, *carry)
    assert_close(scanned, carry, "scan")


def check_counts(tx: nnopt.Transform, params: Any) -> None:
    """An update adds one to every count, or takes the step it is told."""

    def counts(state: Any) -> list[int]:
        parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnopt.State))
        return [int(part.count) for part in parts]

    state = begin(tx, params)
    assert set(counts(state)) == {0}, "does not start at 0"
    params, state = advance(tx, params, state)
    assert set(counts(state)) == {1}, "does not count the update"
    params, state = advance(tx, params, state, step=9)
    assert set(counts(state)) == {9}, "does not take the step it is told"


def check_vmap(tx: nnopt.Transform, params: Any) -> None:
    """Members stacked along a new axis are transformed as each is alone."""

    def life(member: Any) -> Any:
        state = begin(tx, member)
        member, state = advance(tx, moved(member), state)
        return tx.apply(member, state), state

    members = [params, moved(params, 0.3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    together = jax.jit(jax.vmap(life))(stacked)
    for i, member in enumerate(members):
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(mine, life(member), f"member {i}")


def check_abstract(tx: nnopt.Transform, params: Any) -> None:
    """`eval_shape` of everything tells shapes and dtypes of what is then computed."""
    shapes = jax.eval_shape(functools.partial(begin, tx), params)
    state = begin(tx, params)
    shown = jax.eval_shape(tx.apply, params, shapes)
    for promised, made in ((shapes, state), (shown, tx.apply(params, state))):
        assert jax.tree.structure(promised) == jax.tree.structure(made)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(promised)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(made)
        ]
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(shown)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(params)
    ], "the model sees other shapes or dtypes than the parameters have"


def mesh(kind: AxisType) -> jax.sharding.Mesh:
    """Eight devices, four along `data` and two along `model`."""
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def check_mesh(tx: nnopt.Transform, params: Any) -> None:
    """On Auto and Explicit meshes: `encode` and `pack` to the bit, the rest as declared.

    What a norm over a split axis shows depends on the order of its sum.
    """
    pack = _compiled_pack(tx, params)
    state = begin(tx, params)
    nodes = flatten(tx.encode(params, state), is_node).values()
    same_shown = assert_close if any(isinstance(x, Normalized) for x in nodes) else assert_same
    now = moved(params)

    def everything(now: Any, state: Any) -> Any:
        return tx.apply(now, state), pack(now, state), begin(tx, now), advance(tx, now, state)

    wanted = jax.jit(everything)(now, state)
    for kind in (AxisType.Auto, AxisType.Explicit):
        devices = mesh(kind)
        with jax.set_mesh(devices):
            split = jax.tree.map(lambda x, d=devices: jax.device_put(x, _sharding(x, d)), now)
            function = everything
            if kind == AxisType.Explicit:
                function = jax.sharding.auto_axes(everything, out_sharding=PartitionSpec())
            got = jax.jit(function)(split, state)
        same_shown(got[0], wanted[0], f"{kind}, apply")
        assert_same(got[1], wanted[1], f"{kind}, pack")
        compare = assert_same if tx.exact else assert_close
        compare(got[2], wanted[2], f"{kind}, init")
        compare(got[3], wanted[3], f"{kind}, update")


def _sharding(x: jax.Array, devices: jax.sharding.Mesh) -> NamedSharding:
    spec = PartitionSpec("data", "model") if x.ndim == 2 else PartitionSpec()
    return NamedSharding(devices, spec)


def check_deterministic(tx: nnopt.Transform, params: Any) -> None:
    """The same parameters and the same key give the same states."""
    first, second = begin(tx, params), begin(tx, params)
    assert_same(first, second, "init")
    assert_same(advance(tx, params, first), advance(tx, params, second), "update")
    assert_same(tx.apply(params, first), tx.apply(params, second), "apply")


def check_finite(tx: nnopt.Transform, params: Any, bad: float) -> None:
    """Eager `pack` of NaN or infinity raises with the path, or keeps it; it never loses it."""
    state = begin(tx, params)
    nodes = flatten(tx.encode(params, state), is_node)
    for path, leaf in nodes.items():
        if not is_node(leaf):
            continue
        at = np.unravel_index(int(np.argmax(np.abs(leaf.materialize()))), leaf.shape)
        spoiled = _with(params, path, lambda x, at=at: x.at[at].set(bad))
        if not _holds_codes(leaf):
            packed = nnopt.materialize(tx.pack(spoiled, state))
            assert_same(packed, tx.apply(spoiled, state), f"{path} holds {bad}")
            continue
        said = _refusal(NonFiniteError, lambda tree=spoiled: tx.pack(tree, state))
        assert said is not None, f"packs {bad} in {path} into codes"
        assert path in said, f"does not name {path}: {said}"


def _refusal(kind: type[Exception], function: Callable[[], Any]) -> str | None:
    """The text of the error of this kind that a function raises, if it does."""
    try:
        function()
    except kind as error:
        return str(error)
    return None


def _with(params: Any, path: str, change: Callable[[jax.Array], jax.Array]) -> Any:
    leaves = flatten(params)
    changed = leaves | {path: change(leaves[path])}
    return jax.tree.unflatten(jax.tree.structure(params), list(changed.values()))


def _holds_codes(field: Any) -> bool:
    if not is_node(field):
        return False
    return field.CODES or any(_holds_codes(one) for _, one in field.fields())


def _passes(field: Any) -> np.ndarray:
    """Where the gradient reaches the raw leaf below an expression, told from its nodes alone."""
    if not is_node(field) or field.CODES:
        return np.ones(field.shape, bool)
    if isinstance(field, InputQuantized):
        return _passes(field.values)
    assert isinstance(field, Masked)
    below = _passes(field.values)
    selects = field.mode == "select" or (field.mode == "applied" and is_node(field.values))
    return below & np.asarray(field.mask) if selects else below


def _beyond(field: Any) -> np.ndarray:
    """Where a weight lies beyond the ends of its grid, and a method may stop the gradient."""
    if isinstance(field, Masked):
        return _beyond(field.values)
    if not isinstance(field, Quantized) or field.carry is None:
        return np.zeros(field.shape, bool)
    zero = jnp.zeros_like(field.scale) if field.zero is None else field.zero
    scale, zero = (expand(x, field.shape).astype(jnp.float32) for x in (field.scale, zero))
    v = field.carry.astype(jnp.float32) / scale + zero
    return np.asarray((v < field.low) | (v > field.high))


def check_gradients(tx: nnopt.Transform, params: Any) -> None:
    """The gradient passes straight through, except where a hard mask selects."""
    state = begin(tx, params)
    steep = slopes(params)

    def loss(shown: Any) -> jax.Array:
        return sum(
            (x.astype(jnp.float32) * slope).sum()
            for x, slope in zip(jax.tree.leaves(shown), jax.tree.leaves(steep), strict=True)
        )

    loss.takes_expressions = False  # no product that inputs could be rounded for
    _, grads = nnopt.value_and_grad(loss, tx)(params, state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads)), "gradients are not finite"
    encoded = flatten(tx.encode(params, state, train=True), is_node)
    given, wanted = flatten(grads.train.params), flatten(steep)
    assert set(given) == {p for p, x in flatten(params).items() if x.dtype != jnp.int32}
    for path, got in given.items():
        got = np.asarray(got, np.float32)
        want = np.where(_passes(encoded[path]), wanted[path], 0)
        stopped = _beyond(encoded[path]) & (got == 0)
        assert np.allclose(got, np.where(stopped, 0, want), atol=1e-6), f"{path}: gradient is off"
        shown = np.asarray(flatten(grads.dense)[path], np.float32)
        assert np.allclose(shown, wanted[path], atol=1e-6), f"{path}: gradient at the model is off"


def check_trained_is_stored(tx: nnopt.Transform, params: Any) -> None:
    """After an update, what training sees is what is applied."""
    state = begin(tx, params)
    for _ in range(2):
        params, state = advance(tx, moved(params), state)
        trained = nnopt.materialize(tx.encode(params, state, train=True))
        assert_same(trained, tx.apply(params, state), "train=True")


def check_no_negative_zero(tx: nnopt.Transform, params: Any) -> None:
    """A grid never shows -0: it has one zero, and a stored code could not tell them apart."""
    state = begin(tx, params)
    for path, leaf in flatten(tx.encode(params, state), is_node).items():
        if _on_grid(leaf):
            shown = np.asarray(leaf.materialize(), np.float32)
            assert not np.signbit(shown[shown == 0]).any(), f"{path} shows -0"


def _on_grid(leaf: Any) -> bool:
    inner = is_node(leaf) and any(_on_grid(field) for _, field in leaf.fields())
    return isinstance(leaf, (LookupQuantized, Quantized)) or inner


def check_keeps_zeros(before: nnopt.Transform, after: nnopt.Transform, params: Any) -> None:
    """Masked entries stay zero behind later transforms, and do not count for their states."""
    tx = nnopt.chain(before, after)
    state = begin(tx, params)
    for _ in range(2):
        params, state = advance(tx, moved(params), state)
    masks = {
        path: np.asarray(leaf.mask)
        for path, leaf in flatten(before.encode(params, state[0]), is_node).items()
        if isinstance(leaf, Masked)
    }
    shown = flatten(tx.apply(params, state))
    packed = flatten(nnopt.materialize(tx.pack(params, state)))
    noise = params
    for path, mask in masks.items():
        assert not np.asarray(shown[path])[~mask].any(), f"{path}: pruned weights are shown"
        assert not np.asarray(packed[path])[~mask].any(), f"{path}: pruned weights are stored"
        noise = _with(noise, path, lambda x, mask=mask: jnp.where(mask, x, 0.01))
    states = [begin(after, before.encode(tree, state[0])) for tree in (params, noise)]
    assert_same(*states, "pruned weights have a say")


def check_keeps_levels(tx: nnopt.Transform, params: Any) -> None:
    """No scale block shows more distinct values than the smallest codebook inside has entries."""
    state = begin(tx, params)
    for _ in range(2):
        params, state = advance(tx, moved(params), state)
    for path, leaf in flatten(tx.encode(params, state), is_node).items():
        _check_parts(path, leaf)
        entries, scale = _codebook_size(leaf), _outer_scale(leaf)
        if entries is None:
            continue
        shown, packed = (
            np.asarray(flatten(tree)[path], np.float32)
            for tree in (tx.apply(params, state), nnopt.materialize(tx.pack(params, state)))
        )
        for block in np.unique(scale):
            inside = np.broadcast_to(scale == block, shown.shape)
            for dense in (shown, packed):
                levels = np.unique(dense[inside & (dense != 0)])
                assert len(levels) <= entries, f"{path}: {len(levels)} values from {entries}"


def _check_parts(path: str, field: Any) -> None:
    """Products, sums and turned columns have many values; it is their parts that have few."""
    if not is_node(field):
        return
    for name, inner in field.fields():
        entries = _codebook_size(inner) if isinstance(field, _MADE_OF_PARTS) else None
        if entries is not None:
            levels = np.unique(np.asarray(inner.materialize(), np.float32))
            assert len(levels) <= entries, f"{path}: {name}: {len(levels)} values from {entries}"
        _check_parts(path, inner)


def _codebook_size(field: Any) -> int | None:
    if not is_node(field) or isinstance(field, _MADE_OF_PARTS):
        return None
    inner = [_codebook_size(one) for _, one in field.fields()]
    own = [field.table.shape[0]] if isinstance(field, Codebook) else []
    sizes = own + [size for size in inner if size is not None]
    return min(sizes, default=None)


def _outer_scale(field: Any) -> np.ndarray:
    """The scale of a grid above a codebook, repeated to the logical shape."""
    if isinstance(field, Masked):
        return _outer_scale(field.values)
    if not isinstance(field, (LookupQuantized, Quantized)):
        return np.zeros((1, 1))
    scale = np.asarray(materialize(field.scale), np.float32)
    for axis, size in enumerate(field.shape):
        scale = np.repeat(scale, size // scale.shape[axis], axis)
    return scale


def check_mismatched_state(tx: nnopt.Transform, params: Any) -> None:
    """A state made for another tree is refused by name, not applied in part."""
    state = begin(tx, params)
    less = {name: leaf for name, leaf in params.items() if name != "head"}
    for name, function in {"apply": tx.apply, "pack": tx.pack}.items() | {
        ("update", functools.partial(advance, tx))
    }:
        said = _refusal(SelectionError, lambda f=function: f(less, state))
        assert said is not None, f"{name} takes a state made for another tree"
        assert "head/kernel" in said, said


def check_cell(tx: nnopt.Transform, params: Any) -> None:
    """A cell of the table of chains: the law, few values, no -0, a state that keeps its form."""
    state = begin(tx, params)
    before = jax.tree.structure(state)
    for now in (moved(params), params):
        shown, packed = tx.apply(now, state), tx.pack(now, state)
        assert_same(nnopt.materialize(packed), shown, "eager")
        now, state = advance(tx, now, state)
        assert jax.tree.structure(state) == before, "update changes the state's structure"
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(shown)), "not finite"
    check_keeps_levels(tx, params)
    check_no_negative_zero(tx, params)
    check_capacity(tx, params)


CHECKS: dict[str, Callable[[nnopt.Transform, Any], None]] = {
    "law": check_law,
    "capacity": check_capacity,
    "fixed_point": check_fixed_point,
    "counts": check_counts,
    "vmap": check_vmap,
    "abstract": check_abstract,
    "mesh": check_mesh,
    "deterministic": check_deterministic,
    "nan": functools.partial(check_finite, bad=float("nan")),
    "infinity": functools.partial(check_finite, bad=float("-inf")),
    "gradients": check_gradients,
    "trained_is_stored": check_trained_is_stored,
    "no_negative_zero": check_no_negative_zero,
    "levels": check_keeps_levels,
    "mismatched_state": check_mismatched_state,
}
"""Every check of one transform, by name."""
