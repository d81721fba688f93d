"""Programs inside of programs: branches, loops, stacks, and rules of derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import nnopt_jax as nnopt

DRAW = np.random.default_rng(1)
WHAT = ("input_gram", "input_absmax", "input_moments", "input_histogram", "output_moments")


def observe(function, params, batches, names, **settings):
    graph = nnopt.graph(function, params, batches[0])
    return graph.observe(params, batches, names, **settings)


def whole(*shape):
    return DRAW.integers(-2, 3, shape).astype(np.float32)


def gram(*rows):
    x = np.concatenate(rows)
    return x.T @ x


def test_a_branch_adds_what_it_meets_when_it_is_taken():
    w, v = whole(4, 4), whole(4, 4)

    def apply(p, x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ p["w"], lambda x: (x + 1) @ p["v"] @ p["w"], x)

    up, down = abs(whole(3, 4)) + 1, -abs(whole(3, 4)) - 1
    seen = observe(apply, {"w": w, "v": v}, [up, down, up], WHAT)
    mine = [up, up, (down + 1) @ v]
    np.testing.assert_array_equal(seen["input_gram"]["v"], gram(down + 1))
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(*mine))
    np.testing.assert_array_equal(seen.by_use["input_gram"][("w", 0)], gram(mine[2]))
    x = np.concatenate(mine)
    assert seen["input_absmax"]["w"] == np.abs(x).max()
    np.testing.assert_allclose(seen["input_moments"]["w"].mean[:, 0], x.mean(0), atol=1e-5)
    np.testing.assert_allclose(seen["input_moments"]["w"].variance[:, 0], x.var(0), rtol=1e-5)
    assert seen["input_histogram"]["w"].counts.sum() == x.size
    assert seen.rows["v"] == 3


def test_a_branch_that_is_never_taken_is_not_known():

    def apply(p, x):
        return lax.cond(x.sum() > 1e9, lambda x: x @ p["w"], lambda x: x, x)

    seen = observe(apply, {"w": whole(4, 4)}, [whole(3, 4)], WHAT)
    assert seen.lacking["input_absmax"] == {"w": "no batch has reached it"}
    assert "w" not in seen["input_absmax"]


def test_loops_add_up_tests_included():
    w, v = whole(3, 3), whole(3, 1)

    def apply(p, x):
        def goes_on(state):
            return jnp.logical_and(state[0] < 3, (state[1] @ p["v"]).sum() < 1e9)

        return lax.while_loop(goes_on, lambda s: (s[0] + 1, s[1] @ p["w"] % 5), (0, x))

    x = whole(4, 3)
    states = [x]
    for _ in range(3):
        states.append(np.mod(states[-1] @ w, 5))
    seen = observe(apply, {"w": w, "v": v}, [x, x], WHAT)
    np.testing.assert_array_equal(seen["input_gram"]["w"], 2 * gram(*states[:3]))
    np.testing.assert_array_equal(seen["input_gram"]["v"], 2 * gram(*states))
    assert seen.rows["v"] == 2 * 16

    def fori(p, x):
        return lax.fori_loop(0, 3, lambda _, x: x @ p["w"] % 5, x)

    seen = observe(fori, {"w": w}, [x], WHAT)
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(*states[:3]))


def test_scans_stack_layers_and_add_up_steps():
    """One leaf is scanned over, one used at every step; both under remat, in a branch."""
    w, v, x = whole(4, 3, 3), whole(3, 3), whole(5, 3)

    def apply(p, x):
        @jax.checkpoint
        def layer(x, w):
            return jnp.mod(x @ w, 5) @ p["v"] % 5, None

        return lax.cond(x.sum() < 1e9, lambda x: lax.scan(layer, x, p["w"])[0], lambda x: x, x)

    before, between, now = [], [], x
    for each in w:
        before.append(now)
        between.append(np.mod(now @ each, 5))
        now = np.mod(between[-1] @ v, 5)
    seen = observe(apply, {"w": w, "v": v}, [x], WHAT)
    np.testing.assert_array_equal(seen["input_gram"]["w"], [gram(x) for x in before])
    np.testing.assert_array_equal(seen["input_absmax"]["w"], [np.abs(x).max() for x in before])
    np.testing.assert_array_equal(seen["input_gram"]["v"], gram(*between))
    mean = seen["input_moments"]["w"].mean
    np.testing.assert_allclose(mean[..., 0], [x.mean(0) for x in before], atol=1e-6)
    assert seen["input_histogram"]["w"].counts.shape[0] == 4
    assert [(u.contracted, u.batch) for u in seen.uses.of("w")] == [((1,), (0,))]
    assert [(u.contracted, u.batch) for u in seen.uses.of("v")] == [((0,), ())]


def test_scans_within_scans_and_backwards_and_along_other_axes():
    """The leaf is (inner, rows, columns, outer), and outer layers are taken from the last on."""
    w, x = whole(2, 3, 3, 4), whole(5, 3)

    def apply(p, x):
        def inner(x, w):
            return jnp.mod(x @ w, 5), None

        def outer(x, w):
            return lax.scan(inner, x, w)[0], None

        return lax.scan(outer, x, jnp.moveaxis(p["w"], -1, 0)[::-1])[0]

    met, now = {}, x
    for o in reversed(range(4)):
        for i in range(2):
            met[i, o] = now
            now = np.mod(now @ w[i, :, :, o], 5)
    seen = observe(apply, {"w": w}, [x], ("input_absmax", "input_gram", "output_moments"))
    found = seen["input_absmax"]["w"]
    assert found.shape == (2, 1, 1, 4)
    for (i, o), x in met.items():
        assert found[i, 0, 0, o] == np.abs(x).max()
        np.testing.assert_array_equal(seen["input_gram"]["w"][i, o], gram(x))
        mean = seen["output_moments"]["w"].mean
        np.testing.assert_allclose(mean[i, 0, :, o], (x @ w[i, :, :, o]).mean(0), atol=1e-5)


def test_scans_that_go_backwards():
    w, x = whole(3, 2, 2), whole(5, 2)

    def apply(p, x):
        return lax.scan(lambda x, w: (x @ w % 5, None), x, p["w"], reverse=True)[0]

    seen = observe(apply, {"w": w}, [x], "input_gram")
    for layer in (2, 1, 0):
        np.testing.assert_array_equal(seen["input_gram"]["w"][layer], gram(x))
        x = np.mod(x @ w[layer], 5)


def test_a_leaf_scanned_over_and_used_whole_is_joined_without_layers():
    w, x = whole(3, 2, 2), whole(5, 2)

    def apply(p, x):
        out, _ = lax.scan(lambda x, w: (x @ w % 5, None), x, p["w"])
        return out, jnp.einsum("bi,lio->blo", 9 * x, p["w"])

    seen = observe(apply, {"w": w}, [x], ("input_absmax", "input_gram"))
    met, now = [], x
    for each in w:
        met.append(now)
        now = np.mod(now @ each, 5)
    assert seen["input_absmax"]["w"] == max(9 * np.abs(x).max(), *(np.abs(m).max() for m in met))
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(*met, 9 * x))
    assert seen.by_use["input_absmax"][("w", 0)].shape == (3,)


def test_one_inner_function_called_twice_has_two_uses():
    w, x = whole(3, 3), whole(4, 3)
    inner = jax.jit(lambda w, x: x @ w)
    seen = observe(lambda p, x: inner(p["w"], inner(p["w"], x)), {"w": w}, [x], "input_gram")
    np.testing.assert_array_equal(seen.by_use["input_gram"][("w", 0)], gram(x))
    np.testing.assert_array_equal(seen.by_use["input_gram"][("w", 1)], gram(x @ w))
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(x, x @ w))


def clipped():
    """A product whose rule of derivatives is another's."""

    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(
        lambda w, x: (x @ w, (w, x)),
        lambda given, slope: (jnp.full_like(given[0], 7.0), jnp.zeros_like(given[1])),
    )
    return product


