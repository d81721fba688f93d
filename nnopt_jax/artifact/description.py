"""The description of the tree in a file: compressed, plain JSON that declares all arrays.

A description of format 3 is a JSON object, compressed as raw deflate. It has the key `tree` and, if
they are not empty, `metadata`, `apart` (streams whose arrays are coded one by one), `same` (streams
that repeat an earlier one) and `program` (the number of bytes of a program). In a tree, an array is
`[dtype, shape]`, a container is `{"dict": {...}}`, `{"list": [...]}` or `{"tuple": [...]}`, and a
node is `{"class": name, ...}` with its settings and fields by name. Formats 1 and 2 have lists in
place of names, store sizes separately from the text, and use a preset dictionary.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays import Node, Sparse, abstract, check, describe, is_node
from nnopt_jax.arrays.node_description import dtype_named
from nnopt_jax.arrays.nodes import NODE_TYPES
from nnopt_jax.artifact.byte_io import ByteReader, inflate, malformed
from nnopt_jax.artifact.streams import ArraySlot
from nnopt_jax.errors import ArtifactError, Problems, SelectionError, ValueRangeError, nearest
from nnopt_jax.ops.bit_packing import packed_size
from nnopt_jax.tree.paths import flatten, path_string

_MOST_BYTES = 1 << 26
"""The greatest size of a description, so that decompression is bounded."""
_RAW = -15
"""zlib's window bits for deflate without header and checksum, since the file has a checksum."""
_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")
_LEAVE = "leave it out of the tree, or give it as metadata"
_WRAPPED = (jax.tree_util.GetAttrKey("value"),)


def write_description(tree: Any, notes: dict[str, Any]) -> bytes:
    """Describe a tree together with notes.

    Args:
        tree: pytree of arrays and nodes in plain containers.
        notes: other entries of the file by name; empty values are omitted.

    Returns:
        Compressed JSON.

    Raises:
        ValueRangeError: the notes are not JSON, or the description is too long.

    Example:
        >>> data = write_description({"w": np.zeros((2, 3))}, {"metadata": {"epoch": 3}})
        >>> zlib.decompress(data, -15)
        b'{"tree":{"dict":{"w":["float64",[2,3]]}},"metadata":{"epoch":3}}'
    """
    content = {"tree": _flat(describe(tree))} | {name: notes[name] for name in notes if notes[name]}
    try:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueRangeError(f"save: the metadata is not JSON ({error}).") from error
    data = text.encode()
    if len(data) > _MOST_BYTES:
        raise ValueRangeError(f"save: a description of {len(data)} bytes, most is {_MOST_BYTES}.")
    return zlib.compress(data, 9, _RAW)


def read_description(data: bytes, version: int) -> tuple[Any, dict[str, Any], int]:
    """Rebuild the tree that a file describes, with `jax.ShapeDtypeStruct` for arrays.

    Args:
        data: all bytes, untrusted.
        version: the format of the file.

    Returns:
        The abstract tree, with its nodes checked; the notes; and the bytes that the arrays take.

    Raises:
        ArtifactError: the data is malformed, or too large when decompressed.
    """
    with malformed("description"):
        description, notes = _read(data) if version > 2 else _read_coded(data)
        if not isinstance(notes, dict):
            raise ArtifactError("load: malformed notes of a description.")
        tree = abstract(description, struct)
        _check_numbers(tree)
        check(tree, "load")
        return tree, notes, declared_bytes(tree)


def _read(data: bytes) -> tuple[Any, Any]:
    text, rest = inflate(data, _MOST_BYTES, "description", wbits=_RAW)
    if rest:
        raise ArtifactError(f"malformed description: {len(rest)} bytes too many.")
    notes = json.loads(text)
    return _unflatten(notes.pop("tree")), notes


