"""Any score goes with any pattern, allocation, schedule and mode, or an error says why not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.errors import SelectionError, ShapeError, StatisticsError, ValueRangeError
from nnopt_jax.pruning import Regrow, by_score, scores
from nnopt_jax.pruning.scores import SCORES
from tests.golden import presets


def rng(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def mlp(params, x):
    return jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None]) @ params["out"]


PARAMS = {"in": {"kernel": rng(6, 8), "bias": rng(8)}, "out": rng(8, 3)}
X = rng(5, 6)
GRAPH = nnopt.graph(mlp, PARAMS, X)


def loss(params, x):
    return jnp.square(mlp(params, x)).sum()


def stats(tx):
    graph = nnopt.graph(loss, PARAMS, X)
    return graph.observe(PARAMS, [(X,), (X[::-1] / 2,)], tx.needs) if tx.needs else None


def test_wanda_compares_weights_times_input_norms_within_each_output():
    tx = nnopt.pruning.wanda(0.5, where=lambda path, leaf: leaf.ndim == 2).bind(GRAPH)
    seen = tx.apply(PARAMS, tx.init(PARAMS, stats=stats(tx)))
    inputs = np.concatenate([np.asarray(X), np.asarray(X)[::-1] / 2])
    hidden = np.tanh(inputs @ np.asarray(PARAMS["in"]["kernel"]) + np.asarray(PARAMS["in"]["bias"]))
    for got, w, x in (
        (seen["in"]["kernel"], PARAMS["in"]["kernel"], inputs),
        (seen["out"], PARAMS["out"], hidden),
    ):
        w = np.asarray(w)
        score = np.abs(w) * np.sqrt(np.square(x).sum(0))[:, None]
        rank = np.argsort(np.argsort(-score, axis=0, kind="stable"), axis=0)
        np.testing.assert_array_equal(got, np.where(rank < w.shape[0] // 2, w, 0))


def test_per_output_follows_the_axes_of_attention():
    params, graph = presets.network()
    tx = nnopt.pruning.magnitude(0.75, pattern="per_output").bind(graph)
    seen = tx.apply(params, tx.init(params))
    for leaf, inputs in (
        (seen["query"]["kernel"], (0,)),
        (seen["out"]["kernel"], (0, 1)),
        (seen["conv"]["kernel"], (0, 1, 2)),
    ):
        counts = (np.asarray(leaf) != 0).sum(inputs)
        total = np.prod([leaf.shape[axis] for axis in inputs])
        np.testing.assert_array_equal(counts, np.full_like(counts, round(total / 4)))


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"wanda"}))
def test_channels_are_judged_by_the_sum_of_any_score(name):
    tx = nnopt.pruning.structured(0.5, score=name).bind(GRAPH)
    given = stats(tx)
    state = tx.init(PARAMS, stats=given, key=jax.random.key(1))
    kept = nnopt.pruning.kept_units(state)["in/kernel:1"]
    assert int(kept.sum()) == 4
    if name in ("taylor", "snip", "fisher"):
        flat = {"in/kernel": PARAMS["in"]["kernel"], "in/bias": PARAMS["in"]["bias"][None]}
        rows = {**flat, "out": PARAMS["out"].T}
        statistic = given["fisher" if name == "fisher" else "gradient"]
        slopes = {p: np.asarray(statistic[p]).reshape(-1, 8) for p in flat}
        slopes["out"] = np.asarray(statistic["out"]).T
        of = {
            "taylor": lambda w, g: (w * g) ** 2,
            "snip": lambda w, g: np.abs(w * g),
            "fisher": lambda w, f: 0.5 * f * w**2,
        }[name]
        total = sum(of(np.asarray(w, np.float64), slopes[p]).sum(0) for p, w in rows.items())
        np.testing.assert_array_equal(np.asarray(kept), total >= np.sort(total)[-4])


def test_fisher_over_coupled_axes_under_a_budget_of_operations():
    params, graph = presets.network()
    whole = {row.path: row.flops for row in graph.cost().rows if row.parameters}
    for fraction in (0.3, 0.6):
        tx = nnopt.pruning.structured(fraction, score="fisher", allocation="flops").bind(graph)
        fisher = {"fisher": presets.wave(params, 0.3)}
        state = jax.jit(tx.init)(params, stats=jax.tree.map(jnp.abs, fisher))
        keep = nnopt.pruning.kept_units(state)
        small = graph.shrink(params, keep)
        left = nnopt.graph(small.apply, small.params, jnp.ones((2, 3, 3, 4))).cost()
        spent = sum(row.flops for row in left.rows if row.parameters)
        assert spent <= (1 - fraction) * sum(whole.values())
        assert spent > 0.5 * (1 - fraction) * sum(whole.values())  # no more went than had to


def test_rigl_moves_blocks_as_a_whole():
    tx = nnopt.pruning.rigl(0.5, end_step=100, every=1, pattern=(2, 2), fraction=0.5)
    params = {"w": rng(8, 12)}
    state = tx.init(params, key=jax.random.key(0))
    before = np.asarray(state.rest["w"]["mask"])
    grads = nnopt.Grads(train=None, dense={"w": rng(12, 8).T})
    _, state = tx.update(params, state, grads=grads)
    mask = np.asarray(state.rest["w"]["mask"])
    blocks = mask.reshape(4, 2, 6, 2).swapaxes(1, 2).reshape(24, 4)
    assert ((blocks.sum(1) == 0) | (blocks.sum(1) == 4)).all()
    assert mask.sum() == before.sum() == 48
    assert (mask != before).any()


def test_a_score_that_learns_decides_what_is_dropped():
    mode = Regrow("random", fraction=0.5)
    tx = by_score(scores.taylor(decay=0.0), 0.5, mode=mode, allocation="uniform")
    params = {"w": rng(4, 8)}
    tree = {"gradient": {"w": rng(8, 4).T}}
    state = tx.init(params, stats=tree, key=jax.random.key(0))
    before = np.asarray(state.rest["w"]["mask"])
    grads = nnopt.Grads(train=None, dense={"w": rng(5, 8)[:4]})
    _, state = tx.update(params, state, grads=grads)
    worth = np.where(before, np.square(np.asarray(params["w"]) * np.asarray(grads.dense["w"])), -1)
    stays = worth >= np.sort(worth.ravel())[-8]
    assert np.asarray(state.rest["w"]["mask"])[stays].all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: by_score("tailor", 0.5), "score='tailor' is not one of .* Did you mean taylor"),
        (lambda: by_score(scores.taylor, 0.5), r"not a score; give a value such as"),
        (
            lambda: nnopt.pruning.magnitude(0.5, pattern="per_ouput"),
            "nor 'coupled'. Did you mean per_output",
        ),
        (
            lambda: nnopt.pruning.wanda(0.5, allocation="global"),
            "compares the inputs of each output alone",
        ),
        (lambda: nnopt.pruning.structured(0.5, score="wanda"), "no value for biases"),
        (
            lambda: by_score("magnitude", 0.5, pattern="coupled", mode=Regrow()),
            "channels are taken out with all their weights",
        ),
        (lambda: by_score("movement", 0.5, mode=Regrow()), "can be negative, and regrowth drops"),
        (lambda: by_score("magnitude", pattern="2:4", mode=Regrow()), "rows that connections"),
        (lambda: by_score("magnitude", nnopt.pruning.cubic(0.5, 9), mode=Regrow()), "a schedule"),
        (lambda: by_score("magnitude", 0.5, mode=Regrow(fraction=2)), "fraction=2"),
        (lambda: by_score("random", 0.5, allocation="lamp"), "random scores have no size"),
        (lambda: by_score("grasp", 0.5, allocation="lamp"), "these scores can be negative"),
        (lambda: by_score("snip", nnopt.pruning.cubic(0.5, 9)), "chooses the mask once"),
    ],
)
def test_what_has_no_meaning_says_why(make, text):
    with pytest.raises(ValueRangeError, match=text):
        make()


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (lambda leaves, memory: {}, "None"),
        (lambda leaves, memory: None, "None"),
        (lambda leaves, memory: {p: w.sum() for p, w in leaves.items()}, r"float32\[\]"),
        (lambda leaves, memory: {p: w + 1j for p, w in leaves.items()}, r"complex64\[8,4\]"),
    ],
    ids=["missing", "none", "shape", "complex"],
)
@pytest.mark.parametrize("mode", ["hard", Regrow("random")], ids=["mask", "regrow"])
def test_scores_of_ones_own_are_checked(of, text, mode):
    params = {"a": {"kernel": jnp.ones((8, 4))}}
    tx = by_score(nnopt.pruning.Score("mine", of), 0.5, mode=mode, every=1)
    with pytest.raises(ShapeError, match=f"a/kernel: score returned {text}.* one real score"):
        tx.update(params, tx.init(params, key=jax.random.key(0)))


def test_a_score_needs_a_function():
    with pytest.raises(ValueRangeError, match=r"Score: of=3 is not a function"):
        nnopt.pruning.Score("mine", 3)
    with pytest.raises(ValueRangeError, match=r"pruning.by_score: .*Call the function: taylor\(\)"):
        by_score(nnopt.pruning.scores.taylor, 0.5)


def test_wanda_is_planned_and_refuses_other_statistics():
    params = {"kernel": jnp.ones((8, 4))}
    rows = nnopt.plan(nnopt.pruning.wanda(0.5), params).rows
    assert rows[0].after == "Sparse(values float32[16], support 1-bit[8,4])"
    with pytest.raises(StatisticsError, match=r"kernel: its input_moments is float32\[8,4\]"):
        nnopt.pruning.wanda(0.5).init(params, stats={"input_moments": params})


def test_percentages_and_default_leaves_are_explained():
    with pytest.raises(ValueRangeError, match=r"sparsity=90 is not .*Give 0.9 for 90 %"):
        by_score("magnitude", 90)
    with pytest.raises(SelectionError, match=r"none of 1 float leaves has two or more axes"):
        by_score("magnitude", 0.5).init({"bias": jnp.ones(3)})


def test_all_problems_of_score_and_method_come_together():
    with pytest.raises(ValueRangeError) as caught:
        nnopt.pruning.taylor(1.5, power=3, decay=2.0, mode="sotf", every=0)
    for name in ("power=3", "decay=2.0", "sparsity=1.5", "mode='sotf'", "every=0"):
        assert name in str(caught.value)


def test_scores_are_values():
    assert scores.taylor(power=1) == scores.taylor(power=1) != scores.taylor()
    assert hash(scores.movement()) == hash(scores.movement())
    assert repr(scores.taylor(power=1)) == "taylor(power=1, decay=0.9)"


def test_lamp_asks_whether_scores_have_a_size_and_not_for_their_name():
    of = lambda leaves, memory: {p: abs(w) for p, w in leaves.items()}  # noqa: E731
    by_score(nnopt.pruning.Score("random", of), 0.5, allocation="lamp")
    with pytest.raises(ValueRangeError, match=r"compares squares, and rank scores have no size"):
        by_score(nnopt.pruning.Score("rank", of, has_size=False), 0.5, allocation="lamp")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nnopt.pruning.structured(0.5, scope="global"), r"structured: .*now allocation="),
        (lambda: nnopt.pruning.magnitude(0.5, patern="2:4"), r"magnitude: .*mean pattern"),
        (lambda: nnopt.quantization.on_grid("int4", rang="mse"), r"on_grid: .*mean range"),
        (lambda: nnopt.quantization.nf4(grup=64), r"nf4: has no argument grup=.*mean group"),
    ],
)
def test_unknown_arguments_are_named_with_the_preset_and_the_nearest_names(make, text):
    with pytest.raises(TypeError, match=text):
        make()
