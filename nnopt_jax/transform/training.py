"""Training with transforms in a user's own loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from nnopt_jax.arrays.input_quantized import InputQuantized, for_products, rounds_inputs
from nnopt_jax.arrays.nodes import is_node, materialize
from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import CompositionError, Problems
from nnopt_jax.transform.base import Grads, State, Transform
from nnopt_jax.transform.inert import blanked, is_inert
from nnopt_jax.tree.paths import flatten, unflatten


class Trainable(NamedTuple):
    """The arrays that an optimizer may move: a pytree of float arrays, None elsewhere.

    Args:
        params: float parameters, with the structure of the parameters.
        learned: arrays that transforms learn (tables, steps, factors), with the structure of the
            state.

    Example:
        >>> from nnopt_jax.transform import Trainable
        >>> Trainable(params=1, learned=()).params
        1
    """

    params: Any
    learned: Any

    __repr__ = brief_fields


def _is_state(x: Any) -> bool:
    return isinstance(x, State)


def floats(tree: Any) -> Any:
    """Return the float arrays of a tree, with None elsewhere."""

    def moves(x: Any) -> bool:
        return not is_inert(x) and jnp.issubdtype(x.dtype, jnp.inexact)

    return jax.tree.map(lambda x: x if moves(x) else None, tree)


def filled(tree: Any, moving: Any) -> Any:
    """Return a tree with its float arrays replaced."""
    return jax.tree.map(lambda x, new: x if new is None else new, tree, moving,
                        is_leaf=lambda x: x is None)  # fmt: skip


def trainable(tx: Transform, params: Any, state: Any) -> Trainable:
    """Return the float arrays that an optimizer may move.

    Packed parameters are trained through their float arrays (scales, tables, factors). Integers and
    frozen parameters are None, which optax skips.

    Args:
        tx: the transform.
        params: the parameters, dense or packed.
        state: the transform's state.

    Returns:
        The arrays, for `optimizer.init` and `optimizer.update`.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.codebook(2, learned=True)
        >>> params = {"kernel": jnp.eye(2)}
        >>> nnopt.trainable(tx, params, tx.init(params)).learned
        {'kernel': (Array([0., 1.], dtype=float32),)}
    """
    learned = jax.tree.map(lambda part: floats(part.learned), state, is_leaf=_is_state)
    moving = {path: floats(leaf) for path, leaf in flatten(params, is_node).items()}
    still = {path: jax.tree.map(lambda x: None, moving[path]) for path in tx.frozen(params)}
    return Trainable(unflatten(params, moving | still, is_node), learned)


def _put(params: Any, state: Any, moved: Trainable) -> tuple[Any, Any]:
    """Return parameters and state with the trainable arrays replaced."""
    parts, structure = jax.tree.flatten(state, is_leaf=_is_state)
    learned = structure.flatten_up_to(moved.learned)
    fresh = [
        part._replace(learned=filled(part.learned, new))
        for part, new in zip(parts, learned, strict=True)
    ]
    return filled(params, moved.params), jax.tree.unflatten(structure, fresh)


def value_and_grad(
    loss: Callable[..., Any], tx: Transform, has_aux: bool = False
) -> Callable[..., tuple[Any, Grads]]:
    """Differentiate a loss of transformed parameters, like `jax.value_and_grad`.

    One backward pass computes both gradients: with respect to the dense parameters that the model
    used and, pulled back through the transform, to the arrays that the optimizer moves.

    Args:
        loss: a function `loss(params, *args) -> scalar` (or `(scalar, aux)`) of dense parameters.
            If `quantization.quantize_activations` rounds activations, it must take packed
            parameters, like `nnopt.on_packed(loss)`.
        tx: the transform.
        has_aux: whether `loss` returns a pair of the scalar and auxiliary data.

    Returns:
        `f(params, state, *args) -> (value, Grads)`, or `((value, aux), Grads)` with `has_aux`.

    Raises:
        CompositionError: (when called) the transform rounds activations, but the loss takes arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.magnitude(0.5, mode="soft")
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> loss = lambda p, x: (p["kernel"] * x).sum()
        >>> value, grads = nnopt.value_and_grad(loss, tx)(params, tx.init(params), 2.0)
        >>> value, grads.dense["kernel"]
        (Array(6., dtype=float32), Array([[2., 2.]], dtype=float32))
    """

    def value_and_grads(params: Any, state: Any, *args: Any) -> tuple[Any, Grads]:
        dense, moving, pull_back, given = forward(tx, params, state, loss)

        def of_floats(moving: Any) -> Any:
            return loss(given(filled(dense, moving)), *args)

        value, slope = jax.value_and_grad(of_floats, has_aux=has_aux)(moving)
        return value, pull_back(slope)

    return value_and_grads


class Forward(NamedTuple):
    """The parameters that the loss of a training step takes, and the pullback of gradients.

    Args:
        params: the dense parameters, with nodes in place of those whose dense gradient is not
            needed.
        moving: their arrays to differentiate at, with None in place of the others.
        pull_back: a function from the gradient at `moving` to both `Grads`.
        given: a function from such dense parameters to those that the loss takes, whose leaves may
            round the inputs of their products.
    """

    params: Any
    moving: Any
    pull_back: Callable[[Any], Grads]
    given: Callable[[Any], Any]

    __repr__ = brief_fields


def takes_expressions(loss: Any) -> bool | None:
    """Return whether a loss declares that it takes packed parameters; None without declaration.

    `nnopt.on_packed` makes such functions, and `jax.jit`, `jax.checkpoint` and `functools.partial`
    keep the property. Other wrappers set `f.takes_expressions = True`, or False if they take
    arrays.

    Example:
        >>> import nnopt_jax as nnopt
        >>> takes_expressions(jax.jit(nnopt.on_packed(len))), takes_expressions(len)
        (True, None)
    """
    declared = (getattr(layer, "takes_expressions", None) for layer in wrapped(loss))
    return next((said for said in declared if isinstance(said, bool)), None)


def wrapped(function: Any) -> Iterator[Any]:
    """Yield a function, and the functions that it wraps by `jax.jit`, `functools` and the like.

    Example:
        >>> import functools
        >>> from nnopt_jax.transform.training import wrapped
        >>> list(wrapped(functools.partial(len)))[1:]
        [<built-in function len>]
    """
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", getattr(function, "func", None))


def forward(
    tx: Transform, params: Any, state: Any, loss: Any = None, still: Collection[str] = ()
) -> Forward:
    """Return the parameters that the loss of a training step takes, and the pullback of gradients.

    Args:
        tx: the transform.
        params: the parameters.
        state: the transform's state.
        loss: the loss that takes the parameters.
        still: the paths of leaves whose dense gradient is not needed. They stay nodes, and are
            differentiated at the arrays in them that depend on what the optimizer moves.

    Returns:
        The parameters and the pullback.

    Raises:
        CompositionError: the inputs of a leaf must be rounded, which is impossible, or the loss
            takes arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.transform.training import forward
        >>> tx = nnopt.pruning.magnitude(0.5)
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> shown, _, pull_back, _ = forward(tx, params, tx.init(params))
        >>> shown, pull_back({"kernel": jnp.ones((1, 2))}).train.params
        ({'kernel': Array([[3., 0.]], dtype=float32)}, {'kernel': Array([[1., 0.]], dtype=float32)})
    """

    def evaluate(moved: Trainable) -> tuple[Any, dict[str, InputQuantized]]:
        now, then = _put(params, state, moved)
        encoded = tx.encode(now, then, train=True)
        taken = {
            path: leaf if path in still and not rounds_inputs(leaf) else materialize(leaf)
            for path, leaf in flatten(encoded, is_node).items()
        }
        return blanked(unflatten(encoded, taken, is_node)), _rounding(encoded, loss)

    moved = trainable(tx, params, state)
    arrays, pull, rounding = jax.vjp(evaluate, moved, has_aux=True)
    moving = floats(arrays)
    if still:
        depends = iter(_depends(lambda moved: evaluate(moved)[0], moved))
        depends = jax.tree.map(lambda _: next(depends), arrays)
        moving = _only(moving, depends, still)

    def pull_back(slope: Any) -> Grads:
        (train,) = pull(jax.tree.map(_cotangent, arrays, slope))
        dense = jax.tree.map(lambda x: None if is_node(x) else x, slope, is_leaf=is_node)
        return Grads(train, dense)

    def given(now: Any) -> Any:
        leaves = flatten(now, is_node)
        held = {path: node.replace(dense=leaves[path]) for path, node in rounding.items()}
        return unflatten(now, leaves | held, is_node) if held else now

    return Forward(_with_inert(params, arrays), moving, pull_back, given)


def _only(moving: Any, depends: Any, still: Collection[str]) -> Any:
    """Blank the arrays of leaves without a dense gradient that do not depend on what moves."""
    leaves, known = flatten(moving, is_node), flatten(depends, is_node)
    kept = {
        path: jax.tree.map(
            lambda x, depends: x if depends else None,
            leaf,
            known[path],
            is_leaf=lambda x: x is None,
        )
        for path, leaf in leaves.items()
        if path in still
    }
    return unflatten(moving, leaves | kept, is_node)


def _depends(function: Callable[[Any], Any], moved: Any) -> list[bool]:
    """Return for each array that a function returns whether it depends on the argument."""
    jaxpr = jax.make_jaxpr(function)(moved).jaxpr
    known = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not isinstance(x, Literal) and x in known for x in equation.invars):
            known.update(equation.outvars)
    return [not isinstance(x, Literal) and x in known for x in jaxpr.outvars]


def leaves_without_gradient(tx: Transform, params: Any, state: Any) -> frozenset[str]:
    """Return the paths of leaves whose dense gradient nothing needs.

    These are the frozen and the packed leaves, except those whose gradients `tx.update` reads.

    Args:
        tx: the transform.
        params: the parameters, or their shapes.
        state: the transform's state, or its shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> from nnopt_jax.transform.training import leaves_without_gradient
        >>> params = {"body": jnp.ones((2, 2)), "head": jnp.ones((2, 2))}
        >>> tx = nnopt.transfer.freeze("body")
        >>> leaves_without_gradient(tx, params, tx.init(params))
        frozenset({'body'})
    """
    packed = {path for path, leaf in flatten(params, is_node).items() if is_node(leaf)}
    still = tx.frozen(params) | packed
    if not still:
        return frozenset()
    slopes = jax.eval_shape(lambda p, s: floats(blanked(tx.apply(p, s))), params, state)

    def update(slopes: Any, params: Any, state: Any) -> Any:
        return tx.update(params, state, grads=Grads(None, slopes))

    program = jax.make_jaxpr(update)(slopes, params, state).jaxpr
    read = {x for step in program.eqns for x in step.invars if not isinstance(x, Literal)}
    read.update(x for x in program.outvars if not isinstance(x, Literal))
    inputs = zip(flatten(slopes), program.invars, strict=False)
    return frozenset(still - {path for path, x in inputs if x in read})


def _with_inert(params: Any, arrays: Any) -> Any:
    """Return a tree of arrays with the leaves that are not arrays put back."""
    leaves, dense = flatten(params, is_node), flatten(arrays, is_node)
    if len(leaves) == len(dense):
        return arrays
    return unflatten(params, {path: dense.get(path, x) for path, x in leaves.items()}, is_node)


def _rounding(encoded: Any, loss: Any) -> dict[str, InputQuantized]:
    """Return the leaves whose products quantize activations, if the loss takes packed leaves."""
    problems, found, takes = Problems("value_and_grad"), {}, takes_expressions(loss)
    if loss is None or takes is False:
        return {}
    for path, leaf in flatten(encoded, is_node).items():
        if not rounds_inputs(leaf):
            continue
        node = for_products(leaf)
        if takes is None:
            problems.add(path, "rounds what it is multiplied with, and a loss of arrays cannot; "
                               "give nnopt.on_packed(loss), or say loss.takes_expressions = False "
                               "to train without rounding")  # fmt: skip
        elif node is None:
            problems.add(path, "activations cannot be rounded for a part of it; put "
                               "quantization.quantize_activations last")  # fmt: skip
        else:
            found[path] = node
    problems.raise_as(CompositionError)
    return found


def _cotangent(primal: jax.Array, slope: jax.Array | None) -> Any:
    """Return the cotangent of a leaf; that of integers is zero and has dtype float0."""
    if slope is not None:
        return slope
    return jax.custom_derivatives.zero_from_primal(primal)


def step(
    tx: Transform,
    params: Any,
    state: Any,
    updates: Trainable,
    grads: Grads | None = None,
    *,
    step: jax.Array | int | None = None,
) -> tuple[Any, Any]:
    """Apply the updates of an optimizer, then update the transform, once per optimizer step.

    Args:
        tx: the transform.
        params: the parameters.
        state: the transform's state.
        updates: the result of `optimizer.update` for `grads.train`.
        grads: the result of `value_and_grad`; methods that score by gradients need it.
        step: under gradient accumulation, the number of actual optimizer steps so far; by default
            one more than at the last call.

    Returns:
        `(params, state)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.magnitude(0.5)
        >>> params = {"kernel": jnp.array([[3.0, 1.0]])}
        >>> state = tx.init(params)
        >>> updates = jax.tree.map(jnp.ones_like, nnopt.trainable(tx, params, state))
        >>> nnopt.step(tx, params, state, updates)[0]
        {'kernel': Array([[4., 0.]], dtype=float32)}
    """
    old = trainable(tx, params, state)
    moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), old, updates)
    params, state = _put(params, state, moved)
    return tx.update(params, state, grads=grads, step=step)
