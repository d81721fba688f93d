"""Selection of the leaves that a method transforms, and the other inputs of its functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import SelectionError, StatisticsError, ValueRangeError, nearest
from nnopt_jax.transform.base import Grads, State
from nnopt_jax.transform.binding import UNBOUND, Binding, check_parameters
from nnopt_jax.transform.measured import Measured
from nnopt_jax.transform.validation import (
    arrays_among,
    check_grads,
    check_key,
    check_shapes,
    check_state,
)
from nnopt_jax.tree.paths import flatten
from nnopt_jax.tree.select import Where, resolve, selector

Leaves = dict[str, Any]


class Start(NamedTuple):
    """The inputs of a method's `init` besides the leaves: the key and the statistics.

    Args:
        key: the key of the caller; None if the caller passed none.
        stats: the statistics of the chosen leaves that `graph.observe` measured, by name and path.
        path: the path of the leaf, for methods that take one slot at a time.
        caller: the method, for errors.
        number: the number of the slot within the leaf; None for all leaves together.

    Example:
        >>> from nnopt_jax.transform import Start
        >>> Start(key=None, stats={"gradient": {"kernel": 1.0}}).stats["gradient"]["kernel"]
        1.0
    """

    key: jax.Array | None
    stats: Mapping[str, Leaves]
    path: str = ""
    caller: str = ""
    number: int | None = None

    __repr__ = brief_fields

    def drawing_key(self, use: str) -> jax.Array:
        """Return the PRNG key of this slot, or of all leaves; raise if the caller passed none.

        Args:
            use: what the random numbers are for.

        Raises:
            ValueRangeError: the caller did not pass a key.
        """
        if self.key is None:
            raise ValueRangeError(
                f"{self.caller}: {use}; give tx.init(params, key=jax.random.key(0))."
            )
        return self.key if self.number is None else slot_key(self.key, self.path, self.number)


class Update(NamedTuple):
    """The inputs of a method's `update` besides the leaves: the step number and the gradients.

    Args:
        count: int32, the number of this update, from 1.
        grads: the gradients at the dense parameters, by path; None if the caller passed none.
        caller: the method, for errors.
    """

    count: jax.Array
    grads: Mapping[str, jax.Array] | None
    caller: str = ""

    __repr__ = brief_fields

    def gradients(self, paths: Iterable[str]) -> Leaves:
        """Return the gradients at some dense leaves; raise if any is missing.

        Raises:
            StatisticsError: leaves lack gradients.
        """
        given = self.grads or {}
        found = {path: given.get(path) for path in paths}
        lacking = [path for path, grad in found.items() if grad is None]
        if lacking:
            raise StatisticsError(
                f"{self.caller}: judges by gradients, and `update` got none of "
                f"{', '.join(lacking)}. Give nnopt.step(tx, params, state, updates, grads) what "
                "nnopt.value_and_grad returned."
            )
        return found


def matrices(path: str, leaf: Any) -> bool:
    """Select leaves of two or more axes, the default rule of unbound transforms.

    Args:
        path: the path of the leaf, which the rule ignores.
        leaf: an array, or any object with `ndim`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.transform import matrices
        >>> matrices("dense/kernel", jnp.ones((2, 2))), matrices("dense/bias", jnp.ones(2))
        (True, False)
    """
    del path
    return leaf.ndim >= 2


def chosen_leaves(where: Where, params: Any, who: str, binding: Binding = UNBOUND) -> Leaves:
    """Return the float leaves that a rule selects, by path.

    Args:
        where: the rule; the default means the weights of the model that a transform is bound to.
        params: the parameters.
        who: the caller, for errors.
        binding: see `Binding`.
    """
    leaves = arrays_among(who, flatten(params, is_node))
    check_parameters(who, leaves, binding)
    if where is matrices and binding.weights is not None:
        where = binding.default_where
    floats = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    rule = selector(where)
    meant = {path: x for path, x in leaves.items() if rule(path, x)}
    if meant and not meant.keys() & floats.keys():
        others = ", ".join(f"{path} {x.dtype}" for path, x in meant.items())
        raise SelectionError(f"{who}: takes floats, and rule {rule.text} selects {others}.")
    if where is matrices and not any(map(rule, floats, floats.values())):
        raise SelectionError(
            f"{who}: none of {len(floats)} float leaves has two or more axes, which are the leaves "
            "taken by default; give where= for others, such as where='**'."
        )
    return {path: floats[path] for path in resolve(where, floats, who)}


def leaves_of_state(
    params: Any, state: State, who: str, *inside: str, slots: bool | None = None
) -> tuple[Leaves, Leaves]:
    """Return all leaves of a tree by path, and those of them for which a state has entries."""
    check_state(who, state, *inside, slots=slots)
    leaves = flatten(params, is_node)
    for path in state.rest:
        if path not in leaves and path not in inside:
            raise SelectionError(
                f"{who}: the state was made for a leaf {path!r}, which the parameters lack."
                f"{nearest(path, leaves)}"
            )
    # In the order of the parameters, because the order of a dictionary is lost under `jax.jit`.
    return leaves, {path: leaf for path, leaf in leaves.items() if path in state.rest}


def make_update(who: str, leaves: Leaves, state: State, grads: Grads | None, step: Any) -> Update:
    """Make the inputs of an update from the caller's arguments."""
    check_grads(who, grads)
    count = state.count + 1 if step is None else jnp.asarray(step, jnp.int32)
    if grads is None:
        return Update(count, None, who)
    dense = flatten(grads.dense, is_node)
    check_shapes(who, "gradient", dense, leaves)
    return Update(count, dense, who)


def make_start(
    who: str,
    leaves: Leaves,
    params: Any,
    key: jax.Array | None,
    stats: Any,
    needs: tuple[str, ...] = (),
    takes: tuple[str, ...] = (),
) -> Start:
    """Return the key and the statistics of the chosen leaves; raise if statistics are missing.

    Args:
        who: the method, for errors.
        leaves: the chosen leaves by path.
        params: all parameters.
        key: the key that the caller passed.
        stats: the statistics that the caller passed.
        needs: the statistics that the method requires.
        takes: the statistics that it uses if they are available.
    """
    if key is not None:
        check_key(who, key)
    given = Measured.read(who, stats, flatten(params, is_node))
    given.check_used(who, (*needs, *takes))
    given.check_complete(who, needs, leaves)
    return Start(key, given.of(leaves), caller=who)


def slot_key(key: jax.Array, path: str, index: int) -> jax.Array:
    """Return a PRNG key that depends only on the caller's key, the path and the slot's number."""
    # Python salts `hash` of strings in each process, but keys must be reproducible.
    number = 0
    for byte in path.encode():
        number = (number * 257 + byte) % (2**32)
    return jax.random.fold_in(jax.random.fold_in(key, number), index)


def refresh_when(needed: Any, fresh: Callable[[], Any], old: Any) -> Any:
    """Return a new value, computed only if it is needed, or else the old value.

    Args:
        needed: a Python bool or a traced one.
        fresh: a function that computes the new value.
        old: the value otherwise, with the same structure, shapes and dtypes.

    Example:
        >>> from nnopt_jax.transform import refresh_when
        >>> refresh_when(False, lambda: 1 / 0, 3)
        3
    """
    if not isinstance(needed, Tracer):  # `cond` would compile again in every eager call
        return fresh() if needed else old
    return jax.lax.cond(needed, fresh, lambda: old)
