"""Roles of axes in the layouts that models bring."""

from __future__ import annotations

from nnopt_jax import Axes

IN_OUT = Axes(0, 1)  # x @ w
OUT_IN = Axes(1, 0)  # w @ x
HWIO = Axes((0, 1, 2), 3)  # all of a patch is summed over
OIHW = Axes((1, 2, 3), 0)
HEADS_OUT = Axes(0, (1, 2))  # (d, heads, head_dim): a query is summed over d
HEADS_IN = Axes((0, 1), 2)  # (heads, head_dim, d): an output projection
LAYERS = Axes(1, 2, batch_axis=0)  # (layers, in, out)
LOOKED_UP = Axes(0, 1, lookup=True)  # rows of an embedding
