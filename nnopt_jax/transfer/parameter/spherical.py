"""Two models, merged along an arc."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from nnopt_jax.ops import model_merging
from nnopt_jax.settings import Settings
from nnopt_jax.transfer.parameter.models import aligned, merged, reals
from nnopt_jax.typing import ArrayLike, Params

_NAME = "transfer.slerp"


def slerp(a: Params, b: Params, t: ArrayLike, *, scope: Literal["leaf", "tree"] = "leaf") -> Params:
    r"""Goes from one model to another along the arc between their directions.

    $$ \theta = \frac{\sin((1 - t)\,\omega)}{\sin\omega}\, \theta_a
       + \frac{\sin(t\,\omega)}{\sin\omega}\, \theta_b, \qquad
       \cos\omega = \frac{\langle \theta_a, \theta_b \rangle}
       {\lVert \theta_a \rVert \lVert \theta_b \rVert} $$

    An average of two directions is shorter than both; this keeps the norm. Where directions are
    nearly parallel, the line between them is taken.

    Args:
        a: the model at `t=0`: a tree of arrays or expressions.
        b: the model at `t=1`, of the same paths and shapes.
        t: from 0 to 1; an array of one number may be traced.
        scope: `"leaf"`: each leaf has its own angle; `"tree"`: one angle of all leaves, taken as
            one vector.

    Returns:
        A tree of arrays, in the dtypes of `a`; leaves of integers are those of `a`.

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
    settings = Settings(_NAME)
    settings.share("t", t, schedule=False, array=True)
    settings.choice("scope", scope, ("leaf", "tree"))
    settings.done()
    t = jnp.asarray(t, jnp.float32)
    if scope == "leaf":
        return merged(_NAME, [a, b], lambda x, y: model_merging.slerp(x, y, t), ("a", "b"))
    mine, theirs = aligned(_NAME, [a, b], ("a", "b"))
    numbers = [path for path, x in mine.items() if jnp.issubdtype(x.dtype, jnp.inexact)]
    x, y = ([reals(tree[path]) for path in numbers] for tree in (mine, theirs))
    near, far = model_merging.arc(x, y, t)
    return merged(_NAME, [a, b], lambda x, y: near * x + far * y, ("a", "b"))