def _flat(at: Any) -> Any:
    """Merge the settings and fields of each node of a description into one object."""
    if not isinstance(at, dict):
        return at
    if "node" in at:
        fields = {name: _flat(field) for name, field in at["fields"].items()}
        version = "" if at["version"] == 1 else f"/{at['version']}"
        return {"class": at["node"] + version, **at["static"], **fields}
    ((kind, children),) = at.items()
    if kind == "dict":
        return {kind: {name: _flat(child) for name, child in children.items()}}
    return {kind: [_flat(child) for child in children]}


def _unflatten(at: Any) -> Any:
    """Separate settings and fields of each node again; the inverse of `_flat`."""
    if not isinstance(at, dict):
        return at
    if "class" in at:
        name, version = _node_class(at.pop("class"))
        static = NODE_TYPES[name].names(is_static=True)
        settings = {key: at.pop(key) for key in static if key in at}
        return _node(name, version, settings, {key: _unflatten(field) for key, field in at.items()})
    ((kind, children),) = at.items()
    if kind == "dict":
        return {kind: {name: _unflatten(child) for name, child in children.items()}}
    return {kind: [_unflatten(child) for child in children]}


def _node_class(text: str) -> tuple[str, int]:
    """Split a class name that may end in `/2` into name and version."""
    name, _, version = text.partition("/")
    if name not in NODE_TYPES:
        raise ArtifactError(f"load: unknown node {name!r}.{nearest(name, NODE_TYPES)}")
    return name, int(version or 1)


def _node(name: str, version: int, static: dict[str, Any], fields: dict[str, Any]) -> Any:
    return {"node": name, "version": version, "static": static, "fields": fields}


# ---------------------------------------------------------------------- formats 1 and 2

# The preset dictionary of coded descriptions. Changing one character would make every file of
# formats 1 and 2 unreadable.
_WORDS = (
    '"complex64","float64","int64","uint32","int4","uint16",0],"int16",0],"bool",0],"int32",0],'
    '"opt_state":{"step":{"ema":{"weight":["running_mean":["running_var":["mean":["var":["query":{'
    '"key":{"value":{"out":{"q_proj":{"k_proj":{"v_proj":{"o_proj":{"mlp":{"attention":{"encoder":{'
    '"decoder":{"blocks":{"layers_0":{"lora_a":["lora_b":["Embed_0":{"embedding":["LayerNorm_0":{'
    '"BatchNorm_0":{"batch_stats":{"linear1":{"linear2":{"Conv_0":{"Conv_1":{"metadata":{"same":[['
    '"apart":[0,"Masked",null,"select","straight_through","applied","rows",["uint8",0]],'
    '["Sum",["Factored","bfloat16",["bfloat16",0,0],["float16",0,0]]],["list",["tuple",'
    '["Quantized",-8,0,"float32",["Bits",0,-8,0,0],["float32",0,0],null,null],'
    '["Quantized",-127,0,"float32",["int8",0,0],["float32",0,0],null,null],'
    '"scale":["float32",0],"kernel":["float32",0,0,0,0],"bias":["float32",0]},'
    '["Sparse",[0,0],["float32",0],["Bits",0,0,0,0]]'
)
_SHARED = '["Codebook","float32",["Bits",0,0],["float32",0],null]'


def coded_words() -> bytes:
    """Return the preset deflate dictionary of coded descriptions.

    Example:
        >>> f"{zlib.crc32(coded_words()):08x}"
        'dc615bcd'
    """
    plain, sparse = f"{_SHARED},", f'["Sparse",[0],{_SHARED},true],'
    layers = []
    names = ("Dense_0", "Dense_1", "Dense_2", "dense0", "conv1", "conv2", "fc1", "fc2", "fc3")
    for number, name in enumerate(names):
        shape = "[0,0,0,0]" if "conv" in name else "[0,0]"
        bias = sparse if number % 3 else plain
        layers.append(f'"{name}":{{"bias":{bias}"kernel":["Sparse",{shape},{_SHARED},[0,0]]}}')
    return (_WORDS + '[{"params":{' + ",".join(layers) + "}}]").encode()


