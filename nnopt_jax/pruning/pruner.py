"""Pruning by any score, in any pattern."""

from __future__ import annotations

from typing import Any, TypedDict

from nnopt_jax.errors import call_hint
from nnopt_jax.pruning.allocation import Allocation
from nnopt_jax.pruning.coupled import Coupled, check_coupled
from nnopt_jax.pruning.masking import MODES, Masking, MaskMode, project
from nnopt_jax.pruning.pattern_names import PatternLike, parse_pattern
from nnopt_jax.pruning.patterns import CoupledPattern, PerOutput
from nnopt_jax.pruning.regrowth import Regrow, Regrowth, project_grown
from nnopt_jax.pruning.schedules import check_schedule, first
from nnopt_jax.pruning.score import Score
from nnopt_jax.pruning.scores import SCORES
from nnopt_jax.pruning.selection import Selection, check_selection
from nnopt_jax.settings import Settings
from nnopt_jax.transform import presets
from nnopt_jax.transform.base import Transform, bindable
from nnopt_jax.transform.binding import Binding
from nnopt_jax.transform.builders import wrapping
from nnopt_jax.transform.leaves import matrices
from nnopt_jax.transform.presets import recorded
from nnopt_jax.tree.select import Where
from nnopt_jax.typing import ScalarOrSchedule

__all__ = ["PruningChoices", "by_score", "preset"]


class PruningChoices(TypedDict, total=False):
    """The keyword arguments that every preset of pruning passes on to `by_score`."""

    where: Where
    allocation: Allocation | None
    pattern: PatternLike
    mode: MaskMode | Regrow | None
    every: int | None


@recorded
def by_score(
    score: Score | str,
    sparsity: ScalarOrSchedule | None = None,
    *,
    where: Where = matrices,
    allocation: Allocation | None = None,
    pattern: PatternLike = None,
    mode: MaskMode | Regrow | None = None,
    every: int | None = 1,
    name: str | None = None,
) -> Transform:
    r"""Keep the weights of greatest score, exactly as many as the sparsity demands.

    $$ \hat w_i = w_i \, [\, s_i \text{ is among the } k \text{ greatest} \,],
       \qquad k = \mathrm{round}((1 - s)\, n) $$

    Among equal scores, the earlier weights are kept. Any score goes with any pattern, allocation,
    schedule and mode; a combination without meaning raises an error that says why
    (docs/choices.md).

    Args:
        score: a value of `pruning.scores`, the name of one, or a user's `Score`.
        sparsity: $s$, the fraction of zeros from 0 to 1, or an `optax.Schedule` of the number of
            updates made (`cubic`, `one_shot`, `iterative`); omitted if a pattern `"n:m"` determines
            it. Pruning at `init` (with any sparsity that does not start at 0) uses `stats`, if the
            score needs statistics.
        where: which leaves; by default those of two or more axes. For coupled axes, which
            dimensions, by name; by default all.
        allocation: how the sparsity is divided among leaves. `"uniform"`: each leaf has sparsity
            $s$. `"erk"`: small leaves stay denser. `"global"`: one threshold for all leaves, so
            that $s$ is the total. `"lamp"`: one threshold for layer-adaptive scores. With these
            two, a leaf may lose all of its weights, and the number it keeps depends on data. Or a
            function `(shapes by path, s) -> sparsities by path`. For coupled axes: `"uniform"` (in
            each dimension), `"global"`, or `"flops"`, one threshold at which the operations of
            products with weights fall by the fraction $s$. By default, the score's own allocation.
        pattern: None: single weights. `"per_output"`: single weights, compared within each output.
            `"2:4"`: two of every four along the contracted axes, the inputs. `(4, 1)`: whole blocks
            of four inputs by one output, by their mean score. `"coupled"`: channels, neurons and
            heads with all coupled weights, by the sum of their scores; needs a graph. A leaf of
            three axes needs a transform that is bound to a model; unbound, kernels are `(in, out)`
            and `(h, w, in, out)`.
        mode: `"hard"`: each update sets the pruned parameters to zero, so that the forward pass
            needs no mask (before the first update, the model still uses the pruned parameters).
            `"soft"`: the mask is part of the forward pass; pruned weights get straight-through
            gradients and may return. `"frozen"`: the mask is part of the forward pass, and pruned
            weights get no gradient. `Regrow(...)`: training starts with random connections, of
            which some are replaced again and again. By default, the score's own mode.
        every: updates between two choices of the mask. The final sparsity of a schedule takes
            effect at once. None: the mask of `init` stays; if it is hard, it costs no extra pass
            over the weights, because the optimizer step applies it.
        name: the name of the method in errors and plans; by default `"pruning.<score>"`.

    Returns:
        The transform. It wraps: later transforms of a chain keep its zeros.

    Raises:
        ValueRangeError: a setting is out of range, or a combination has no meaning.
        StatisticsError: (by `init` or `update`) statistics or gradients are missing.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> tx = nnopt.pruning.by_score(nnopt.pruning.scores.magnitude(), 0.5, pattern="per_output")
        >>> params = {"kernel": jnp.array([[0.1, -2.0], [0.3, 4.0]])}
        >>> print(tx.apply(params, tx.init(params))["kernel"])
        [[0.  0. ]
         [0.3 4. ]]
    """
    label = score if isinstance(score, str) else getattr(score, "name", "by_score")
    settings = Settings(name or f"pruning.{label}")
    found = _score_of(score, settings)
    if found.check is not None:
        found.check(settings)
    mode = found.mode if mode is None else mode  # pyright: ignore[reportAssignmentType] - a mode
    if allocation is None:
        compares = pattern != "per_output" and not isinstance(pattern, PerOutput)
        allocation = found.allocation if compares else "uniform"
    every = None if found.once else every
    is_coupled = pattern == "coupled" or isinstance(pattern, CoupledPattern)
    selection, sparsity = (_coupled_selection if is_coupled else check_selection)(
        settings, sparsity, allocation, pattern
    )
    _check_mode(settings, found, sparsity, selection, mode, every)
    settings.done()
    name = name or f"pruning.{found.name}"
    learns = found.learn is not None and every is not None
    needs = () if learns and first(sparsity) == 0 else found.needs
    kind = Regrowth if isinstance(mode, Regrow) else Masking

    def build(binding: Binding) -> Transform:
        if is_coupled:
            dimensions = "**" if where is matrices else where
            choice = found, sparsity, selection, mode, every
            way = Coupled(*choice, name=name, where=dimensions, binding=binding)
            return Transform(
                name, way.start, way.masked, way.refresh, exact=False, check=way.check,
                needs=needs, takes=found.needs,
            )  # fmt: skip
        bound = selection._replace(binding=binding)
        masking = kind(found, sparsity, bound, mode, every)
        projects = {"hard": project}.get(mode) if isinstance(mode, str) else project_grown
        return wrapping(
            name,
            where,
            init=masking.init,
            encode=masking.encode,
            update=None if every is None else masking.update,
            project=projects,
            check=lambda path, leaf: bound.misfit(path, leaf.shape),
            exact=found.exact,
            needs=needs,
            takes=found.needs,
            capacities=masking.counts,
            needs_axes=bound.pattern.needs_axes,
            binding=binding,
        )

    return bindable(build)


