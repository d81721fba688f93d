"""Trees come back to the bit, from a file that is whole or not there."""

from __future__ import annotations

import collections
import json
import os
import resource
import stat
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors.numpy import load_file

import nnopt_jax as nnopt
from nnopt_jax import artifact
from nnopt_jax.arrays import (
    Bits,
    Codebook,
    DeltaIndex,
    Factored,
    Masked,
    Quantized,
    Reshaped,
    SoftCodebook,
    SoftThresholded,
    Sparse,
    Sum,
    materialize,
    store,
)
from nnopt_jax.artifact import byte_io, container, description, file, streams
from nnopt_jax.errors import ArtifactError, SelectionError, ValueRangeError
from nnopt_jax.ops.bit_packing import host_pack_bits, host_unpack_bits, pack_bits

DTYPES = ["float32", "bfloat16", "float16", "int8", "uint8", "int16", "uint16", "int32", "bool",
          "float8_e4m3fn", "int4", "float64", "int64", "complex64"]  # fmt: skip
SHAPES = [(), (0,), (1,), (3, 0), (7, 5), (2, 3, 4)]


def bits_of(array):
    return array.dtype, array.shape, np.asarray(array).tobytes()


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert bits_of(x) == bits_of(y)


def round_trip(tree, path, **options):
    artifact.save(path, tree, **options)
    back = artifact.load(path)
    same(tree, back)
    return back


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.nnopt"


def pruned(seed=0, shape=(40, 30), density=0.1, clusters=8):
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(rng.random(shape) < density)
    table = jnp.asarray(np.sort(rng.normal(size=clusters)).astype(np.float32))
    return Masked(Codebook(jnp.asarray(rng.integers(0, clusters, shape)), table), mask)


def everything():
    """A tree with every node, several of them within others."""
    rng = np.random.default_rng(5)
    floats = jnp.asarray(rng.normal(size=(24, 16)).astype(np.float32))
    codes = jnp.asarray(rng.integers(-7, 8, (24, 16)).astype(np.float32))
    grid = Quantized(codes, jnp.full((1, 16), 0.1), low=-7, high=7)
    wide = Quantized(codes, jnp.full((1, 1), 0.1), jnp.full((1, 1), 3.0), low=-128, high=127)
    mask = jnp.asarray(rng.random((24, 16)) < 0.2)
    shared = Codebook(jnp.asarray(rng.integers(0, 5, (24, 16))), floats[0, :5].sort())
    return {
        "bits": Bits.of(jnp.arange(20) - 3, 5, -3),
        "codebook": store(shared),
        "coded_grid": store(Masked(Quantized(shared, jnp.ones((1, 1)), low=-7, high=7), mask)),
        "factored": Factored(floats[:, :2], floats[:2], dtype="bfloat16"),
        "float_mask": store(Masked(floats, mask)),
        "gaps": DeltaIndex.of(jnp.asarray(rng.random((50, 9)) < 0.01), 3),
        "masked": store(Masked(Factored(floats[:, :2], floats[:2]), mask)),
        "quantized": store(grid),
        "sparse_grid": store(Masked(grid, mask)),
        "shrunk": store(Masked(SoftThresholded(grid, jnp.float32(0.5)), mask)),
        "sparse_wide": store(Masked(wide, mask)),
        "soft": SoftCodebook(floats, floats[0, :5].sort(), jnp.float32(0.1)),
        "sum": Sum(store(grid), Factored(floats[:, :2], floats[:2])),
        "training": Masked(shared, mask),
        "view": Reshaped.of(store(shared), (1, 0)),
        "view_of_factors": Reshaped(
            Factored(floats[:, :2], floats[:2]), (4, 6, 4, 4), (0, 2, 1, 3), (4, 4, 6, 4)
        ),
        "wide": store(wide),
    }


def test_every_node_comes_back(path):
    tree = everything()
    back = round_trip(tree, path)
    same(materialize(tree), materialize(back))


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_bit_pattern_comes_back(dtype, shape, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    size = int(np.prod(shape))
    if dtype in ("bool", "int4"):
        array = rng.integers(0, 2, shape).astype(kind)
    else:
        array = np.frombuffer(rng.bytes(size * kind.itemsize), kind).reshape(shape)
    where = tmp_path_factory.mktemp("bits") / "x.nnopt"
    round_trip({"x": array}, where)


def test_special_numbers_come_back(path):
    payload = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000], np.uint32).view(np.float32)
    back = round_trip([payload, jnp.float32(-0.0), jnp.array(jnp.inf)], path)
    assert np.asarray(back[0]).view(np.uint32).tolist()[:2] == [0x7FC00001, 0xFFC12345]
    assert np.signbit(back[1])


