"""Gradients, Fisher information and the Hessian times the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt

DRAW = np.random.default_rng(2)


def observe(function, params, batches, names, **settings):
    batch = batches[0] if isinstance(batches[0], tuple) else (batches[0],)
    graph = nnopt.graph(function, params, *batch)
    return graph.observe(params, batches, names, **settings)


def drawn(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


def tied(p, tokens, wanted):
    """A leaf looked up, multiplied with, and in the loss itself; scanned layers; a bias."""
    x = p["embed"][tokens]

    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x, p["layers"])
    out = x @ p["embed"].T + p["bias"][None]
    decay = 0.1 * jnp.square(p["embed"]).sum()
    return jnp.square(out - wanted).mean() + decay


PARAMS = {"embed": drawn(6, 4), "layers": drawn(3, 4, 4), "bias": drawn(6), "idle": drawn(2)}
BATCHES = [(DRAW.integers(0, 6, 5), drawn(5, 6)) for _ in range(3)]


def test_joined_slopes_are_those_of_the_loss():
    seen = observe(tied, PARAMS, BATCHES, ("gradient", "fisher", "input_absmax"))
    slopes = [jax.grad(tied)(PARAMS, *batch) for batch in BATCHES]
    for path in ("embed", "layers", "bias"):
        each = np.stack([slope[path] for slope in slopes])
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(seen["gradient"][path], each.mean(0), **close)
        np.testing.assert_allclose(seen["fisher"][path], np.square(each).mean(0), **close)
    np.testing.assert_array_equal(seen["fisher"]["idle"], [0, 0])
    np.testing.assert_array_equal(seen["gradient"]["idle"], [0, 0])
    assert seen["input_absmax"]["layers"].shape == (3,)


def test_uses_of_a_tied_leaf_have_slopes_of_their_own():
    seen = observe(tied, PARAMS, BATCHES, ("gradient", "fisher"), where="embed")

    def apart(lookup, product, decay, batch):
        tokens, wanted = batch
        x = lookup[tokens]
        for w in PARAMS["layers"]:
            x = jnp.tanh(x @ w)
        out = x @ product.T + PARAMS["bias"][None]
        return jnp.square(out - wanted).mean() + 0.1 * jnp.square(decay).sum()

    slopes = [jax.grad(apart, (0, 1, 2))(*[PARAMS["embed"]] * 3, batch) for batch in BATCHES]
    found = seen.by_use["gradient"]
    assert set(found) == {("embed", 0), ("embed", 1), ("embed", 2)}
    assert [u.primitive for u in seen.uses][:2] == ["gather", "dot_general"]
    for use in range(3):
        each = np.stack([s[use] for s in slopes])
        np.testing.assert_allclose(found["embed", use], each.mean(0), rtol=1e-4, atol=1e-6)
        fisher = np.square(each).mean(0)
        np.testing.assert_allclose(
            seen.by_use["fisher"]["embed", use], fisher, rtol=1e-4, atol=1e-6
        )


def test_slopes_of_branches_and_parts():
    """Each half of the leaf is used by one branch; what was cut comes back whole."""
    w = drawn(3, 4)

    def loss(p, x):
        left, right = jnp.split(p["w"], 2, axis=1)
        return jnp.square(
            jax.lax.cond(x[0, 0] > 0, lambda x: x @ left, lambda x: x @ right, x)
        ).sum()

    x = np.abs(drawn(2, 3))
    seen = observe(loss, {"w": w}, [x, x, -x, x], "gradient")
    wanted = np.mean([jax.grad(loss)({"w": w}, b)["w"] for b in (x, x, -x, x)], axis=0)
    np.testing.assert_allclose(seen["gradient"]["w"], wanted, rtol=1e-5)
    uses = [seen.by_use["gradient"]["w", n] for n in range(2)]
    assert all(np.all(use == 0, axis=0).sum() == 2 for use in uses)


def test_slopes_of_what_comes_out_of_inner_programs():
    """Of leaves moved in a function of their own, changed in loops, and cut by shard_map."""
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    turned = jax.jit(lambda w: w.T)
    whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    parts = jax.shard_map(
        lambda v, u, x: x @ v @ u, mesh=mesh, in_specs=(whole, whole, rows), out_specs=rows
    )

    def loss(p, x):
        x = x @ turned(p["w"])
        grown, x = jax.lax.fori_loop(0, 2, lambda _, s: (s[0] + s[0].T, s[1] @ s[0]), (p["g"], x))
        return jnp.square(parts(p["v"], p["u"], x)).sum() + grown.sum()

    params = {"w": drawn(3, 4), "g": drawn(3, 3), "v": drawn(3, 3), "u": drawn(3, 2)}
    x = drawn(2, 4)
    seen = observe(loss, params, [x], "gradient")
    wanted = jax.jit(jax.grad(loss))(params, x)
    for path in params:
        np.testing.assert_allclose(seen["gradient"][path], wanted[path], rtol=2e-4)
    assert {use.path: use.reason for use in seen.uses} == {
        "g": "it is carried through scan",
        "u": "it is carried through shard_map",
        "v": "it is carried through shard_map",
        "w": "",
    }


def test_the_hessian_times_the_gradient_in_closed_form():
    """L = w A w / 2 + c v w with one A for each batch: H g is the same product twice."""
    batches = []
    for _ in range(3):
        a = drawn(4, 4)
        batches.append(a + a.T)

    def loss(p, a):
        return p["w"] @ a @ p["w"] / 2 + 3 * p["v"] @ p["w"]

    params = {"w": drawn(4), "v": drawn(4)}
    wanted = {"w": [], "v": []}
    for a in batches:
        hessian = np.block([[a, 3 * np.eye(4)], [3 * np.eye(4), np.zeros((4, 4))]])
        product = hessian @ hessian @ np.concatenate([params["w"], params["v"]])
        wanted["w"].append(product[:4])
        wanted["v"].append(product[4:])
    names = ("gradient", "fisher", "hessian_gradient")
    for where in ("**", "w"):  # of all parameters, whichever are chosen
        seen = observe(loss, params, batches, names, where=where)
        for path in seen["gradient"]:
            found = seen["hessian_gradient"][path]
            np.testing.assert_allclose(found, np.mean(wanted[path], 0), rtol=1e-4, atol=1e-5)
        assert seen.by_use["hessian_gradient"] == {}
    alone = observe(loss, params, batches, "hessian_gradient")
    np.testing.assert_allclose(alone["hessian_gradient"]["w"], np.mean(wanted["w"], 0), rtol=1e-4)


def test_the_hessian_times_the_gradient_through_programs():
    """As differentiating the loss twice gives it, through lookups, scans and checkpoints."""
    names = ("gradient", "fisher", "hessian_gradient")
    seen = observe(tied, PARAMS, BATCHES, names)
    slope = jax.grad(lambda p, batch: tied(p, *batch))
    for path in PARAMS:
        each = []
        for batch in BATCHES:
            product = jax.jvp(lambda p, b=batch: slope(p, b), (PARAMS,), (slope(PARAMS, batch),))[1]
            each.append(product[path])
        np.testing.assert_allclose(
            seen["hessian_gradient"][path], np.mean(each, 0), rtol=1e-4, atol=1e-5
        )


def test_each_leaf_of_a_joined_array_has_its_own_slope():
    """Also inside of a function with a rule of derivatives of its own."""

    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (2 * kept[1].T @ g, g @ kept[0].T))

    def loss(p, x):
        both = jnp.concatenate([p["a"], p["b"]], 1)
        return (jnp.sin(x @ both) + product(both, x)).sum() + (x @ p["a"]).sum()

    params, x = {"a": drawn(3, 2), "b": drawn(3, 4)}, drawn(5, 3)
    seen = observe(loss, params, [x], ("gradient", "fisher", "input_gram"))
    wanted = jax.grad(loss)(params, x)
    for path in params:
        np.testing.assert_allclose(seen["gradient"][path], wanted[path], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(seen["fisher"][path], wanted[path] ** 2, rtol=1e-3, atol=1e-5)
    inner = jax.grad(lambda a: jnp.sin(x @ a).sum())(params["a"])
    np.testing.assert_allclose(seen.by_use["gradient"]["a", 0], inner, rtol=1e-4, atol=1e-5)


def test_leaves_that_programs_give_unchanged_are_followed():
    """By both branches, by a loop that scales them, by a function with a rule of its own."""
    twice = jax.custom_jvp(lambda w: 2 * w)
    twice.defjvp(lambda given, slopes: (twice(*given), 2 * slopes[0]))
    wide = jax.jit(lambda w: w.T, donate_argnums=0)

    def loss(p, x):
        u = jax.lax.cond(x[0, 0] > 0, lambda w: w.T, lambda w: 3 * w.T, p["u"])
        v, x = jax.lax.fori_loop(0, 2, lambda _, s: (s[0] * 2, jnp.sin(s[1] @ s[0])), (p["v"], x))
        once = jax.checkpoint(lambda w, x: (w, w.T, jnp.sin(x @ w)))
        w, turned, x = once(p["w"], x @ u + jnp.cos(x @ v))
        both = jnp.concatenate([w, turned, twice(p["c"])], 1)
        return jnp.square(x @ both).sum() + (jnp.cos(x) @ w @ wide(p["d"])).sum() + jnp.sum(v)

    params, x = {path: drawn(3, 3) for path in "uvwcd"}, drawn(2, 3)
    names = ("gradient", "fisher", "input_gram")
    seen = observe(loss, params, [x], names)
    wanted = jax.grad(loss)(params, x)
    for path in params:
        np.testing.assert_allclose(seen["gradient"][path], wanted[path], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            seen["fisher"][path], np.square(wanted[path]), rtol=1e-3, atol=1e-3
        )
    assert {use.path for use in seen.uses if use.reason} == {"v"}  # its sum
    reasons = {use.path: use.reason for use in seen.uses if use.reason}
    assert reasons == {"v": "reduce_sum combines its own entries"}
    steps = [x]
    for power in range(2):
        steps.append(np.sin(steps[-1] @ (2**power * params["v"])))
    grams = [seen.by_use["input_gram"]["v", number] for number in range(2)]
    np.testing.assert_allclose(grams[0], sum(s.T @ s for s in steps[:2]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grams[1], steps[2].T @ steps[2], rtol=1e-4, atol=1e-5)
