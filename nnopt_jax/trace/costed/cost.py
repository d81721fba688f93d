"""FLOPs, bytes and milliseconds of a function, for each leaf of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from nnopt_jax.arrays.base import is_node, summary
from nnopt_jax.errors import Problems, ValueRangeError
from nnopt_jax.trace.costed.count import ACTIVATIONS, ELEMENTWISE, Tally, count
from nnopt_jax.trace.costed.latency import milliseconds
from nnopt_jax.trace.costed.origin import FLOWING, LEAF, Origin
from nnopt_jax.trace.costed.table import Cost, CostRow
from nnopt_jax.trace.packed.leaf import Leaf
from nnopt_jax.trace.packed.walk import run
from nnopt_jax.trace.traced import Traced, require_function, traced
from nnopt_jax.tree.bits import tree_bits


def cost(
    apply: Callable[..., Any], params: Any, *args: Any, latency: bool = False, **kwargs: Any
) -> Cost:
    """Counts what a call of a function costs, from shapes alone, for each leaf of its parameters.

    Work is that of the leaf it is done for: products are those of the leaf that is contracted, also
    after it was transposed, reshaped, cast, cut or unpacked, and so is what these cost. Of two
    leaves that meet, the larger one counts. Products of activations with activations, and steps
    that are no contractions, have rows of their own.

    - A contraction costs two FLOPs for each product it sums, `2 m k n` for a matrix product; a
      convolution one product for each position, tap and pair of features. Padding counts (as in
      papers; XLA leaves it out), the holes of a transposed convolution do not.
    - Any other step costs one FLOP for each entry it gives, or else one transcendental, a reduction
      of `n` entries `n - 1`, and movements and lookups none, as XLA counts before it simplifies.
      Work that nothing depends on is not counted; work that is written twice counts twice.
    - A scan costs its body times its length. Of a `while` the body counts once, of a `cond` the
      dearest branch, and the result says so, as it does of steps that have no count.
    - Packed parameters cost what `nnopt.on_packed` does with them: two thin products for factors,
      integer products where there are some, and the unpacking where there is unpacking.

    Args:
        apply: any function that JAX can trace. Its derivative is one, too.
        params: its first argument: arrays, `jax.ShapeDtypeStruct`s, packed leaves.
        *args: further ones, likewise; what is no array reaches the function as it is.
        latency: whether to compile and time it; then all must be arrays.
        **kwargs: as `args`.

    Returns:
        The `Cost`: `print` it, or compare two by `before.against(after)`.

    Raises:
        CompositionError: `apply` is no function.
        ValueRangeError: `latency` is asked for, and there are shapes in place of arrays.

    Example:
        >>> import jax
        >>> import nnopt_jax as nnopt
        >>> shape = jax.ShapeDtypeStruct
        >>> params = {"down": shape((64, 8), "float32"), "up": shape((8, 64), "bfloat16")}
        >>> x = shape((2, 64), "float32")
        >>> cost = nnopt.cost(lambda p, x: x @ p["down"] @ p["up"], params, x)
        >>> for row in cost.rows:
        ...     print(row.path, row.parameters, row.bytes, row.macs, row.flops)
        down 512 2048 1024 2048
        up 512 1024 1024 2048
    """
    require_function("cost", apply)
    given = traced(apply, (params, *args), kwargs)
    if latency:
        _require_arrays(given)
    road, inputs = _road(given)
    program = jax.make_jaxpr(road)(*inputs)
    origins = [
        origin
        for value, origin in zip(given.values, _origins(given), strict=True)
        for _ in jax.tree.leaves(value)
    ]
    found = count(program, origins, [True] * len(program.jaxpr.outvars))
    rows = [
        _row(path, value, found.rows.get(path, Tally()))
        for path, value, which in zip(given.paths, given.values, given.arguments, strict=True)
        if which == 0
    ]
    rows += [
        _row(path, None, found.rows[path])
        for path in (ACTIVATIONS, ELEMENTWISE) if path in found.rows
    ]  # fmt: skip
    return Cost(tuple(rows), milliseconds(road, inputs) if latency else None, found.notes)


def _road(given: Traced) -> tuple[Callable[..., Any], list[Any]]:
    """What runs, packed leaves on their packed road, and its inputs."""

    def road(*values: Any) -> list[Any]:
        leaves = [
            Leaf(value, path) if is_node(value) else value
            for value, path in zip(values, given.paths, strict=True)
        ]
        return run(given.program, leaves, lambda *_: None)

    return road, list(given.values)


def _origins(given: Traced) -> list[Origin]:
    return [
        Origin(LEAF, value.size, path) if which == 0 else FLOWING
        for value, path, which in zip(given.values, given.paths, given.arguments, strict=True)
    ]


def _row(path: str, value: Any, tally: Tally) -> CostRow:
    macs, flops, transcendentals, read, written = tally
    return CostRow(
        path,
        "" if value is None else summary(value),
        0 if value is None else value.size,
        _bytes(tree_bits(value)),
        macs, flops, transcendentals, _bytes(read), _bytes(written),
    )  # fmt: skip


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _require_arrays(given: Traced) -> None:
    problems = Problems("cost")
    for path, value in zip(given.paths, given.values, strict=True):
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(value)):
            problems.add(path, "is a shape; to time a call give an array, or leave out `latency`")
    problems.raise_as(ValueRangeError)