def test_keys_come_back(path):
    for implementation in ("threefry2x32", "rbg"):
        key = jax.random.split(jax.random.key(3, impl=implementation), 2)
        artifact.save(path, {"key": key})
        back = artifact.load(path)["key"]
        assert back.dtype == key.dtype
        np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(key))


def test_containers_stay_or_become_dictionaries(path):
    Layer = collections.namedtuple("Layer", "kernel bias")
    one = jnp.ones(2)
    artifact.save(path, {"a": [one, (one, None)], "b": Layer(one, None), "c": {3: 2.5}, "d": []})
    back = artifact.load(path)
    same(back, {"a": [one, (one, None)], "b": {"bias": None, "kernel": one},
                "c": {"3": jnp.float32(2.5)}, "d": []})  # fmt: skip
    for tree in (one, (), None, {"x": None}):
        round_trip(tree, path)


def test_names_that_collide_are_refused(path):
    one = jnp.ones(2)
    for tree in ({"a/b": one, "a": {"b": one}}, {1: one, "1": one}):
        with pytest.raises((SelectionError, TypeError, ValueError)):
            artifact.save(path, tree)
    assert not path.exists()


def test_the_file_is_safetensors(path):
    artifact.save(path, everything())
    (tensor,) = load_file(path).values()
    assert tensor.dtype == np.uint8
    assert path.read_bytes().endswith(tensor.tobytes())


def test_equal_arrays_are_written_once(path):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(20, 30)).astype(np.float32))
    one = store(pruned(seed=1))
    artifact.save(path, {"a": table, "c": one})
    single = path.stat().st_size
    round_trip({"a": table, "b": table, "c": one, "d": store(pruned(seed=1))}, path)
    assert path.stat().st_size < single + 60


def test_empty_arrays_come_back_however_many(path):
    """As of two layers that lost all their weights."""
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4)), "c": jnp.zeros(0), "d": jnp.zeros(0)}
    tx = nnopt.pruning.magnitude(1.0)
    artifact.save(path, tx.pack(params, tx.init(params)))
    shown = nnopt.materialize(artifact.load(path))
    jax.tree.map(np.testing.assert_array_equal, shown, jax.tree.map(jnp.zeros_like, params))


def test_arrays_that_no_node_would_make_come_back_all_the_same(path):
    """Padding bits that are set, gaps that go on needlessly, more values than the mask keeps."""
    padded = Bits(jnp.full(3, 255, jnp.uint8), 5, 0, (4,))
    roundabout = DeltaIndex(Bits.of(jnp.array([3, 0, 3, 3]), 2), (2, 6), 2)
    spare = Sparse(jnp.arange(5, dtype=jnp.uint8), Bits.of(jnp.arange(12) < 2, 1), (12,))
    for tree in (padded, roundabout, spare, Sparse(padded, roundabout, (2, 6))):
        round_trip({"x": tree, "y": store(pruned())}, path)


@pytest.mark.slow
def test_files_of_pruned_layers_beat_the_entropy_of_each(path):
    tree = {f"fc{i}": store(pruned(i, (80, 100), 0.05)) for i in range(2)}
    artifact.save(path, tree)
    total = 0.0
    for leaf in jax.tree.leaves(materialize(tree)):
        counts = np.unique(np.asarray(leaf), return_counts=True)[1]
        total += -(counts * np.log2(counts / counts.sum())).sum() / 8
    tables = 2 * 8 * 4
    leaves = sum(row.file_bytes for row in artifact.inspect(path).rows)
    assert leaves < 1.02 * total + tables + 40  # nothing to find, nothing wasted


@pytest.mark.slow
def test_one_layer_tells_about_the_next():
    rng = np.random.default_rng(0)
    alive = rng.random(60) < 0.5
    first = rng.random((50, 60)) < 0.2 * alive
    second = rng.random((120, 50)) < 0.2 * np.tile(alive, 2)[:, None]

    def size(*masks):
        tree = [store(Masked(jnp.ones(m.shape), jnp.asarray(m))) for m in masks]
        return len(container.write(tree))

    assert size(first, second) < size(first) + size(second) - 80


