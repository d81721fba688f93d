"""The definition of an importance score, and helpers that all scores share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.errors import Problems, ShapeError, ValueRangeError
from nnopt_jax.settings import Settings
from nnopt_jax.transform.leaves import Leaves, Start, Update, slot_key
from nnopt_jax.transform.validation import described

__all__ = ["Score"]


@dataclasses.dataclass(frozen=True)
class Score:
    """An importance score: a measure of how much the network needs each weight.

    Args:
        name: the name in `repr`, errors and recipes.
        of: a function `(dense leaves, memory) -> scores`, all by path; the greatest are kept.
        begin: a function `(dense leaves, Start) -> memory`, by path; None for a score without
            memory.
        learn: a function `(dense leaves, memory, Update) -> memory`, called after each optimizer
            step; None if the memory does not change.
        settings: the settings by name, for `repr` and comparisons.
        check: a function that adds problems with the settings to those of the method.
        needs: the statistics that `begin` uses; see `Graph.observe`.
        signed: whether scores are ranked by value rather than by magnitude.
        has_size: whether scores differ in size and not in order alone, as LAMP needs.
        paired: whether `learn` takes the leaves at which the gradients were computed, of which the
            state then holds a copy, rather than the leaves after the step.
        forgets: whether the memory is reset to zero after each choice of a mask.
        once: whether the mask is chosen once, at `init`.
        exact: see `Transform`.
        of_sum: a function of the sum of scores over a channel, such as the root that makes it a
            norm.
        mode: the default `mode` of a method with this score.
        allocation: the default `allocation` of a method with this score.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> nearest_one = nnopt.pruning.Score(
        ...     "nearest_one",
        ...     lambda leaves, memory: {p: -abs(w - 1) for p, w in leaves.items()},
        ...     signed=True,
        ... )
        >>> tx = nnopt.pruning.by_score(nearest_one, 0.5)
        >>> params = {"kernel": jnp.array([[3.0, 1.2]])}
        >>> print(nearest_one, tx.apply(params, tx.init(params)))
        nearest_one() {'kernel': Array([[0. , 1.2]], dtype=float32)}
    """

    name: str
    of: Callable[[Leaves, Leaves], Leaves] = dataclasses.field(compare=False)
    begin: Callable[[Leaves, Start], Leaves] | None = dataclasses.field(default=None, compare=False)
    learn: Callable[[Leaves, Leaves, Update], Leaves] | None = dataclasses.field(
        default=None, compare=False
    )
    settings: tuple[tuple[str, Any], ...] = ()
    check: Callable[[Settings], None] | None = dataclasses.field(default=None, compare=False)
    needs: tuple[str, ...] = ()
    signed: bool = False
    has_size: bool = True
    paired: bool = False
    forgets: bool = False
    once: bool = False
    exact: bool = True
    of_sum: Callable[[jax.Array], jax.Array] = dataclasses.field(
        default=lambda total: total, compare=False
    )
    mode: str = "hard"
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        """Raise if `of` is not a function."""
        if not callable(self.of):
            raise ValueRangeError(
                f"Score: of={self.of!r} is not a function (leaves by path, memory) -> scores by "
                "path; write e.g. Score('size', lambda leaves, memory: {p: abs(w) for p, w in "
                "leaves.items()})."
            )

    def measure(self, leaves: Leaves, memory: Leaves) -> Leaves:
        """Return the scores of some leaves, and check what a user's function returns.

        Args:
            leaves: dense leaves by path.
            memory: the memory of the score, by path.

        Returns:
            Floats of the shape of each leaf, by path.

        Raises:
            ShapeError: the function does not return one real score for each weight; the error names
                all such leaves.
        """
        scores = self.of(leaves, memory)
        known = scores if isinstance(scores, Mapping) else {}
        problems = Problems(f"pruning.{self.name}")
        for path, leaf in leaves.items():
            x = known.get(path)
            is_array = isinstance(x, jax.Array | np.ndarray) and x.shape == leaf.shape
            if not is_array or jnp.iscomplexobj(x):
                problems.add(path, f"score returned {described(x)} for a weight of shape "
                                   f"{leaf.shape}; return one real score for each weight"
                             )  # fmt: skip
        problems.raise_as(ShapeError)
        return {path: _as_float(known[path]) for path in leaves}

    def __repr__(self) -> str:
        """Return the name and the settings in the form of a call."""
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.settings)})"


def _as_float(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def finite(x: Any) -> jax.Array:
    """Return float32 with 0 in place of NaN and infinity.

    One overflow, in a batch that the optimizer skips as well, must not stay in a sum forever.
    """
    x = jnp.asarray(x).astype(jnp.float32)
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def measured(leaves: Leaves, start: Start, name: str) -> Leaves:
    """Return a statistic of each leaf as finite float32; zeros if it is missing."""
    given = start.stats.get(name, {})
    return {path: finite(given.get(path, jnp.zeros(w.shape))) for path, w in leaves.items()}


def finite_gradients(leaves: Leaves, now: Update) -> Leaves:
    """Return the gradient of each leaf as finite float32."""
    return {path: finite(g) for path, g in now.gradients(leaves).items()}


def accumulate(old: jax.Array, new: jax.Array, decay: float | None) -> jax.Array:
    """Return a sum or, given a decay, a running mean with a new value added.

    The bias of a mean that starts at zero is the same factor for all weights, which does not change
    their order.
    """
    new = finite(new)  # a product of finite numbers may overflow
    return old + new if decay is None else decay * old + (1.0 - decay) * new


def seeds(leaves: Leaves, start: Start) -> Leaves:
    """Return two random numbers for each leaf, derived from the caller's key and the leaf's path.

    Numbers are used rather than keys, because they are ordinary arrays in checkpoints, whatever
    kind of key the caller uses.

    Args:
        leaves: the leaves by path.
        start: the start, which holds the key.

    Returns:
        uint32[2] by path.

    Raises:
        ValueRangeError: the caller did not pass a key.
    """
    drawn = start.drawing_key("draws at random")
    keys = {path: slot_key(drawn, path, 0) for path in leaves}
    return {path: jax.random.bits(key, (2,), jnp.uint32) for path, key in keys.items()}


def draw(seed: jax.Array, shape: tuple[int, ...], number: jax.Array | int = 0) -> jax.Array:
    """Return uniform numbers from 0 to 1, the same for equal seed and number.

    Args:
        seed: uint32[2].
        shape: the shape of the result.
        number: the number of the draw.

    Returns:
        float32.
    """
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(key, number), shape)
