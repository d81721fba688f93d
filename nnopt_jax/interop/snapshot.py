"""A tree of anything as numbered plain arrays and a manifest in JSON, and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from nnopt_jax.arrays.node_description import abstract, describe
from nnopt_jax.errors import (
    ArtifactError,
    CheckpointError,
    NonFiniteError,
    Problems,
    SelectionError,
)
from nnopt_jax.interop.agreement import require_agreement
from nnopt_jax.interop.encoding import Leaf, decode, decode_python, encode, encode_python
from nnopt_jax.interop.finite import nonfinite
from nnopt_jax.interop.mismatch import mismatches
from nnopt_jax.ops.checksums import digest
from nnopt_jax.tree.devices import place
from nnopt_jax.tree.paths import flatten, unflatten


class Wanted(NamedTuple):
    """What a restored leaf is to be.

    Args:
        path: its name.
        leaf: its kind, dtype and shape.
        sharding: where it lies; None for whole, on the default device, free to move.
        entry: what the manifest says about it.
    """

    path: str
    leaf: Leaf
    sharding: jax.sharding.Sharding | None
    entry: dict[str, Any]


def freeze(tree: Any, who: str, *, finite: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes a tree apart.

    Args:
        tree: any pytree of arrays, nodes, typed PRNG keys, numbers, strings and None.
        who: the function that asks, for errors.
        finite: whether NaN (and infinity in arrays) is refused.

    Returns:
        The arrays by number, and a manifest that JSON holds.

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
    leaves = _flatten(tree, who)
    kinds = _kinds(leaves, who)
    if finite:
        _require_finite(leaves, who)
    arrays, entries = {}, []
    for number, (path, leaf) in enumerate(kinds.items()):
        entry: dict[str, Any] = {"path": path, "kind": leaf.kind}
        if leaf.kind == "python":
            entry["value"] = encode_python(leaves[path])
        elif leaf.stored:
            arrays[str(number)] = _for_all(encode(leaves[path]))
            entry["checksum"] = digest(arrays[str(number)])
        entries.append(entry)
    require_agreement(entries, who)
    return arrays, {"tree": describe(unflatten(tree, kinds)), "leaves": entries}


def _for_all(x: Any) -> Any:
    """An array that each process holds for itself, as one that orbax takes: NumPy's."""
    local = jax.process_count() > 1 and isinstance(x, jax.Array) and x.is_fully_addressable
    return np.asarray(x) if local else x


def wanted(manifest: Mapping[str, Any], target: Any, who: str) -> tuple[Any, list[Wanted]]:
    """Says what is to be restored, before any array is read.

    Args:
        manifest: what `freeze` returned.
        target: a tree of arrays or `jax.ShapeDtypeStruct`, or None for the tree that was stored.
        who: the function that asks, for errors.

    Returns:
        The tree with the number of each leaf in its place, and what each number is to be.

    Raises:
        CheckpointError: the target differs from what is stored; all differences are listed.

    Example:
        >>> import jax, numpy as np
        >>> from nnopt_jax.interop.snapshot import freeze, wanted
        >>> _, manifest = freeze({"w": np.ones(2, np.int8)}, "demo")
        >>> wanted(manifest, None, "demo")[0]
        {'w': 0}
        >>> wanted(manifest, {"w": jax.ShapeDtypeStruct((2,), np.float32)}, "demo")
        Traceback (most recent call last):
        nnopt_jax.errors.CheckpointError: demo: w: stored is int8[2], the target wants float32[2]
    """
    entries = manifest["leaves"]
    if target is None:
        stored: list[Wanted] = []

        def number(dtype: str, shape: tuple[int, ...]) -> int:
            entry = entries[len(stored)]
            stored.append(Wanted(entry["path"], Leaf(entry["kind"], dtype, shape), None, entry))
            return len(stored) - 1

        try:
            return abstract(manifest["tree"], number), stored
        except ArtifactError as error:
            raise CheckpointError(f"{who}: {error}") from error
    leaves = _flatten(target, who)
    kinds = _kinds(leaves, who)
    problems = Problems(who)
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


def thaw(numbered: Any, leaves: list[Wanted], arrays: Mapping[str, Any], who: str) -> Any:
    """Puts a tree together again and checks every leaf.

    Args:
        numbered: the tree that `wanted` returned.
        leaves: what its numbers are to be.
        arrays: the arrays by number, as `freeze` returned them.
        who: the function that asks, for errors.

    Returns:
        The tree.

    Raises:
        CheckpointError: leaves are damaged or missing; all are listed.

    Example:
        >>> import numpy as np
        >>> from nnopt_jax.interop.snapshot import freeze, thaw, wanted
        >>> arrays, manifest = freeze({"w": np.ones(2)}, "demo")
        >>> thaw(*wanted(manifest, None, "demo"), arrays, "demo")
        {'w': array([1., 1.])}
    """
    problems, values = Problems(who), []
    for number, (path, leaf, sharding, entry) in enumerate(leaves):
        value = None
        try:
            if leaf.kind == "python":
                value = decode_python(leaf, entry["value"])
            else:
                stored = arrays.get(str(number)) if leaf.stored else None
                value = _checked(leaf, stored, entry)
                if sharding is not None and value.sharding != sharding:
                    value = place(value, sharding)
        except ValueError as error:
            problems.add(path, str(error))
        values.append(value)
    problems.raise_as(CheckpointError)
    return jax.tree.map(lambda number: values[number], numbered)


def _checked(leaf: Leaf, stored: Any, entry: dict[str, Any]) -> Any:
    if leaf.stored and stored is None:
        raise ValueError("is missing")
    value = decode(leaf, stored)
    if leaf.stored and digest(stored) != entry["checksum"]:
        raise ValueError("is damaged: its checksum is not the one it was saved with")
    return value


def _flatten(tree: Any, who: str) -> dict[str, Any]:
    try:
        return flatten(tree)
    except SelectionError as error:
        raise CheckpointError(f"{who}: {error}") from error


def _kinds(leaves: Mapping[str, Any], who: str) -> dict[str, Leaf]:
    kinds, problems = {}, Problems(who)
    for path, leaf in leaves.items():
        try:
            kinds[path] = Leaf.of(leaf)
        except TypeError as error:
            problems.add(path, str(error))
    problems.raise_as(CheckpointError)
    return kinds


def _require_finite(leaves: Mapping[str, Any], who: str) -> None:
    problems = Problems(who)
    for path, leaf in leaves.items():
        if text := nonfinite(leaf):
            problems.add(path, f"{text}; nothing was written (allow_nonfinite=True writes it)")
    problems.raise_as(NonFiniteError)


def _sharding(x: Any) -> jax.sharding.Sharding | None:
    """Where a target leaf must lie; None where it is free to move, or names no devices."""
    sharding = getattr(x, "sharding", None)
    if isinstance(x, jax.Array) and not x.committed:
        return None
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return None
    return sharding if isinstance(sharding, jax.sharding.Sharding) else None