@given(
    width=st.sampled_from([1, 3, 4, 8, 13, 16]),
    shape=st.sampled_from([(0,), (13,), (3, 8)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_is_that_of_the_arrays(width, shape, seed):
    codes = np.random.default_rng(seed).integers(0, 2**width, shape)
    words = host_pack_bits(codes, width)
    np.testing.assert_array_equal(words, pack_bits(codes, width))
    np.testing.assert_array_equal(host_unpack_bits(words, width, shape[-1]), codes)


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("density", [0, 0.01, 0.5])
def test_gaps_are_those_of_the_arrays(width, density):
    mask = np.random.default_rng(0).random(200) < density
    layout = DeltaIndex.of(jnp.asarray(mask), width)
    (codes,) = layout.host_indices(mask)
    np.testing.assert_array_equal(codes, layout.codes.materialize())
    np.testing.assert_array_equal(layout.host_mask(codes), mask)


def test_metadata_is_kept(path):
    artifact.save(path, {"w": jnp.ones(3)}, metadata={"epoch": 3, "name": "é", "acc": [0.5, None]})
    assert artifact.inspect(path).metadata == {"epoch": 3, "name": "é", "acc": [0.5, None]}
    with pytest.raises(ValueRangeError, match="JSON"):
        artifact.save(path, {}, metadata={"x": jnp.ones(2)})


def test_inspect_accounts_for_every_byte(path):
    tree = {"net": everything(), "w": jnp.ones((3, 5))}
    artifact.save(path, tree)
    told = artifact.inspect(path)
    assert told.file_bytes == path.stat().st_size
    assert sum(row.file_bytes for row in told.rows) + told.overhead_bytes == told.file_bytes
    assert 0 < told.overhead_bytes < 1000  # the description is plain JSON, compressed
    rows = {row.path: row for row in told.rows}
    assert rows["w"].shape == (3, 5)
    assert rows["w"].memory_bytes == 60
    assert rows["net/quantized"].expression.startswith("Quantized(codes 4-bit[24,16]")
    assert artifact.sizes(path).keys() == rows.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_exponents_of_many_floats_are_coded_apart(path, dtype):
    rng = np.random.default_rng(0)
    weights = (0.02 * rng.normal(size=20_000)).astype(jnp.dtype(dtype))
    weights[:4] = [np.nan, -np.inf, -0.0, 1e-7]
    artifact.save(path, {"w": weights, "few": jnp.ones(3, dtype)})
    loaded = np.asarray(artifact.load(path)["w"])
    np.testing.assert_array_equal(loaded.view(np.uint8), weights.view(np.uint8))
    if dtype == "float16":  # its exponent has 5 bits, and stays beside the sign
        return
    width = weights.dtype.itemsize
    exponents = weights.view(f"u{width}") >> (8 * width - 9) & 255
    counts = np.unique(exponents, return_counts=True)[1]
    least = -(counts * np.log2(counts / counts.sum())).sum() / 8 + (width - 1) * weights.size
    assert path.stat().st_size < 1.01 * least + 500


@pytest.mark.parametrize("effort", ["fast", "default", "smallest"])
def test_every_effort_gives_the_same_tree(path, effort):
    tree = {"net": everything(), "w": jnp.ones((3, 5))}
    artifact.save(path, tree, effort=effort)
    same(artifact.load(path), tree)


def test_an_unknown_effort_is_named(path):
    with pytest.raises(ValueRangeError, match=r"effort is 'smalest', .* Did you mean smallest\?"):
        artifact.save(path, {}, effort="smalest")
    assert not path.exists()


def test_a_bar_shows_what_is_saved(path, capfd):
    artifact.save(path, {"w": jnp.ones((3, 5))}, progress=True)
    assert f"save {path.name}" in capfd.readouterr().err
    artifact.save(path, {"w": jnp.ones((3, 5))})
    assert not capfd.readouterr().err


# What can go wrong with a file.


def test_any_flipped_bit_is_found(path):
    artifact.save(path, {"w": store(pruned(shape=(9, 8))), "b": jnp.ones(3)})
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            file.unseal(bytes(damaged))
    damaged[0] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"model\.nnopt"):
        artifact.load(path)


def test_any_cut_is_found(path):
    artifact.save(path, {"w": jnp.ones(3)})
    data = path.read_bytes()
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            file.unseal(data[:length])
    with pytest.raises(ArtifactError):
        file.unseal(data + b"\0")


def decoded(body, version=3, max_bytes=1 << 20):
    return container.read(container.contents(body, version, max_bytes))


@pytest.mark.parametrize("version", [1, 3])
@given(data=st.binary(max_size=200))
def test_anything_behind_a_right_checksum_is_ours_to_refuse(version, data):
    try:
        decoded(data, version)
    except ArtifactError:
        pass


@given(place=st.integers(0, 2**16), mask=st.integers(1, 255), cut=st.integers(0, 40))
def test_damage_behind_a_right_checksum_is_ours_to_refuse(place, mask, cut):
    body = bytearray(BODY[: len(BODY) - cut // 10])
    body[place % len(body)] ^= mask
    try:
        decoded(bytes(body))
    except ArtifactError:
        pass


BODY = container.write({"w": store(pruned(shape=(20, 10))), "b": [1.0]})


def deflated(text, dictionary=b""):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, dictionary)
    return deflate.compress(text) + deflate.flush()


def framed_head(head):
    return byte_io.varint(len(head)) + head


def coded(short, notes=None):
    """A body of formats 1 and 2: one description as they shorten it, and no streams."""
    sizes = []

    def hide(value):
        if isinstance(value, dict):
            return {name: hide(item) for name, item in value.items()}
        if isinstance(value, list):
            return [hide(item) for item in value]
        if type(value) is not int or value < 0:
            return value
        sizes.append(byte_io.varint(value))
        return 0

    content = [hide(short), *([notes] if notes else [])]
    packed = deflated(json.dumps(content).encode(), description.coded_words())
    return framed_head(packed + b"".join(sizes))


def described(tree, **notes):
    """A body of format 3 with a description and no streams."""
    return framed_head(deflated(json.dumps({"tree": tree, **notes}).encode()))


LIES = [
    {"w": ["object", 2]},
    {"w": ["i4,i4", 2]},
    {"w": ["str", 2]},
    {"w": ["float32", -2]},
    {"w": ["float32", 1.5]},
    {"w": ["float32", "2"]},
    {"w": ["float32", None]},
    {"w": ["float32", 10**30]},
    {"w": ["float32", 1 << 60]},
    {"w": {"w": 3}},
    ["set"],
    ["Evil", 1],
    ["Sparse/9", [2], ["float32", 1], [1, 1]],
    ["Sparse", [-1, -4], ["float32", 1], [1, 1]],
    ["Sparse", ["a"], ["float32", 1], [1, 1]],
    ["Sparse", [1 << 40, 1 << 20], ["float32", 1], [8, 1]],
    ["Sparse", [4], ["float32", 1]],
    ["Codebook", "object", ["int8", 2], ["float32", 2], None],
    ["Codebook", 3, ["int8", 2], ["float32", 2], None],
    ["Bits", 99, 4],
    ["Bits", "x", 4],
    ["Bits"],
    ["Reshaped", [2, 2], [1, 0], [2, 3], ["float32", 2, 2]],
    ["Reshaped", [2, 2], [1, 1], [2, 2], ["float32", 2, 2]],
    ["Reshaped", [2, 2], "10", [2, 2], ["float32", 2, 2]],
    ["Reshaped", [-2, -2], [1, 0], [-2, -2], ["float32", 2, 2]],
    ["SoftCodebook", "float32", ["float32", 2], ["float32", 2], ["float32", 2]],
    3, "x", [], [[]], [None],
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=repr)
def test_coded_descriptions_that_lie_are_refused(lie):
    with pytest.raises(ArtifactError):
        decoded(coded(lie), 1, 1 << 30)


SOFT = {"class": "SoftCodebook", "dtype": "float32", "values": ["float32", [2]],
        "table": ["float32", [2]], "width": ["float32", []]}  # fmt: skip
BITS = {"class": "Bits", "width": 4, "low": 0, "shape": [4], "layout": "flat",
        "words": ["uint8", [2]]}  # fmt: skip
VIEW = {"class": "Reshaped", "split": [2, 2], "axes": [1, 0], "sizes": [2, 2],
        "base": ["float32", [2, 2]]}  # fmt: skip
SPARSE = {"class": "Sparse", "shape": [4], "values": ["float32", [1]],
          "support": BITS | {"width": 1, "words": ["uint8", [1]]}}  # fmt: skip


def in_dict(leaf):
    return {"dict": {"w": leaf}}


PLAIN_LIES = [
    *(in_dict([dtype, [2]]) for dtype in ("object", "i4,i4", "str", "void", "", 3, None, [])),
    *(in_dict(["float32", shape]) for shape in
      ([-2], [1.5], ["2"], [None], [10**30], [1 << 60], [True, [2]], 2, None, "2", {"a": 1})),
    in_dict(["float32"]), in_dict(["float32", [2], 3]), in_dict({"w": 3}), in_dict("float32[2]"),
    in_dict(True), {"dict": [1]}, {"dict": None}, {"list": 3}, {"list": {"a": 1}}, {"tuple": "ab"},
    {"set": []}, {"dict": {}, "list": []}, {}, [], "x", 3, [None],
    {"class": "Evil"}, {"class": "os.system"}, {"class": 3}, {"class": ["Bits"]}, {"class": None},
    {"class": "Bits/x"}, {"class": "Node"}, {"class": "Hooks"}, {"class": "Bits"},
    SPARSE | {"class": "Sparse/9"}, SPARSE | {"extra": ["float32", [1]]},
    SPARSE | {"shape": [-1, -4]}, SPARSE | {"shape": ["a"]}, SPARSE | {"shape": None},
    SPARSE | {"shape": [1 << 40, 1 << 20]}, SPARSE | {"support": None}, SPARSE | {"values": 3},
    SPARSE | {"support": {"list": []}}, SPARSE | {"shape": {"class": "Bits"}},
    BITS | {"width": 99}, BITS | {"width": "x"}, BITS | {"width": [4]}, BITS | {"words": None},
    BITS | {"words": ["uint8", [1]]}, BITS | {"words": BITS}, BITS | {"layout": "diagonal"},
    VIEW | {"sizes": [2, 3]}, VIEW | {"axes": [1, 1]}, VIEW | {"axes": "10"},
    VIEW | {"split": [-2, -2], "sizes": [-2, -2]},
    SOFT | {"width": ["float32", [2]]}, SOFT | {"dtype": "object"},
]  # fmt: skip


@pytest.mark.parametrize("lie", PLAIN_LIES, ids=repr)
def test_plain_descriptions_that_lie_are_refused(lie):
    with pytest.raises(ArtifactError):
        decoded(described(lie), max_bytes=1 << 30)


def test_the_lies_are_lies_by_what_was_changed():
    """Unchanged, the descriptions are read up to the streams, which are not there."""
    for honest in (BITS, VIEW, SPARSE, SOFT):
        with pytest.raises(ArtifactError, match="truncated"):
            decoded(described(honest))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"3", b"{}", b'{"trees":null}', b'{"tree":null}x', b"\xff\xfe",
     b'{"tree":' + b"[" * 100_000, b'{"tree":' + b'{"list":[' * 50_000, b'{"tree":NaN}',
     b'{"tree":["float32",[' + b"9" * 5000 + b"]]}"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_text_that_is_no_description_is_refused(text):
    with pytest.raises(ArtifactError):
        decoded(framed_head(deflated(text)))


@pytest.mark.parametrize(
    "notes",
    [{"same": [[1, 0]]}, {"same": [[0, 0]]}, {"same": 3}, {"apart": ["x"]}, {"apart": [9]},
     {"program": -1}, {"program": 1.5}, {"program": "1"}, {"program": 1 << 62}],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("version", [1, 3])
def test_notes_that_lie_are_refused(version, notes):
    body = (
        coded({"w": ["float32", 2]}, notes)
        if version == 1
        else described(in_dict(["float32", [2]]), **notes)
    )
    with pytest.raises(ArtifactError):
        container.contents(body, version, 1 << 30)


def test_notes_that_are_no_dictionary_are_refused():
    with pytest.raises(ArtifactError):
        container.contents(coded({"w": ["float32", 2]}, [1]), 1, 1 << 30)


def test_bytes_behind_a_description_are_refused():
    head = deflated(b'{"tree":null}')
    assert decoded(framed_head(head)) is None
    with pytest.raises(ArtifactError, match="1 bytes too many"):
        decoded(framed_head(head + b"\0"))
    with pytest.raises(ArtifactError, match="does not end"):
        decoded(framed_head(head[:-1]))


def test_a_description_is_plain_json(path):
    """Read by zlib and json alone, as another reader would."""
    grid = Quantized(jnp.ones((3, 2), jnp.int8), jnp.ones((1, 2)), low=-127, high=127)
    tree = {"b": [jnp.ones(2), (None,)], "w": grid, "class": jnp.ones(1)}
    artifact.save(path, tree, metadata={"epoch": 3})
    body, version = file.unseal(path.read_bytes())
    assert version == 3
    head = byte_io.ByteReader(body).part()
    assert json.loads(zlib.decompress(head, -15)) == {
        "tree": {
            "dict": {
                "b": {"list": [["float32", [2]], {"tuple": [None]}]},
                "class": ["float32", [1]],
                "w": {
                    "class": "Quantized",
                    "low": -127,
                    "high": 127,
                    "dtype": "float32",
                    "codes": ["int8", [3, 2]],
                    "scale": ["float32", [1, 2]],
                },
            }
        },
        "metadata": {"epoch": 3},
    }
    same(artifact.load(path), tree)


@given(
    tree=st.recursive(
        st.sampled_from([None, np.float32(1), np.arange(3, dtype=np.int8)]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(
                st.sampled_from(["class", "dict", "list", "node", "tree", "é", " "]), inner
            )
        ),
        max_leaves=8,
    ),
    metadata=st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3),
)
def test_containers_of_any_shape_and_name_come_back(tree, metadata):
    found = container.contents(container.write(tree, metadata), 3, 1 << 20)
    same(container.read(found), tree)
    assert (found.metadata or {}) == metadata


def test_a_description_that_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(description, "_MOST_BYTES", 1 << 12)
    with pytest.raises(ArtifactError, match="does not end"):
        container.contents(described({"list": [None] * 100_000}), 3, 1 << 30)
    with pytest.raises(ArtifactError, match="does not end"):
        container.contents(coded(["list", *[None] * 100_000]), 1, 1 << 30)


def test_max_bytes_is_checked_before_anything_is_allocated(path):
    artifact.save(path, {"w": jnp.zeros((1000, 1000))})
    with pytest.raises(ArtifactError, match="declares 4000000 bytes"):
        artifact.load(path, max_bytes=3_999_999)
    assert artifact.load(path, max_bytes=4_000_000)["w"].shape == (1000, 1000)
    path.write_bytes(bytes(file._SLACK + 20))
    with pytest.raises(ArtifactError, match="max_bytes is 10"):
        artifact.load(path, max_bytes=10)


def test_an_unknown_version_is_named(path):
    for version in (0, 4, 7, 255):
        path.write_bytes(file.seal(BODY, version))
        with pytest.raises(ArtifactError, match=f"version {version}, this library reads 1 to 3"):
            artifact.load(path)


def test_other_files_are_told_apart(path):
    path.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(ArtifactError, match=r"not an \.nnopt file"):
        artifact.load(path)
    with pytest.raises(ArtifactError, match="No such file"):
        artifact.load(path.with_name("none.nnopt"))
    with pytest.raises(ArtifactError, match="directory"):
        artifact.load(path.parent)


def test_a_full_disk_leaves_the_old_file(path):
    artifact.save(path, {"w": jnp.ones(3)})
    before = path.read_bytes()
    large = {"w": np.random.default_rng(0).normal(size=10_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write \d+ bytes .*untouched"):
            artifact.save(path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(ArtifactError, match="No such file"):
        artifact.save(path / "x.nnopt", {})


def test_saving_through_a_link_writes_its_target(path):
    link = path.with_name("latest.nnopt")
    link.symlink_to(path.name)
    artifact.save(link, {"w": jnp.ones(3)})
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    same(artifact.load(path), {"w": jnp.ones(3)})


def test_streams_cover_each_array_once():
    tree = everything()
    slots = container.slot_tree(tree)
    covered = [index for stream in streams.streams_of(slots) for index in stream.covers]
    assert sorted(covered) == list(range(len(jax.tree.leaves(tree))))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.array(["2020-01-01"], "datetime64[D]"), "is an array of datetime64[D]"),
        (np.array([None, 1], object), "is an array of object"),
        (np.array(["ab"]), "is an array of <U2"),
        ("text", "is a str, not an array of numbers"),
        (np.arange(3, dtype=">f4"), "is in the byte order >f4"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(path, leaf, message):
    with pytest.raises(ArtifactError) as error:
        artifact.save(path, {"a": {"w": leaf}, "b": leaf})
    assert "a/w: " + message in str(error.value)
    assert "b: " + message in str(error.value)
    assert not path.exists()
