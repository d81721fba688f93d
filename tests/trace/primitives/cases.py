"""At least one equation of each primitive of the table, and what to bind it to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nnopt_jax.trace.primitives import named


class Case(NamedTuple):
    """One equation: a function that has it, and arguments, several sets where one hides changes."""

    name: str
    function: Any
    bases: tuple[tuple[Any, ...], ...]
    exact: bool = True


def floats(*shape, low=0.15, high=0.85):
    return jnp.linspace(low, high, int(np.prod(shape)), dtype=jnp.float32).reshape(shape)


def drawn(*shape):
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def counted(*shape, start=3):
    return jnp.arange(start, start + int(np.prod(shape)), dtype=jnp.int32).reshape(shape)


X = floats(2, 3)
N = counted(2, 3)
C = (X + 1j * X[::-1]).astype(jnp.complex64)


def bound(name, **settings):
    return lambda *args: named(name)[0].bind(*args, **settings)


def unary(names, x):
    return [Case(name, getattr(lax, name, None) or bound(name), ((x,),)) for name in names.split()]


def binary(names, *bases):
    return [Case(name, getattr(lax, name, None) or bound(name), bases) for name in names.split()]


def ordered(name):
    return Case(name, bound(name), ((X, X),))


ELEMENTWISE = [
    *unary(
        "abs acos asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf "
        "erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p logistic neg rsqrt sign sin "
        "sinh sqrt square tan tanh round",
        X,
    ),
    *unary("conj imag real", C),
    *unary("clz population_count", N),
    Case("acosh", lax.acosh, ((X + 1,),)),
    Case("log2", jnp.log2, ((X,),)),
    Case("one_minus_square", bound("one_minus_square"), ((X,),)),
    Case("not", lax.bitwise_not, ((N,),)),
    Case("integer_pow", lambda x: x**3, ((X,),)),
    Case("convert_element_type", lambda x: x.astype(jnp.float16), ((X,),)),
    Case("reduce_precision", lambda x: lax.reduce_precision(x, 5, 2), ((X,),)),
    Case("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.int32), ((X,),)),
    Case("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.int16), ((X,),), False),
    Case(
        "bitcast_convert_type",
        lambda x: lax.bitcast_convert_type(x, jnp.int32),
        ((counted(3, 2).astype(jnp.int16),),),
    ),
    *binary("add add_jaxvals atan2 complex div max min mul nextafter pow sub", (X, X[::-1])),
    Case("rem", lax.rem, ((X + 3, X),)),
    *binary("eq ge gt le lt ne", (X, X)),
    *(ordered(name) for name in ("eq_to", "le_to", "lt_to")),
    *binary("igamma igammac igamma_grad_a", (X, X[::-1])),
    Case("polygamma", lax.polygamma, ((jnp.ones((2, 3)), X),)),
    Case("zeta", lax.zeta, ((X + 1.2, X),)),
    Case("regularized_incomplete_beta", lax.betainc, ((X, X[::-1], X),), False),
    Case("and", lax.bitwise_and, ((N, N[::-1]),)),
    Case("or", lax.bitwise_or, ((N, N[::-1]),)),
    Case("xor", lax.bitwise_xor, ((N, N[::-1]),)),
    *binary(
        "shift_left shift_right_arithmetic shift_right_logical",
        (N + 64, jnp.ones((2, 3), jnp.int32)),
    ),
    Case("clamp", lax.clamp, ((X - 0.1, X, X + 0.1), (X + 0.1, X, X + 0.2))),
    Case("clamp", lambda x: lax.clamp(0.4, x, 0.6), ((X,),), False),
    Case(
        "select_n",
        lax.select_n,
        ((jnp.zeros((2, 3), bool), X, X + 1), (jnp.ones((2, 3), bool), X, X + 1)),
    ),
    Case("select_n", lax.select_n, ((jnp.asarray(False), X, X + 1), (jnp.asarray(True), X, X + 1))),
    Case("mul", lambda x: x * 3.0, ((X,),)),
]

V = jnp.arange(24.0).reshape(2, 3, 4) + 100
PADDED = [
    ((1, 2, 0), (0, 0, 0), (0, 0, 0)),
    ((0, 0, 2), (3, 0, 1), (0, 0, 0)),
    ((0, 0, 0), (-1, 2, 0), (-1, -1, 0)),
    ((0, 0, 0), (-3, 0, 1), (-2, -1, 2)),
]
START = jnp.int32(1)
SHAPES = (24,), (6, 4), (2, 12), (2, 3, 2, 2), (3, 8), (4, 3, 2), (1, 2, 3, 1, 4), (8, 3)

MOVEMENTS = [
    Case("transpose", lambda x: x.transpose(2, 0, 1), ((V,),)),
    Case("squeeze", lambda x: lax.squeeze(x, (0, 2)), ((V[:1, :, :1],),)),
    Case("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (2, 2, 3, 4)), ((V,),)),
    Case("broadcast_in_dim", lambda x: jnp.broadcast_to(x[:, :1], (2, 5, 4)), ((V,),)),
    Case("broadcast_in_dim", lambda x: x[:, None], ((V,),)),
    Case("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (2, 3)), ((jnp.float32(4),),)),
    *(Case("reshape", lambda x, shape=shape: lax.reshape(x, shape), ((V,),)) for shape in SHAPES),
    Case("reshape", lambda x: lax.reshape(x, (3, 8), dimensions=(1, 0, 2)), ((V,),)),
    Case("slice", lambda x: x[:1, 1:, 1:4:2], ((V,),)),
    Case("split", lambda x: jnp.split(x, [1, 3], axis=2), ((V,),)),
    Case("concatenate", lambda x, y: jnp.concatenate([x, y, x], 1), ((V, V[:, :2] + 50),)),
    Case("stack", lambda x, y: jnp.stack([x, y, x], 1), ((V, V + 50),)),
    Case("unstack", lambda x: jnp.unstack(x, axis=1), ((V,),)),
    *(Case("pad", lambda x, c=config: lax.pad(x, -1.0, c), ((V,),)) for config in PADDED),
    Case("rev", lambda x: lax.rev(x, (0, 2)), ((V,),)),
    Case("tile", lambda x: jnp.tile(x, (2, 1, 3)), ((V,),)),
    Case("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i, 0, i), (1, 3, 2)), ((V, START),)),
    Case("copy", bound("copy"), ((V,),)),
    Case("name", lambda x: checkpoint_name(x, "x"), ((V,),)),
    Case("stop_gradient", bound("stop_gradient"), ((V,),)),
    *(
        Case("optimization_barrier", lambda x, y: lax.optimization_barrier((x, y)), (pair,))
        for pair in ((V, V[0]), (V[0, 0, 0], V[0, 0, 1]))
    ),
    Case("device_put", lambda x: jax.device_put(x), ((V,),)),
]


def gathered(operand, indices, sizes, mode="clip", **numbers):
    return lax.gather(operand, indices, lax.GatherDimensionNumbers(**numbers), sizes, mode=mode)


W = jnp.arange(60.0).reshape(5, 4, 3) + 100
AT = jnp.asarray([[2], [4], [2]])
AT2 = jnp.asarray([[[2, 1], [4, 0]]])
BATCHED = jnp.asarray([[[1], [0]], [[2], [2]], [[3], [1]], [[0], [0]], [[1], [3]]])

LOOKUPS = [
    Case("gather", lambda x, i: x[i[:, 0]], ((W, AT),)),
    Case(
        "gather",
        lambda x, i: gathered(
            x, i, (1, 2, 3), offset_dims=(2, 3), collapsed_slice_dims=(0,), start_index_map=(0, 1)
        ),
        ((W, AT2),),
    ),
    Case(
        "gather",
        lambda x, i: gathered(
            x, i, (2, 4, 1), offset_dims=(0, 2), collapsed_slice_dims=(2,), start_index_map=(2, 0)
        ),
        ((W, jnp.asarray([[2, 3], [0, 1]])),),
    ),
    Case(
        "gather",
        lambda x, i: gathered(
            x,
            i,
            (1, 1, 3),
            offset_dims=(2,),
            collapsed_slice_dims=(1,),
            start_index_map=(1,),
            operand_batching_dims=(0,),
            start_indices_batching_dims=(0,),
        ),
        ((W, BATCHED),),
    ),
    Case("scatter", lambda x, i, u: x.at[i].set(u), ((W, AT[:2, 0], W[:2] + 500),)),
    Case(
        "scatter",
        lambda x, i, u: lax.scatter(
            x, i, u, lax.ScatterDimensionNumbers((1, 2), (0,), (0, 1)), mode="clip"
        ),
        ((W, AT2[0], W[:2, :2] + 500),),
    ),
    Case(
        "scatter",
        lambda x, i, u: lax.scatter(
            x,
            i,
            u,
            lax.ScatterDimensionNumbers(
                (1,), (1,), (1,), operand_batching_dims=(0,), scatter_indices_batching_dims=(0,)
            ),
            mode="clip",
        ),
        ((W, BATCHED[:, 0], W[:, 0] + 500),),
    ),
    Case(
        "dynamic_update_slice",
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0, i)),
        ((W, W[:2, :, :1] + 500, START),),
    ),
]
CHANGING = [
    Case(
        f"scatter_{name}",
        lambda x, i, u, name=name: getattr(x.at[i], name)(u),
        ((W[0], AT[:, 0] % 4, W[0, :3]),),
    )
    for name in ("add", "mul")
] + [
    Case(
        f"scatter_{name}",
        lambda x, i, u, name=name: getattr(x.at[i], name)(u),
        ((W[0], AT[:2, 0] % 4, W[0, :2]),),
        False,
    )
    for name in ("max", "min")
]


def convolved(numbers=("NWC", "WIO", "NWC"), **settings):
    settings = {"window_strides": (1,), "padding": "VALID", **settings}
    return lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **settings)


CONVOLUTIONS = [
    (convolved(window_strides=(2,), padding=((1, 2),)), drawn(2, 5, 2), drawn(3, 2, 3)),
    (
        convolved(
            ("NCHW", "OIHW", "NHWC"),
            window_strides=(1, 2),
            padding=((0, 1), (1, 0)),
            rhs_dilation=(2, 1),
        ),
        drawn(1, 2, 4, 4),
        drawn(2, 2, 2, 2),
    ),
    (convolved(padding=((2, 2),), lhs_dilation=(2,)), drawn(1, 3, 2), drawn(3, 2, 2)),
    (convolved(padding="SAME", feature_group_count=2), drawn(2, 3, 4), drawn(2, 2, 6)),
    (convolved(batch_group_count=2), drawn(4, 3, 2), drawn(2, 2, 6)),
    (convolved(feature_group_count=3), drawn(1, 3, 3), drawn(2, 1, 3)),
]


def summed(text, *operands):
    return Case("dot_general", lambda x, y: jnp.einsum(text, x, y), (operands,))


CONTRACTIONS = [
    summed("ij,jk->ik", drawn(2, 3), drawn(3, 4)),
    summed("bij,kbj->bik", drawn(2, 3, 2), drawn(4, 2, 2)),
    summed("i,i->", drawn(3), drawn(3)),
    Case(
        "dot_general",
        lambda x, y: lax.dot_general(x, y, (((), ()), ((), ()))),
        ((drawn(3), drawn(2)),),
    ),
    *(Case("conv_general_dilated", function, (operands,)) for function, *operands in CONVOLUTIONS),
]


BITS = (jnp.zeros((2, 3), bool),), (jnp.ones((2, 3), bool),)
REDUCTIONS = [
    *(
        Case(f"reduce_{name}", lambda x, name=name: getattr(jnp, name)(x, 1), ((X,),))
        for name in ("sum", "prod", "max", "min")
    ),
    Case("reduce_sum", lambda x: x.sum((0, 2)), ((V,),)),
    Case("reduce_and", lambda x: x.all(0), BITS),
    Case("reduce_or", lambda x: x.any(0), BITS),
    Case("reduce_xor", lambda x: lax.reduce(x, False, lax.bitwise_xor, (0,)), BITS),
    Case("argmax", lambda x: x.argmax(1), ((X,), (X[:, ::-1],))),
    Case("argmin", lambda x: x.argmin(1), ((X,), (X[:, ::-1],))),
    Case(
        "reduce",
        lambda x: lax.reduce(x, jnp.float32(0), lambda a, b: a + 2 * b, (1,)),
        ((X,),),
        False,
    ),
    *(
        Case(name, lambda x, name=name: getattr(lax, name)(x, 1), ((X,),), False)
        for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
    ),
    Case("sort", lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), ((X, N),), False),
    Case("top_k", lambda x: lax.top_k(x, 2), ((X,),), False),
    Case("approx_top_k", lambda x: lax.approx_max_k(x, 2), ((X,),), False),
]


def pooled(combine, first, **settings):
    shape, strides = settings.pop("shape", (1, 2)), settings.pop("strides", (1, 2))
    padding = settings.pop("padding", ((0, 0), (1, 0)))
    return lambda x: lax.reduce_window(x, first, combine, shape, strides, padding, **settings)


P = floats(2, 5)
WINDOWS = [
    Case("reduce_window_sum", pooled(lax.add, 0.0), ((P,),)),
    Case("reduce_window_max", pooled(lax.max, -jnp.inf), ((P,),)),
    Case("reduce_window_min", pooled(lax.min, jnp.inf, window_dilation=(1, 2)), ((P,),)),
    Case(
        "reduce_window_sum",
        pooled(lax.add, 0.0, base_dilation=(1, 2), shape=(2, 3), strides=(1, 1)),
        ((P,),),
    ),
    Case("reduce_window", pooled(lambda a, b: a + 2 * b, jnp.float32(0)), ((P,),), False),
    Case(
        "select_and_scatter_add",
        jax.grad(lambda x: (pooled(lax.max, -jnp.inf)(x) * 2).sum()),
        ((P,),),
        False,
    ),
    Case(
        "select_and_gather_add",
        lambda x, y: jax.jvp(pooled(lax.max, -jnp.inf), (x,), (y,))[1],
        ((P, P + 1),),
        False,
    ),
]

S = drawn(2, 3, 3) + 4 * jnp.eye(3)[None]
S = S + S.swapaxes(1, 2)
LINEAR_ALGEBRA = [
    Case(name, function, ((S,),), False)
    for name, function in (
        ("cholesky", lax.linalg.cholesky),
        ("eig", lax.linalg.eig),
        ("eigh", lax.linalg.eigh),
        ("hessenberg", lax.linalg.hessenberg),
        ("lu", lax.linalg.lu),
        ("qr", lax.linalg.qr),
        ("schur", lax.linalg.schur),
        ("svd", lax.linalg.svd),
        ("fft", jnp.fft.fft),
        ("tridiagonal", lambda x: lax.linalg.tridiagonal(x, lower=True)),
        ("triangular_solve", lambda x: lax.linalg.triangular_solve(x, x, left_side=True)),
        ("householder_product", lambda x: lax.linalg.householder_product(x, x[..., 0])),
    )
] + [
    Case(
        "tridiagonal_solve",
        lambda x: lax.linalg.tridiagonal_solve(x[..., 0], x[..., 1], x[..., 2], x),
        ((S,),),
        False,
    )
]

KEYS = jax.random.split(jax.random.key(0), 3)
GENERATORS = [
    Case("iota", lambda: lax.iota(jnp.int32, 4), ((),)),
    Case("empty", lambda: lax.empty((2, 3), jnp.float32), ((),)),
    Case("random_bits", jax.vmap(lambda k: jax.random.bits(k, (2,))), ((KEYS,),), False),
    Case("random_split", jax.vmap(jax.random.split), ((KEYS,),), False),
    Case("random_unwrap", jax.random.key_data, ((KEYS,),), False),
    Case("random_wrap", jax.random.wrap_key_data, ((jax.random.key_data(KEYS),),), False),
    Case("random_fold_in", jax.vmap(jax.random.fold_in), ((KEYS, counted(3)),), False),
    Case("random_seed", jax.vmap(jax.random.key), ((counted(3),),), False),
    Case("random_gamma", jax.vmap(lambda k, x: jax.random.gamma(k, x)), ((KEYS, X[0]),), False),
    Case(
        "threefry2x32",
        bound("threefry2x32"),
        ((jnp.uint32(1) + counted(3).astype(jnp.uint32),) * 4,),
        False,
    ),
    Case(
        "rng_bit_generator",
        lambda k: lax.rng_bit_generator(k, (2, 3)),
        ((jnp.zeros(4, jnp.uint32),),),
        False,
    ),
    Case(
        "rng_uniform",
        lambda a, b: lax.rng_uniform(a, b, (3,)),
        ((jnp.float32(0), jnp.float32(1)),),
        False,
    ),
]

EVERY = [
    *ELEMENTWISE,
    *MOVEMENTS,
    *LOOKUPS,
    *CHANGING,
    *CONTRACTIONS,
    *REDUCTIONS,
    *WINDOWS,
    *LINEAR_ALGEBRA,
    *GENERATORS,
]
HERE = [case for case in EVERY if named(case.name)]
"""The cases whose primitive this version of JAX has."""
