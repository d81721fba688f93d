"""Allocation of a total sparsity to leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import Problems, ValueRangeError

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Share: TypeAlias = Any
"""A fraction of zeros: a Python float, or a traced scalar."""

Allocation: TypeAlias = str | Callable[[Shapes, Share], Mapping[str, Share]]
"""`"uniform"`, `"erk"`, `"global"`, `"lamp"`, or a function `(shapes, sparsity) -> sparsities`."""


def uniform(shapes: Shapes, sparsity: Share) -> dict[str, Share]:
    """Allocate the same sparsity to every leaf.

    $$ s_l = s $$

    Args:
        shapes: shape of each leaf, by path.
        sparsity: `s`.

    Returns:
        The sparsity of each leaf.

    Example:
        >>> from nnopt_jax.pruning import allocation
        >>> allocation.uniform({"a": (4, 4), "b": (8, 2)}, 0.5)
        {'a': 0.5, 'b': 0.5}
    """
    return dict.fromkeys(shapes, sparsity)


def erk(shapes: Shapes, sparsity: Share) -> dict[str, Share]:
    r"""Allocate by the Erdos-Renyi-kernel rule: small leaves stay denser, and the total is exact.

    $$ 1 - s_l = \min(1, \epsilon \, r_l), \qquad
       r_l = \frac{\sum_i d_{l,i}}{\prod_i d_{l,i}}, \qquad
       \sum_l (1 - s_l) \, n_l = (1 - s) \sum_l n_l $$

    Args:
        shapes: shape of each leaf, by path; all sizes `d` count, including those of convolution
            windows.
        sparsity: `s`.

    Returns:
        The sparsity of each leaf.

    Example:
        >>> from nnopt_jax.pruning import allocation
        >>> allocation.erk({"small": (2, 2), "large": (16, 16)}, 0.5)
        {'small': 0.0, 'large': 0.5078125}

    References:
        Evci et al. 2020, Rigging the Lottery, section 3 (1); Mocanu et al. 2018.
    """
    xp: Any = np if isinstance(sparsity, (int, float)) else jnp
    ratio = {path: sum(shape) / max(math.prod(shape), 1) for path, shape in shapes.items()}
    order = sorted(shapes, key=lambda path: -ratio[path])
    sizes = [math.prod(shapes[path]) for path in order]
    wanted = (1.0 - sparsity) * sum(sizes)
    # Leaves of great ratio become fully dense first, so the search is for the least number of dense
    # leaves at which all densities are at most 1.
    epsilon = 0.0
    for full in reversed(range(len(order))):
        rest = sum(ratio[path] * n for path, n in zip(order[full:], sizes[full:], strict=True))
        found = (wanted - sum(sizes[:full])) / max(rest, 1.0)
        epsilon = xp.where(found * ratio[order[full]] <= 1.0, found, epsilon)
        if full == len(order) - 1:
            epsilon = xp.minimum(found, 1.0 / max(ratio[order[full]], 1e-30))
    density = {path: xp.clip(epsilon * ratio[path], 0.0, 1.0) for path in shapes}
    cast = float if xp is np else (lambda x: x)
    return {path: cast(1.0 - share) for path, share in density.items()}


def call_allocation(
    function: Callable[[Shapes, Share], Mapping[str, Share]], shapes: Shapes, sparsity: Share
) -> dict[str, Share]:
    """Call a user's allocation, and check its result as far as values are known.

    Args:
        function: `(shapes, sparsity) -> sparsities`.
        shapes: shape of each leaf, by path.
        sparsity: the total sparsity.

    Returns:
        The sparsity of each leaf.

    Raises:
        ValueRangeError: the sparsity of a leaf is missing, or is not from 0 to 1.

    Example:
        >>> from nnopt_jax.pruning import allocation
        >>> allocation.call_allocation(lambda shapes, s: {"a": 2 * s}, {"a": (4, 4)}, 0.75)
        Traceback (most recent call last):
        nnopt_jax.errors.ValueRangeError: allocation: a: was given sparsity 1.5; return 0 to 1
    """
    given = function(shapes, sparsity)
    problems = Problems("allocation")
    if not isinstance(given, Mapping):
        problems.add("", f"the function returned {given!r}; return a sparsity for each path of "
                         "`shapes`")  # fmt: skip
        problems.raise_as(ValueRangeError)
    for path in shapes:
        share = given.get(path)
        if share is None:
            problems.add(path, "was given no sparsity; return one for each path of `shapes`")
        elif isinstance(share, (int, float)) and not 0 <= share <= 1:
            problems.add(path, f"was given sparsity {share}; return 0 to 1")
        elif not isinstance(share, int | float | np.number | np.ndarray | jax.Array):
            problems.add(path, f"was given sparsity {share!r}, which is not a number")
    problems.raise_as(ValueRangeError)
    return {path: given[path] for path in shapes}


def lamp(scores: jax.Array) -> jax.Array:
    r"""Return LAMP scores: the square of each weight over the sum of its and all larger squares.

    $$ \frac{w_i^2}{\sum_{j :\, w_j^2 \ge w_i^2} w_j^2} $$

    The scores are comparable across leaves. Among equal weights, the earlier counts as the greater.
    The leaf is sorted once. NaN and infinite weights are left out of the sums and rank above all
    others, so that they are not pruned and stay visible.

    Args:
        scores: magnitudes `|w|`, or other non-negative scores, of any shape.

    Returns:
        float32 scores of the same shape; 0 if all weights are 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning import allocation
        >>> allocation.lamp(jnp.array([1.0, 2.0]))
        Array([0.2, 1. ], dtype=float32)

    References:
        Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, section 3 (2).
    """
    flat = jnp.abs(scores.astype(jnp.float32)).ravel()
    broken = ~jnp.isfinite(flat)
    flat = jnp.where(broken, 0.0, flat)
    flat = flat / jnp.maximum(flat.max(initial=0.0), jnp.finfo(jnp.float32).tiny)
    order = jnp.argsort(flat, descending=True, stable=True)
    square = jnp.square(flat[order])
    above = jnp.cumsum(square)
    share = jnp.where(above > 0, square / jnp.where(above > 0, above, 1.0), 0.0)
    ranked = jnp.zeros_like(flat).at[order].set(share)
    return jnp.where(broken, jnp.inf, ranked).reshape(scores.shape)
