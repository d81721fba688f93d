"""Weights of any layout as matrices, rounded by loops in NumPy; methods in groups."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt
from nnopt_jax import Axes

F32 = np.float32
Q = nnopt.quantization


def to_matrix(w: np.ndarray, axes: Axes) -> np.ndarray:
    batch = [w.shape[axis] for axis in axes.batch]
    inputs = np.prod([w.shape[axis] for axis in axes.contracted], dtype=int)
    return w.transpose(axes.order).reshape(*batch, inputs, -1)


def from_matrix(matrix: np.ndarray, axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    return matrix.reshape([shape[a] for a in axes.order]).transpose(np.argsort(axes.order))


def rounded(part: np.ndarray, bits: int) -> np.ndarray:
    """One block on a symmetric grid, in float32 as the formulas have it."""
    high = 2 ** (bits - 1) - 1
    scale = np.abs(part).max(initial=0) * F32(1 / high)
    scale = scale if scale > 0 else F32(1)
    return np.clip(np.rint(part * (F32(1) / scale)), -high, high) * scale


def oracle(w: np.ndarray, axes: Axes, bits: int, granularity: str | int) -> np.ndarray:
    matrix = to_matrix(w, axes)
    shown, inputs = matrix.copy(), matrix.shape[-2]
    group = inputs if isinstance(granularity, str) else granularity
    for batch in itertools.product(*map(range, matrix.shape[:-2])):
        if granularity == "tensor":
            shown[batch] = rounded(matrix[batch], bits)
            continue
        for start, out in itertools.product(range(0, inputs, group), range(matrix.shape[-1])):
            at = (*batch, slice(start, start + group), out)
            shown[at] = rounded(matrix[at], bits)
    return from_matrix(shown, axes, w.shape)


def bound(tx: nnopt.Transform, axes: Axes) -> nnopt.Transform:
    return tx.bind(axes={"w": axes})


def shown(tx: nnopt.Transform, w: np.ndarray) -> np.ndarray:
    params = {"w": jnp.asarray(w)}
    return np.asarray(tx.apply(params, tx.init(params))["w"])


METHODS = {
    "uniform": Q.uniform(4, group=8),
    "affine": Q.uniform(4, group=8, symmetric=False, scale_dtype=jnp.bfloat16),
    "percentile": Q.uniform(4, group=8, range="percentile", percent=90),
    "mse": Q.uniform(3, group=8, range="mse"),
    "nf4": Q.nf4(group=8),
    "nf4 double": Q.nf4(group=8, double=True),
    "fp4": Q.fp4(group=8),
    "xnor": Q.xnor(group=8),
    "twn": Q.twn(group=8),
    "ttq": Q.ttq(group=8),
    "lsq": Q.lsq(4, group=8),
}
LAYOUTS = {
    "shorter last group": ((20, 6), Axes(0, 1)),
    "(out, in), shorter last group": ((6, 20), Axes(1, 0)),
    "across heads, shorter last group": ((3, 12, 5), Axes((0, 1), 2)),
    "layers, shorter last group": ((2, 20, 6), Axes(1, 2, batch_axis=0)),
}
