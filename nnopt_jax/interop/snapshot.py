"""Conversion of any tree to numbered plain arrays and a JSON manifest, and back, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from nnopt_jax.arrays.node_description import abstract, describe
from nnopt_jax.errors import (
    ArtifactError,
    CheckpointError,
    NonFiniteError,
    Problems,
    SelectionError,
)
from nnopt_jax.interop.stored_leaf import (
    StoredLeaf,
    decode,
    decode_python,
    encode,
    encode_python,
    nonfinite,
)
from nnopt_jax.ops.checksums import digests
from nnopt_jax.tree.devices import place
from nnopt_jax.tree.paths import flatten, unflatten

__all__ = ["Wanted", "check_agreement", "freeze", "match_target", "mismatches", "thaw"]


class Wanted(NamedTuple):
    """A leaf to restore.

    Args:
        path: the path of the leaf.
        leaf: the kind, dtype and shape.
        sharding: the sharding; None for unsharded, on the default device and uncommitted.
        entry: its entry in the manifest.
    """

    path: str
    leaf: StoredLeaf
    sharding: jax.sharding.Sharding | None
    entry: dict[str, Any]


def freeze(tree: Any, caller: str, *, finite: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a tree into plain arrays and a manifest.

    Args:
        tree: any pytree of arrays, nodes, typed PRNG keys, numbers, strings and None.
        caller: the name of the caller, for errors.
        finite: whether NaN (and infinity in arrays) raises an error.

    Returns:
        The arrays by number, and a manifest for JSON.

    Raises:
        CheckpointError: two leaves share a path, a leaf is of a kind that cannot be stored, or
            processes hold different values.
        NonFiniteError: a leaf is not finite.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.snapshot import freeze
        >>> arrays, manifest = freeze({"w": np.ones(2), "step": 3}, "demo")
        >>> list(arrays), [entry["path"] for entry in manifest["leaves"]]
        (['1'], ['step', 'w'])
    """
    leaves = _flatten(tree, caller)
    kinds = _kinds(leaves, caller)
    if finite:
        _check_finite(leaves, caller)
    arrays, entries = {}, []
    for number, (path, leaf) in enumerate(kinds.items()):
        entry: dict[str, Any] = {"path": path, "kind": leaf.kind}
        if leaf.kind == "python":
            entry["value"] = encode_python(leaves[path])
        elif leaf.stored:
            arrays[str(number)] = _local_to_numpy(encode(leaves[path]))
        entries.append(entry)
    for number, found in zip(arrays, digests(list(arrays.values())), strict=True):
        entries[int(number)]["checksum"] = found
    check_agreement(entries, caller)
    return arrays, {"tree": describe(unflatten(tree, kinds)), "leaves": entries}


def _local_to_numpy(x: Any) -> Any:
    """Convert an array that is local to its process to NumPy, which orbax accepts."""
    local = jax.process_count() > 1 and isinstance(x, jax.Array) and x.is_fully_addressable
    return np.asarray(x) if local else x


