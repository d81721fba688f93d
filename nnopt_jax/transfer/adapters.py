"""Low-rank adapters (LoRA, DoRA) on frozen weights, and freezing of parameters."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.adapted import Normalized, Sum, norm_like
from nnopt_jax.arrays.factored import Factored
from nnopt_jax.arrays.masked import Masked, map_under_mask
from nnopt_jax.arrays.nodes import Field, is_node, kept
from nnopt_jax.arrays.reshaped import Reshaped
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves, Start, matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.paths import flatten
from nnopt_jax.tree.select import Where, resolve
from nnopt_jax.typing import DTypeLike


@recorded
def freeze(where: Where = "**") -> Transform:
    """Exclude parameters from training: no gradient, no optimizer state, no weight decay.

    `nnopt.trainable` has None in their place. Arrays that other transforms learn are still trained.

    Args:
        where: which leaves; by default all.

    Returns:
        The transform, which does not change leaves.

    Raises:
        SelectionError: at `init`, no leaf is selected.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"body": jnp.ones(2), "head": jnp.ones(3)}
        >>> tx = nnopt.transfer.freeze("body")
        >>> nnopt.trainable(tx, params, tx.init(params)).params
        {'body': None, 'head': Array([1., 1., 1.], dtype=float32)}

    References:
        Yosinski et al. 2014, How transferable are features in deep neural networks?, section 2.
    """

    def build(binding: Binding) -> Transform:
        tx = wrapping(
            "transfer.freeze",
            where,
            init=lambda leaves, start: ({}, dict.fromkeys(leaves)),
            encode=lambda leaves, state, train: {},
            binding=binding,
        )
        return _with_frozen(tx, where)

    return bindable(build)


def _with_frozen(tx: Transform, where: Where) -> Transform:
    """Return a copy of a transform that also freezes the parameters that a rule selects."""

    def frozen(params: Any) -> frozenset[str]:
        return frozenset(resolve(where, flatten(params, is_node), tx.name))

    return dataclasses.replace(tx, frozen=frozen)


@recorded
def lora(
    rank: int = 8,
    *,
    alpha: float | None = None,
    where: Where = matrices,
    rank_stabilized: bool = False,
    freeze: Where | None = "**",
    dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Train a low-rank product in addition to each frozen weight (LoRA).

    $$ W = W_0 + s\, A B, \qquad s = \frac{\alpha}{r} \quad
       \Big( \text{rank-stabilized: } \frac{\alpha}{\sqrt r} \Big) $$

    with `A` of shape `(in, r)` and `B` of shape `(r, out)`, for each index of the batch axes of a
    weight (experts, scanned layers): contracted axes are flattened to `in`, output axes to `out`.
    `tx.bind` sets the axes; unbound, leaves of two axes are `(in, out)`, and those of four or five
    axes are kernels of Flax convolutions. `A` is drawn uniformly within $1/\sqrt{in}$ and `B` is
    zero, so that training starts at $W_0$. The base may be packed (`QLoRA`), as `tx.pack` or
    `nnopt.load` returned it; its bytes are not changed.

    Under a mask, and over a packed leaf with a mask, the sum is masked, so that zeros stay zero.
    Other earlier transforms keep their codes in the base, and later transforms refine the base
    alone.

    Args:
        rank: `r`.
        alpha: `alpha`, by default the rank, so that `s = 1` (if rank-stabilized, the root of the
            rank).
        where: which leaves get adapters; by default those of two or more axes.
        rank_stabilized: whether to use the scale at which gradients do not depend on the rank.
        freeze: which parameters to freeze; by default all, so that only adapters are trained and
            have optimizer state. None to freeze none.
        dtype: the dtype of the factors.

    Returns:
        The transform. It wraps, and `init` needs a key.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, the key is missing.
        ShapeError: at `init`, a leaf has fewer than two axes, or its axes are unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}
        >>> tx = nnopt.transfer.lora(2)
        >>> state = tx.init(params, key=jax.random.key(0))
        >>> moving = nnopt.trainable(tx, params, state)
        >>> [x.shape for x in jax.tree.leaves(moving)]
        [(64, 2), (2, 64)]

        The queries of an attention, 8 heads of 16:

        >>> tx = tx.bind(axes={"query": nnopt.Axes(in_axis=0, out_axis=(1, 2))})
        >>> state = tx.init({"query": jnp.ones((128, 8, 16))}, key=jax.random.key(0))
        >>> jax.tree.map(jnp.shape, state.learned["query"])
        {'a': (128, 2), 'b': (2, 128)}

    References:
        Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1;
        Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA,
        section 3.2; packed bases: Dettmers et al. 2023, QLoRA, section 3.
    """
    return _adapter("transfer.lora", rank, alpha, where, rank_stabilized, freeze, dtype)


