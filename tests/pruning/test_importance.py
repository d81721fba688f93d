"""Scores from gradients, against a whole training in NumPy on a quadratic loss, and by hand."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import ShapeError, StatisticsError, ValueRangeError

RATE = 0.1
DRAW = np.random.default_rng(5)
SHAPES = {"first": (4, 3), "second": (3, 2)}
START = {name: DRAW.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
BENDS = {name: DRAW.uniform(0.5, 3, size=s).astype(np.float32) for name, s in SHAPES.items()}
AIMS = DRAW.normal(size=(6, 1)).astype(np.float32)


def loss(params, aim):
    """Half of `bend * (weight - aim)^2`, summed: the gradient is `bend * (weight - aim)`."""
    return sum((0.5 * BENDS[name] * (params[name] - aim) ** 2).sum() for name in SHAPES)


def slopes(seen, aim):
    return {name: BENDS[name] * (seen[name] - aim) for name in SHAPES}


def best(scores, share, *, together):
    """The mask by a stable sort of values."""
    if not together:
        return {n: best({n: x}, share, together=True)[n] for n, x in scores.items()}
    flat = np.concatenate([x.ravel() for x in scores.values()])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[: round(flat.size * (1 - share))]] = True
    parts = np.split(mask, np.cumsum([x.size for x in scores.values()])[:-1])
    return {n: part.reshape(scores[n].shape) for n, part in zip(scores, parts, strict=True)}


def trained(tx, steps):
    """Parameters and masks after each step of plain gradient descent."""
    optimizer = optax.sgd(RATE)
    params, state = {n: jnp.asarray(x) for n, x in START.items()}, tx.init(START)
    opt_state = optimizer.init(nnopt.trainable(tx, params, state))

    @jax.jit
    def one(params, state, opt_state, aim):
        _, grads = nnopt.value_and_grad(loss, tx)(params, state, aim)
        movable = nnopt.trainable(tx, params, state)
        updates, opt_state = optimizer.update(grads.train, opt_state, movable)
        params, state = nnopt.step(tx, params, state, updates, grads)
        return params, state, opt_state

    for step in range(steps):
        params, state, opt_state = one(params, state, opt_state, AIMS[step][:, None])
        yield params, {name: state.rest[name]["mask"] for name in SHAPES}


def expected(judge, mode, steps, *, together=True):
    """The same by the papers: `judge(memory, weight, slope) -> (memory, scores of a weight)`."""
    weights = {n: x.astype(np.float64) for n, x in START.items()}
    mask = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    memory = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(steps):
        seen = {n: np.where(mask[n], w, 0) for n, w in weights.items()}
        slope = slopes(seen, AIMS[step][:, None])
        scores = {}
        for n, w in weights.items():
            memory[n], score = judge(memory[n], w, slope[n])
            moving = slope[n] * mask[n] if mode == "frozen" else slope[n]
            weights[n] = w - RATE * moving
            scores[n] = score(weights[n])
        mask = best(scores, schedule(step + 1), together=together)
        if mode == "hard":
            weights = {n: np.where(mask[n], w, 0) for n, w in weights.items()}
        yield weights, mask


def schedule(count):
    """0 at the start, then a half."""
    return 0.5 * (count >= 1)


def _taylor(decay, power):
    def judge(memory, weight, slope):
        memory = decay * memory + (1 - decay) * np.abs(weight * slope) ** power
        return memory, lambda moved: memory

    return judge


def _movement(memory, weight, slope):
    memory = memory - weight * slope
    return memory, lambda moved: memory


def _fisher(memory, weight, slope):
    memory = 0.9 * memory + 0.1 * slope**2
    return memory, lambda moved: 0.5 * memory * moved**2


PAPERS = {
    "taylor": (dict(decay=0.5, power=2), _taylor(0.5, 2), "hard"),
    "taylor-1": (dict(decay=0.8, power=1, mode="soft"), _taylor(0.8, 1), "soft"),
    "movement": ({}, _movement, "frozen"),
    "movement-soft": (dict(mode="soft"), _movement, "soft"),
    "fisher": (dict(decay=0.9), _fisher, "hard"),
}


@pytest.mark.parametrize(
    ("name", "together"),
    [*((name, True) for name in PAPERS), ("taylor", False), ("movement", False)],
)
def test_training_follows_the_paper(name, together):
    settings, judge, mode = PAPERS[name]
    method = getattr(nnopt.pruning, name.split("-")[0])
    allocation = "global" if together else "uniform"
    tx = method(schedule, allocation=allocation, **settings)
    steps = zip(trained(tx, 6), expected(judge, mode, 6, together=together), strict=True)
    for (params, masks), (weights, wanted) in steps:
        for leaf in SHAPES:
            np.testing.assert_array_equal(masks[leaf], wanted[leaf])
            np.testing.assert_allclose(params[leaf], weights[leaf], rtol=1e-5, atol=1e-6)


def test_pruned_weights_return_by_movement():
    """Else the comparison above could not tell whether scores under the mask go on learning."""
    masks = [mask["first"] for _, mask in expected(_movement, "frozen", 6)]
    assert any((later & ~earlier).any() for earlier, later in itertools.pairwise(masks))


def test_taylor_sums_since_the_last_mask():
    """Two updates a mask: what was summed for the first does not count for the second."""
    params = {"w": jnp.ones((1, 4))}
    tx = nnopt.pruning.taylor(lambda count: 0.5 * (count > 0), power=1, decay=None, every=2,
                              mode="soft")  # fmt: skip
    state, masks = tx.init(params), []
    for slope in ([9, 8, 0, 0], [9, 8, 0, 0], [0, 1, 2, 0], [0, 0, 1, 2]):
        grads = nnopt.Grads(train=None, dense={"w": jnp.array([slope], jnp.float32)})
        params, state = tx.update(params, state, grads=grads)
        masks.append(np.asarray(state.rest["w"]["mask"][0]).tolist())
    assert masks[1] == [True, True, False, False]
    assert masks[3] == [False, False, True, True]


# L = w.A.w / 2 - b.w, hence g = A w - b and H = A, all of whole numbers.
MATRIX = np.array([[2.0, 1, 0, 0], [1, 3, 0, -1], [0, 0, 1, 0], [0, -1, 0, 4]], np.float32)
LINEAR = np.array([1.0, 0, 3, -2], np.float32)
WEIGHTS = {"w": jnp.array([[1.0, -1.0], [2.0, 0.5]])}
SLOPE = np.array([0.0, -2.5, -1.0, 5.0])  # 2 - 1 - 1, 1 - 3 - .5 - 0, 2 - 3, 1 + 2 + 2
BENT = np.array([-2.5, -12.5, -1.0, 22.5])  # A g
POINT = np.array([1.0, -1.0, 2.0, 0.5])


def _quadratic(params, scale):
    w = params["w"].ravel()
    return scale * (0.5 * (w * (MATRIX * w[None, :]).sum(1)).sum() - (LINEAR * w).sum())


def _statistics(*names):
    batches = [jnp.float32(1), jnp.float32(1)]
    return nnopt.graph(_quadratic, WEIGHTS, batches[0]).observe(WEIGHTS, batches, names)


@pytest.mark.parametrize(
    ("method", "statistic", "scores"),
    [
        ("snip", "gradient", np.abs(SLOPE * POINT)),  # 0, 2.5, 2, 2.5
        ("grasp", "hessian_gradient", POINT * BENT),  # -2.5, 12.5, -2, 11.25
        ("taylor", "gradient", (SLOPE * POINT) ** 2),
        ("movement", "gradient", -SLOPE * POINT),  # 0, -2.5, 2, -2.5
        ("fisher", "fisher", 0.5 * SLOPE**2 * POINT**2),
    ],
)
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_at_the_start_by_hand(method, statistic, scores, kept):
    tx = getattr(nnopt.pruning, method)(1 - kept / 4)
    assert tx.needs == (statistic,)
    state = tx.init(WEIGHTS, stats=_statistics(*tx.needs))
    wanted = np.isin(np.arange(4), np.argsort(-scores, kind="stable")[:kept])
    np.testing.assert_array_equal(state.rest["w"]["mask"].ravel(), wanted)


def test_grasp_keeps_the_gradient_strong():
    """Of all single weights, the one it prunes first leaves the strongest gradient, to 1st order.

    Small weights, because the score is a first-order one.
    """
    tiny = 1e-3 * POINT
    slope = MATRIX @ tiny - LINEAR
    scores = tiny * (MATRIX @ slope)
    after = [np.sum((MATRIX @ np.where(np.arange(4) == i, 0, tiny) - LINEAR) ** 2)
             for i in range(4)]  # fmt: skip
    assert np.argmin(scores) == np.argmax(after)
    params = {"w": jnp.asarray(tiny.reshape(2, 2), jnp.float32)}
    graph = nnopt.graph(_quadratic, params, jnp.float32(1))
    stats = graph.observe(params, [jnp.float32(1)], "hessian_gradient")
    mask = nnopt.pruning.grasp(0.25).init(params, stats=stats).rest["w"]["mask"]
    assert np.flatnonzero(~np.asarray(mask)).tolist() == [np.argmax(after)]


def test_one_shot_masks_keep_no_gradients():
    state = nnopt.pruning.snip(0.5).init(WEIGHTS, stats=_statistics("gradient"))
    assert [x.dtype for x in jax.tree.leaves(state.rest)] == [bool, jnp.float32]  # and a sparsity


def test_schedules_from_zero_need_no_statistics():
    for method in (nnopt.pruning.taylor, nnopt.pruning.movement, nnopt.pruning.fisher):
        assert method(nnopt.pruning.cubic(0.9, 10)).needs == ()
        assert method(nnopt.pruning.cubic(0.9, 10, initial=0.1)).needs != ()


@pytest.mark.parametrize("method", ["snip", "grasp", "taylor", "movement", "fisher"])
def test_missing_statistics_name_every_leaf(method):
    tx = getattr(nnopt.pruning, method)(0.5)
    with pytest.raises(
        StatisticsError, match=f"{method}: needs the {tx.needs[0]} of first, second"
    ):
        tx.init(START)


@pytest.mark.parametrize("method", ["taylor", "movement", "fisher"])
def test_missing_gradients_name_every_leaf(method):
    tx = getattr(nnopt.pruning, method)(nnopt.pruning.cubic(0.5, 4))
    state = tx.init(START)
    with pytest.raises(StatisticsError, match="`update` got none of first, second"):
        tx.update(START, state)
    with pytest.raises(StatisticsError, match="`update` got none of second"):
        tx.update(START, state, grads=nnopt.Grads(None, {"first": START["first"], "second": None}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["taylor", "movement", "fisher"])
def test_broken_gradients_do_not_stay(method, bad):
    """An update whose gradients overflowed is as one whose gradients are 0."""
    tx = getattr(nnopt.pruning, method)(nnopt.pruning.cubic(0.5, 2), mode="soft")
    states = []
    for middle in (bad, 0.0):
        params, state = START, tx.init(START)
        for factor in (1.0, middle, 2.0):
            shown = {n: (factor * np.cos(x)).astype(np.float32) for n, x in START.items()}
            params, state = tx.update(params, state, grads=nnopt.Grads(None, shown))
        states.append(state)
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_broken_statistics_count_as_zero():
    stats = {"gradient": {"w": jnp.array([[jnp.nan, -2.5], [-1.0, jnp.inf]])}}
    mask = nnopt.pruning.snip(0.5).init(WEIGHTS, stats=stats).rest["w"]["mask"]
    np.testing.assert_array_equal(mask, [[False, True], [True, False]])


def test_a_score_of_ones_own():
    def score(path, weight, gradient):
        assert gradient is None
        return weight if path == "first" else -weight

    tx = nnopt.pruning.saliency(0.5, score=score)
    shown = tx.apply(START, tx.init(START))
    for name, sign in (("first", 1), ("second", -1)):
        mask = best({name: sign * START[name]}, 0.5, together=True)[name]
        np.testing.assert_array_equal(shown[name], np.where(mask, START[name], 0))


def test_a_score_of_ones_own_by_gradients():
    tx = nnopt.pruning.saliency(0.5, score=lambda path, w, g: w * g, gradients=True, decay=0.5)
    assert tx.needs == ("gradient",)
    state = tx.init(START, stats={"gradient": START})
    shown = {name: 2 * np.cos(x) for name, x in START.items()}
    _, state = tx.update(START, state, grads=nnopt.Grads(None, shown))
    scores = {n: x * (0.5 * x + 0.5 * shown[n]) for n, x in START.items()}
    for name, mask in best(scores, 0.5, together=False).items():
        np.testing.assert_array_equal(state.rest[name]["mask"], mask)


def test_a_score_of_another_shape():
    tx = nnopt.pruning.saliency(0.5, score=lambda path, w, g: w.sum(0))
    with pytest.raises(ShapeError, match=r"(?s)2 problems.*first: score returned float32\[3\]"):
        tx.init(START)


def test_settings_are_checked_all_at_once():
    with pytest.raises(
        ValueRangeError, match=r"(?s)4 problems.*power=3.*decay=1.*sparsity=1.5.*mo"
    ):
        nnopt.pruning.taylor(1.5, power=3, decay=1, mode="sotf")
    with pytest.raises(ValueRangeError, match="chooses the mask once; give a number"):
        nnopt.pruning.snip(nnopt.pruning.cubic(0.5, 3))
    with pytest.raises(ValueRangeError, match="'lamp' compares squares"):
        nnopt.pruning.movement(0.5, allocation="lamp")
    with pytest.raises(ValueRangeError, match=r"(?s)3 problems.*gradients=1.*decay=-1.*score=None"):
        nnopt.pruning.saliency(0.5, score=None, gradients=1, decay=-1)


def test_groups_keep_no_more_than_n_where_scores_are_nan():
    tx = nnopt.pruning.saliency(pattern="2:4", score=lambda path, w, g: w)
    params = {"w": jnp.array([[jnp.nan], [3.0], [-1.0], [4.0]])}
    np.testing.assert_array_equal(tx.init(params).rest["w"]["mask"].ravel(), [1, 0, 0, 1])