def _read_coded(data: bytes) -> tuple[Any, Any]:
    """Read a coded description: deflated lists in which every size is 0, and the sizes."""
    text, rest = inflate(data, _MOST_BYTES, "description", wbits=_RAW, dictionary=coded_words())
    sizes, content = ByteReader(rest), json.loads(text)
    description = _lengthen(_with_sizes(content[0], sizes))
    sizes.end()
    return description, content[1] if len(content) > 1 else {}


def _with_sizes(value: Any, sizes: ByteReader) -> Any:
    if isinstance(value, dict):
        return {name: _with_sizes(item, sizes) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_sizes(item, sizes) for item in value]
    return sizes.varint() if type(value) is int and value >= 0 else value


def _lengthen(short: Any) -> Any:
    """Expand a short description, whose lists begin with their kind."""
    if short is None:
        return None
    if isinstance(short, dict):
        return {"dict": {name: _lengthen(child) for name, child in short.items()}}
    head, *rest = short
    if head in ("list", "tuple"):
        return {head: [_lengthen(child) for child in rest]}
    if head.partition("/")[0] in NODE_TYPES or head[:1].isupper():
        return _lengthen_node(*_node_class(head), rest)
    return [head, rest]


def _lengthen_node(name: str, version: int, rest: list[Any]) -> Any:
    """Name the settings and fields, which are listed in class order, and derive omitted ones."""
    if name == "Bits" and all(type(value) is int for value in rest):
        width, *shape = rest
        low = shape.pop(0) if shape and shape[0] < 0 else 0
        return _bits(width, low, shape)
    names, static = NODE_TYPES[name].names(), NODE_TYPES[name].names(is_static=True)
    given = max(len(rest) - len(names), 0)  # late settings may be omitted
    settings = dict(zip(static[:given], rest[:given], strict=True))
    fields = dict(zip(names, rest[given:], strict=True))
    if name == "Sparse" and fields["support"] is True:
        fields["support"] = ["Bits", 1, *settings["shape"]]
    elif name == "Sparse" and type(fields["support"][0]) is int:
        width, count = fields["support"]
        fields["support"] = ["Gaps", settings["shape"], width, ["Bits", width, count]]
    fields = {key: _lengthen(value) for key, value in fields.items() if value is not None}
    return _node(name, version, settings, fields)


def _bits(width: int, low: int, shape: Sequence[int]) -> Any:
    """Return the description of a `Bits` node of a given width, least value and shape."""
    rows = bool(len(shape) and shape[-1] and shape[-1] % 8 == 0)
    words = [*shape] if rows else [math.prod(shape)]
    words[-1] = packed_size(words[-1], width)
    static = {"width": width, "low": low, "shape": shape, "layout": "rows" if rows else "flat"}
    return _node("Bits", 1, static, {"words": ["uint8", words]})


# ---------------------------------------------------------------------- trees and their arrays


def plain(tree: Any) -> Any:
    """Replace every container that files do not support by the dictionary of its fields.

    Args:
        tree: any pytree of arrays and nodes.

    Returns:
        Dictionaries with string keys, lists, tuples, None, nodes and arrays. A wrapper whose only
        field is `value`, as in NNX, becomes its value.

    Raises:
        SelectionError: two children of a container would get the same name.

    Example:
        >>> import collections
        >>> Layer = collections.namedtuple("Layer", "kernel bias")
        >>> plain([Layer(1.0, None), {3: 2.0}])
        [{'bias': None, 'kernel': 1.0}, {'3': 2.0}]
    """
    if tree is None or is_node(tree) or jax.tree_util.all_leaves([tree]):
        return tree
    if type(tree) in (list, tuple):
        return type(tree)(plain(child) for child in tree)
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if [keys for keys, _ in keyed] == [_WRAPPED]:
        return plain(keyed[0][1])
    named = {path_string(keys): plain(child) for keys, child in keyed}
    if len(named) < len(keyed):
        keys = [path_string(keys) for keys, _ in keyed]
        raise SelectionError(f"save: children of one container are called alike: {sorted(keys)}.")
    return dict(sorted(named.items()))


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_numeric(dtype: Any) -> bool:
    """Return whether a file can hold arrays of this dtype: numbers, booleans and keys."""
    return _is_key(dtype) or dtype == np.bool_ or jnp.issubdtype(dtype, jnp.number)


