"""Fast products that take their derivatives from float products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from nnopt_jax.typing import Array


def dense_product(how: Any, x: Array, weight: Any, *_: Any) -> Array:
    """Multiply with the materialized array of a node."""
    return how(x, weight.materialize())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def differentiated_as(
    floats: Callable[..., Array], exact: Callable[..., Array], how: Any, *given: Any
) -> Array:
    """Compute `exact(how, *given)` with the derivatives of `floats`, which is run only for those.

    It is compiled, so that equal products of a model are traced once: pass the same function
    objects in each call.

    Args:
        floats: a function that has the derivatives.
        exact: a function of the same arguments and, up to rounding, with the same results.
        how: the first argument of both, hashable.
        *given: pytrees of arrays.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> floats, exact = lambda how, x: how * x, lambda how, x: jnp.round(how * x)
        >>> print(jax.grad(lambda x: differentiated_as(floats, exact, 2, x))(0.3))
        2.0
    """

    @jax.custom_jvp
    def product(*given: Any) -> Array:
        return exact(how, *given)

    @functools.partial(product.defjvp, symbolic_zeros=True)
    def _slope(given: Any, slopes: Any) -> tuple[Array, Array]:
        arrays, tree = jax.tree.flatten(given)
        known = tree.flatten_up_to(slopes)
        moving = [at for at, slope in enumerate(known) if _is_some(slope)]

        def of_moving(*new: Array) -> Array:
            filled = dict(enumerate(arrays)) | dict(zip(moving, new, strict=True))
            return floats(how, *jax.tree.unflatten(tree, list(filled.values())))

        primals, tangents = [arrays[at] for at in moving], [known[at] for at in moving]
        return product(*given), jax.jvp(of_moving, primals, tangents)[1]

    return product(*given)


def _is_some(slope: Any) -> bool:
    return not isinstance(slope, SymbolicZero) and slope.dtype != jax.dtypes.float0
