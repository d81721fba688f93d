"""What all methods that keep the best weights share: a score, an allocation, a schedule, a mask."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.base import Field, is_node
from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.supports.choose import Format, Roles
from nnopt_jax.ops.axis_roles import Axes
from nnopt_jax.ops.masks import kept
from nnopt_jax.ops.threshold import top_k_mask, top_k_masks
from nnopt_jax.pruning.allocation import Allocation, erk, lamp, own, uniform
from nnopt_jax.pruning.pattern import Blocks, NOfM, Pattern, conventional, parse
from nnopt_jax.pruning.timing import check_schedule, final, first, is_due, target
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform, bindable
from nnopt_jax.transform.binding import UNBOUND, Binding
from nnopt_jax.transform.leaves import Leaves, Start, Update, refresh_when, wrapping
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

Mode: TypeAlias = Literal["hard", "soft", "frozen"]
_SHARED = ("global", "lamp")
"""Allocations with one threshold over all leaves: how many a leaf keeps depends on data."""
_EXACT = 100_000  # of that many weights float32, after some steps, may miscount one


class Score(NamedTuple):
    """How a method judges weights.

    Args:
        of: `(dense leaves, memory) -> scores`, both by path; the greatest are kept.
        begin: `(dense leaves, Start) -> memory` by path; None for a score without memory.
        learn: `(dense leaves, memory, Update) -> memory`, after each optimizer step; None where
            the memory stays.
        signed: whether scores are ranked by value; else by magnitude.
        paired: whether `learn` is given the leaves at which the gradients were taken, which the
            state then holds a copy of; else those after the step.
        forgets: whether memory starts from zero after each choice of a mask.
    """

    of: Callable[[Leaves, Leaves], Leaves]
    begin: Callable[[Leaves, Start], Leaves] | None = None
    learn: Callable[[Leaves, Leaves, Update], Leaves] | None = None
    signed: bool = False
    paired: bool = False
    forgets: bool = False


class Layout(NamedTuple):
    """What is kept, apart from which: how the sparsity is shared out, and in which units.

    Args:
        allocation: see `Allocation`.
        pattern: None for single weights.
        binding: the model whose axes a pattern follows.
    """

    allocation: Allocation
    pattern: NOfM | Blocks | None
    binding: Binding = UNBOUND

    @property
    def is_counted(self) -> bool:
        """Whether settings alone tell how many weights a leaf keeps."""
        return isinstance(self.pattern, NOfM) or self.allocation not in _SHARED

    @property
    def needs_axes(self) -> bool:
        """Whether the pattern lies along axes that products sum over."""
        return isinstance(self.pattern, NOfM) or (
            isinstance(self.pattern, Blocks) and self.pattern.needs_axes
        )

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """Return the axes of a leaf."""
        return self.binding.of(path, shape) or conventional(shape)

    def misfit(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Say why the pattern does not fit a leaf; None where it does."""
        return self.pattern.misfit(shape, self.axes(path, shape)) if self.pattern else None

    def format(self, path: str, shape: tuple[int, ...]) -> tuple[Format, Roles]:
        """Return how storage writes the mask of a leaf: as the pattern that it is known to have."""
        if self.pattern is None:
            return "smallest", ()
        axes = self.axes(path, shape)
        if isinstance(self.pattern, Blocks):
            return self.pattern.format(shape, axes), ()
        if not self.pattern.is_numbered:
            return "smallest", ()
        return f"{self.pattern.n}:{self.pattern.m}", self.pattern.roles(shape, axes)

    def shares(self, shapes: Mapping[str, tuple[int, ...]], sparsity: Any) -> Mapping[str, Any]:
        """The sparsity of each leaf."""
        if callable(self.allocation):
            return own(self.allocation, shapes, sparsity)
        return erk(shapes, sparsity) if self.allocation == "erk" else uniform(shapes, sparsity)

    def counts(self, shapes: Mapping[str, tuple[int, ...]], sparsity: Any) -> dict[str, Any]:
        """How many weights each leaf keeps, where `is_counted`."""
        if isinstance(self.pattern, NOfM):
            part = self.pattern
            return {path: math.prod(shape) // part.m * part.n for path, shape in shapes.items()}
        unit = math.prod(self.pattern.sizes) if self.pattern else 1
        shares = self.shares(shapes, sparsity)
        return {p: kept(math.prod(shape) // unit, shares[p]) * unit for p, shape in shapes.items()}

    def counted(self, leaves: Leaves, sparsity: Any) -> dict[str, int]:
        """How many weights each leaf keeps in the end, at most, as far as settings alone tell."""
        if not self.is_counted:
            return {}
        found = self.counts({path: leaf.shape for path, leaf in leaves.items()}, final(sparsity))
        # What a schedule says is shared out in float32 by the update, and in other ways rounded.
        loose = callable(sparsity) and self.allocation != "uniform" and self.pattern is None
        spare = {path: loose * (1 + leaf.size // _EXACT) for path, leaf in leaves.items()}
        return {p: min(int(n) + spare[p], leaves[p].size) for p, n in found.items()}

    def masks(self, scores: Leaves, sparsity: Any, *, signed: bool = False) -> Leaves:
        """The mask of each leaf, True where a weight stays.

        Args:
            scores: by path, float, the greatest are kept; of equal ones the earlier.
            sparsity: Python number or traced scalar.
            signed: whether scores may be less than zero; else their magnitudes count.

        Returns:
            bool masks by path.
        """
        shapes = {path: score.shape for path, score in scores.items()}
        axes = {path: self.axes(path, shape) for path, shape in shapes.items()}
        if isinstance(self.pattern, NOfM):
            return {path: self.pattern.mask(score, axes[path]) for path, score in scores.items()}
        if self.allocation == "lamp":
            scores = {path: lamp(score) for path, score in scores.items()}
        blocks = self.pattern
        pooled = {p: blocks.pool(x, axes[p]) for p, x in scores.items()} if blocks else scores
        chosen = self.choose(pooled, shapes, sparsity, signed=signed)
        return {p: blocks.spread(x, shapes[p]) for p, x in chosen.items()} if blocks else chosen

    def choose(
        self,
        scores: Leaves,
        shapes: Mapping[str, tuple[int, ...]],
        sparsity: Any,
        *,
        signed: bool = False,
    ) -> Leaves:
        """Which units stay, of all leaves together or of each.

        Args:
            scores: by path, float, one for each unit.
            shapes: those of the leaves, by which the sparsity is shared out.
            sparsity: Python number or traced scalar.
            signed: as for `masks`.

        Returns:
            bool by path, of the shapes of the scores.
        """
        if self.allocation in _SHARED:
            total = sum(x.size for x in scores.values())
            found = top_k_masks([*scores.values()], kept(total, sparsity), signed=signed)
            return dict(zip(scores, found, strict=True))
        shares = self.shares(shapes, sparsity)
        return {p: top_k_mask(x, kept(x.size, shares[p]), signed=signed) for p, x in scores.items()}


def layout(
    settings: Settings, sparsity: Any, allocation: Allocation, pattern: Pattern
) -> tuple[Layout, Any]:
    """Checks the settings that say how much is kept, and reads the pattern.

    Args:
        settings: takes the problems.
        sparsity: share of zeros, a schedule, or None where the pattern says it all.
        allocation: see `Allocation`.
        pattern: see `Pattern`.

    Returns:
        The layout, and the sparsity.
    """
    found = parse(pattern, settings)
    if isinstance(found, NOfM):
        implied = 1.0 - found.n / found.m
        if sparsity is not None and not _equal(sparsity, implied):
            text = f"with pattern={pattern!r}, which leaves {implied:g} zeros; leave sparsity out."
            settings.wrong("sparsity", sparsity, text)
        sparsity = implied
    elif sparsity is None:
        settings.wrong(
            "sparsity", None, "says not how much goes; give a number from 0 to 1, or a schedule."
        )
    else:
        settings.share("sparsity", sparsity)
        check_schedule(settings, "sparsity", sparsity)
        sparsity = float(sparsity) if isinstance(sparsity, numbers.Real) else sparsity
    if not callable(allocation):
        settings.choice("allocation", allocation, ("uniform", "erk", *_SHARED))
    return Layout(allocation, found), sparsity


def _equal(sparsity: Any, implied: float) -> bool:
    return isinstance(sparsity, numbers.Real) and math.isclose(float(sparsity), implied)


def masking(
    name: str,
    score: Score,
    sparsity: ScalarOrSchedule | None,
    *,
    where: Where,
    allocation: Allocation = "uniform",
    pattern: Pattern = None,
    mode: Mode = "hard",
    every: int | None = 1,
    needs: tuple[str, ...] = (),
    settings: Settings | None = None,
    exact: bool = True,
) -> Transform:
    """Makes a transform that keeps the weights of greatest score.

    Args:
        name: the method's public name.
        score: how it judges.
        sparsity: share of zeros from 0 to 1, or a schedule of the number of updates.
        where: which leaves.
        allocation: how the sparsity is shared out among leaves.
        pattern: None for single weights, `"n:m"`, or block sizes.
        mode: `"hard"`: each update sets pruned parameters to zero. `"soft"`: the mask is in the
            forward pass, and pruned weights go on learning, straight through. `"frozen"`: the mask
            is in the forward pass, and pruned weights get no gradient.
        every: updates between two choices of the mask; a scheduled sparsity that has arrived is
            put in force at once. None: the mask of `init` stays, and nothing is learned.
        needs: statistics that `init` cannot judge without; a score that learns can do without as
            long as nothing is pruned.
        settings: holds what is wrong with the method's own settings.
        exact: see `Transform`.

    Returns:
        The transform. It wraps: later links of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from nnopt_jax.pruning.masking import Score, masking
        >>> smallest = Score(lambda leaves, memory: {p: 1 / abs(x) for p, x in leaves.items()})
        >>> tx = masking("demo", smallest, 0.5, where="**")
        >>> params = {"w": jnp.array([1.0, -3.0])}
        >>> tx.apply(params, tx.init(params))
        {'w': Array([1., 0.], dtype=float32)}
    """
    settings = Settings(name) if settings is None else settings
    how, sparsity = layout(settings, sparsity, allocation, pattern)
    settings.choice("mode", mode, ("hard", "soft", "frozen"))
    settings.integer("every", every, 1, none=True)
    if score.signed and allocation == "lamp":
        settings.wrong("allocation", allocation, "is made of squares, and these scores have signs; "
                                                 "give 'global'.")  # fmt: skip
    if every is None and callable(sparsity):
        settings.wrong("sparsity", sparsity, "is a schedule, and every=None chooses the mask once; "
                                             "give a number.")  # fmt: skip
    settings.done()
    learns = score.learn is not None and every is not None

    def build(binding: Binding) -> Transform:
        way = _Masking(name, score, sparsity, how._replace(binding=binding), mode, every)
        return wrapping(
            name,
            where,
            init=way.init,
            encode=way.encode,
            update=None if every is None else way.update,
            settle=settle if mode == "hard" else None,
            check=lambda path, leaf: way.how.misfit(path, leaf.shape),
            exact=exact,
            needs=() if learns and first(sparsity) == 0 else needs,
            takes=needs,
            capacities=way.counts,
            needs_axes=how.needs_axes,
            binding=binding,
        )

    return bindable(build)


@dataclasses.dataclass(frozen=True)
class _Masking:
    """The functions of a transform, made of settings that are checked."""

    name: str
    score: Score
    sparsity: Any
    how: Layout
    mode: Mode
    every: int | None

    def init(self, leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        memory = self.score.begin(leaves, start) if self.score.begin else {}
        chosen = self._choose(leaves, memory, target(self.sparsity, 0))
        return {}, self._joined(chosen, self._remembered(memory, True), leaves)

    def update(self, leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        memory = {p: r["memory"] for p, r in state.rest.items() if r["memory"] is not None}
        if self.score.learn is not None:
            paired = {p: r["seen"] for p, r in state.rest.items()} if self.score.paired else leaves
            memory = self.score.learn(paired, memory, now)
        share = target(self.sparsity, now.count)
        old = {p: {k: r[k] for k in ("mask", "sparsity")} for p, r in state.rest.items()}
        held = next(iter(old.values()))["sparsity"]
        due = is_due(self.every, self.sparsity, now.count, held)
        chosen = refresh_when(due, lambda: self._choose(leaves, memory, share), old)
        seen = leaves
        if self.mode == "hard":
            seen = {p: settle(leaf, chosen[p]) for p, leaf in leaves.items()}
        return {}, self._joined(chosen, self._remembered(memory, due), seen)

    def encode(self, leaves: Leaves, state: State, train: bool) -> Leaves:
        known: Leaves = {} if callable(self.sparsity) else self.counts(leaves)
        return {
            path: Masked(
                leaf,
                state.rest[path]["mask"],
                known.get(path),
                mask_mode(self.mode, leaf, train),
                *self.how.format(path, leaf.shape),
            )
            for path, leaf in leaves.items()
        }

    def counts(self, leaves: Leaves) -> dict[str, int]:
        return self.how.counted(leaves, self.sparsity)

    def _choose(self, leaves: Leaves, memory: Leaves, share: Any) -> Leaves:
        now = jnp.asarray(share, jnp.float32)
        chosen = self.how.masks(self.score.of(leaves, memory), share, signed=self.score.signed)
        return {path: {"mask": mask, "sparsity": now} for path, mask in chosen.items()}

    def _remembered(self, memory: Leaves, chosen: Any) -> Leaves:
        """What the next choice builds upon; nothing where there is none."""
        if self.every is None:
            return {}
        if not self.score.forgets:
            return memory
        return {p: jnp.where(chosen, jnp.zeros_like(x), x) for p, x in memory.items()}

    def _joined(self, chosen: Leaves, memory: Leaves, seen: Leaves) -> Leaves:
        """The rest of the state; `seen`: the weights at which the next gradients are taken."""
        keeps = self.score.paired and self.every is not None
        return {
            path: chosen[path] | {"memory": memory.get(path), "seen": seen[path] if keeps else None}
            for path in chosen
        }


def settle(leaf: jax.Array, rest: Any) -> jax.Array:
    """Sets what the mask of a state removes to zero, as hard masks do after each update."""
    return jnp.where(rest["mask"], leaf, jnp.zeros((), leaf.dtype))


def mask_mode(mode: Mode, leaf: Field, train: bool) -> str:
    """The mode of the node: a hard mask is in the parameters already when training sees them."""
    if mode == "soft":
        return "straight_through"
    return "applied" if mode == "hard" and train and not is_node(leaf) else "select"
