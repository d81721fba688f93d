"""Proximal pruning: steps of a penalty whose strength follows a target sparsity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nnopt_jax.arrays.masked import Masked
from nnopt_jax.arrays.nodes import is_node
from nnopt_jax.ops.grid import expand
from nnopt_jax.ops.proximal_operators import (
    block_rms,
    block_soft_threshold,
    hoyer_scale,
    soft_threshold,
)
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.masking import node_mode
from nnopt_jax.pruning.pattern_names import parse_groups
from nnopt_jax.pruning.patterns import WholeBlocks
from nnopt_jax.pruning.schedules import final, is_due, target
from nnopt_jax.pruning.selection import Selection, check_selection, largest_pruned
from nnopt_jax.settings import Settings
from nnopt_jax.transform.base import State, Transform, UpdateFn, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import Leaves, Start, Update, matrices, refresh_when
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

_NAME = "pruning.proximal"
Penalty: TypeAlias = Literal["l1", "hoyer", "group_lasso"]
_PENALTIES = ("l1", "hoyer", "group_lasso")


@recorded
def proximal(
    sparsity: ScalarOrSchedule,
    *,
    penalty: Penalty = "l1",
    groups: str | Sequence[int] | None = None,
    where: Where = matrices,
    allocation: Allocation = "uniform",
    delete: Literal["at_once", "on_arrival"] = "at_once",
    every: int = 1,
) -> Transform:
    r"""Shrink weights by the proximal step of a penalty after each update, and prune the zeros.

    $$ w \leftarrow \operatorname{prox}_{\lambda R}(w) = \arg\min_y
       \tfrac12 \lVert y - w \rVert_2^2 + \lambda R(y) $$

    The strength is not a setting: it is the least strength that makes the scheduled fraction zero,
    so that the number of zeros is exact. Each step is given by a threshold `t`, the largest
    magnitude (for groups, root mean square) to be pruned:

    | penalty | R | step |
    |---|---|---|
    | `l1` | `sum abs(w)` | `sign(w) max(abs(w) - t, 0)` |
    | `hoyer` | `(sum abs(w))^2 / sum w^2`, at constant norm | the same, then rescaled to the norm |
    | `group_lasso` | `sum_g sqrt(n_g) norm(w_g)` | `w_g max(1 - t sqrt(n_g) / norm(w_g), 0)` |

    A constant sparsity deletes all zeros at the first update and shrinks nothing after that. A
    sparsity that grows slowly follows the regularization path of the penalty.

    Args:
        sparsity: the fraction of zeros (or of zero groups), from 0 to 1, or a schedule of the
            number of updates.
        penalty: the penalty, see above. Hoyer's shrinks large weights less, as it does not depend
            on scale.
        groups: the groups of `group_lasso`: `"outputs"`, all weights of one output (default);
            `"inputs"`, those of one input, which is a channel of a convolution; or block sizes, as
            in the pattern of `pruning.magnitude`.
        where: which leaves; by default those of two or more axes.
        allocation: `"uniform"`, `"erk"`, `"global"` (one threshold for all leaves, with the same
            total), or a function `(shapes by path, sparsity) -> sparsities by path`.
        delete: `"at_once"`: a weight that became zero stays zero. `"on_arrival"`: it may return
            until the schedule reaches its end, if its next step takes it beyond the threshold; the
            threshold then counts all weights, which shrinks the others more.
        every: updates between two proximal steps; zeros stay zero in between.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros. Parameters that an
        earlier transform has encoded are only masked, because that transform moves them.

    Raises:
        ValueRangeError: a setting is out of range.
        ShapeError: at `init` or `bind`, groups do not fit a leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.proximal(0.5)
        >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.5]])}
        >>> params, state = tx.update(params, tx.init(params))
        >>> params["kernel"]
        Array([[ 0., -2.],
               [ 1.,  0.]], dtype=float32)

    References:
        Parikh and Boyd 2014, Proximal Algorithms, section 6.5; Yang et al. 2020, DeepHoyer,
        section 3; Yuan and Lin 2006, Model selection and estimation in regression with grouped
        variables.
    """
    settings = Settings(_NAME)
    how, sparsity = check_selection(settings, sparsity, allocation, None)
    settings.choice("penalty", penalty, _PENALTIES)
    settings.choice("delete", delete, ("at_once", "on_arrival"))
    settings.integer("every", every, 1)
    if allocation == "lamp":
        settings.wrong("allocation", allocation, "has no threshold of its own; give 'global'.")
    if groups is not None and penalty != "group_lasso":
        settings.wrong("groups", groups, "is for penalty='group_lasso'.")
    grouped = parse_groups("outputs" if groups is None else groups, settings)
    settings.done()
    how = how._replace(pattern=grouped) if penalty == "group_lasso" else how

    def build(binding: Binding) -> Transform:
        how_bound = how._replace(binding=binding)
        way = _Proximal(how_bound, sparsity, penalty, delete == "on_arrival", every)
        tx = wrapping(
            _NAME,
            where,
            init=way.init,
            encode=way.encode,
            update=way.update,
            check=lambda path, leaf: how_bound.misfit(path, leaf.shape),
            exact=penalty == "l1",
            capacities=way.counts,
            needs_axes=how.pattern.needs_axes,
            binding=binding,
        )
        return dataclasses.replace(tx, update=way.moving(tx.update))

    return bindable(build)


@dataclasses.dataclass(frozen=True)
class _Proximal:
    """The settings of `proximal`, and the functions of its transform.

    The state of a leaf holds its mask, the current sparsity, and the threshold and scale of the
    last update.
    """

    how: Selection
    sparsity: Any
    penalty: str
    returns: bool
    every: int

    def init(self, leaves: Leaves, start: Start) -> tuple[Leaves, Leaves]:
        del start
        everything = {path: jnp.ones(leaf.shape, bool) for path, leaf in leaves.items()}
        return {}, self._without_step(self._choose(leaves, everything, target(self.sparsity, 0)))

    def update(self, leaves: Leaves, state: State, now: Update) -> tuple[Leaves, Leaves]:
        share = target(self.sparsity, now.count)
        first = state.count == 0
        may = {}
        for path, rest in state.rest.items():
            # Nothing was moved before the first update, so the weights that `init` masked are
            # ranked once more.
            free = first
            if self.returns:
                free |= rest["sparsity"] != jnp.float32(final(self.sparsity))
            may[path] = rest["mask"] | free
        held = next(iter(state.rest.values()))["sparsity"]
        due = is_due(self.every, self.sparsity, now.count, held)
        due = due if due is True else due | first
        still = self._without_step(state.rest)
        return {}, refresh_when(due, lambda: self._choose(leaves, may, share), still)

    def moving(self, refresh: UpdateFn) -> UpdateFn:
        """Return an update that also shrinks parameters that no earlier transform has encoded."""

        def update(
            params: Any, state: State, *, grads: Any = None, upstream: Any = None, step: Any = None
        ) -> tuple[Any, State]:
            params, state = refresh(params, state, grads=grads, upstream=upstream, step=step)
            raw, seen = (
                flatten(tree, is_node)
                for tree in (params, params if upstream is None else upstream)
            )
            moved = {
                path: self._shrink(path, raw[path], rest)
                for path, rest in state.rest.items()
                if not is_node(seen[path])
            }
            return unflatten(params, raw | moved, is_node), state

        return update

    def _shrink(self, path: str, leaf: jax.Array, rest: Any) -> jax.Array:
        wide, threshold = leaf.astype(jnp.float32), rest["threshold"]
        if not isinstance(self.how.pattern, WholeBlocks):
            moved = soft_threshold(wide, threshold) * rest["scale"]
        else:
            moved = block_soft_threshold(wide, threshold, self._block(path, leaf.shape))
        return jnp.where(rest["mask"], moved, jnp.float32(0)).astype(leaf.dtype)

    def encode(self, leaves: Leaves, state: State, train: bool) -> Leaves:
        known: Leaves = {} if callable(self.sparsity) else self.counts(leaves)
        return {
            path: Masked(
                leaf, state.rest[path]["mask"], known.get(path), node_mode("hard", leaf, train)
            )
            for path, leaf in leaves.items()
        }

    def counts(self, leaves: Leaves) -> dict[str, int]:
        return self.how.counts(leaves, self.sparsity)

    def _block(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        pattern = self.how.pattern
        if not isinstance(pattern, WholeBlocks):
            return (1,) * len(shape)
        return pattern.block(shape, self.how.axes(path, shape))

    def _without_step(self, rest: Leaves) -> Leaves:
        """Return the state with a threshold of zero and a scale of one, which moves nothing."""
        none = {"threshold": jnp.float32(0), "scale": jnp.float32(1)}
        return {path: part | none for path, part in rest.items()}

    def _choose(self, leaves: Leaves, may: Leaves, share: Any) -> Leaves:
        """Choose masks, thresholds and scales that reach the sparsity among the allowed entries."""
        blocks = {path: self._block(path, leaf.shape) for path, leaf in leaves.items()}
        levels, rest = {}, {}
        for path, leaf in leaves.items():
            alive = jnp.where(may[path], leaf.astype(jnp.float32), jnp.float32(0))
            levels[path] = (
                block_rms(alive, blocks[path])
                if isinstance(self.how.pattern, WholeBlocks)
                else jnp.abs(alive)
            )
        masks = self.how.choose(levels, {p: x.shape for p, x in leaves.items()}, share)
        limits = largest_pruned(levels, masks, together=self.how.allocation == "global")
        for path, leaf in leaves.items():
            scale = jnp.float32(1)
            if self.penalty == "hoyer":
                alive = jnp.where(may[path], leaf, jnp.zeros((), leaf.dtype))
                scale = hoyer_scale(alive, limits[path])
            rest[path] = {
                "mask": expand(masks[path], leaf.shape) & may[path],
                "sparsity": jnp.asarray(share, jnp.float32),
                "threshold": limits[path],
                "scale": scale,
            }
        return rest
