"""Sparse storage of leaves that already contain zeros."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from nnopt_jax.arrays.mask_format import Format, n_of_m, parse_format, shape_misfit
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import Field, is_node, summary
from nnopt_jax.arrays.pattern_layouts import any_in_block
from nnopt_jax.arrays.sparse_array import Sparse
from nnopt_jax.errors import CompositionError, Problems
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import keep_n_of_m, split_groups
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves, Start, matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where

_NAME = "compression.sparse"


@recorded
def sparse(format: str | Sequence[int] = "smallest", *, where: Where = matrices) -> Transform:
    r"""Store leaves in a sparse format that omits the zeros they already contain.

    $$ \hat w_i = w_i \, m_i, \qquad m_i = [\, w_i \neq 0 \text{ at the start} \,] $$

    The mask is that of the initial zeros, so that a model that was pruned elsewhere stays sparse in
    further training. A leaf that an earlier transform of the chain has masked keeps that mask and
    gets the format.

    Args:
        format: the storage format of the mask. `"smallest"`: the format that takes the fewest bits.
            `"bitmask"`: one bit for each element. `"gaps"`: relative indices. `"csr"`: columns and
            row counts of the leaf as a matrix `(-1, last axis)`. `"2:4"`: two of every four entries
            along the axis before the last, 3 bits for four; groups with fewer nonzeros also keep
            zeros. `(4, 4)`: one entry for each block of the last axes; blocks with a nonzero are
            kept. Under `jax.jit`, where the mask is unknown, the first four become a bitmask.
        where: which leaves; default: those of two axes or more.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: the format is not one of these.
        ShapeError: at `init`, groups or blocks do not divide a leaf.
        CompositionError: at `init`, a group of `"n:m"` holds more than `n` nonzeros, or a leaf is
            in sparse storage already; at `pack`, an earlier transform's mask does not have the
            pattern.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.compression.sparse("2:4")
        >>> params = {"kernel": jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [4.0, 0.0]])}
        >>> tx.pack(params, tx.init(params))
        {'kernel': Sparse(values float32[4], support 2:4 3-bit[1,2], 18 bits/weight)}

    References:
        The mask of `jax.experimental.sparse` and SciPy's `csr_array`; 2:4: Mishra et al. 2021,
        Accelerating Sparse Deep Neural Networks, section 3.
    """
    settings = Settings(_NAME)
    form = parse_format(format, settings)
    settings.done()

    def init(leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        del start
        _check_pattern(leaves, form)
        return {}, {path: _support(leaf, form) for path, leaf in leaves.items()}

    def encode(leaves: Leaves, state: State, train: bool) -> Leaves:
        masks = state.rest
        return {path: _wrapped(path, x, masks[path], form, train) for path, x in leaves.items()}

    return wrapping(
        _NAME,
        where,
        init=init,
        encode=encode,
        project=lambda leaf, mask: jnp.where(mask, leaf, jnp.zeros((), leaf.dtype)),
        check=lambda path, leaf: shape_misfit(leaf.shape, form),
        capacities=lambda leaves: _counts(leaves, form),
    )


def _support(leaf: jax.Array, format: Format) -> jax.Array:
    """Return the smallest mask of a format that covers all nonzeros."""
    if pair := n_of_m(format):
        return keep_n_of_m(jnp.abs(leaf), *pair)
    mask = leaf != 0
    return expand(any_in_block(mask, format), mask.shape) if isinstance(format, tuple) else mask


def _check_pattern(leaves: Leaves, format: Format) -> None:
    """Raise if a group has more nonzeros than an N:M format stores; skip traced values."""
    pair, problems = n_of_m(format), Problems(_NAME)
    if pair is None:
        return
    for path, leaf in leaves.items():
        if isinstance(leaf, Tracer) or not leaf.size:
            continue
        most = int((split_groups(leaf, pair[1]) != 0).sum(-1).max())
        if most > pair[0]:
            problems.add(path, f"has {most} of {pair[1]} in a group that are not zero, and format "
                               f"{format} stores {pair[0]}; prune it first, as with "
                               f"pruning.magnitude(pattern={format!r})")  # fmt: skip
    problems.raise_as(CompositionError)


def _wrapped(path: str, leaf: Field, mask: jax.Array, format: Format, train: bool) -> Field:
    if isinstance(leaf, Sparse):
        raise CompositionError(
            f"{_NAME}: {path}: {summary(leaf)} is in sparse storage already. Apply the transform "
            "to the parameters it was packed from."
        )
    if isinstance(leaf, Masked):
        return leaf.replace(format=format) if _may_have(leaf, format) else leaf
    mode = "applied" if train and not is_node(leaf) else "select"
    known = _counts({path: leaf}, format).get(path)
    return Masked(leaf, mask, known, mode, format)


def _may_have(leaf: Masked, format: Format) -> bool:
    """Return whether the mask of an earlier transform takes this format."""
    if format == "smallest":  # a format that the mask already has is a known pattern of it
        return False
    patterned = isinstance(format, tuple) or n_of_m(format) is not None
    return not (patterned and any(isinstance(x, Tracer) for x in jax.tree.leaves(leaf.mask)))


def _counts(leaves: Leaves, format: Format) -> dict[str, int]:
    pair = n_of_m(format)
    return {p: x.size // pair[1] * pair[0] for p, x in leaves.items()} if pair else {}
