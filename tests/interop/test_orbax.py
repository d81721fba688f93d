"""Checkpoints: every bit comes back, on any mesh, or an error says what is wrong."""

from __future__ import annotations

import collections
import dataclasses
import json
import random
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import nnopt_jax as nnopt
from nnopt_jax.arrays import Bits, Codebook, Factored, Masked, Quantized, Reshaped, Sum, store
from nnopt_jax.errors import CheckpointError, NonFiniteError, ValueRangeError
from nnopt_jax.interop import Checkpoints
from nnopt_jax.interop.snapshot import freeze, match_target, thaw

Pair = collections.namedtuple("Pair", "left right")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    mean: jax.Array
    count: int


def mesh(rows, columns):
    devices = jax.devices()[: rows * columns]
    return jax.make_mesh(
        (rows, columns), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def bits(x):
    """Type, dtype, shape and bytes of a leaf."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return str(x.dtype), bits(jax.random.key_data(x))
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        kind = jax.Array if isinstance(x, jax.Array) else type(x)
        return kind, str(x.dtype), x.shape, np.asarray(x).tobytes()
    return type(x), np.float64(x).tobytes() if isinstance(x, float) else x


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    flat = zip(nnopt.tree.flatten(left).items(), jax.tree.leaves(right), strict=True)
    for (path, ours), theirs in flat:
        assert bits(ours) == bits(theirs), path


def everything():
    """One leaf of every kind that training state may hold."""
    nan = np.array([0x7FC00001, 0xFFC00123, 0x80000000], np.uint32).view(np.float32)
    names = "int8 uint16 int32 bfloat16 float16 float8_e4m3fn float4_e2m1fn bool complex64"
    small = "int4 uint4 int2 uint2"
    return {
        "arrays": {name: jnp.arange(6).astype(name) for name in f"{names} {small}".split()},
        "nan payloads, negative zero": jnp.asarray(nan),
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2, impl="rbg"), 3),
        "empty": [
            jnp.zeros((0, 3), jnp.int4),
            np.zeros((2, 0)),
            jax.random.split(jax.random.key(0), 0),
        ],
        "scalar": jnp.float32(0.1),
        "numpy": (np.arange(3.0), np.float64(0.1), np.int64(2**40), np.array(7, np.uint8)),
        "python": [3, 2**70, 0.1, -0.0, float("inf"), True, 1 + 2j, "text"],
        "none": None,
        "pair": Pair(jnp.ones(2), (None, [])),
        "record": Record(jnp.ones((2, 2)), 4),
        "a.b": jnp.ones(1),
        "a": {"b": jnp.zeros(1)},
        "numbers": {10: jnp.full(1, 10.0), 2: jnp.full(1, 2.0)},
    }


def packed():
    """One of every node, nested, in training and in storage form."""
    w = jax.random.normal(jax.random.key(0), (16, 8))
    mask = jnp.abs(w) > 1
    table = jnp.linspace(-1, 1, 4)
    codebook = Codebook(jnp.digitize(w, table[1:]).astype(jnp.int32), table)
    quantized = Quantized(jnp.round(w * 4), jnp.full((1, 8), 0.25), low=-16, high=15)
    nodes = {
        "masked": Masked(w, mask),
        "codebook": Masked(codebook, mask),
        "quantized": quantized,
        "sum": Sum(quantized, Factored(w[:, :2], w[:2, :])),
        "bits": Bits.of(jnp.arange(5), 3),
        "view": Reshaped(Factored(w[:, :2], w[:2, :]), (4, 4, 8), (1, 0, 2), (4, 4, 8)),
    }
    return {"training": nodes, "stored": store(nodes)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two steps, and what they hold."""
    folder = tmp_path_factory.mktemp("run")
    state = {
        "w": jax.random.normal(jax.random.key(0), (16, 33)),
        "mask": jnp.arange(1000) % 3 == 0,
        "half": jnp.ones(300, jnp.bfloat16),
        "codes": jnp.arange(8).astype(jnp.uint4),
        "key": jax.random.key(3),
        "host": np.arange(5.0),
        "rate": 3.25,
        "empty": jnp.zeros((0, 3)),
    }
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)})
        checkpoints.save(2, state, metadata={"loss": [0.5, None]})
    return folder, state


