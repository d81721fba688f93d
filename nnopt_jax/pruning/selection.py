"""Selection of the weights to keep in each leaf, by a pattern and an allocation."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.masks import count_kept
from nnopt_jax.ops.threshold import top_k_masks
from nnopt_jax.pruning.allocation import Allocation, call_allocation, erk, lamp, uniform
from nnopt_jax.pruning.pattern_names import PatternLike, parse_pattern
from nnopt_jax.pruning.patterns import NOfM, Pattern, conventional
from nnopt_jax.pruning.schedules import check_schedule, final
from nnopt_jax.settings import Settings
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.leaves import Leaves

_TOGETHER = ("global", "lamp")
"""Allocations with one threshold for all leaves, whose counts depend on data."""
_EXACT = 100_000  # beyond this number of weights, float32 may miscount by one after some steps


class Selection(NamedTuple):
    """The allocation and the pattern that determine the weights to keep in each leaf.

    Args:
        allocation: see `Allocation`.
        pattern: see `Pattern`.
        binding: the binding, which determines the axes of the pattern.
    """

    allocation: Allocation
    pattern: Pattern
    binding: Binding = UNBOUND

    @property
    def is_counted(self) -> bool:
        """Whether settings alone determine how many weights a leaf keeps."""
        return self.pattern.is_fixed or self.allocation not in _TOGETHER

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """Return the axes of a leaf."""
        return self.binding.of(path, shape) or conventional(shape)

    def misfit(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Return why the pattern does not fit a leaf; None if it does."""
        return self.pattern.misfit(shape, self.axes(path, shape))

    def shares(self, shapes: Mapping[str, tuple[int, ...]], sparsity: Any) -> Mapping[str, Any]:
        """Return the target sparsity of each leaf."""
        if callable(self.allocation):
            return call_allocation(self.allocation, shapes, sparsity)
        return erk(shapes, sparsity) if self.allocation == "erk" else uniform(shapes, sparsity)

    def counts(self, leaves: Leaves, sparsity: Any) -> dict[str, int]:
        """Return the final number of weights that each leaf keeps, if the settings determine it.

        Args:
            leaves: the leaves by path; only their shapes are used.
            sparsity: a number or a schedule.

        Returns:
            The counts by path, each an upper bound; empty if the counts depend on data.
        """
        if not self.is_counted:
            return {}
        shapes = {path: leaf.shape for path, leaf in leaves.items()}
        shares = {} if self.pattern.is_fixed else self.shares(shapes, final(sparsity))
        # The update computes a schedule in float32, and so rounds differently.
        loose = (
            callable(sparsity) and self.allocation != "uniform" and type(self.pattern) is Pattern
        )
        found = {}
        for path, shape in shapes.items():
            count = self.pattern.count(shape, self.axes(path, shape), shares.get(path))
            size = math.prod(shape)
            found[path] = min(int(count) + loose * (1 + size // _EXACT), size)
        return found

    def masks(self, scores: Leaves, sparsity: Any, *, signed: bool = False) -> Leaves:
        """Return the mask of each leaf, True where a weight stays.

        Args:
            scores: float scores by path, of which the greatest are kept; among equal ones, the
                earlier.
            sparsity: a Python number or a traced scalar.
            signed: whether scores are ranked by value rather than by magnitude.

        Returns:
            Bool masks by path.
        """
        shapes = {path: score.shape for path, score in scores.items()}
        axes = {path: self.axes(path, shape) for path, shape in shapes.items()}
        if self.allocation == "lamp" and not self.pattern.is_fixed:
            scores = {path: lamp(score) for path, score in scores.items()}
        pooled = {path: self.pattern.pool(score, axes[path]) for path, score in scores.items()}
        chosen = self.choose(pooled, shapes, sparsity, signed=signed)
        return {
            path: self.pattern.spread(x, shapes[path], axes[path]) for path, x in chosen.items()
        }

    def choose(
        self,
        pooled: Leaves,
        shapes: Mapping[str, tuple[int, ...]],
        sparsity: Any,
        *,
        signed: bool = False,
    ) -> Leaves:
        """Mark the units of the pattern to keep, among all leaves together or within each.

        Args:
            pooled: the scores of units by path.
            shapes: the shapes of the leaves, by which the sparsity is allocated.
            sparsity: a Python number or a traced scalar.
            signed: see `masks`.

        Returns:
            Bool masks by path, of the shapes of the scores.
        """
        if self.allocation in _TOGETHER and not self.pattern.is_fixed:
            total = sum(x.size for x in pooled.values())
            found = top_k_masks([*pooled.values()], count_kept(total, sparsity), signed=signed)
            return dict(zip(pooled, found, strict=True))
        shares = {} if self.pattern.is_fixed else self.shares(shapes, sparsity)
        return {
            path: self.pattern.choose(x, shares.get(path), signed=signed)
            for path, x in pooled.items()
        }


def check_selection(
    settings: Settings, sparsity: Any, allocation: Allocation, pattern: PatternLike
) -> tuple[Selection, Any]:
    """Check the settings of sparsity, allocation and pattern, and parse the pattern.

    Args:
        settings: collects the problems.
        sparsity: the fraction of zeros, a schedule, or None if the pattern determines it.
        allocation: see `Allocation`.
        pattern: see `PatternLike`.

    Returns:
        The selection, and the sparsity.
    """
    found = parse_pattern(pattern, settings)
    if isinstance(found, NOfM):
        implied = 1.0 - found.n / found.m
        if sparsity is not None and not _equal(sparsity, implied):
            text = f"with pattern={pattern!r}, which leaves {implied:g} zeros; leave sparsity out."
            settings.wrong("sparsity", sparsity, text)
        sparsity = implied
    elif sparsity is None:
        settings.wrong(
            "sparsity",
            None,
            "does not say how much to prune; give a number from 0 to 1, or a schedule.",
        )
    else:
        settings.share("sparsity", sparsity)
        check_schedule(settings, "sparsity", sparsity)
        sparsity = float(sparsity) if isinstance(sparsity, numbers.Real) else sparsity
    if not callable(allocation):
        if allocation == "flops":
            settings.wrong("allocation", allocation, "counts the operations that channels cost; it "
                                                     "goes with pattern='coupled'.")  # fmt: skip
        else:
            settings.choice("allocation", allocation, ("uniform", "erk", *_TOGETHER))
        if allocation in _TOGETHER and not found.compares_leaves:
            settings.wrong("allocation", allocation,
                           f"is one threshold over all leaves, and pattern={pattern!r} compares "
                           "the inputs of each output alone; give 'uniform' or 'erk'.")  # fmt: skip
    return Selection(allocation, found), sparsity


def _equal(sparsity: Any, implied: float) -> bool:
    return isinstance(sparsity, numbers.Real) and math.isclose(float(sparsity), implied)


def largest_pruned(levels: Leaves, masks: Leaves, *, together: bool) -> Leaves:
    """Return the greatest score that each mask prunes; 0 if it prunes nothing.

    Args:
        levels: non-negative float32 levels by path.
        masks: bool masks by path, of those shapes, True where a level stays.
        together: whether there is one threshold for all leaves.

    Returns:
        A float32 scalar by path.
    """
    limits = {
        path: jnp.max(jnp.where(masks[path], jnp.float32(0), level), initial=0)
        for path, level in levels.items()
    }
    if together:
        limits = dict.fromkeys(limits, jnp.max(jnp.stack([*limits.values()]), initial=0))
    return limits