@recorded
def dora(
    rank: int = 8,
    *,
    alpha: float | None = None,
    where: Where = matrices,
    rank_stabilized: bool = False,
    freeze: Where | None = "**",
    dtype: DTypeLike = jnp.float32,
) -> Transform:
    r"""Train the direction of each weight by a low-rank product, and its magnitudes freely (DoRA).

    $$ W = m \, \frac{W_0 + s\, A B}{\lVert W_0 + s\, A B \rVert} $$

    The norm of each output is taken over the contracted axes, for each index of output and batch
    axes (see `lora`), and passes no gradient. `m` is initialized as the norm of $W_0$, so that
    training starts at $W_0$ up to rounding. For the rest, see `lora`.

    Args:
        rank: `r`.
        alpha: `alpha`, by default the rank, so that `s = 1`.
        where: which leaves get adapters; by default those of two or more axes.
        rank_stabilized: whether `s` is `alpha / sqrt(r)` rather than `alpha / r`.
        freeze: which parameters to freeze; by default all. None to freeze none.
        dtype: the dtype of the factors and magnitudes.

    Returns:
        The transform. It wraps, and `init` needs a key.

    Raises:
        ValueRangeError: a setting is out of range; or, at `init`, the key is missing.
        ShapeError: at `init`, a leaf has fewer than two axes, or its axes are unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])}
        >>> tx = nnopt.transfer.dora(1)
        >>> state = tx.init(params, key=jax.random.key(0))
        >>> state.learned["kernel"]["magnitude"]
        Array([[5., 2.]], dtype=float32)

    References:
        Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, section 4.
    """
    name = "transfer.dora"
    return _adapter(name, rank, alpha, where, rank_stabilized, freeze, dtype, magnitudes=True)


def _adapter(
    name: str,
    rank: int,
    alpha: float | None,
    where: Where,
    rank_stabilized: bool,
    freeze: Where | None,
    dtype: DTypeLike,
    *,
    magnitudes: bool = False,
) -> Transform:
    """Make the transform of `lora` or, with trained magnitudes, of `dora`."""
    settings = Settings(name)
    settings.integer("rank", rank, 1)
    settings.number("alpha", alpha, 0, above=True, none=True)
    settings.flag("rank_stabilized", rank_stabilized)
    settings.floating("dtype", dtype)
    settings.done()
    scale = (rank if alpha is None else alpha) / (math.sqrt(rank) if rank_stabilized else rank)

    def build(binding: Binding) -> Transform:
        def axes_of(path: str, leaf: Any) -> Axes:
            axes = binding.of(path, tuple(leaf.shape))
            assert axes is not None
            return axes

        def misfit(path: str, leaf: Any) -> str | None:
            shape = tuple(leaf.shape)
            if leaf.ndim < 2:
                return f"has shape {shape}; an adapter needs two axes"
            return binding.why_unknown(path, shape) if binding.of(path, shape) is None else None

        def init(leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
            learned, drawn = {}, start.drawing_key("draws its first factors")
            for path, x in leaves.items():
                axes = axes_of(path, x)
                # By path rather than by number, so that other leaves do not matter.
                key = jax.random.fold_in(drawn, zlib.crc32(path.encode()))
                learned[path] = _first_factors(key, axes.matrix_shape(x.shape), rank, dtype)
                if magnitudes:
                    learned[path]["magnitude"] = _output_norms(x, axes).astype(dtype)
            return learned, dict.fromkeys(leaves)

        def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
            del train
            encoded = {}
            for path, leaf in leaves.items():
                own = state.learned[path]
                factors = own["a"], (own["b"] * scale).astype(dtype)
                encoded[path] = _with_product(leaf, *factors, axes_of(path, leaf))
                if magnitudes:
                    encoded[path] = Normalized(encoded[path], own["magnitude"])
            return encoded

        # Norms are sums, whose order depends on the mesh.
        tx = wrapping(
            name,
            where,
            init=init,
            encode=encode,
            check=misfit,
            exact=not magnitudes,
            binding=binding,
        )
        return tx if freeze is None else _with_frozen(tx, freeze)

    return bindable(build)


def _first_factors(
    key: jax.Array, shape: tuple[int, ...], rank: int, dtype: DTypeLike
) -> dict[str, jax.Array]:
    """Draw the first factor and make the second zero, so that their product is zero."""
    *batch, rows, columns = shape
    bound = max(rows, 1) ** -0.5  # He initialization with a slope of sqrt(5), as in PEFT
    a = jax.random.uniform(key, (*batch, rows, rank), dtype, -bound, bound)
    return {"a": a, "b": jnp.zeros((*batch, rank, columns), dtype)}


def _with_product(leaf: Field, a: jax.Array, b: jax.Array, axes: Axes) -> Field:
    """Add a low-rank product to a leaf, under the mask of the leaf if it has one."""
    product = Factored(a, b, str(leaf.dtype))
    product = Reshaped.of_matrix(product, axes, tuple(leaf.shape))

    def change(base: Field) -> Field:
        total, mask = Sum(base, product), kept(base)
        return total if mask is None else Masked(total, mask)

    return map_under_mask(leaf, change)


def _output_norms(leaf: jax.Array, axes: Axes) -> jax.Array:
    """Return the norm of the weights of each output."""
    sizes = (1 if axis in axes.contracted else size for axis, size in enumerate(leaf.shape))
    return norm_like(leaf, tuple(sizes))