def test_every_bit_of_every_kind_comes_back(tmp_path):
    state = everything()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, allow_nonfinite=True)
        assert_same(checkpoints.restore(state)[0], state)
        raw, _ = checkpoints.restore()
    assert raw["pair"]["left"].tolist() == [1, 1]
    assert raw["pair"]["right"] == (None, [])
    assert raw["numbers"]["10"] == 10
    assert raw["numbers"]["2"] == 2
    assert raw["a.b"] == 1
    assert raw["a"]["b"] == 0
    for name in ("arrays", "keys", "empty", "numpy", "python", "none"):
        assert_same(raw[name], state[name])


def test_nodes_come_back_as_nodes(tmp_path):
    state = packed()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        assert_same(checkpoints.restore()[0], state)
        assert_same(checkpoints.restore(jax.eval_shape(lambda: state))[0], state)


def test_a_training_run_resumes_bit_exact(tmp_path):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    tx = nnopt.chain(nnopt.pruning.magnitude(0.5), nnopt.compression.codebook(4))

    def loss(params, x):
        return jnp.mean((x @ params["w"] - 1) ** 2)

    @jax.jit
    def step(params, state, moments, key):
        x = jax.random.normal(jax.random.fold_in(key, moments[1][0].count), (8, 16))
        _, grads = nnopt.value_and_grad(loss, tx)(params, state, x)
        moved = nnopt.trainable(tx, params, state)
        updates, moments = optimizer.update(grads.train, moments, moved)
        params, state = nnopt.step(tx, params, state, updates, grads)
        return params, state, moments, key

    params = {"w": jax.random.normal(jax.random.key(0), (16, 8))}
    state = tx.init(params)
    at = params, state, optimizer.init(nnopt.trainable(tx, params, state)), jax.random.key(7)
    for _ in range(2):
        at = step(*at)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, at)
    resumed, _ = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: at))
    for _ in range(2):
        at, resumed = step(*at), step(*resumed)
    assert_same(resumed, at)


@pytest.mark.parametrize(("rows", "columns"), [(8, 1), (2, 4), (2, 2), (1, 1)])
def test_any_mesh_to_any_mesh(tmp_path, rows, columns):
    state = {
        "w": jax.random.normal(jax.random.key(0), (16, 8)),
        "codes": jnp.arange(128).reshape(16, 8).astype(jnp.uint4),
        "keys": jax.random.split(jax.random.key(0), 8),
    }
    specs = {"w": P("a", "b"), "codes": P("b"), "keys": P("a")}

    def on(mesh):
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    sharded = jax.device_put(state, on(mesh(2, 4)))
    there = on(mesh(rows, columns))
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, there
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, sharded)
        restored, _ = checkpoints.restore(target)
        whole, _ = checkpoints.restore()
    assert_same(restored, state)
    assert_same(whole, state)
    for path, leaf in restored.items():
        assert leaf.sharding.is_equivalent_to(there[path], leaf.ndim)
        assert not whole[path].committed


def test_steps_metadata_and_what_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.steps() == []
    for step in (1, 5, 10):
        checkpoints.save(step, {"w": jnp.full(2, step)}, metadata={"step": step})
    assert checkpoints.steps() == [5, 10]
    assert checkpoints.restore(step=5)[0]["w"].tolist() == [5, 5]
    assert checkpoints.restore()[1] == {"step": 10}
    with pytest.raises(CheckpointError, match=r"holds step 10, and steps only grow.*delete\(10\)"):
        checkpoints.save(7, {"w": jnp.ones(2)})
    checkpoints.delete(10)
    checkpoints.save(7, {"w": jnp.ones(2)})
    assert Checkpoints(tmp_path / "new").steps() == [5, 7]
    with pytest.raises(CheckpointError, match=r"does not hold step 6. Stored: \[5, 7\]"):
        checkpoints.restore(step=6)
    with pytest.raises(CheckpointError, match="holds no step 6"):
        checkpoints.delete(6)
    checkpoints.close()
    with pytest.raises(CheckpointError, match="does not hold a step"):
        Checkpoints(tmp_path / "nowhere").restore()
    with pytest.raises(ValueRangeError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_tree_without_arrays(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"none": None, "n": 3, "empty": np.zeros((0,))})
        assert checkpoints.restore()[0]["n"] == 3


