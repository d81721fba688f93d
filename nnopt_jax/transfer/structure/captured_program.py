"""Capture of a model's structure from its code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from nnopt_jax.arrays import describe, is_node, materialize
from nnopt_jax.artifact.description import plain
from nnopt_jax.errors import Problems, ShapeError
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.structure.initial import leaf_initializers
from nnopt_jax.transfer.structure.program import check_platforms, serialize
from nnopt_jax.transfer.structure.structure import Structure
from nnopt_jax.transform.validation import check_arrays
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Params

_NAME = "transfer.capture"


def capture(
    apply: Callable[..., Any],
    params: Params,
    *args: Any,
    shapes: Any = None,
    constraints: Sequence[str] = (),
    train: Callable[..., Any] | None = None,
    train_args: tuple[Any, ...] = (),
    initializers: Mapping[str, str | Mapping[str, Any]] | None = None,
    constructor: str | Callable[..., Any] | None = None,
    config: Mapping[str, Any] | None = None,
    platforms: Sequence[str] | None = None,
) -> Structure:
    """Capture the structure of a model: its function, its parameter tree, and its initializers.

    `jax.export` serializes the function, forward and backward, for one device and without
    shardings, so that it runs on any devices. All parameters must be in `params`, because arrays
    that the function closes over become part of the program.

    Args:
        apply: a function `apply(params, *args)` of dense arrays in the containers of `params`.
        params: the parameters: arrays, packed parameters, or shapes (see `initializers`).
        *args: the inputs, or `jax.ShapeDtypeStruct`s like them.
        shapes: the free sizes, as a string for each argument that `jax.export.symbolic_shape`
            parses: `["b, ..."]`, `["b, t", "b"]`; None for an argument of fixed sizes.
        constraints: constraints between free sizes, such as `["t <= 512"]`.
        train: the function of the model in training, if it differs: `train(params, *args,
            *train_args)`.
        train_args: further arguments of `train`, such as a key for dropout; their sizes are fixed.
        initializers: the initializers of leaves, by glob or `re:`: the name of a factory of
            `jax.nn.initializers`, or a mapping of its `name` and arguments, JSON. Other leaves are
            measured, and initialized by their mean and standard deviation; for a trained model,
            these are the ones after training.
        constructor: the function that makes the model from its code: `"package.module:callable"`,
            or the callable.
        config: arguments of the constructor, JSON.
        platforms: the platforms of the program, of `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`. By default
            all but ROCm if the function can be lowered for them, else that of this process.

    Returns:
        The structure.

    Raises:
        ShapeError: `shapes` does not fit the arguments.
        SelectionError: a rule of `initializers` selects no leaf.
        ValueRangeError: an initializer, the constructor or its arguments, or a platform are wrong,
            or the function does not use any parameter.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> def apply(params, tokens):
        ...     return params["embed"][tokens].mean(1)
        >>> structure = nnopt.transfer.capture(
        ...     apply,
        ...     {"embed": jax.ShapeDtypeStruct((50, 8), "float32")},
        ...     jax.ShapeDtypeStruct((1, 1), "int32"),
        ...     shapes=["b, t"],
        ...     constraints=["t <= 16"],
        ...     initializers={"embed": {"name": "normal", "stddev": 0.02}},
        ... )
        >>> params = structure.initialize(jax.random.key(0))
        >>> structure.apply(params, jnp.zeros((3, 5), jnp.int32)).shape
        (3, 8)

    References:
        https://docs.jax.dev/en/latest/export/export.html
    """
    leaves = flatten(params, is_node)
    check_arrays(_NAME, leaves)
    check_platforms(_NAME, platforms)
    made_by = _constructor(constructor, config)
    inputs, more = _inputs(args, train_args, shapes, constraints)
    dense = jax.eval_shape(materialize, jax.tree.map(_bare, params))
    order = flatten(plain(dense))
    begin = leaf_initializers(_NAME, {path: leaves[path] for path in order}, initializers)

    def program(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        def flat(arrays: list[Any], given: tuple[Any, ...]) -> Any:
            by_path = dict(zip(order, arrays, strict=True))
            tree = unflatten(dense, {path: by_path[path] for path in leaves})
            return plain(function(tree, *given))

        return serialize(flat, list(order.values()), inputs, platforms, constraints)

    programs = {"apply": program(apply, inputs)}
    if train is not None:
        programs["train"] = program(train, (*inputs, *more))
    return Structure(describe(plain(dense)), begin, programs, made_by)


def _bare(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a leaf, without its devices."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _inputs(
    args: tuple[Any, ...], train_args: tuple[Any, ...], shapes: Any, constraints: Sequence[str]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the shapes of `args` and of `train_args`, with names for free sizes."""
    every = jax.tree.map(
        lambda leaf: _bare(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)),
        plain((*args, *train_args)),
    )
    if shapes is None or isinstance(shapes, str):
        shapes = (shapes,) * len(args)
    shapes = (*shapes, *(None,) * len(train_args))
    problems = Problems(_NAME)
    if len(shapes) != len(every):
        problems.add("", f"shapes={list(shapes)!r} has {len(shapes) - len(train_args)} entries for "
                         f"{len(args)} arguments; give each a string, or None.")  # fmt: skip
        problems.raise_as(ShapeError)
    try:
        specs = export.symbolic_args_specs(every, plain(shapes), constraints=tuple(constraints))
    except ValueError as error:
        problems.add("", f"shapes={shapes!r}: {error}")
        problems.raise_as(ShapeError)
        raise
    return specs[: len(args)], specs[len(args) :]


def _constructor(constructor: Any, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the import path and the arguments of the constructor; None without a constructor."""
    settings = Settings(_NAME)
    if constructor is None:
        if config:
            settings.wrong("config", config, "has no constructor to go to; give constructor=.")
        settings.done()
        return None
    target = constructor
    if callable(constructor):
        target = f"{constructor.__module__}:{getattr(constructor, '__qualname__', '')}"
    module, _, name = target.partition(":") if isinstance(target, str) else ("", "", "")
    if not module or not name or "<" in name or module == "__main__":
        settings.wrong("constructor", constructor, "cannot be imported elsewhere; give "
                                                   "'package.module:callable'.")  # fmt: skip
    config = dict(config or {})
    try:
        config = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        settings.wrong("config", config, f"is not JSON ({error}).")
    settings.done()
    return {"target": target, "config": config}