def match_target(manifest: Mapping[str, Any], target: Any, caller: str) -> tuple[Any, list[Wanted]]:
    """Match the manifest with a target, and return the leaves to restore.

    Args:
        manifest: the manifest of `freeze`.
        target: a tree of arrays or `jax.ShapeDtypeStruct`, or None for the tree that was stored.
        caller: the name of the caller, for errors.

    Returns:
        The tree with numbers in place of leaves, and the leaf of each number.

    Raises:
        CheckpointError: the target differs from the stored tree; all differences are listed.

    Example:
        >>> import jax, numpy as np
        >>> from nnopt_jax.interop.snapshot import freeze, match_target
        >>> _, manifest = freeze({"w": np.ones(2, np.int8)}, "demo")
        >>> match_target(manifest, None, "demo")[0]
        {'w': 0}
        >>> match_target(manifest, {"w": jax.ShapeDtypeStruct((2,), np.float32)}, "demo")
        Traceback (most recent call last):
        nnopt_jax.errors.CheckpointError: demo: w: stored is int8[2], the target wants float32[2]
    """
    entries = manifest["leaves"]
    if target is None:
        stored: list[Wanted] = []

        def number(dtype: str, shape: tuple[int, ...]) -> int:
            entry = entries[len(stored)]
            stored.append(
                Wanted(entry["path"], StoredLeaf(entry["kind"], dtype, shape), None, entry)
            )
            return len(stored) - 1

        try:
            return abstract(manifest["tree"], number), stored
        except ArtifactError as error:
            raise CheckpointError(f"{caller}: {error}") from error
    leaves = _flatten(target, caller)
    kinds = _kinds(leaves, caller)
    problems = Problems(caller)
    given = json.loads(json.dumps(describe(unflatten(target, kinds))))
    for path, text in mismatches(manifest["tree"], given):
        problems.add(path, text)
    problems.raise_as(CheckpointError)
    numbers = {entry["path"]: number for number, entry in enumerate(entries)}
    tree = unflatten(target, {path: numbers[path] for path in leaves})
    return tree, [
        Wanted(path, kinds[path], _sharding(leaves[path]), entry)
        for path, entry in zip(numbers, entries, strict=True)
    ]


def thaw(numbered: Any, leaves: list[Wanted], arrays: Mapping[str, Any], caller: str) -> Any:
    """Rebuild a tree from arrays and a manifest, and verify every leaf.

    Args:
        numbered: the tree that `match_target` returned.
        leaves: the leaves of its numbers.
        arrays: the arrays by number, as `freeze` returned them.
        caller: the name of the caller, for errors.

    Returns:
        The tree.

    Raises:
        CheckpointError: leaves are damaged or missing; all are listed.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.snapshot import freeze, thaw, match_target
        >>> arrays, manifest = freeze({"w": np.ones(2)}, "demo")
        >>> thaw(*match_target(manifest, None, "demo"), arrays, "demo")
        {'w': array([1., 1.])}
    """
    problems, values = Problems(caller), []
    sums = dict(zip(arrays, digests(list(arrays.values())), strict=True))
    for number, (path, leaf, sharding, entry) in enumerate(leaves):
        value = None
        try:
            if leaf.kind == "python":
                value = decode_python(leaf, entry["value"])
            else:
                stored = arrays.get(str(number)) if leaf.stored else None
                value = _checked(leaf, stored, entry, sums.get(str(number)))
                if sharding is not None and value.sharding != sharding:
                    value = place(value, sharding)
        except ValueError as error:
            problems.add(path, str(error))
        values.append(value)
    problems.raise_as(CheckpointError)
    return jax.tree.map(lambda number: values[number], numbered)


def _checked(leaf: StoredLeaf, stored: Any, entry: dict[str, Any], found: Any) -> Any:
    if leaf.stored and stored is None:
        raise ValueError("is missing")
    value = decode(leaf, stored)
    if leaf.stored and found != entry["checksum"]:
        raise ValueError("is damaged: its checksum is not the one it was saved with")
    return value


def _flatten(tree: Any, caller: str) -> dict[str, Any]:
    try:
        return flatten(tree)
    except SelectionError as error:
        raise CheckpointError(f"{caller}: {error}") from error


def _kinds(leaves: Mapping[str, Any], caller: str) -> dict[str, StoredLeaf]:
    kinds, problems = {}, Problems(caller)
    for path, leaf in leaves.items():
        try:
            kinds[path] = StoredLeaf.of(leaf)
        except TypeError as error:
            problems.add(path, str(error))
    problems.raise_as(CheckpointError)
    return kinds


def _check_finite(leaves: Mapping[str, Any], caller: str) -> None:
    problems = Problems(caller)
    for path, leaf in leaves.items():
        if text := nonfinite(leaf):
            problems.add(path, f"{text}; nothing was written (allow_nonfinite=True writes it)")
    problems.raise_as(NonFiniteError)


def _sharding(x: Any) -> jax.sharding.Sharding | None:
    """Return the sharding of a target leaf; None for uncommitted leaves and those off devices."""
    sharding = getattr(x, "sharding", None)
    if isinstance(x, jax.Array) and not x.committed:
        return None
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return None
    return sharding if isinstance(sharding, jax.sharding.Sharding) else None


