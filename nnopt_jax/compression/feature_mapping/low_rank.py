"""Weights as products of thin matrices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.base import Field
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.arrays.slots import Slot
from nnopt_jax.errors import CapacityError, NonFiniteError, ShapeError, ValueRangeError
from nnopt_jax.ops.svd import Method, factorize, rank_for_energy
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.leaves import Start, matrices
from nnopt_jax.transform.refining import refining
from nnopt_jax.tree.bits import dtype_bits
from nnopt_jax.tree.select import Where

_NAME = "compression.low_rank"
_REFINED = {"table": "shared", "codes": "quantized", "u": "factored", "v": "factored"}
Form: TypeAlias = Literal["channel", "spatial"]


def low_rank(
    rank: int | None = None,
    *,
    energy: float | None = None,
    bytes: int | None = None,
    ratio: float | None = None,
    where: Where = matrices,
    method: Method = "svd",
    form: Form = "channel",
    stacked: int = 0,
) -> Transform:
    r"""Replaces matrices and kernels by two factors, which an optimizer goes on training.

    .. math:: \hat W = U V, \qquad
        \min_{U, V} \lVert W - U V \rVert_F, \quad U \in R^{m \times r}, V \in R^{r \times n}

    The factors are learned arrays of the state; the parameters they were made of are used no
    more. Entries that a mask of an earlier link prunes count as 0, and the mask stays above the
    product. A leaf whose factors would not be smaller than itself stays as it is; `nnopt.plan`
    tells.

    Args:
        rank: `r`, the same for all leaves. Give exactly one of this and the next three.
        energy: the share of the sum of squared singular values that each leaf keeps, above 0 and
            at most 1. The rank then depends on the weights: `init` cannot run under `jax.jit`.
        bytes: the most bytes that the factors of each leaf take.
        ratio: how many times smaller than the leaf the factors are at least.
        where: which leaves; default: those of two axes or more.
        method: `"svd"`, or `"randomized"` (needs `tx.init(..., key=)`), far faster where the rank
            is small and the matrix large.
        form: the matrix that a kernel of more axes is read as. `"channel"`: all axes but the last
            times the last, `(kh kw cin, cout)`: a convolution with fewer channels, then one of
            1x1. `"spatial"`: `(kh cin, kw cout)`, for kernels `(kh, kw, cin, cout)` only: a
            column of filters, then a row.
        stacked: leading axes that number matrices or kernels, each with factors of its own.

    Returns:
        The transform. It refines: masks above it stay.

    Raises:
        ValueRangeError: a setting is out of range; at `init`, where `"randomized"` gets no key.
        ShapeError: at `init`, where rank 1 takes more than asked for, or no leaf gets smaller.
        CompositionError: at `init`, where a leaf is shared, quantized or factored already.
        NonFiniteError: at `init`, where a leaf holds NaN or infinity.
        CapacityError: at `init` or in `plan`, where `energy` is given and values are unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.low_rank(1)
        >>> params = {"kernel": jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, 2.0, 4.0]))}
        >>> tx.pack(params, tx.init(params))
        {'kernel': Factored(u float32[4,1], v float32[1,3], 18.67 bits/weight)}

    References:
        Zhang et al. 2016, Accelerating Very Deep Convolutional Networks, section 3.1 (channel);
        Jaderberg et al. 2014, Speeding up Convolutional Neural Networks with Low Rank Expansions,
        section 2 (spatial).
    """
    _check(rank, energy, bytes, ratio, method, form, stacked)
    way = _LowRank(rank, energy, bytes, ratio, method, form, stacked)
    tx = refining(
        _NAME,
        where,
        init=way.init,
        encode=way.encode,
        check=way.misfit,
        refuses=_refined,
        exact=False,
    )

    def init(params: Any, **given: Any) -> State:
        state = tx.init(params, **given)
        if not jax.tree.leaves(state.learned):
            raise ShapeError(
                f"{_NAME}: {', '.join(state.rest)}: no factors of two would be smaller than "
                "the leaf. Give a smaller rank, or where= for larger leaves of two axes or more."
            )
        return state

    return dataclasses.replace(tx, init=init)


class _Matrix(NamedTuple):
    """The matrices a leaf is read as.

    Args:
        lead: how many there are, by axis.
        split: the leaf with the axes of each side apart, as it lies.
        axes: their order in the matrix; empty where the leaf is the matrix.
        rows: of one matrix.
        columns: of one matrix.
    """

    lead: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    rows: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, ...], form: Form, stacked: int) -> _Matrix | None:
        """None where the leaf has no two sides."""
        lead, own = shape[:stacked], shape[stacked:]
        if len(own) < 2:
            return None
        first, axes = range(stacked), tuple(range(len(shape)))
        if form == "spatial" and len(own) == 4:
            height, width, inputs, outputs = own
            swapped = (*first, stacked, stacked + 2, stacked + 1, stacked + 3)
            return cls(lead, shape, swapped, height * inputs, width * outputs)
        rows = math.prod(own[:-1])
        return cls(lead, shape, axes if len(own) > 2 else (), rows, own[-1])

    def read(self, x: jax.Array) -> jax.Array:
        """The matrices, stacked."""
        x = x.transpose(self.axes) if self.axes else x
        return x.reshape(*self.lead, self.rows, self.columns)

    def shown(self, product: Factored) -> Field:
        """The leaf, made of the product of its factors."""
        if not self.axes:
            return product
        # To swap two axes is undone by swapping them again.
        seen = tuple(self.split[axis] for axis in self.axes)
        return Reshaped(product, seen, self.axes, self.split)


@dataclasses.dataclass(frozen=True)
class _LowRank:
    """The functions of the transform, made of settings that are checked."""

    rank: int | None
    energy: float | None
    bytes: int | None
    ratio: float | None
    method: Method
    form: Form
    stacked: int

    def matrix(self, slot: Slot) -> _Matrix | None:
        return _Matrix.of(slot.array.shape, self.form, self.stacked)

    def init(self, slot: Slot, start: Start) -> tuple[Any, Any]:
        matrix = self.matrix(slot)
        if matrix is None or not slot.array.size:
            return None, None
        array = jax.lax.stop_gradient(slot.array)
        dense = matrix.read(array if slot.mask is None else jnp.where(slot.mask, array, 0))
        _require_finite(dense, start.path)
        rank = self._rank_by_energy(dense, start) if self.energy else self._rank(slot, matrix)
        if rank * (matrix.rows + matrix.columns) >= matrix.rows * matrix.columns:
            return None, None
        if self.method == "randomized" and start.key is None:
            raise ValueRangeError(
                f"{_NAME}: method='randomized' draws; give tx.init(params, key=jax.random.key(0))."
            )
        u, v = factorize(dense, rank, method=self.method, key=start.key)
        return {"u": u.astype(array.dtype), "v": v.astype(array.dtype)}, None

    def encode(self, slot: Slot, factors: Any, rest: Any, train: bool) -> Field:
        del rest, train
        matrix = self.matrix(slot)
        if factors is None or matrix is None:
            return slot.array
        return matrix.shown(Factored(factors["u"], factors["v"], str(slot.array.dtype)))

    def misfit(self, slot: Slot) -> str | None:
        """Where a budget is too small for rank 1."""
        matrix = self.matrix(slot)
        if matrix is None or not slot.array.size or self._rank(slot, matrix):
            return None
        least = self._bits_of_rank(slot, matrix)
        if self.bytes is not None:
            return f"of rank 1 takes {-(-least // 8)} bytes, more than bytes={self.bytes}"
        whole = slot.array.size * dtype_bits(slot.array.dtype)
        return f"of rank 1 is {whole / least:.3g} times smaller, less than ratio={self.ratio}"

    def _rank(self, slot: Slot, matrix: _Matrix) -> int:
        """As settings and shape tell it; 0 where rank 1 is too much."""
        bits = self._bits_of_rank(slot, matrix)
        whole = slot.array.size * dtype_bits(slot.array.dtype)
        if self.bytes is not None:  # what is small enough already stays
            return 8 * self.bytes // bits if 8 * self.bytes < whole else whole
        if self.ratio is not None:
            return int(whole / self.ratio) // bits
        return self.rank or 1

    def _bits_of_rank(self, slot: Slot, matrix: _Matrix) -> int:
        numbers = math.prod(matrix.lead) * (matrix.rows + matrix.columns)
        return numbers * dtype_bits(slot.array.dtype)

    def _rank_by_energy(self, dense: jax.Array, start: Start) -> int:
        if isinstance(dense, Tracer):
            raise CapacityError(
                f"{_NAME}: {start.path}: the rank for energy={self.energy} depends on the weights, "
                "which are unknown under jax.jit and in nnopt.plan. Give rank=, bytes= or ratio=, "
                "or call tx.init outside of jit."
            )
        return rank_for_energy(dense, self.energy or 1.0)


def _require_finite(dense: jax.Array, path: str) -> None:
    """Factors would hide what is broken; where values are unknown, it counts as 0."""
    if not isinstance(dense, Tracer) and (bad := int((~jnp.isfinite(dense)).sum())):
        raise NonFiniteError(
            f"{_NAME}: {path}: {bad} of {dense.size} values are NaN or infinite; see where "
            "training diverged."
        )


def _refined(slot: Slot) -> str | None:
    """What an earlier link made of a slot, where factors would undo it."""
    made = _REFINED.get(slot.name.rpartition("/")[2], "quantized" if slot.kind == "code" else None)
    return made and f"is {made} already; put {_NAME} before the link that did it"


def _check(
    rank: Any, energy: Any, bytes: Any, ratio: Any, method: Any, form: Any, stacked: Any
) -> None:
    settings = Settings(_NAME)
    settings.integer("rank", rank, 1, none=True)
    settings.number("energy", energy, 0, 1, above=True, none=True)
    settings.integer("bytes", bytes, 1, none=True)
    settings.number("ratio", ratio, 1, above=True, none=True)
    given = {"rank": rank, "energy": energy, "bytes": bytes, "ratio": ratio}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        others = f"with {', '.join(named[1:])}" if named else "and nothing else"
        name = named[0] if named else "rank"
        settings.wrong(name, given[name], f"{others}; give one of {', '.join(given)}.")
    settings.choice("method", method, ("svd", "randomized"))
    if method == "randomized" and energy is not None:
        settings.wrong("method", method, "finds a rank that is given; with energy= use 'svd'.")
    settings.choice("form", form, ("channel", "spatial"))
    settings.integer("stacked", stacked, 0)
    settings.done()
