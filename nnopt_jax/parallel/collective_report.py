"""A report of communication: the collectives of a compiled program."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from nnopt_jax.columns import brief_fields
from nnopt_jax.tree.bit_counts import dtype_bits

# An asynchronous collective is a pair of -start and -done, of which only the start is counted.
_LINE = re.compile(
    r" = (?P<result>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+[0-9][a-z0-9]*|pred)\[([0-9,]*)\]")
_COMPUTATION = re.compile(
    r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \([^\n]*\{\s*\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL
)
_ENTRY = re.compile(r"^ENTRY %?([\w.\-]+)", re.MULTILINE)
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"(\d+)"')
_DTYPES = {"pred": "bool", "bf16": "bfloat16"}
_LETTERS = {"s": "int", "u": "uint", "f": "float", "c": "complex"}


class Traffic(NamedTuple):
    """The number and the bytes of the collectives of one kind.

    Args:
        count: their number.
        bytes: the bytes of their results on one device.

    Example:
        >>> import nnopt_jax as nnopt
        >>> nnopt.parallel.Traffic(count=2, bytes=64).bytes
        64
    """

    count: int
    bytes: int

    __repr__ = brief_fields


def collectives(compiled: Any, *, trips: bool = False) -> dict[str, Traffic]:
    """Count the collectives of a compiled function.

    Args:
        compiled: the result of `jax.jit(f).lower(...).compile()`, or its text.
        trips: whether a collective in a loop counts as often as the loop runs, as far as the
            compiler knows that; otherwise it counts once.

    Returns:
        Count and bytes by kind: `"all-reduce"`, `"all-gather"`, `"reduce-scatter"`, `"all-to-all"`,
        `"collective-permute"`; kinds that do not occur are omitted.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> mesh = nnopt.parallel.mesh(data=8)
        >>> x = nnopt.parallel.shard_batch(jnp.ones((8, 4)), mesh)
        >>> nnopt.parallel.collectives(jax.jit(lambda x: x.sum(0)).lower(x).compile())
        {'all-reduce': Traffic(count=1, bytes=16)}
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    found: dict[str, Traffic] = {}
    for times, part in _parts(text) if trips else [(1, text)]:
        for line in _LINE.finditer(part):
            arrays = _ARRAY.findall(line["result"])
            if line["start"] and len(arrays) > 1:  # operands, then results
                arrays = arrays[len(arrays) // 2 :]
            count, size = found.get(line["kind"], Traffic(0, 0))
            size += times * sum(map(_bytes, arrays))
            found[line["kind"]] = Traffic(count + times, size)
    return dict(sorted(found.items()))


def _parts(text: str) -> list[tuple[int, str]]:
    """Return the computations of a program that run, each with the number of its runs."""
    bodies = {found["name"]: found["body"] for found in _COMPUTATION.finditer(text)}
    entry = _ENTRY.search(text)
    parts: list[tuple[int, str]] = []

    def visit(name: str, times: int) -> None:
        body = bodies.get(name, "")
        parts.append((times, body))
        for line in body.splitlines():
            known = _TRIPS.search(line)
            again = times * int(known[1]) if known and " while(" in line else times
            for called in _CALLED.findall(line):
                for inner in re.findall(r"[\w.\-]+", called):
                    if inner in bodies:
                        visit(inner, again)

    if entry is not None:
        visit(entry[1], 1)
    return parts


def _bytes(array: tuple[str, str]) -> int:
    name, shape = array
    size = math.prod(int(n) for n in shape.split(",") if n)
    letters = name.rstrip("0123456789")
    dtype = _DTYPES.get(name) or f"{_LETTERS.get(letters, letters)}{name[len(letters) :]}"
    try:
        bits = dtype_bits(dtype)
    except TypeError:  # float8 in the compiler's own spelling: f8e4m3fn
        bits = int(re.search(r"\d+", name)[0])  # pyright: ignore[reportOptionalSubscript]
    return -(-size * bits // 8)