def test_functions_with_rules_of_their_own():
    @jax.custom_jvp
    def twice(w, x):
        return x @ w @ w

    @twice.defjvp
    def _(given, slopes):
        return twice(*given), 3.0 * (given[1] @ slopes[0])

    w, v, x = whole(3, 3), whole(3, 3), whole(4, 3)
    product = clipped()

    def loss(p, x):
        return product(p["v"], twice(p["w"], x)).sum()

    params = {"w": w, "v": v}
    names = ("input_gram", "gradient", "fisher")
    seen = observe(loss, params, [x], names)
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(x, x @ w))
    np.testing.assert_array_equal(seen["input_gram"]["v"], gram(x @ w @ w))
    wanted = jax.grad(loss)(params, x)
    np.testing.assert_array_equal(wanted["v"], np.full((3, 3), 7.0))
    for path in params:
        np.testing.assert_array_equal(seen["gradient"][path], wanted[path])
        np.testing.assert_array_equal(seen["fisher"][path], np.square(wanted[path]))
    # Two uses inside of one rule have one slope, which is the first's.
    assert set(seen.by_use["gradient"]) == {("w", 0), ("v", 0)}


def test_inner_gradients_are_observed():
    """The backward pass multiplies with the leaf as well."""
    w, x = whole(3, 2), whole(4, 3)

    def apply(p, x):
        return jax.grad(lambda x: jnp.square(x @ p["w"]).sum())(x)

    seen = observe(apply, {"w": w}, [x], "input_gram")
    along = {use.contracted for use in seen.uses if not use.reason}
    assert along == {(0,), (1,)}
    slope = 2 * x @ w
    backward = [u.number for u in seen.uses if u.contracted == (1,)]
    np.testing.assert_array_equal(seen.by_use["input_gram"][("w", backward[0])], gram(slope))


