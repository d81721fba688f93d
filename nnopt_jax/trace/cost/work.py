"""What a step costs that is no contraction, counted as XLA counts it."""

from __future__ import annotations

import math
from typing import NamedTuple

from nnopt_jax.trace.jaxpr import Equation, primitives as p
from nnopt_jax.trace.probed import optimization_barrier_p, pvary_p, split_p, tile_p

MOVEMENTS = frozenset({
    p.bitcast_convert_type_p, p.broadcast_in_dim_p, p.complex_p, p.concatenate_p, p.copy_p,
    p.device_put_p, p.dynamic_slice_p, p.dynamic_update_slice_p, p.empty2_p, p.gather_p, p.imag_p,
    p.iota_p, p.name_p, p.pad_p, p.real_p, p.reshape_p, p.rev_p, p.scatter_p,
    p.sharding_constraint_p, p.slice_p, p.squeeze_p, p.stop_gradient_p, p.transpose_p,
    optimization_barrier_p, pvary_p, split_p, tile_p,
})  # fmt: skip
"""Steps that compute nothing."""

ELEMENTWISE = frozenset({
    p.abs_p, p.add_jaxvals_p, p.add_p, p.and_p, p.ceil_p, p.clamp_p, p.clz_p, p.conj_p,
    p.convert_element_type_p, p.div_p, p.eq_p, p.floor_p, p.ge_p, p.gt_p, p.is_finite_p,
    p.le_p, p.lt_p, p.max_p, p.min_p, p.mul_p, p.ne_p, p.neg_p, p.nextafter_p,
    p.not_p, p.or_p, p.population_count_p, p.reduce_precision_p, p.rem_p, p.round_p, p.select_n_p,
    p.shift_left_p, p.shift_right_arithmetic_p, p.shift_right_logical_p, p.sign_p, p.square_p,
    p.sub_p, p.xor_p, p.cumsum_p, p.cumprod_p, p.cummax_p, p.cummin_p,
})  # fmt: skip
"""Steps of one operation for each entry of the outcome; running sums are as good as that."""

TRANSCENDENTAL = frozenset({
    p.acos_p, p.acosh_p, p.asin_p, p.asinh_p, p.atan2_p, p.atan_p, p.atanh_p, p.bessel_i0e_p,
    p.bessel_i1e_p, p.cbrt_p, p.cos_p, p.cosh_p, p.cumlogsumexp_p, p.digamma_p, p.erf_inv_p,
    p.erf_p, p.erfc_p, p.exp2_p, p.exp_p, p.expm1_p, p.lgamma_p, p.log1p_p, p.log_p,
    p.pow_p, p.rsqrt_p, p.sin_p, p.sinh_p, p.sqrt_p, p.tan_p, p.tanh_p,
})  # fmt: skip
"""Steps of one function for each entry of the outcome, however a backend computes it."""

REDUCTIONS = frozenset({
    p.argmax_p, p.argmin_p, p.reduce_and_p, p.reduce_max_p, p.reduce_min_p, p.reduce_or_p,
    p.reduce_p, p.reduce_prod_p, p.reduce_sum_p, p.reduce_xor_p,
})  # fmt: skip
"""`n` entries become one by `n - 1` operations."""

WINDOWS = frozenset({p.reduce_window_max_p, p.reduce_window_min_p, p.reduce_window_sum_p})
SCATTERS = frozenset({p.scatter_add_p, p.scatter_max_p, p.scatter_min_p, p.scatter_mul_p})


class Work(NamedTuple):
    """Operations of one step.

    Args:
        flops: additions, comparisons, casts and so on.
        transcendentals: exponentials, roots and so on, which are no FLOPs for XLA.
    """

    flops: int = 0
    transcendentals: int = 0


def work(equation: Equation) -> Work | None:
    """What one step costs; None where that is not known.

    Args:
        equation: a step that is no contraction and holds no program.
    """
    primitive = equation.primitive
    given, out = (math.prod(x[0].aval.shape) for x in (equation.invars or equation.outvars,
                  equation.outvars))  # fmt: skip
    if primitive in MOVEMENTS or _casts_to_its_own(equation):
        return Work()
    if primitive in ELEMENTWISE:
        return Work(out)
    if primitive is p.integer_pow_p:
        return Work(out * _multiplications(equation.params["y"]))
    if primitive is p.logistic_p:  # 1 / (1 + exp(-x))
        return Work(3 * out, out)
    if primitive in TRANSCENDENTAL:
        return Work(0, out)
    if primitive in REDUCTIONS:
        return Work(max(given - out, 0) * len(equation.outvars))
    if primitive in WINDOWS:
        return Work(out * (math.prod(equation.params["window_dimensions"]) - 1))
    if primitive in SCATTERS:
        return Work(math.prod(equation.invars[2].aval.shape))
    return None


def _casts_to_its_own(equation: Equation) -> bool:
    """Whether it changes nothing but how weak a type is."""
    if equation.primitive is not p.convert_element_type_p:
        return False
    return equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype


def _multiplications(power: int) -> int:
    """By squaring; one division more where the power is negative."""
    times = abs(power)
    return max(times.bit_length() + times.bit_count() - 2, 0) + (power < 0)