def check_agreement(entries: Sequence[dict[str, Any]], caller: str) -> None:
    """Raise if processes hold different leaves or values.

    Args:
        entries: the entries of the manifest, with values and checksums.
        caller: the name of the caller, for errors.

    Raises:
        CheckpointError: (in every process) leaves differ; all are listed.

    Example:
        >>> from nnopt_jax.interop.snapshot import check_agreement
        >>> check_agreement([{"path": "w", "checksum": [1, 2]}], "demo")  # one process
    """
    if jax.process_count() == 1:
        return
    # One hash of everything first; leaves are compared one by one only to name those that
    # differ.
    if _same(_words(entries, len(entries))):
        return
    if not _same(np.array([len(entries)], np.uint32)):
        raise CheckpointError(
            f"{caller}: process {jax.process_index()} holds {len(entries)} leaves, another one "
            "other leaves. Give each process the same tree."
        )
    of_each = _gathered(np.stack([_words(entry) for entry in entries]))
    problems = Problems(caller)
    for entry, words in zip(entries, of_each.swapaxes(0, 1), strict=True):
        others = np.flatnonzero((words != words[0]).any(1))
        if others.size:
            where = ", ".join(map(str, others))
            problems.add(entry["path"], f"is another value in process {where} than in process 0. "
                                        "Make it the same, or shard it over the mesh")  # fmt: skip
    problems.raise_as(CheckpointError)


def _words(*values: Any) -> np.ndarray:
    """Return a hash as two 32-bit integers, because JAX may lack 64-bit mode."""
    text = json.dumps(values).encode()
    return np.frombuffer(hashlib.sha256(text).digest()[:8], np.uint32)


def _gathered(x: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(x))


def _same(x: np.ndarray) -> bool:
    of_each = _gathered(x)
    return bool((of_each == of_each[0]).all())


def mismatches(stored: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Compare two descriptions that `nnopt_jax.arrays.describe` returned.

    Args:
        stored: the description in the file.
        wanted: the description of the target.
        path: their path in the tree.

    Yields:
        The path and a sentence for each difference.

    Example:
        >>> from nnopt_jax.interop.snapshot import mismatches
        >>> list(mismatches({"dict": {"w": ["float32", [2]]}}, {"dict": {"w": ["int8", [2]]}}))
        [('w', 'stored is float32[2], the target wants int8[2]')]
    """
    if stored == wanted:
        return
    ours, theirs = _children(stored), _children(wanted)
    if ours is None or theirs is None or _entry_text(stored) != _entry_text(wanted):
        yield path, f"stored is {_entry_text(stored)}, the target wants {_entry_text(wanted)}"
        return
    for name in dict.fromkeys([*ours, *theirs]):
        inner = "/".join(part for part in (path, name) if part)
        if name not in theirs:
            yield inner, f"stored is {_entry_text(ours[name])}, the target has no such entry"
        elif name not in ours:
            yield inner, f"not stored, the target wants {_entry_text(theirs[name])}"
        else:
            yield from mismatches(ours[name], theirs[name], inner)


def _children(at: Any) -> dict[str, Any] | None:
    """Return the children of a container or node, by name; None for a leaf."""
    if not isinstance(at, dict):
        return None
    if "node" in at:
        return at["fields"]
    ((_, children),) = at.items()
    if isinstance(children, dict):
        return children
    return {str(index): child for index, child in enumerate(children)}


def _entry_text(at: Any) -> str:
    """Return a short text for an entry: `float32[3,4]`, `dict`, `Bits version 1 (width=4)`."""
    if at is None:
        return "None"
    if isinstance(at, list):
        dtype, shape = at
        return f"{dtype}[{','.join(map(str, shape))}]"
    if "node" in at:
        static = ", ".join(f"{name}={value!r}" for name, value in at["static"].items())
        return f"{at['node']} version {at['version']} ({static})"
    ((kind, children),) = at.items()
    return kind if kind == "dict" else f"{kind} of {len(children)}"
