"""Files of weights against the libraries that define their formats."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import nnopt_jax as nnopt
from nnopt_jax.errors import ArtifactError, SelectionError, ValueRangeError
from nnopt_jax.interop import (
    Checkpoints,
    read_metadata,
    read_npz,
    read_orbax,
    read_safetensors,
    read_weights,
    write_safetensors,
)
from nnopt_jax.transfer import graft, rules

PLAIN = ("bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 "
         "complex64").split()  # fmt: skip
NARROW = ("bfloat16 float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz "
          "float8_e5m2fnuz").split()  # fmt: skip
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(5, 3)).astype(np.float32)


def arrays():
    """One array of each dtype, of odd sizes, a scalar and an empty one among them."""
    made = {
        f"layer.{dtype}": RNG.integers(0, 100, size=(3, 5)).astype(jnp.dtype(dtype))
        for dtype in (*PLAIN, *NARROW)
    }
    return made | {"scalar": np.array(3, np.float32), "empty": np.zeros((2, 0), np.int8)}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        assert np.asarray(found[name]).tobytes() == np.asarray(x).tobytes(), name


# ---------------------------------------------------------------- safetensors


def test_what_their_library_writes_is_read(tmp_path):
    wanted = {name: x for name, x in arrays().items() if name.removeprefix("layer.") not in NARROW}
    save_file(wanted, tmp_path / "a.safetensors", metadata={"format": "np"})
    same(read_safetensors(tmp_path / "a.safetensors"), wanted)
    assert read_metadata(tmp_path / "a.safetensors") == {"format": "np"}


def test_what_is_written_their_library_reads(tmp_path):
    wanted = arrays()
    write_safetensors(tmp_path / "a.safetensors", wanted, metadata={"by": "nnopt"})
    plain = {name: x for name, x in wanted.items() if x.dtype.kind != "V" and "float8" not in name}
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"by": "nnopt"}
        assert set(file.keys()) == set(wanted)
        same({name: file.get_tensor(name) for name in plain}, plain)
        told = {name: file.get_slice(f"layer.{name}").get_dtype() for name in NARROW}
    assert list(told.values()) == [
        "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"
    ]  # fmt: skip
    same(read_safetensors(tmp_path / "a.safetensors"), wanted)


def test_arrays_are_views_of_the_file_and_cannot_be_written_to(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"w": KERNEL})
    found = read_safetensors(tmp_path / "a.safetensors")["w"]
    write_safetensors(tmp_path / "a.safetensors", {"w": 2 * KERNEL})  # by a rename
    np.testing.assert_array_equal(found, KERNEL)
    assert not found.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_data_that_are_not_aligned_are_read(tmp_path):
    text = json.dumps({
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    })  # fmt: skip
    data = len(text).to_bytes(8, "little") + text.encode() + b"\7" + np.float32([1, 2]).tobytes()
    (tmp_path / "a.safetensors").write_bytes(data)
    same(load_file(tmp_path / "a.safetensors"), read_safetensors(tmp_path / "a.safetensors"))


def test_trees_are_written_by_path(tmp_path):
    tree = {"a": [jnp.ones(2), {"b": 1.5}], "c": np.arange(3, dtype=">i4")}
    write_safetensors(tmp_path / "a", tree, separator=".")
    found = load_file(tmp_path / "a")
    assert {name: x.dtype.name for name, x in found.items()} == {
        "a.0": "float32", "a.1.b": "float32", "c": "int32"
    }  # fmt: skip
    np.testing.assert_array_equal(found["c"], [0, 1, 2])


def shards(folder):
    save_file({"a.weight": KERNEL}, folder / "model-1.safetensors")
    save_file({"b.weight": 2 * KERNEL}, folder / "model-2.safetensors")
    where = {"b.weight": "model-2.safetensors", "a.weight": "model-1.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 120}, "weight_map": where}))
    return index


def test_folders_of_shards_are_a_source_of_grafts(tmp_path):
    index = shards(tmp_path)
    source = read_weights(tmp_path)
    assert list(source) == list(read_weights(index)) == ["b.weight", "a.weight"]
    target = {name: {"kernel": jax.ShapeDtypeStruct((3, 5), jnp.bfloat16)} for name in "ab"}
    moves = [rules.rename(r"(.*)\.weight", r"\1/kernel"), rules.transpose("*/kernel")]
    found = graft(target, source, moves).params
    np.testing.assert_array_equal(found["b"]["kernel"], (2 * KERNEL.T).astype(jnp.bfloat16))


def broken(change):
    """A file whose header was changed, or one that was not to be one at all."""
    told = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "I8", "shape": [3], "data_offsets": [8, 11]},
    }
    text = json.dumps(change(told)).encode()
    return len(text).to_bytes(8, "little") + text + bytes(11)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (broken(lambda t: t)[:-4], r"b: ends at byte 11 of 7: the file was cut short"),
        (broken(lambda t: t)[:30], "cannot have a header of"),
        (b"", "0 bytes cannot have a header"),
        ((1 << 40).to_bytes(8, "little") + bytes(9), "cannot have a header of 1099511627776"),
        (broken(lambda t: t) + b"!", "1 bytes follow the last tensor, b"),
        (broken(lambda t: t | {"b": {**t["b"], "data_offsets": [7, 10]}}), "b: begins.*overlaps a"),
        (broken(lambda t: {"b": t["b"]}), "b: begins at byte 8 and leaves a gap after the header"),
        (broken(lambda t: t | {"a": {**t["a"], "dtype": "F33"}}), "a: .*'F33'; Did you mean F32"),
        (broken(lambda t: t | {"a": {**t["a"], "dtype": "F4"}}), "a: .*less than a byte"),
        (broken(lambda t: t | {"a": {**t["a"], "shape": [3]}}), r"a: takes 8 bytes, and F32\[3\]"),
        (broken(lambda t: t | {"a": {**t["a"], "shape": [-2]}}), "a: .*not whole numbers"),
        (broken(lambda t: t | {"a": {**t["a"], "shape": [1] * 80 + [2]}}), "a: has 81 axes"),
        (
            broken(
                lambda t: (
                    t | {"b": {"dtype": "I8", "shape": [0, 2**62, 2**62], "data_offsets": [8, 8]}}
                )
            )[:-3],
            "b: has 3 axes .*no array of NumPy",
        ),
        (broken(lambda t: t | {"a": 3}), "a: malformed"),
        (broken(lambda t: [3]), "not JSON of tensors"),
        (broken(lambda t: t | {"__metadata__": {"x": 3}}), "not JSON of tensors .its metadata"),
        (broken(lambda t: t).replace(b'"b"', b'"a"'), "a name occurs twice"),
    ],
)
def test_bad_files_are_told(data, text, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=text) as told:
        read_safetensors(path)
    assert str(path) in str(told.value)
    with pytest.raises(Exception, match=r"."):  # nor does their library read any of it
        load_file(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: (f / "model-2.safetensors").unlink(), "b.weight: lie in model-2.*missing"),
        (
            lambda f: save_file({"c": KERNEL}, f / "model-1.safetensors"),
            "a.weight: is not in model-1.safetensors, where the index has it",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"w": "../x.safetensors"}}'
            ),
            "w: lie in '../x.safetensors', which is not a file beside",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not an index of shards"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"w": 3}}'),
            "not an index of shards .*named by strings",
        ),
    ],
)
def test_bad_shards_are_told(change, text, tmp_path):
    shards(tmp_path)
    change(tmp_path)
    with pytest.raises(ArtifactError, match=text):
        read_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("tree", "settings", "kind", "text"),
    [
        ({"w": nnopt.arrays.Masked(KERNEL, KERNEL > 0)}, {}, ArtifactError, "w: is packed, Masked"),
        ({"w": jnp.ones(2, jnp.int4)}, {}, ArtifactError, "w: is int4, which the format lacks"),
        ({"w": "text", "v": None}, {}, ArtifactError, "w: is a str, not an array"),
        ({"a": {"b": 1.0}, "a.b": 2.0}, {"separator": "."}, SelectionError, "'a.b' once more"),
        ({"w": 1.0}, {"metadata": {"epoch": 3}}, ValueRangeError, "more than strings"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tree, settings, kind, text, tmp_path):
    write_safetensors(tmp_path / "a", {"w": KERNEL})
    with pytest.raises(kind, match=text):
        write_safetensors(tmp_path / "a", tree, **settings)
    assert os.listdir(tmp_path) == ["a"]
    np.testing.assert_array_equal(load_file(tmp_path / "a")["w"], KERNEL)


def test_where_nothing_can_be_written_is_told(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*nowhere"):
        write_safetensors(tmp_path / "nowhere" / "a", {"w": 1.0})


# ------------------------------------------------------------------------ npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, tmp_path):
    wanted = {name: x for name, x in arrays().items() if "float8" not in name}
    save(tmp_path / "a.npz", **wanted)
    same(read_weights(tmp_path / "a.npz"), wanted)


def test_bad_npz_are_told(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=KERNEL, o=np.array([{}]), f=np.ones(2, jnp.float8_e4m3fn), s=np.array(["a"]))
    with pytest.raises(ArtifactError, match=r"(?s)3 problems.*o: .*pickle.*f: .*V1.*s: .*<U1"):
        read_npz(path)
    np.savez(path, w=KERNEL)
    data = bytearray(path.read_bytes())
    data[-len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"a.npz: w: cannot be read: .*CRC"):
        read_npz(path)
    path.write_bytes(data[:100])
    with pytest.raises(ArtifactError, match=r"a\.npz"):
        read_npz(path)


def test_what_zipfile_has_no_words_for_is_told(tmp_path):
    """Any flipped bit of the directory: a compression that is none, or a password."""
    path = tmp_path / "a.npz"
    np.savez(path, w=np.ones(2, np.int8))
    whole = path.read_bytes()
    start = whole.index(b"PK\1\2")
    for place in range(start, len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with contextlib.suppress(ArtifactError):  # and no other error
            read_npz(path)


def test_other_archives_are_told_in_one_line(tmp_path):
    np.save(tmp_path / "x.npy", KERNEL)
    with pytest.raises(ArtifactError, match="holds one array without a name"):
        read_npz(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in ("data.pkl", "byteorder", "data/0", "data/1", "version"):
            archive.writestr(f"m/{name}", b"x")
    with pytest.raises(ArtifactError, match=r"^[^\n]*is a pickle of PyTorch[^\n]*$"):
        read_weights(tmp_path / "m.pt")
    with pytest.raises(ValueRangeError, match="path is of type int"):
        read_weights(3)


# ---------------------------------------------------------------------- orbax


def test_steps_of_others_are_read_without_a_target(tmp_path):
    mesh = jax.make_mesh((8,), ("d",), (jax.sharding.AxisType.Auto,))
    split = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("d")))
    tree = {"dense": {"kernel": split, "bias": jnp.ones(3, jnp.bfloat16)}, "list": [jnp.int8(3)]}
    wanted = {"dense/bias": np.ones(3, jnp.bfloat16), "dense/kernel": np.arange(16, dtype="f4"),
              "list/0": np.array(3, np.int8)}  # fmt: skip
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(tmp_path / "bare", args=ocp.args.StandardSave(tree))
    same(read_weights(tmp_path / "bare"), wanted)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(7, args=ocp.args.StandardSave(tree))
    same(read_weights(tmp_path / "run" / "7"), wanted)
    with pytest.raises(ArtifactError, match=r"holds the steps \[7\]; give one of them"):
        read_weights(tmp_path / "run")
    with ocp.CheckpointManager(tmp_path / "items", item_names=("params", "more")) as manager:
        args = {"params": ocp.args.StandardSave(tree), "more": ocp.args.StandardSave({"n": 2})}
        manager.save(1, args=ocp.args.Composite(**args))
    found = read_weights(tmp_path / "items" / "1")
    assert list(found)[:2] == ["more/n", "params/dense/bias"]
    (tmp_path / "bare" / "_METADATA").write_text("{")
    with pytest.raises(ArtifactError, match="damaged or incomplete"):
        read_orbax(tmp_path / "bare")


def test_steps_of_our_own_come_packed(tmp_path):
    tx = nnopt.quantization.uniform(4)
    packed = tx.pack({"w": jnp.asarray(KERNEL)}, tx.init({"w": jnp.asarray(KERNEL)}))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, packed)
    found = read_weights(tmp_path / "3")
    np.testing.assert_array_equal(found["w"].materialize(), packed["w"].materialize())


def test_other_files_are_told(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x80\x04K\x01.")
    texts = {"a.bin": "neither safetensors", "b": "No such file", "": "not an orbax"}
    for path, text in texts.items():
        with pytest.raises(ArtifactError, match=text):
            read_weights(tmp_path / path)
