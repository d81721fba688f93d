"""The product of two thin matrices that adapters add to a weight."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.adapted import Sum
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.masked import Masked, map_under_mask
from nnopt_jax.arrays.nodes import Field, kept
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.errors import ValueRangeError
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.parameter.adapters.frozen import freezing
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves, Start
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import DTypeLike


class Factors(NamedTuple):
    """How the factors of an adapter are made.

    Args:
        who: the method's public name.
        rank: columns of the first, rows of the second factor.
        scale: what their product is multiplied with.
        dtype: of the factors.
        binding: the model whose weights get adapters.
    """

    who: str
    rank: int
    scale: float
    dtype: Any
    binding: Binding = UNBOUND

    def axes_of(self, path: str, leaf: Any) -> Axes:
        """Return the axes of a leaf that has them."""
        axes = self.binding.of(path, tuple(leaf.shape))
        assert axes is not None
        return axes

    def misfit(self, path: str, leaf: Any) -> str | None:
        """Say why a leaf cannot have an adapter."""
        if leaf.ndim < 2:
            return f"has shape {leaf.shape}; an adapter needs two axes"
        if self.binding.of(path, tuple(leaf.shape)) is None:
            return self.binding.why_unknown(path, tuple(leaf.shape))
        return None

    def begin(self, leaves: Leaves, start: Start) -> Leaves:
        """Uniform numbers in the first factors, zeros in the second: nothing is added yet."""
        if start.key is None:
            raise ValueRangeError(
                f"{self.who}: draws its first factors; give tx.init(params, key=jax.random.key(0))."
            )
        # By path and not by number, so that other leaves beside it change nothing for a leaf.
        return {
            path: self._factors(
                jax.random.fold_in(start.key, _number(path)),
                self.axes_of(path, x).matrix_shape(x.shape),
            )
            for path, x in leaves.items()
        }

    def _factors(self, key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        *batch, rows, columns = shape
        bound = max(rows, 1) ** -0.5  # He's initialization with a slope of sqrt(5), as PEFT has it
        a = jax.random.uniform(key, (*batch, rows, self.rank), self.dtype, -bound, bound)
        return {"a": a, "b": jnp.zeros((*batch, self.rank, columns), self.dtype)}

    def added(self, path: str, leaf: Field, factors: Any) -> Field:
        """The leaf plus the product, under the mask of the leaf: zeros stay zero."""
        scaled = (factors["b"] * self.scale).astype(self.dtype)
        product = Factored(factors["a"], scaled, str(leaf.dtype))
        product = Reshaped.of_matrix(product, self.axes_of(path, leaf), tuple(leaf.shape))

        def change(base: Field) -> Field:
            whole, mask = Sum(base, product), kept(base)
            return whole if mask is None else Masked(whole, mask)

        return map_under_mask(leaf, change)


def adapting(
    factors: Factors,
    where: Where,
    freeze: Where | None,
    *,
    init: Callable[[Factors, Leaves, Start], Leaves],
    encode: Callable[[Factors, str, Field, Any], Field],
    exact: bool = True,
) -> Transform:
    """Makes a transform that learns something beside each leaf.

    Args:
        factors: how factors are made.
        where: which leaves.
        freeze: which parameters stop training.
        init: `(bound factors, dense leaves, Start) -> what is learned`, by path.
        encode: `(bound factors, path, leaf, what is learned) -> expression`.
        exact: see `Transform`.

    Returns:
        The transform. It wraps, and binds.
    """

    def build(binding: Binding) -> Transform:
        bound = factors._replace(binding=binding)

        def shown(leaves: Leaves, state: State, train: bool) -> Leaves:
            del train
            return {path: encode(bound, path, x, state.learned[path]) for path, x in leaves.items()}

        tx = wrapping(
            factors.who,
            where,
            init=lambda leaves, start: (init(bound, leaves, start), dict.fromkeys(leaves)),
            encode=shown,
            check=bound.misfit,
            exact=exact,
            binding=binding,
        )
        return freezing(tx, freeze)

    return bindable(build)


def make_factors(
    who: str, rank: Any, alpha: Any, rank_stabilized: Any, dtype: DTypeLike
) -> Factors:
    """Checks the settings that all adapters share, and reads the scale of the product off them."""
    settings = Settings(who)
    settings.integer("rank", rank, 1)
    settings.number("alpha", alpha, 0, above=True, none=True)
    settings.flag("rank_stabilized", rank_stabilized)
    settings.floating("dtype", dtype)
    settings.done()
    over = math.sqrt(rank) if rank_stabilized else rank
    return Factors(who, rank, (rank if alpha is None else alpha) / over, jnp.dtype(dtype))


def _number(path: str) -> int:
    """A number of 32 bits for a path, the same in every process."""
    return zlib.crc32(path.encode())
