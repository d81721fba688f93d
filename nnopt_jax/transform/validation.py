"""Validation of arguments: keys, gradients, states, transforms and leaves."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.nodes import is_node, summary
from nnopt_jax.errors import (
    CompositionError,
    Problems,
    ShapeError,
    StatisticsError,
    ValueRangeError,
)
from nnopt_jax.transform.base import Grads, State, Transform
from nnopt_jax.transform.inert import is_inert

Leaves = dict[str, Any]

_LEGACY = (jnp.uint32, (2,))  # the dtype that jax.random.PRNGKey makes


def described(value: Any) -> str:
    """Describe a value in a few words: arrays by dtype and shape, others by type.

    Example:
        >>> import jax.numpy as jnp
        >>> described(jnp.ones((2, 3))), described("key"), described(None)
        ('float32[2,3]', "the str 'key'", 'None')
    """
    if value is None:
        return "None"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return summary(value)
    kind = type(value).__name__
    plain = isinstance(value, str | bytes | int | float | complex)
    return f"the {kind} {reprlib.repr(value)}" if plain else f"of type {kind}"


def check_key(who: str, key: Any) -> None:
    """Raise if a value is not a single PRNG key.

    Raises:
        ValueRangeError: the value is not a single PRNG key.

    Example:
        >>> check_key("demo", 0)
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: demo: key is the int 0; give one key, jax.random.key(0).
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and (dtype, shape) != _LEGACY:
        seed = key if isinstance(key, int) else 0
        raise ValueRangeError(
            f"{who}: key is {described(key)}; give one key, jax.random.key({seed:d})."
        )


def check_shapes(who: str, what: str, given: Mapping[str, Any], leaves: Leaves) -> None:
    """Raise if arrays that belong to leaves have other shapes, which might broadcast unnoticed.

    Raises:
        ShapeError: shapes differ.
    """
    problems = Problems(who)
    for path, leaf in leaves.items():
        shape = jnp.shape(given[path]) if path in given and not is_node(given[path]) else leaf.shape
        if shape != leaf.shape:
            problems.add(path, f"has shape {leaf.shape}, and its {what} has shape {shape}; give "
                               "those of these parameters"
                         )  # fmt: skip
    problems.raise_as(ShapeError)


def check_grads(who: str, grads: Any) -> None:
    """Raise if gradients are neither None nor a `Grads`.

    Raises:
        StatisticsError: the gradients are of another type, such as those for the optimizer alone.
    """
    if grads is not None and not isinstance(grads, Grads):
        raise StatisticsError(
            f"{who}: grads is {described(grads)}; nnopt.step(tx, params, state, updates, grads) "
            "takes what nnopt.value_and_grad returned, whole."
        )


def check_state(who: str, state: Any, *inside: str, slots: bool | None = None) -> None:
    """Raise if a state is not a `State` with the entries that a method expects.

    Args:
        who: the method, for errors.
        state: the state that the caller passed.
        *inside: the entries that the state must have.
        slots: whether the method keeps a tuple over slots for each leaf; None if unknown.

    Raises:
        CompositionError: it is something else.
    """
    if not isinstance(state, State):
        raise _foreign(who, described(state))
    if any(name not in state.rest for name in inside):
        raise _foreign(who, "that of another method")
    if slots is not None and slots != _is_by_slot(state):
        raise _foreign(who, "that of another method")


def _is_by_slot(state: State) -> bool:
    parts = [*state.learned.values(), *state.rest.values()]
    return state.learned.keys() == state.rest.keys() and all(isinstance(x, tuple) for x in parts)


def check_states(who: str, state: Any, count: int) -> None:
    """Raise if a state is not a tuple with one state for each transform of a chain.

    Raises:
        CompositionError: the state is of another type or length.
    """
    if isinstance(state, State) or not isinstance(state, tuple | list):
        found = "that of one method" if isinstance(state, State) else described(state)
        raise _foreign(who, found)
    if len(state) != count:
        raise _foreign(who, f"that of {len(state)} transforms, and there are {count}")


def _foreign(who: str, found: str) -> CompositionError:
    return CompositionError(f"{who}: the state is {found}; give the state that tx.init made.")


def check_transforms(who: str, given: Sequence[Any]) -> None:
    """Raise if arguments are not transforms.

    Raises:
        CompositionError: an argument is not a transform.

    Example:
        >>> check_transforms("chain", [[1, 2]])
        Traceback (most recent call last):
        nnopt_jax.errors.CompositionError: chain: transform 1 is a list; give transforms one by one.
    """
    problems = Problems(who)
    for number, one in enumerate(given, 1):
        if isinstance(one, Transform):
            continue
        place = f"transform {number} is" if who == "chain" else "got"
        if isinstance(one, list | tuple):
            advice = f"a {type(one).__name__}; give transforms one by one."
        elif callable(one):
            called = getattr(one, "__name__", repr(one))
            advice = f"the function {called}; call it: {called}(...)."
        else:
            advice = f"{described(one)}, not a transform; give e.g. nnopt.pruning.magnitude(0.5)."
        problems.add("", f"{place} {advice}")
    problems.raise_as(CompositionError)


def check_arrays(who: str, leaves: Leaves) -> None:
    """Raise if leaves lack a shape or a dtype.

    Raises:
        CompositionError: some are Python numbers, or not numbers at all.

    Example:
        >>> check_arrays("demo", {"scale": 1.0})
        Traceback (most recent call last):
        nnopt_jax.errors.CompositionError: demo: scale: is the float 1.0; make it an array: \
jnp.asarray(1.0); or leave it out, as eqx.partition(module, eqx.is_array) does
    """
    problems = Problems(who)
    for path, leaf in leaves.items():
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            number = isinstance(leaf, bool | int | float | complex)
            advice = f"make it an array: jnp.asarray({leaf!r}); or " if number else ""
            advice += "leave it out, as eqx.partition(module, eqx.is_array) does"
            problems.add(path, f"is {described(leaf)}; {advice}")
    problems.raise_as(CompositionError)


def arrays_among(who: str, leaves: Leaves) -> Leaves:
    """Return the leaves that are arrays; ignore functions and names.

    Raises:
        CompositionError: some are Python numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> arrays_among("demo", {"act": len, "bias": jnp.ones(1)})
        {'bias': Array([1.], dtype=float32)}
    """
    found = {path: leaf for path, leaf in leaves.items() if not is_inert(leaf)}
    check_arrays(who, found)
    return found


def check_values(who: str, leaves: Leaves) -> None:
    """Raise if leaves are shapes or other values in place of arrays.

    Raises:
        CompositionError: some are shapes, or not arrays.

    Example:
        >>> import jax
        >>> check_values("demo", {"w": jax.ShapeDtypeStruct((2,), "float32")})
        Traceback (most recent call last):
        nnopt_jax.errors.CompositionError: demo: w: is a shape, float32[2], and has no values; \
give the arrays
    """
    check_arrays(who, leaves)
    problems = Problems(who)
    for path, leaf in leaves.items():
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(leaf)):
            problems.add(path, f"is a shape, {summary(leaf)}, and has no values; give the arrays")
    problems.raise_as(CompositionError)