def test_leaves_carried_unchanged_are_followed():
    w, x = whole(3, 3), whole(4, 3)

    def apply(p, x):
        return lax.fori_loop(0, 2, lambda _, s: (s[0], s[1] @ s[0] % 5), (p["w"], x))

    seen = observe(apply, {"w": w}, [x], "input_gram")
    np.testing.assert_array_equal(seen["input_gram"]["w"], gram(x, np.mod(x @ w, 5)))


def test_leaves_that_change_on_the_way_are_told():

    def apply(p, x):
        return lax.fori_loop(0, 2, lambda _, s: (s[0] * s[0], s[1] @ s[0]), (p["w"], x))

    (use,) = nnopt.graph(apply, {"w": whole(3, 3)}, whole(4, 3)).uses
    assert use.reason.startswith("it is carried through")


def test_leaves_that_change_in_a_loop_within_a_loop_are_told_once():
    """The branch within gives what the loop carries, which is not a leaf after the first turn."""

    def apply(p, x):
        def turn(_, state):
            w, x = state
            w = lax.cond(x[0, 0] > 0, lambda w: w, lambda w: w * w, w)
            w, x = lax.fori_loop(0, 2, lambda _, s: (s[0], s[1] @ s[0] % 5), (w, x))
            return w, x

        return lax.fori_loop(0, 2, turn, (p["w"], x))[1]

    (use,) = nnopt.graph(apply, {"w": whole(3, 3)}, whole(4, 3)).uses
    assert use.reason == "it is carried through scan"


def test_equal_loops_give_equal_inputs():
    params, x = {"w": whole(3, 3), "v": whole(3, 3)}, whole(4, 3)
    summed = jax.jit(lambda x: lax.scan(lambda s, row: (s + row, s), x[0], x)[1])
    seen = observe(lambda p, x: summed(x) @ p["w"] + summed(x) @ p["v"], params, [x], "input_gram")
    assert seen["input_gram"]["w"] is seen["input_gram"]["v"]
