"""Programs inside of programs: packed leaves go in, and what comes out is dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Sharding

from nnopt_jax.arrays.input_quantized import InputQuantized
from nnopt_jax.trace.jaxpr import Equation, Program, bind, closed, primitives, scanned
from nnopt_jax.trace.packed.leaf import Leaf, dense, is_leaf, loosened
from nnopt_jax.trace.packed.rules.move import moved
from nnopt_jax.trace.packed.rules.view import cut, squeezed
from nnopt_jax.typing import Array

Run = Callable[[Program, list[Any]], list[Any]]
Handler = Callable[[Equation, list[Any], Run, Any], list[Any]]


def _dense(values: list[Any]) -> list[Any]:
    return [dense(value) for value in values]


def _jit(equation: Equation, values: list[Any], run: Run, seen: Any) -> list[Any]:
    """Inlined, but where it says what it gives away or how its arrays lie."""
    k = equation.params
    given_away = [at for at, gone in enumerate(k["donated_invars"]) if gone]
    lies = *k["in_shardings"], *k["out_shardings"]
    if not given_away and not any(isinstance(at, Sharding) for at in lies):
        return run(k["jaxpr"], values)

    def inner(*given: Any) -> list[Any]:
        return _placed(
            _dense(run(k["jaxpr"], _placed(given, k["in_shardings"]))), lies[len(given) :]
        )

    return jax.jit(inner, donate_argnums=given_away)(*values)


def _placed(values: Sequence[Any], at: Sequence[Any]) -> list[Any]:
    """Arrays where they are said to lie; packed leaves lie as their parts came."""
    return [
        lax.with_sharding_constraint(x, to) if isinstance(to, Sharding) and not is_leaf(x) else x
        for x, to in zip(values, at, strict=True)
    ]


def _remat(equation: Equation, values: list[Any], run: Run, seen: Any) -> list[Any]:
    k = equation.params
    again = jax.checkpoint(
        lambda *given: _dense(run(closed(k["jaxpr"]), list(given))),
        prevent_cse=k["prevent_cse"],
        policy=k["policy"],
    )
    return again(*values)


def _custom(equation: Equation, values: list[Any], run: Run, seen: Any) -> list[Any]:
    """Packed where it only runs; where it is differentiated its own rule has the dense leaf."""
    program = closed(equation.params["call_jaxpr"])

    def own(*given: Any) -> list[Any]:
        return bind(equation, _dense(list(given)))

    def plain(*given: Any) -> list[Any]:
        return _dense(run(program, list(given)))

    if equation.primitive is primitives.custom_jvp_call_p:
        forward = jax.custom_jvp(plain)
        forward.defjvp(lambda given, slopes: jax.jvp(own, given, slopes))
    else:
        forward = jax.custom_vjp(plain)
        forward.defvjp(lambda *given: jax.vjp(own, *given), lambda back, slopes: back(slopes))
    return forward(*values)


def _cond(equation: Equation, values: list[Any], run: Run, seen: Any) -> list[Any]:
    index, *operands = values
    branches = [
        lambda *given, b=branch: _dense(run(b, list(given)))
        for branch in equation.params["branches"]
    ]
    return lax.switch(dense(index), branches, *operands)


def _while(equation: Equation, values: list[Any], run: Run, seen: Any) -> list[Any]:
    k = equation.params
    tests, bodies = k["cond_nconsts"], k["cond_nconsts"] + k["body_nconsts"]
    test, body, carry = values[:tests], values[tests:bodies], _dense(values[bodies:])
    return lax.while_loop(
        lambda state: dense(run(k["cond_jaxpr"], [*test, *state])[0]),
        lambda state: _dense(run(k["body_jaxpr"], [*body, *state])),
        carry,
    )


def _scan(equation: Equation, values: list[Any], run: Run, seen: Any) -> list[Any]:
    """Leaves stay packed, of stacked ones each step has its layer; what is carried is dense."""
    k = equation.params
    consts, count = scanned(equation)
    whole, rows = values[:consts], values[consts + count :]
    carry = _dense(values[consts : consts + count])
    for at, value in enumerate(rows):
        if is_leaf(value) and _layer(value, 0) is None:
            seen(value, equation, "a part of it cannot follow")
            rows[at] = loosened(value)
    stacks = {at: _without_shown(value) for at, value in enumerate(rows) if is_leaf(value)}
    # What gradients are taken at goes in layer by layer, as their gradients come out.
    plain = [_shown(value) if is_leaf(value) else value for value in rows]

    def body(state: list[Any], now: tuple[Array, list[Any]]) -> tuple[list[Any], list[Any]]:
        number, arrays = now
        layers = [
            _with_shown(_layer(stacks[at], number), one) if at in stacks else one
            for at, one in enumerate(arrays)
        ]
        out = _dense(run(k["jaxpr"], [*whole, *state, *layers]))
        return out[:count], out[count:]

    last, out = lax.scan(
        body,
        carry,
        (jnp.arange(k["length"]), plain),
        length=k["length"],
        reverse=k["reverse"],
        unroll=k["unroll"],
    )
    return [*last, *out]


def _layer(leaf: Leaf, number: Any) -> Leaf | None:
    """One entry along the first axis; None where a part of the node cannot follow."""
    one = (1, *leaf.shape[1:])
    entry = cut(leaf.shape, one, lambda x, axis: lax.dynamic_slice_in_dim(x, number, 1, axis))
    node = leaf.node if leaf.shape[0] == 1 else moved(leaf.node, entry)
    node = None if node is None else moved(node, squeezed(one, (0,)))
    return None if node is None else Leaf(node, leaf.path)


def _shown(leaf: Leaf) -> Array | None:
    return leaf.node.shown if isinstance(leaf.node, InputQuantized) else None


def _without_shown(leaf: Leaf) -> Leaf:
    return leaf if _shown(leaf) is None else Leaf(leaf.node.replace(shown=None), leaf.path)


def _with_shown(leaf: Leaf | None, shown: Array | None) -> Leaf | None:
    if leaf is None or shown is None:
        return leaf
    return Leaf(leaf.node.replace(shown=shown), leaf.path)


CONTROL: dict[Any, Handler] = {
    primitives.jit_p: _jit,
    primitives.remat_p: _remat,
    primitives.custom_jvp_call_p: _custom,
    primitives.custom_vjp_call_p: _custom,
    primitives.cond_p: _cond,
    primitives.while_p: _while,
    primitives.scan_p: _scan,
}
"""How each kind of inner program runs."""