def check_storable(tree: Any) -> None:
    """Check, before anything is written, that `load` would accept all leaves.

    Raises:
        ArtifactError: there are leaves that it would not accept; all are named.

    Example:
        >>> check_storable({"name": "net", "w": np.ones(2)})
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: save: name: is a str, not an array of numbers; leave it \
out of the tree, or give it as metadata
    """
    problems = Problems("save")
    for path, leaf in flatten(tree).items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and not isinstance(leaf, (bool, int, float, complex)):
            problems.add(path, f"is a {type(leaf).__name__}, not an array of numbers; {_LEAVE}")
        elif dtype is not None and not _is_numeric(dtype):
            problems.add(path, f"is an array of {dtype}, not of numbers; {_LEAVE}")
        elif isinstance(dtype, np.dtype) and not dtype.isnative:
            problems.add(path, f"is in the byte order {dtype.str}; give x.astype(x.dtype.type)")
    problems.raise_as(ArtifactError)


def to_host(leaf: Any) -> np.ndarray:
    """Return a leaf as a NumPy array; PRNG keys as their integers.

    Example:
        >>> to_host(jax.random.key(7))
        array([0, 7], dtype=uint32)
    """
    if hasattr(leaf, "dtype") and _is_key(leaf.dtype):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))


def from_host(array: np.ndarray, like: jax.ShapeDtypeStruct) -> Any:
    """Convert a NumPy array to the leaf it was made from; the inverse of `to_host`."""
    if _is_key(like.dtype):
        name = next(name for name in _KEYS if jax.random.key(0, impl=name).dtype == like.dtype)
        return jax.random.wrap_key_data(jnp.asarray(array), impl=name)
    cut = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    return array if cut else jax.device_put(array)  # `jnp.asarray` would compile for each shape.


def struct(dtype: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Return an abstract array of a numeric dtype.

    Raises:
        ArtifactError: the dtype is not one of numbers, booleans or keys.

    Example:
        >>> struct("object", (2,))
        Traceback (most recent call last):
        nnopt_jax.errors.ArtifactError: load: arrays of 'object' are not numbers.
    """
    known = dtype_named(dtype)
    if not _is_numeric(known):
        raise ArtifactError(f"load: arrays of {dtype!r} are not numbers.")
    return jax.ShapeDtypeStruct(shape, known)


def slot_tree(tree: Any) -> Any:
    """Return the tree with an `ArraySlot` in place of each array, abstract or not."""
    leaves, structure = jax.tree.flatten(tree)
    slots = []
    for index, leaf in enumerate(leaves):
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        shape, dtype = tuple(leaf.shape), leaf.dtype
        if _is_key(dtype):
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = data.shape, data.dtype
        slots.append(ArraySlot(index, shape, dtype))
    return jax.tree.unflatten(structure, slots)


def declared_bytes(tree: Any) -> int:
    """Return the bytes of all arrays of an abstract tree, and of masks needed for decoding.

    Example:
        >>> declared_bytes({"w": struct("float32", (2, 3))})
        24
    """
    total = sum(slot.size * slot.itemsize for slot in jax.tree.leaves(slot_tree(tree)))
    return total + sum(node.size for node in _nodes(tree) if isinstance(node, Sparse))


def _nodes(tree: Any) -> Iterator[Node]:
    """Yield all nodes of a tree, outer ones before those inside them."""
    for leaf in jax.tree.leaves(tree, is_leaf=is_node):
        if isinstance(leaf, Node):
            yield leaf
            yield from _nodes([field for _, field in leaf.fields()])


def _check_numbers(tree: Any) -> None:
    """Raise if the static fields of a node state an invalid shape or dtype."""
    for node in _nodes(tree):
        if not all(type(size) is int and size >= 0 for size in node.shape):
            raise ArtifactError(f"load: {node.shape!r} is not a shape.")
        struct(node.dtype if isinstance(node.dtype, str) else node.dtype.name, node.shape)