def mistakes():
    w, mask = jnp.ones((4, 2)), jnp.ones((4, 2), bool)
    grid = Quantized(w, jnp.ones((1, 2)), low=-8, high=7)
    other = grid.replace(low=-128, high=127)
    return {
        "dtype": (w, w.astype(jnp.int8), "x: stored is float32[4,2], the target wants int8[4,2]"),
        "shape": (w, w.T, "x: stored is float32[4,2], the target wants float32[2,4]"),
        "static": (grid, other, "x: stored is Quantized version 1 (low=-8, high=7"),
        "node": (
            Masked(w, mask),
            w,
            "x: stored is Masked version 1 (capacity=None, mode='select', format='smallest'), the",
        ),
        "inner": (Masked(w, mask), Masked(w.astype(jnp.bfloat16), mask), "x/values: stored is flo"),
        "field": (grid, grid.replace(zero=jnp.ones((1, 2))), "x/zero: not stored, the target"),
        "missing": ({"a": w}, {"a": w, "b": w}, "x/b: not stored, the target wants float32[4,2]"),
        "extra": ({"a": w, "b": w}, {"a": w}, "x/b: stored is float32[4,2], the target has no"),
        "length": ([w], [w, w], "x: stored is list of 1, the target wants list of 2"),
        "container": ([w], (w,), "x: stored is list of 1, the target wants tuple of 1"),
        "python": (3, jnp.int32(3), "x: stored is python int[], the target wants int32[]"),
        "none": (None, w, "x: stored is None, the target wants float32[4,2]"),
        "key": (jax.random.key(0), jax.random.key(0, impl="rbg"), "x: stored is key<fry>[]"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_target_that_does_not_fit(name):
    stored, target, message = mistakes()[name]
    _, manifest = freeze({"x": stored}, "demo")
    with pytest.raises(CheckpointError) as caught:
        match_target(manifest, {"x": target}, "demo")
    assert message in str(caught.value)


def test_all_differences_are_listed_at_once():
    _, manifest = freeze({"a": np.ones(2), "b": [np.ones(3)]}, "demo")
    with pytest.raises(CheckpointError, match=r"demo: 2 problems\n  a: .*\n  b/0: "):
        match_target(manifest, {"a": np.ones(3), "b": [np.ones(2)]}, "demo")


def test_what_cannot_be_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    gone = jnp.ones(3)
    gone.delete()
    bad = {"o": object(), "s": np.array(["a"]), "gone": gone, "ok": 1}
    with pytest.raises(CheckpointError, match=r"3 problems\n  gone: was donated.*\n  o: is a obj"):
        checkpoints.save(1, bad)
    with pytest.raises(CheckpointError, match="'a/b' name more than one leaf"):
        checkpoints.save(1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
    with pytest.raises(CheckpointError, match="metadata is not JSON"):
        checkpoints.save(1, {}, metadata={"x": object()})
    with pytest.raises(CheckpointError, match="x: is traced"):
        jax.jit(lambda x: checkpoints.save(1, {"x": x}))(1.0)
    assert checkpoints.steps() == []


def test_a_nan_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"params": {"w": jnp.array([1, jnp.nan, jnp.inf])}, "best": jnp.inf, "lr": float("nan")}
    with pytest.raises(NonFiniteError) as caught:
        checkpoints.save(9, state)
    assert "step 9: 2 problems" in str(caught.value)
    assert "params/w: holds 1 NaN and 1 infinite of 3; nothing was written" in str(caught.value)
    assert checkpoints.steps() == []
    checkpoints.save(9, state, allow_nonfinite=True)
    assert_same(checkpoints.restore(state)[0], state)
    checkpoints.close()


def test_float64_of_jax_is_not_cast(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with jax.enable_x64(True):
            state = {"x": jnp.array([0.1], jnp.float64)}
            checkpoints.save(1, state)
            assert_same(checkpoints.restore()[0], state)
        with pytest.raises(CheckpointError, match="x: is float64; set jax_enable_x64"):
            checkpoints.restore()


def damage(folder, rng):
    """Harms one file of step 2; says how."""
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    path = rng.choice(files)
    raw = bytearray(path.read_bytes())
    place = rng.randrange(len(raw))
    how = rng.choice(["bit", "bit", "bit", "truncated", "removed"])
    if how == "removed":
        path.unlink()
        return path.name, how
    if how == "bit":
        raw[place] ^= 1 << rng.randrange(8)
    path.write_bytes(raw if how == "bit" else raw[:place])
    return path.name, how, place


# Where one read fails, orbax abandons the others, whose loop is then closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(4))
def test_damage_is_an_error_or_does_no_harm(saved, tmp_path, seed):
    folder, state = saved
    rng = random.Random(seed)
    for attempt in range(20):
        copy = tmp_path / str(attempt)
        shutil.copytree(folder, copy)
        what = damage(copy, rng)
        target = state if attempt % 2 else None
        try:
            restored, metadata = Checkpoints(copy).restore(target, step=2)
        except CheckpointError:
            continue
        assert metadata == {"loss": [0.5, None]}, what
        for (path, ours), theirs in zip(
            nnopt.tree.flatten(restored).items(), jax.tree.leaves(state), strict=True
        ):
            assert bits(ours) == bits(theirs), (path, what)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["manifest/metadata", "arrays/manifest.ocdbt"])
def test_a_missing_or_cut_file_is_an_error(saved, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(saved[0], copy)
    path = copy / "2" / name
    for raw in (path.read_bytes()[:-30], b"", None):
        path.unlink() if raw is None else path.write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"step 2 of \[1, 2\]"):
            Checkpoints(copy).restore()
    assert Checkpoints(copy).restore(step=1)[0]["w"].tolist() == [1, 1, 1]


def test_a_flipped_byte_that_orbax_accepts_is_named(tmp_path):
    w = np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint8)  # does not compress
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"layer": {"w": w}, "b": np.ones(3)})
    (data,) = [p for p in tmp_path.rglob("d/*") if p.stat().st_size > 4096]
    raw = bytearray(data.read_bytes())
    raw[raw.index(bytes(w[100:200]))] ^= 4
    data.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"step 1 of \[1\] in .*: layer/w: is damaged"):
        Checkpoints(tmp_path).restore()


