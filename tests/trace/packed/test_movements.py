"""Movements of coarse arrays are those of the arrays that they stand for."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import nnopt_jax as nnopt
from nnopt_jax.trace.jaxpr import bind
from nnopt_jax.trace.packed.packed_movement import movements_of
from nnopt_jax.trace.primitives import rule_of

ZERO = jnp.float32(0)
MOVES = {
    "transpose": (lambda x: x.transpose(2, 0, 1), (2, 4, 6)),
    "merge": (lambda x: x.reshape(8, 6), (2, 4, 6)),
    "split an axis": (lambda x: x.reshape(2, 4, 6), (8, 6)),
    "heads": (lambda x: x.reshape(4, 2, 8), (4, 16)),
    "heads back": (lambda x: x.reshape(4, 16), (4, 2, 8)),
    "merge and split": (lambda x: x.reshape(2, 16), (4, 8)),
    "squeeze": (lambda x: x.squeeze(0), (1, 4, 6)),
    "expand": (lambda x: x[:, None], (4, 6)),
    "repeat": (lambda x: jnp.repeat(x, 3, 1), (4, 6)),
    "tile": (lambda x: jnp.tile(x, (2, 1)), (4, 6)),
    "broadcast": (lambda x: jnp.broadcast_to(x, (3, 4, 6)), (4, 6)),
    "slice": (lambda x: x[2:4], (8, 6)),
    "slice across groups": (lambda x: x[:, 1:6], (4, 8)),
    "strided": (lambda x: x[:, ::2], (4, 8)),
    "reverse": (lambda x: x[::-1], (4, 6)),
    "split": (lambda x: jnp.split(x, 3, 1), (4, 12)),
    "pad": (lambda x: lax.pad(x, ZERO, ((0, 0, 0), (2, 4, 0))), (4, 8)),
    "cut by a pad": (lambda x: lax.pad(x, ZERO, ((0, 0, 0), (-2, 0, 0))), (4, 8)),
    "pad inside": (lambda x: lax.pad(x, ZERO, ((0, 0, 0), (0, 0, 1))), (4, 8)),
    "odd reshape": (lambda x: x.reshape(8, 3), (6, 4)),
    "barrier": (lax.optimization_barrier, (4, 6)),
    "axes of one": (lambda x: x.reshape(1, 4, 1, 6, 1), (4, 1, 6)),
}
REFUSED = {
    "slice across groups", "strided", "odd reshape", "pad inside", "split an axis", "reverse",
    "heads", "merge and split", "repeat", "tile", "merge", "heads back",
}  # fmt: skip
"""Movements that some groups cannot follow; those of one entry or of all entries always can."""


def coarsenesses(shape):
    each = [sorted({1, n, n // 2 if n % 2 == 0 else n}) for n in shape]
    return list(itertools.product(*each))


def spread(x, shape):
    for axis, n in enumerate(shape):
        x = np.repeat(x, n // x.shape[axis], axis)
    return x


@pytest.mark.parametrize("name", MOVES)
def test_what_is_coarse_moves_as_the_whole_or_is_refused(name):
    move, shape = MOVES[name]
    program = jax.make_jaxpr(move)(jnp.ones(shape))
    for sizes in coarsenesses(shape):
        coarse = np.random.default_rng(sum(sizes)).normal(size=sizes).astype(np.float32)
        fields, full = {program.jaxpr.invars[0]: [jnp.asarray(coarse)]}, spread(coarse, shape)
        known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        known[program.jaxpr.invars[0]] = full
        for step in program.jaxpr.eqns:
            values = [known.get(v, getattr(v, "val", None)) for v in step.invars]
            found = bind(step, values)
            known.update(zip(step.outvars, map(np.asarray, found), strict=True))
            (field,) = fields[step.invars[0]]
            moves = movements_of(step, rule_of(step), values)
            assert moves is not None
            for out, each in zip(step.outvars, moves, strict=True):
                before = step.invars[0].aval.shape
                moved = None if field is None else each.apply(field, before)
                fields[out] = [moved]
        for out in program.jaxpr.outvars:
            (field,) = fields[out]
            if field is None:
                assert name in REFUSED
                grouped = any(1 < h < n for h, n in zip(sizes, shape, strict=True))
                assert grouped or name == "odd reshape"
                continue
            real = np.asarray(bind_ones(move, shape)[program.jaxpr.outvars.index(out)]) != 0
            found = spread(np.asarray(field), out.aval.shape)
            np.testing.assert_array_equal(np.where(real, found, 0), known[out])


def bind_ones(move, shape):
    """Where entries of the operand are in the outcomes."""
    found = move(jnp.ones(shape))
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("start", [0, 2, 9])
def test_a_start_that_is_known_at_run_time(start):
    apply = lambda x, i: lax.dynamic_slice(x, (i, jnp.int32(0)), (2, 6))  # noqa: E731
    step = jax.make_jaxpr(apply)(jnp.ones((8, 6)), jnp.int32(0)).jaxpr.eqns[-1]
    full = np.arange(48, dtype=np.float32).reshape(8, 6)
    (move,) = movements_of(step, rule_of(step), [None, jnp.int32(start), jnp.int32(0)])
    wanted = full[min(start, 6) : min(start, 6) + 2]
    np.testing.assert_array_equal(move.apply(jnp.asarray(full), (8, 6)), wanted)
    np.testing.assert_array_equal(move.apply(jnp.asarray(full[:, :1]), (8, 6)), wanted[:, :1])
    assert move.apply(jnp.ones((4, 6)), (8, 6)) is None  # groups of two, cut at any place
    assert move.apply(jnp.ones((1, 6)), (8, 6)).shape == (1, 6)


def test_the_last_axes_that_stay_may_have_other_sizes():
    step = jax.make_jaxpr(lambda x: x[1:3])(jnp.ones((4, 5, 6))).jaxpr.eqns[0]
    (move,) = movements_of(step, rule_of(step), [None])
    assert move.kept == 2
    factor = np.arange(4 * 5 * 2, dtype=np.float32).reshape(4, 5, 2)
    np.testing.assert_array_equal(move.apply(jnp.asarray(factor), (4, 5, 2)), factor[1:3])


METHODS = {
    "int8": nnopt.quantization.uniform(8, granularity="channel"),
    "int4 in groups": nnopt.quantization.uniform(4, group=2),
    "zero points": nnopt.quantization.uniform(4, granularity="channel", symmetric=False),
    "masked": nnopt.pruning.magnitude(0.5),
    "codebook": nnopt.compression.codebook(4),
    "ternary": nnopt.quantization.twn(),
}
STAYS = {
    "split": lambda w: jnp.split(w, 2, 1)[1],
    "tile": lambda w: jnp.tile(w, (1, 2)),
    "pad": lambda w: jnp.pad(w, ((0, 0), (0, 4))),
    "stop_gradient": lax.stop_gradient,
    "checkpoint_name": lambda w: checkpoint_name(w, "w"),
    "optimization_barrier": lax.optimization_barrier,
    "two in one barrier": lambda w: lax.optimization_barrier((w, jnp.ones(3)))[0],
    "reduce_precision": lambda w: lax.reduce_precision(w, 8, 23),
    "device_put": lambda w: jax.device_put(w, jax.devices()[0]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STAYS)
def test_leaves_stay_packed_and_are_what_they_stand_for(name, method):
    move, tx = STAYS[name], METHODS[method]
    params = {"w": jnp.asarray(np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32))}
    packed = tx.pack(params, tx.init(params))
    run = nnopt.on_packed(lambda p: move(p["w"]))
    report = run.report(packed)
    if method == "masked":  # stored as the kept entries alone, which no movement follows
        return
    assert not report.materialized, str(report)
    found = run(packed)
    np.testing.assert_array_equal(
        nnopt.materialize(found), move(tx.apply(params, tx.init(params))["w"])
    )
