"""A small model of the zoo: a function of parameters, parameters, and what else it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt

KEY = jax.random.key(0)
INT8 = nnopt.quantization.uniform(8, granularity="channel")


class Case(NamedTuple):
    """`apply(params, *args)` of arrays.

    Args:
        apply: the function.
        params: its parameters.
        args: arrays, the batch along their first axis.
        most: the error that is let pass, as a part of the greatest magnitude of what comes out.
        batched: whether the batch may be cut, or one example taken alone.
        differentiable: whether `jax.grad` knows all of its steps.
    """

    apply: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    most: float = 1e-5
    batched: bool = True
    differentiable: bool = True


def pack(params: Any) -> Any:
    """All leaves of the zoo are integers of eight bits."""
    return INT8.pack(params, INT8.init(params))


def half_of(coupled: nnopt.trace.CoupledAxes) -> dict[str, np.ndarray]:
    """Half of the units of every dimension, in the order of their numbers."""
    rng = np.random.default_rng(0)
    return {
        each.name: np.sort(rng.permutation(each.size)[: max(1, each.size // 2)])
        for each in coupled.dimensions
    }


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers; NumPy's, because each shape of JAX's costs a compilation."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def tokens(*shape: int, below: int = 16) -> np.ndarray:
    """Whole numbers."""
    return np.random.default_rng(shape).integers(0, below, shape).astype(np.int32)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal weights by name, so that products keep the scale of what goes in."""
    return {name: _weight(shape, at + 1) for at, (name, shape) in enumerate(shapes.items())}


def filled(shapes: Any) -> Any:
    """A tree of arrays of these shapes; what is of one axis lies about one, as variances must."""
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [_leaf(x, at + 1) for at, x in enumerate(leaves)])


def _leaf(x: Any, seed: int) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return KEY
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, x.dtype)
    return _weight(x.shape, seed).astype(x.dtype)


def _weight(shape: tuple[int, ...], seed: int) -> np.ndarray:
    if len(shape) < 2:
        return 1 + np.tanh(drawn(*shape, seed=seed)) / 2
    return drawn(*shape, seed=seed) / np.float32(shape[-2] ** 0.5)