def test_a_missing_array_and_a_damaged_one_are_listed_together():
    arrays, manifest = freeze({"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}, "demo")
    del arrays["0"]
    arrays["2"] = arrays["2"] * 2
    with pytest.raises(CheckpointError, match=r"2 problems\n  a: is missing\n  c: is damaged"):
        thaw(*match_target(manifest, None, "demo"), arrays, "demo")


def test_a_full_disk_leaves_the_older_steps_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": noise})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(CheckpointError, match="step 2: could not be written to"):
                checkpoints.save(2, {"w": noise})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps() == [1]
        assert_same(checkpoints.restore()[0], {"w": noise})
        checkpoints.save(2, {"w": noise})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


RUN = """
import sys, numpy as np
from nnopt_jax.interop import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 1000):
        draws = np.random.default_rng(step).normal(size=(4, 1 << 17))
        checkpoints.save(step, {"w": list(draws), "step": step})
        print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    rng = random.Random(0)
    runs = [tmp_path / str(i) for i in range(5)]
    children = [
        subprocess.Popen([sys.executable, "-c", RUN, str(run)], stdout=subprocess.PIPE, text=True)
        for run in runs
    ]
    for run, child in zip(runs, children, strict=True):
        with child:
            assert child.stdout.readline() == "1\n"
            try:
                child.wait(rng.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                child.kill()
            printed = ["1", *child.stdout.read().split()]
        with Checkpoints(run) as checkpoints:
            latest = checkpoints.latest()
            assert latest >= int(printed[-1])
            restored, _ = checkpoints.restore()
            draws = np.random.default_rng(latest).normal(size=(4, 1 << 17))
            assert_same(restored, {"step": latest, "w": list(draws)})
            checkpoints.save(latest + 1, restored)
        assert {path.name for path in run.iterdir()} <= {str(latest + i) for i in (-1, 0, 1)}


def test_a_crashed_writer_leaves_nothing_behind(tmp_path):
    left = tmp_path / "3.orbax-checkpoint-tmp"
    (left / "arrays").mkdir(parents=True)
    assert Checkpoints(tmp_path).steps() == []
    assert left.exists()  # reading changes nothing: another process may be writing
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


leaves = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.sampled_from(["float32", "bfloat16", "uint4", "int2", "bool", "float8_e5m2"]).flatmap(
        lambda dtype: st.lists(st.integers(0, 255), min_size=3, max_size=3).map(
            lambda raw: np.array(raw, np.uint8).astype(jnp.dtype(dtype))
        )
    ),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text("ab.", min_size=1, max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(trees)
def test_freeze_and_thaw_are_inverse(tree):
    arrays, manifest = freeze(tree, "demo", finite=False)
    assert_same(thaw(*match_target(manifest, None, "demo"), arrays, "demo"), tree)
    assert_same(thaw(*match_target(manifest, tree, "demo"), arrays, "demo"), tree)


def test_the_manifest_is_plain_json():
    _, manifest = freeze({"w": Masked(jnp.ones(2), jnp.ones(2, bool))}, "demo")
    assert json.loads(json.dumps(manifest))["tree"]["dict"]["w"]["node"] == "Masked"
    assert [entry["path"] for entry in manifest["leaves"]] == ["w/values", "w/mask"]
