"""Merging of models of one architecture, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nnopt_jax.arrays.nodes import is_node, materialize, summary
from nnopt_jax.errors import Problems, SelectionError, ShapeError, nearest
from nnopt_jax.ops import model_merging
from nnopt_jax.settings import Settings, single
from nnopt_jax.transform.validation import check_values
from nnopt_jax.tree.paths import flatten, unflatten
from nnopt_jax.typing import Array, ArrayLike, Params


def soup(models: Sequence[Params], weights: float | Sequence[float] = 1.0) -> Params:
    r"""Average the parameters of models that were fine-tuned from the same start.

    $$ \theta = \frac{\sum_k w_k\, \theta_k}{\sum_k w_k} $$

    Args:
        models: trees of arrays or packed parameters, of the same paths and shapes.
        weights: one for each model, or one for all.

    Returns:
        A tree of arrays in the dtypes of the first model, with its integer leaves.

    Raises:
        ValueRangeError: there are no models, or weights do not fit.
        SelectionError: a model lacks leaves of the first, or has others; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> nnopt.transfer.soup([{"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}], [2, 1])
        {'w': Array([2.], dtype=float32)}

    References:
        Wortsman et al. 2022, Model Soups, section 2 (uniform soup).
    """
    who = "transfer.soup"
    settings = Settings(who)
    models, fractions = _models_and_weights(settings, models, weights)
    total = sum(fractions)
    if not total:
        settings.wrong("weights", weights, "sums to zero, by which it is divided.")
        settings.done()
    return merge_leaves(
        who, models, lambda *x: sum(w / total * one for w, one in zip(fractions, x, strict=True))
    )


def task_arithmetic(
    base: Params, models: Sequence[Params], weights: float | Sequence[float] = 1.0
) -> Params:
    r"""Add or subtract the changes that fine-tuning made in other models.

    $$ \theta = \theta_0 + \sum_k w_k\, (\theta_k - \theta_0) $$

    Args:
        base: the model that the others were fine-tuned from.
        models: trees of arrays or packed parameters, of the same paths and shapes.
        weights: one for each model, or one for all; a negative weight removes what was learned.

    Returns:
        A tree of arrays in the dtypes of `base`, with its integer leaves.

    Raises:
        ValueRangeError: weights do not fit.
        SelectionError: a model lacks leaves of the base, or has others; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> base, a, b = ({"w": jnp.array([x])} for x in (1.0, 3.0, 1.5))
        >>> nnopt.transfer.task_arithmetic(base, [a, b], [1, -1])
        {'w': Array([2.5], dtype=float32)}

    References:
        Ilharco et al. 2023, Editing Models with Task Arithmetic, section 2.
    """
    who = "transfer.task_arithmetic"
    models, fractions = _models_and_weights(Settings(who), models, weights, least=0)

    def merge(start: Array, *others: Array) -> Array:
        return start + sum(w * (x - start) for w, x in zip(fractions, others, strict=True))

    return merge_leaves(who, [base, *models], merge, ("the base",))


def ties(
    base: Params,
    models: Sequence[Params],
    weights: float | Sequence[float] = 1.0,
    *,
    density: float = 0.2,
    scale: float = 1.0,
    vote: model_merging.Elect = "weighted",
) -> Params:
    r"""Merge models fine-tuned from one base: trim, elect signs, average those that agree.

    $$ \theta = \theta_0 + \lambda \, \tau, \qquad
       \delta_k = \mathrm{trim}(\theta_k - \theta_0), \qquad
       \tau = \frac{\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} w_k\, \delta_k}
       {\sum_{k: \mathrm{sgn}(\delta_k) = \gamma} n_k}, \qquad
       \gamma = \mathrm{sgn}\Big(\sum_k \delta_k\Big) $$

    Args:
        base: the model that the others were fine-tuned from.
        models: trees of arrays or packed parameters, of the same paths and shapes.
        weights: `w`, one for each model, or one for all.
        density: the fraction of each leaf's differences to keep, the greatest, rounded down: a leaf
            of four keeps none at 0.2.
        scale: `lambda`.
        vote: `"weighted"` (mergekit): weights count in the election, `n = w`; `"unweighted"`
            (PEFT): they do not, `n = 1`. Both are equal if all weights are 1.

    Returns:
        A tree of arrays in the dtypes of `base`, with its integer leaves.

    Raises:
        ValueRangeError: a setting is out of range.
        SelectionError: a model lacks leaves of the base, or has others; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> base, a, b = ({"w": jnp.array(x)} for x in ([0.0, 0.0], [4.0, 0.1], [-2.0, 3.0]))
        >>> nnopt.transfer.ties(base, [a, b], density=1.0)
        {'w': Array([4.  , 1.55], dtype=float32)}

    References:
        Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, section 4.
    """
    who = "transfer.ties"
    settings = Settings(who)
    settings.share("density", density, schedule=False)
    settings.number("scale", scale, -1e30, 1e30)
    settings.choice("vote", vote, ("weighted", "unweighted"))
    models, fractions = _models_and_weights(settings, models, weights)

    def merge(start: Array, *others: Array) -> Array:
        trimmed = jnp.stack([model_merging.trim(other - start, density) for other in others])
        return start + scale * model_merging.elect(trimmed, jnp.asarray(fractions), vote)

    return merge_leaves(who, [base, *models], merge, ("the base",))


def slerp(a: Params, b: Params, t: ArrayLike, *, scope: Literal["leaf", "tree"] = "leaf") -> Params:
    r"""Interpolate between two models along the arc between their directions.

    $$ \theta = \frac{\sin((1 - t)\,\omega)}{\sin\omega}\, \theta_a
       + \frac{\sin(t\,\omega)}{\sin\omega}\, \theta_b, \qquad
       \cos\omega = \frac{\langle \theta_a, \theta_b \rangle}
       {\lVert \theta_a \rVert \lVert \theta_b \rVert} $$

    An average of two directions is shorter than both, whereas this keeps the norm. If directions
    are nearly parallel, the interpolation is linear.

    Args:
        a: the model at `t=0`: a tree of arrays or packed parameters.
        b: the model at `t=1`, of the same paths and shapes.
        t: from 0 to 1; an array of one number may be traced.
        scope: `"leaf"`: each leaf has its own angle; `"tree"`: all leaves have one angle, as one
            vector.

    Returns:
        A tree of arrays in the dtypes of `a`, with the integer leaves of `a`.

    Raises:
        ValueRangeError: a setting is out of range.
        SelectionError: the paths differ; all are named.
        ShapeError: shapes, or kinds of numbers, differ; all are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import nnopt_jax as nnopt
        >>> a, b = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}
        >>> print(nnopt.transfer.slerp(a, b, 0.5)["w"].round(4))
        [1.4142 1.4142]

    References:
        Shoemake 1985, Animating Rotation with Quaternion Curves, section 3.3.
    """
    who, names = "transfer.slerp", ("a", "b")
    settings = Settings(who)
    settings.share("t", t, schedule=False, array=True)
    settings.choice("scope", scope, ("leaf", "tree"))
    settings.done()
    t = jnp.asarray(t, jnp.float32)
    if scope == "leaf":
        return merge_leaves(who, [a, b], lambda x, y: model_merging.slerp(x, y, t), names)
    mine, theirs = _leaves_of_models(who, [a, b], names)
    numbers = [path for path, x in mine.items() if jnp.issubdtype(x.dtype, jnp.inexact)]
    x, y = ([_as_real(tree[path]) for path in numbers] for tree in (mine, theirs))
    near, far = model_merging.arc(x, y, t)
    return merge_leaves(who, [a, b], lambda x, y: near * x + far * y, names)


def merge_leaves(
    who: str, models: Sequence[Params], merge: Callable[..., Any], names: Sequence[str] = ()
) -> Params:
    """Merge models leaf by leaf, in float32, and cast once.

    A complex number is merged as two real numbers. Other leaves (counters, masks) are those of the
    first model.

    Args:
        who: the method's public name.
        models: trees of arrays or packed parameters, with the same paths and shapes.
        merge: a function of float32 arrays, one of each model, that returns the merged array.
        names: the names of the models in errors; by default model 0, model 1, ...

    Returns:
        A tree of arrays of the structure and dtypes of the first model.

    Raises:
        SelectionError: a model lacks leaves of the first, or has others.
        ShapeError: shapes differ.
        CompositionError: leaves are not arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> merge_leaves("demo", [{"w": jnp.ones(2)}, {"w": jnp.zeros(2)}], lambda a, b: a - 2 * b)
        {'w': Array([1., 1.], dtype=float32)}
    """
    leaves = _leaves_of_models(who, models, names)
    found: dict[str, Any] = {}
    for path, leaf in leaves[0].items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            found[path] = materialize(leaf)
            continue
        x = merge(*(_as_real(one[path]) for one in leaves))
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            x = jax.lax.complex(x[..., 0], x[..., 1])
        found[path] = x.astype(leaf.dtype)
    return unflatten(models[0], found, is_node)


def _as_real(leaf: Any) -> Array:
    """Return a leaf in float32; a complex leaf gets a last axis of real and imaginary parts."""
    x = materialize(leaf)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    return x.astype(jnp.float32)


def _kind(leaf: Any) -> str:
    """Return the kind of a leaf's numbers: floating, complex, or not merged."""
    for kind in (jnp.floating, jnp.complexfloating):
        if jnp.issubdtype(leaf.dtype, kind):
            return kind.__name__
    return "none to be merged"


def _leaves_of_models(
    who: str, models: Sequence[Params], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the leaves of each model by path; raise if paths, shapes or kinds differ."""
    leaves = [flatten(model, is_node) for model in models]
    called = [*names, *(f"model {number}" for number in range(len(names), len(models)))]
    for name, one in zip(called, leaves, strict=True):
        check_values(f"{who}: {name}", one)
    first, lost, misfit = leaves[0], Problems(who), Problems(who)
    for name, other in zip(called[1:], leaves[1:], strict=True):
        for path in first.keys() - other.keys():
            lost.add(path, f"is not in {name}.{nearest(path, other.keys() - first.keys())}")
        for path in other.keys() - first.keys():
            lost.add(path, f"is in {name}, not in {called[0]}.{nearest(path, first)}")
        for path in (path for path in first if path in other):
            ours, theirs = first[path], other[path]
            text = f"is {summary(ours)} in {called[0]}, {summary(theirs)} in {name}"
            if ours.shape != theirs.shape:
                misfit.add(path, f"{text}; graft() makes shapes fit")
            elif _kind(ours) != _kind(theirs):
                misfit.add(path, f"{text}; cast one of them")
    lost.found.sort()
    lost.raise_as(SelectionError)
    misfit.raise_as(ShapeError)
    return leaves


def _models_and_weights(
    settings: Settings, models: Any, weights: Any, *, least: int = 1
) -> tuple[list[Params], list[float]]:
    """Return the models as a list, and a finite weight for each."""
    if isinstance(models, Mapping) or not isinstance(models, Iterable):
        settings.wrong("models", type(models), "is not a list; give models one by one, [a, b].")
        settings.done()
    models = list(models)
    if len(models) < least:
        settings.wrong("models", models, "is empty; give one model or more.")
    if isinstance(weights, jax.Array | np.ndarray) and weights.ndim:
        weights = list(weights)
    several = weights if isinstance(weights, Sequence) else [weights] * len(models)
    values = [single(value) for value in several]
    if len(values) != len(models):
        settings.wrong("weights", weights, f"has {len(values)} values for {len(models)} models.")
    for value in values:
        settings.number("weights", value, -1e30, 1e30)
    settings.done()
    return models, [float(value) for value in values]
