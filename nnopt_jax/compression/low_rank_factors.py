"""Low-rank factorization of weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.nodes import Field
from nnopt_jax.arrays.refinement import Slot
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.errors import CapacityError, NonFiniteError, ShapeError
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.eager import count_nonfinite
from nnopt_jax.ops.factorization import Method, factorize, rank_for_energy
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.leaves import Start, matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.transform.slotwise import refining
from nnopt_jax.tree.bit_counts import dtype_bits
from nnopt_jax.tree.select import Where

_NAME = "compression.low_rank"
_REFINED = {"table": "shared", "codes": "quantized", "u": "factored", "v": "factored"}
_BATCH_AXES = (
    "is gone; batch axes say it: "
    "tx.bind(axes={path: nnopt.Axes(in_axis=1, out_axis=2, batch_axis=0)})."
)
Form: TypeAlias = Literal["channel", "spatial"]


@recorded
def low_rank(
    rank: int | None = None,
    *,
    energy: float | None = None,
    bytes: int | None = None,
    ratio: float | None = None,
    where: Where = matrices,
    method: Method = "svd",
    form: Form = "channel",
    stacked: None = None,
) -> Transform:
    r"""Replace weights by two low-rank factors, which the optimizer continues to train.

    $$ \hat W = U V, \qquad
       \min_{U, V} \lVert W - U V \rVert_F, \quad U \in R^{m \times r}, V \in R^{r \times n} $$

    `W` is the matrix of contracted times output axes (see `nnopt.Axes`), each flattened to one; if
    a weight has batch axes (experts, scanned layers), each of its matrices has its own factors, all
    of one rank. `tx.bind` sets the axes; unbound, leaves of two axes are `(in, out)`, and those of
    four or five axes are kernels of Flax convolutions.

    The factors are learned arrays of the state; the parameters that they replace are no longer
    used. Masked entries count as 0, and the mask stays above the product. A leaf whose factors
    would not be smaller than the leaf is not changed, and `nnopt.plan` says so.

    Args:
        rank: `r`, the same for all leaves. Pass exactly one of this and the next three arguments.
        energy: the fraction of the sum of squared singular values that each leaf keeps, above 0 and
            at most 1. The rank then depends on the weights, so that `init` cannot run under
            `jax.jit`.
        bytes: the greatest number of bytes of the factors of each leaf.
        ratio: the least ratio of the size of a leaf to that of its factors.
        where: which leaves; by default those of two or more axes.
        method: `"svd"`, or `"randomized"` (`tx.init` then needs `key`), which is far faster for a
            small rank and a large matrix.
        form: the matrix that a weight is read as. `"channel"`: contracted times output axes, for a
            convolution `(kh kw cin, cout)`, which makes a convolution with fewer channels and one
            of 1x1. `"spatial"`: `(kh cin, kw cout)`, which makes a convolution with vertical
            filters and one with horizontal filters; only for kernels with three contracted axes and
            one output axis, others are read as with `"channel"`.
        stacked: no longer supported, because the batch axes of a weight determine which axes number
            matrices.

    Returns:
        The transform. It refines: masks of earlier transforms stay.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, `"randomized"` lacks a key.
        ShapeError: at `init`, the axes of a leaf are unknown, rank 1 exceeds the budget, or no leaf
            would become smaller.
        CompositionError: at `init`, a leaf is shared, quantized or factored already.
        NonFiniteError: at `init`, a leaf holds NaN or infinity.
        CapacityError: at `init` or in `plan`, `energy` is set and values are unknown.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.low_rank(1)
        >>> params = {"kernel": jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, 2.0, 4.0]))}
        >>> tx.pack(params, tx.init(params))
        {'kernel': Factored(u float32[4,1], v float32[1,3], 18.67 bits/weight)}

        The kernel of an attention's queries, `(in, heads, head_dim)`:

        >>> tx = tx.bind(axes={"query": nnopt.Axes(in_axis=0, out_axis=(1, 2))})
        >>> params = {"query": jnp.ones((6, 2, 3))}
        >>> jax.tree.map(jnp.shape, tx.init(params).learned["query"][0])
        {'u': (6, 1), 'v': (1, 6)}

    References:
        Zhang et al. 2016, Accelerating Very Deep Convolutional Networks, section 3.1 (channel);
        Jaderberg et al. 2014, Speeding up Convolutional Neural Networks with Low Rank Expansions,
        section 2 (spatial).
    """
    way = _LowRank(rank, energy, bytes, ratio, method, form)
    way.check(stacked)

    def build(binding: Binding) -> Transform:
        tx = refining(
            _NAME,
            where,
            init=way.init,
            encode=way.encode,
            check=way.misfit,
            refuses=_refined,
            exact=False,
            needs_axes=lambda slot: slot.array.ndim > 1,
            binding=binding,
        )

        def init(params: Any, **given: Any) -> State:
            state = tx.init(params, **given)
            if not jax.tree.leaves(state.learned):
                raise ShapeError(
                    f"{_NAME}: {', '.join(state.rest)}: no factors of two would be smaller than "
                    "the leaf. Give a smaller rank, or where= for larger leaves of two axes or "
                    "more."
                )
            return state

        return dataclasses.replace(tx, init=init)

    return bindable(build)


def _sides(slot: Slot, form: Form) -> Axes | None:
    """Return the axes of rows and columns of the matrix to factor; None without a matrix."""
    axes = slot.axes
    if axes is None or slot.array.ndim < 2:
        return None
    if form == "spatial" and len(axes.contracted) == 3 and len(axes.output) == 1:
        height, width, inputs = axes.contracted
        return Axes((height, inputs), (width, *axes.output), axes.batch)
    return axes


@dataclasses.dataclass(frozen=True)
class _LowRank:
    """The settings of `low_rank`, and the functions of its transform."""

    rank: int | None
    energy: float | None
    bytes: int | None
    ratio: float | None
    method: Method
    form: Form

    def check(self, stacked: Any) -> None:
        """Raise one error for all invalid settings."""
        settings = Settings(_NAME)
        settings.integer("rank", self.rank, 1, none=True)
        settings.number("energy", self.energy, 0, 1, above=True, none=True)
        settings.integer("bytes", self.bytes, 1, none=True)
        settings.number("ratio", self.ratio, 1, above=True, none=True)
        budgets = {name: getattr(self, name) for name in ("rank", "energy", "bytes", "ratio")}
        named = [name for name, value in budgets.items() if value is not None]
        if len(named) != 1:
            others = f"with {', '.join(named[1:])}" if named else "and nothing else"
            name = named[0] if named else "rank"
            settings.wrong(name, budgets[name], f"{others}; give one of {', '.join(budgets)}.")
        settings.choice("method", self.method, ("svd", "randomized"))
        if self.method == "randomized" and self.energy is not None:
            text = "finds a rank that is given; with energy= use 'svd'."
            settings.wrong("method", self.method, text)
        settings.choice("form", self.form, ("channel", "spatial"))
        if stacked is not None:
            settings.wrong("stacked", stacked, _BATCH_AXES)
        settings.done()

    def init(self, slot: Slot, start: Start) -> tuple[Any, Any]:
        axes = _sides(slot, self.form)
        if axes is None or not slot.array.size:
            return None, None
        array = jax.lax.stop_gradient(slot.array)
        dense = axes.to_matrix(array if slot.mask is None else jnp.where(slot.mask, array, 0))
        # Factors would hide broken weights; if values are unknown, these count as 0.
        if not isinstance(dense, Tracer) and (bad := count_nonfinite(dense)):
            raise NonFiniteError(
                f"{_NAME}: {start.path}: {bad} of {dense.size} values are NaN or infinite; see "
                "where training diverged."
            )
        if self.energy and isinstance(dense, Tracer):
            raise CapacityError(
                f"{_NAME}: {start.path}: the rank for energy={self.energy} depends on the weights, "
                "which are unknown under jax.jit and in nnopt.plan. Give rank=, bytes= or ratio=, "
                "or call tx.init outside of jit."
            )
        rank = rank_for_energy(dense, self.energy) if self.energy else self._rank(slot, axes)
        rows, columns = dense.shape[-2:]
        if rank * (rows + columns) >= rows * columns:
            return None, None
        key = None
        if self.method == "randomized":
            key = start.drawing_key("method='randomized' draws")
        u, v = factorize(dense, rank, method=self.method, key=key)
        return {"u": u.astype(array.dtype), "v": v.astype(array.dtype)}, None

    def encode(self, slot: Slot, factors: Any, rest: Any, train: bool) -> Field:
        del rest, train
        axes = _sides(slot, self.form)
        if factors is None or axes is None:
            return slot.array
        product = Factored(factors["u"], factors["v"], str(slot.array.dtype))
        return Reshaped.of_matrix(product, axes, slot.array.shape)

    def misfit(self, slot: Slot) -> str | None:
        """Return an error text if the size budget is too small even for rank 1, or else None."""
        axes = _sides(slot, self.form)
        if axes is None or not slot.array.size or self._rank(slot, axes):
            return None
        least = self._bits_of_rank(slot, axes)
        if self.bytes is not None:
            return f"of rank 1 takes {-(-least // 8)} bytes, more than bytes={self.bytes}"
        whole = slot.array.size * dtype_bits(slot.array.dtype)
        return f"of rank 1 is {whole / least:.3g} times smaller, less than ratio={self.ratio}"

    def _rank(self, slot: Slot, axes: Axes) -> int:
        """Return the rank that settings and shape imply; 0 if even rank 1 is too large."""
        bits = self._bits_of_rank(slot, axes)
        whole = slot.array.size * dtype_bits(slot.array.dtype)
        if self.bytes is not None:  # a leaf that is small enough stays
            return 8 * self.bytes // bits if 8 * self.bytes < whole else whole
        if self.ratio is not None:
            return int(whole / self.ratio) // bits
        return self.rank or 1

    def _bits_of_rank(self, slot: Slot, axes: Axes) -> int:
        *batch, rows, columns = axes.matrix_shape(slot.array.shape)
        return math.prod(batch) * (rows + columns) * dtype_bits(slot.array.dtype)


def _refined(slot: Slot) -> str | None:
    """Return why a slot cannot be factored after an earlier transform; None if it can."""
    made = _REFINED.get(slot.name.rpartition("/")[2], "quantized" if slot.kind == "code" else None)
    return made and f"is {made} already; put {_NAME} before the transform that did it"
