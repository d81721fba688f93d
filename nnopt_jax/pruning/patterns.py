"""Sparsity patterns: which weights are kept or pruned together."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.mask_format import Format, Roles
from nnopt_jax.ops.axis_roles import Axes, assumed_axes, matrix_axes
from nnopt_jax.ops.blockwise import reduce_blocks
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.masks import MOST_CHOICES, count_kept, group_axis, keep_n_of_m
from nnopt_jax.ops.threshold import top_k_mask

__all__ = [
    "BlockPattern",
    "CoupledPattern",
    "LinePattern",
    "NOfM",
    "Pattern",
    "PerOutput",
    "WholeBlocks",
    "conventional",
]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The unstructured pattern, which compares the weights of a leaf; base of all patterns.

    A pattern divides a leaf into units, whose scores it computes (`pool`), chooses some (`choose`)
    and marks their weights (`spread`).
    """

    needs_axes: ClassVar[bool] = False
    """Whether the units of the pattern depend on contracted and output axes."""
    is_fixed: ClassVar[bool] = False
    """Whether the pattern alone determines how many weights stay."""
    compares_leaves: ClassVar[bool] = True
    """Whether the units of several leaves can be ranked together."""

    def misfit(self, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
        """Return why the pattern does not fit a leaf of this shape; None if it does.

        Args:
            shape: the shape of the leaf.
            axes: the axes of the leaf; by default the conventional ones.
        """
        del shape, axes
        return None

    def pool(self, scores: jax.Array, axes: Axes) -> jax.Array:
        """Return the score of each unit (here a single weight), given the scores of the weights."""
        del axes
        return scores

    def choose(self, scores: jax.Array, sparsity: Any, *, signed: bool = False) -> jax.Array:
        """Mark the units of a leaf to keep; among equal scores, the earlier units.

        Args:
            scores: the scores of units, as `pool` returns them.
            sparsity: the fraction of units to prune, a Python number or a traced scalar.
            signed: whether scores are ranked by value rather than by magnitude.
        """
        return top_k_mask(scores, count_kept(scores.size, sparsity), signed=signed)

    def spread(self, chosen: jax.Array, shape: tuple[int, ...], axes: Axes) -> jax.Array:
        """Return the mask of the weights of a leaf, given the mask of its units."""
        del shape, axes
        return chosen

    def count(self, shape: tuple[int, ...], axes: Axes, sparsity: Any) -> Any:
        """Return the number of weights of a leaf that the pattern keeps."""
        del axes
        return count_kept(math.prod(shape), sparsity)

    def format(self, shape: tuple[int, ...], axes: Axes) -> tuple[Format, Roles]:
        """Return the storage format of the mask that the pattern implies."""
        del shape, axes
        return "smallest", ()


@dataclasses.dataclass(frozen=True)
class PerOutput(Pattern):
    """Single weights, compared within each output, so that outputs keep equally many inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning.patterns import PerOutput, conventional
        >>> scores = jnp.array([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0]])
        >>> print(PerOutput().choose(PerOutput().pool(scores, conventional((3, 2))), 2 / 3))
        [[False  True]
         [False False]
         [ True False]]
    """

    needs_axes: ClassVar[bool] = True
    compares_leaves: ClassVar[bool] = False

    def pool(self, scores: jax.Array, axes: Axes) -> jax.Array:
        """Return the scores as a matrix `(*batch, in, out)`."""
        return axes.to_matrix(scores) if scores.ndim > 1 else scores.reshape(-1, 1)

    def choose(self, scores: jax.Array, sparsity: Any, *, signed: bool = False) -> jax.Array:
        """Mark the inputs to keep, for each output and batch index."""
        if not scores.size:
            return jnp.zeros(scores.shape, bool)
        count = count_kept(scores.shape[-2], sparsity)
        choose = functools.partial(top_k_mask, k=count, signed=signed)
        columns = jnp.moveaxis(scores, -2, -1)
        chosen = jax.vmap(choose)(columns.reshape(-1, columns.shape[-1]))
        return jnp.moveaxis(chosen.reshape(columns.shape), -1, -2)

    def spread(self, chosen: jax.Array, shape: tuple[int, ...], axes: Axes) -> jax.Array:
        """Return the mask in the shape of the leaf."""
        return axes.from_matrix(chosen, shape) if len(shape) > 1 else chosen.reshape(shape)

    def count(self, shape: tuple[int, ...], axes: Axes, sparsity: Any) -> Any:
        """Return the number of weights of a leaf that are kept, equal for each output."""
        inputs = math.prod(shape[axis] for axis in axes.contracted)
        return count_kept(inputs, sparsity) * (math.prod(shape) // max(inputs, 1))


@dataclasses.dataclass(frozen=True)
class NOfM(Pattern):
    """The pattern that keeps `n` of every `m` consecutive entries along the contracted axes.

    Args:
        n: kept entries of a group.
        m: entries of a group.
    """

    n: int
    m: int

    def misfit(self, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
        """Return why groups do not fit a leaf of this shape; None if they do.

        Args:
            shape: the shape of the leaf.
            axes: the axes of the leaf; by default the conventional ones.
        """
        contracted = (axes or conventional(shape)).contracted
        if contracted and math.prod(shape[axis] for axis in contracted) % self.m == 0:
            return None
        if len(contracted) > 1:
            return f"groups of {self.m} do not divide axes {contracted} of shape {shape}, flattened"
        axis = contracted[0] if contracted else group_axis(shape)
        return f"groups of {self.m} do not divide axis {axis} of shape {shape}"

    needs_axes: ClassVar[bool] = True
    is_fixed: ClassVar[bool] = True

    def pool(self, scores: jax.Array, axes: Axes) -> jax.Array:
        """Return the scores, as a matrix if groups do not lie along the axis before the last."""
        return axes.to_matrix(scores) if self.roles(scores.shape, axes) else scores

    def choose(self, scores: jax.Array, sparsity: Any = None, *, signed: bool = False) -> jax.Array:
        """Mark the `n` entries of greatest score in each group; NaN counts as infinity."""
        del sparsity, signed
        return keep_n_of_m(scores, self.n, self.m)

    def spread(self, chosen: jax.Array, shape: tuple[int, ...], axes: Axes) -> jax.Array:
        """Return the mask in the shape of the leaf."""
        return axes.from_matrix(chosen, shape) if self.roles(shape, axes) else chosen

    def count(self, shape: tuple[int, ...], axes: Axes, sparsity: Any) -> int:
        """Return the number of weights of a leaf that are kept: `n` of every `m`."""
        del axes, sparsity
        return math.prod(shape) // self.m * self.n

    def format(self, shape: tuple[int, ...], axes: Axes) -> tuple[Format, Roles]:
        """Return the N:M format, or the smallest if a group has too many choices to number."""
        if math.comb(self.m, self.n) > MOST_CHOICES:
            return "smallest", ()
        return f"{self.n}:{self.m}", self.roles(shape, axes)

    def roles(self, shape: tuple[int, ...], axes: Axes) -> Roles:
        """Return the axes by role; empty if groups lie along the axis before the last.

        Args:
            shape: the shape of the leaf, which the groups fit.
            axes: the axes of the leaf.
        """
        innermost = axes.contracted[-1]
        if innermost == group_axis(shape) and shape[innermost] % self.m == 0:
            return ()
        return axes.contracted, axes.output, axes.batch


class WholeBlocks(Pattern):
    """Base of the patterns that keep or prune blocks of a leaf as a whole."""

    def block(self, shape: tuple[int, ...], axes: Axes | None = None) -> tuple[int, ...]:
        """Return the size of a block along each axis of a leaf."""
        raise NotImplementedError

    def pool(self, scores: jax.Array, axes: Axes) -> jax.Array:
        """Return the mean score of each block."""
        return reduce_blocks("pattern", jnp.mean, scores, self.block(scores.shape, axes))

    def spread(self, chosen: jax.Array, shape: tuple[int, ...], axes: Axes) -> jax.Array:
        """Return the mask of the weights of a leaf, given the mask of its blocks."""
        del axes
        return expand(chosen, shape)

    def count(self, shape: tuple[int, ...], axes: Axes, sparsity: Any) -> Any:
        """Return the number of weights of a leaf that are kept, in whole blocks."""
        unit = max(math.prod(self.block(shape, axes)), 1)
        return count_kept(math.prod(shape) // unit, sparsity) * unit


@dataclasses.dataclass(frozen=True)
class BlockPattern(WholeBlocks):
    """The pattern that keeps or prunes blocks of given sizes.

    Args:
        sizes: `(a, b)` for `a` entries along the contracted axes by `b` along the output axes;
            `(b,)` for the output axes alone; three or more sizes for the last axes of the leaf,
            whatever their roles.
    """

    sizes: tuple[int, ...]

    @property
    def needs_axes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - of sizes
        """Whether the blocks lie along contracted and output axes."""
        return len(self.sizes) <= 2

    def misfit(self, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
        """Return why blocks do not fit a leaf of this shape; None if they do.

        Args:
            shape: the shape of the leaf.
            axes: the axes of the leaf; by default the conventional ones.
        """
        if len(shape) < len(self.sizes):
            return f"blocks of {self.sizes} need {len(self.sizes)} axes, shape {shape} has fewer"
        if self._block(shape, axes) is not None:
            return None
        axes = axes or conventional(shape)
        if axes.is_matrix() or not self.needs_axes:
            return f"blocks of {self.sizes} do not divide the last axes of shape {shape}"
        return f"blocks of {self.sizes} do not divide shape {shape} along {axes}"

    def block(self, shape: tuple[int, ...], axes: Axes | None = None) -> tuple[int, ...]:
        """Return the size of a block along each axis of a leaf that the pattern fits.

        Example:
            >>> from nnopt_jax.ops.axis_roles import Axes
            >>> BlockPattern((4, 2)).block((8, 64), Axes(in_axis=1, out_axis=0))
            (2, 4)
            >>> BlockPattern((32, 2)).block((4, 16, 8), Axes(in_axis=(0, 1), out_axis=2))
            (2, 16, 2)
        """
        found = self._block(shape, axes)
        assert found is not None  # `misfit` has been called before
        return found

    def _block(self, shape: tuple[int, ...], axes: Axes | None) -> tuple[int, ...] | None:
        axes = axes or conventional(shape)
        parts = [1] * len(shape)
        if self.needs_axes and len(shape) > 1:
            tall, wide = (1, *self.sizes)[-2:]
            sized = [(axes.contracted, tall), (axes.output, wide)]
        else:  # each of the last axes has a size of its own
            last = range(len(shape) - len(self.sizes), len(shape))
            sized = [((axis,), size) for axis, size in zip(last, self.sizes, strict=True)]
        for role, size in sized:
            for axis in reversed(role):  # the innermost axis first
                part = size if shape[axis] % size == 0 else shape[axis]
                if size % part:
                    return None
                parts[axis], size = part, size // part
            if size > 1:
                return None
        return tuple(parts)

    def format(self, shape: tuple[int, ...], axes: Axes) -> tuple[Format, Roles]:
        """Return the block sizes along the last axes, which is the storage format."""
        parts = self.block(shape, axes)
        while len(parts) > len(self.sizes) and parts[0] == 1:
            parts = parts[1:]
        return parts, ()


@dataclasses.dataclass(frozen=True)
class LinePattern(WholeBlocks):
    """The pattern that keeps or prunes all weights of an output, or of an input.

    An output is an index of the output axes. An input is an index of the contracted axes or, in
    convolutions, which also contract a window, of the last contracted axis.

    Args:
        of: `"outputs"` or `"inputs"`.

    Example:
        >>> from nnopt_jax.pruning.patterns import LinePattern
        >>> LinePattern("outputs").block((3, 3, 8, 16)), LinePattern("inputs").block((8, 16))
        ((3, 3, 8, 1), (1, 16))
    """

    of: Literal["outputs", "inputs"]

    needs_axes: ClassVar[bool] = True

    def misfit(self, shape: tuple[int, ...], axes: Axes | None = None) -> str | None:
        """Return why a leaf of this shape lacks outputs or inputs; None if it has both."""
        del axes
        least = 1 if self.of == "outputs" else 2
        if len(shape) >= least:
            return None
        return f"groups {self.of!r} need {least} axes, shape {shape} has fewer"

    def block(self, shape: tuple[int, ...], axes: Axes | None = None) -> tuple[int, ...]:
        """Return the sizes of the block of one output or input."""
        if len(shape) < 2:
            return (1,) * len(shape)
        axes = axes or conventional(shape)
        inputs = axes.contracted[-1:] if len(axes.contracted) > 2 else axes.contracted
        own = {*(axes.output if self.of == "outputs" else inputs), *axes.batch}
        return tuple(1 if axis in own else size for axis, size in enumerate(shape))


@dataclasses.dataclass(frozen=True)
class CoupledPattern(Pattern):
    """The pattern that keeps or prunes channels, neurons and heads with all coupled weights.

    Args:
        multiple: the number of channels kept in a dimension is rounded up to a multiple of this.
    """

    multiple: int = 1


def conventional(shape: tuple[int, ...]) -> Axes:
    """Return the axes of a leaf by convention, for use when they are not known.

    The axis of a vector counts as contracted. If no convention applies, the last two axes are those
    of a matrix `(in, out)`.

    Args:
        shape: the shape of the leaf.

    Example:
        >>> from nnopt_jax.pruning.patterns import conventional
        >>> conventional((8,)), conventional((3, 3, 8, 16)), conventional((5, 8, 16))
        (Axes(0, ()), Axes((0, 1, 2), 3), Axes(1, 2, batch_axis=0))
    """
    if len(shape) < 2:
        return Axes(tuple(range(len(shape))), ())
    return assumed_axes(shape) or matrix_axes(len(shape))