preset = presets.preset(by_score, PruningChoices)


def _score_of(score: Any, settings: Settings) -> Score:
    if isinstance(score, Score):
        return score
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]()
    if isinstance(score, str):
        settings.choice("score", score, tuple(SCORES))
    else:
        text = "is not a score; give a value such as pruning.scores.taylor(), or its name."
        settings.wrong("score", score, text + call_hint(score))
    return SCORES["magnitude"]()


def _coupled_selection(
    settings: Settings, sparsity: Any, allocation: Any, pattern: PatternLike
) -> tuple[Selection, Any]:
    found = parse_pattern(pattern, settings)
    settings.share("sparsity", sparsity)
    check_schedule(settings, "sparsity", sparsity)
    check_coupled(settings, allocation, getattr(found, "multiple", 1))
    return Selection(allocation, found), sparsity


def _check_mode(
    settings: Settings,
    score: Score,
    sparsity: Any,
    selection: Selection,
    mode: Any,
    every: int | None,
) -> None:
    """Record problems with the mode, alone and in combination with the other choices."""
    settings.integer("every", every, 1, none=True)
    is_coupled = isinstance(selection.pattern, CoupledPattern)
    if not isinstance(mode, Regrow):
        settings.choice("mode", mode, MODES)
    elif is_coupled:
        settings.wrong("mode", mode, "moves connections within a leaf, and channels are taken out "
                                     "with all their weights; give 'hard', 'soft' or 'frozen'.",
                       )  # fmt: skip
    else:
        mode.check(settings, selection)
        if callable(sparsity):
            settings.wrong("sparsity", sparsity, "is a schedule, and as many weights are grown as "
                                                 "are dropped; give a number.")  # fmt: skip
        if score.signed:
            settings.wrong("score", score, "can be negative, and regrowth drops the weights of "
                                           "least score; give a score of zero or more.",
                           )  # fmt: skip
        if score.once:
            settings.wrong("score", score, "is measured once, and connections move in training; "
                                           "give 'magnitude' or 'taylor'.")  # fmt: skip
        elif every is None:
            settings.wrong("every", None, "would never move a connection; give a number.")
    if score.signed and selection.allocation == "lamp":
        settings.wrong("allocation", "lamp", "compares squares, and these scores can be negative; "
                                             "give 'global'.")  # fmt: skip
    if every is None and callable(sparsity):
        settings.wrong("sparsity", sparsity, "is a schedule, and every=None chooses the mask once; "
                                             "give a number.")  # fmt: skip
    if is_coupled and "input_moments" in score.needs:
        settings.wrong("score", score, "has no value for biases and scales, which belong to "
                                       "channels as well; give 'magnitude' or 'taylor'.",
                       )  # fmt: skip
    if not score.has_size and selection.allocation == "lamp":
        settings.wrong("allocation", "lamp", f"compares squares, and {score.name} scores have no "
                                             "size; give 'global'.")  # fmt: skip
