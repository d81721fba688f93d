"""The settings that the contract suite runs each method with, and how the method composes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from nnopt_jax.typing import ArrayLike


@dataclass(frozen=True)
class Contract:
    """What the suite must know of one method.

    Args:
        kind: `"wrap"`: stands around a leaf and sees its dense value; `"refine"`: replaces the
            float slots inside it.
        cases: keyword arguments that the suite calls the method with.
        quantizes: whether it puts values on a grid, which can be done only once.
        straight_through: whether gradients pass as if it were not there, except where a mask or
            the end of a grid stops them; otherwise its own tests check them.
        trains_as_stored: whether training computes with what is stored; stochastic and soft
            methods differ on purpose. Or `case -> bool`, where settings decide.
        shows_zeros: whether weights of zero stay zeros; signs do not.
        comes_first: whether it rejects leaves that another method has refined already.
        replaces: leaves that the cases replace by others, so that earlier methods must leave
            them out.
    """

    kind: Literal["wrap", "refine"]
    cases: tuple[Mapping[str, Any], ...]
    quantizes: bool = False
    straight_through: bool = True
    trains_as_stored: bool | Callable[[Mapping[str, Any]], bool] = True
    shows_zeros: bool = True
    comes_first: bool = False
    replaces: tuple[str, ...] = ()


def ramp(count: ArrayLike) -> ArrayLike:
    """A schedule that reaches three quarters after three steps."""
    return 0.75 * jnp.minimum(jnp.asarray(count, jnp.float32), 3.0) / 3.0


def sharpness(path: str, weight: Any, gradient: Any) -> ArrayLike:
    """A score of either sign."""
    del path
    return weight.astype(jnp.float32) + (0.0 if gradient is None else gradient)


CONTRACTS: dict[str, Contract] = {
    "compression.codebook": Contract(
        "refine",
        (
            {"clusters": 4, "every": 2},
            {"clusters": 4, "learned": True},
            {"clusters": 3, "init": "quantile", "iterations": 5, "every": 1},
            {"clusters": 4, "scope": "tree", "every": 2},
            {"clusters": 4, "scope": "tree", "learned": True},
        ),
    ),
    "compression.dkm": Contract(
        "refine",
        ({"clusters": 4}, {"clusters": 3, "temperature": 1e-3, "iterations": 1}),
        straight_through=False,
        trains_as_stored=False,
    ),
    "compression.tie": Contract(
        "wrap",
        ({"pairs": {"head/kernel": "dense/kernel"}},),
        straight_through=False,
        replaces=("head/kernel",),
    ),
    "compression.low_rank": Contract(
        "refine",
        ({"rank": 2}, {"ratio": 2.5}, {"rank": 1, "method": "randomized"}),
        straight_through=False,
        comes_first=True,
    ),
    "compression.sparse": Contract(
        "wrap",
        ({}, {"format": "csr"}, {"format": (2, 2)}),
    ),
    "quantization.lsq": Contract(
        "refine",
        (
            {"bits": 4},
            {"bits": 3, "granularity": "channel"},
            {"bits": 2, "group": 2, "scale_dtype": jnp.bfloat16},
        ),
        quantizes=True,
        straight_through=False,
    ),
    "quantization.uniform": Contract(
        "refine",
        (
            {"bits": 8},
            {"bits": 16, "granularity": "channel"},
            {"bits": 8, "symmetric": False, "every": 2},
            {"bits": 4, "group": 2, "scale_dtype": jnp.bfloat16},
            {"bits": 3, "granularity": "channel", "range": "mse", "every": 2},
            {"bits": 4, "granularity": "channel", "range": "percentile", "percent": 90},
        ),
        quantizes=True,
    ),
    "quantization.quantize_activations": Contract(
        "wrap",
        ({"bits": 8}, {"bits": 4, "scale": "static"}),
    ),
    "quantization.binary_connect": Contract(
        "refine",
        ({}, {"scale": "glorot"}, {"stochastic": True, "scale": 0.5}),
        quantizes=True,
        trains_as_stored=lambda case: not case.get("stochastic", False),
        shows_zeros=False,
    ),
    "quantization.xnor": Contract(
        "refine",
        ({}, {"group": 4, "scale_dtype": jnp.float16}),
        quantizes=True,
        straight_through=False,
    ),
    "quantization.twn": Contract(
        "refine",
        ({}, {"granularity": "channel", "scale_dtype": jnp.bfloat16}),
        quantizes=True,
    ),
    "quantization.ttq": Contract(
        "refine",
        ({}, {"threshold": 0.2, "granularity": "channel"}),
        quantizes=True,
        straight_through=False,
    ),
    "quantization.nf4": Contract(
        "refine",
        (
            {"granularity": "channel"},
            {"group": 4, "scale_dtype": jnp.bfloat16},
            {"group": 2, "double": True},
        ),
        quantizes=True,
    ),
    "quantization.fp4": Contract(
        "refine",
        ({"granularity": "channel"}, {"group": 4, "scale_dtype": jnp.float16}),
        quantizes=True,
    ),
    "quantization.mxfp4": Contract(
        "refine",
        ({"granularity": "channel"}, {"group": 4}),
        quantizes=True,
    ),
    "quantization.grouped": Contract(
        "refine",
        ({"granularity": "channel"}, {"group": 4}, {"format": "q8_0", "group": 2}),
        quantizes=True,
    ),
    "pruning.magnitude": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": 0.75, "mode": "soft"},
            {"sparsity": 0.5, "allocation": "global", "every": 2},
            {"sparsity": ramp, "mode": "soft", "every": 2},
            {"pattern": "2:4"},
            {"sparsity": ramp, "allocation": "erk", "pattern": (2, 2)},
            {"sparsity": 0.5, "allocation": "lamp"},
        ),
    ),
    "pruning.taylor": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": ramp, "allocation": "global", "every": 2, "decay": None, "power": 1},
            {"sparsity": 0.5, "mode": "soft", "every": None},
            {"pattern": "2:4", "mode": "soft"},
        ),
    ),
    "pruning.movement": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": ramp, "allocation": "global", "every": 2, "mode": "soft"},
            {"pattern": "2:4"},
            {"sparsity": 0.5, "pattern": (2, 2), "mode": "hard"},
        ),
    ),
    "pruning.fisher": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": ramp, "allocation": "lamp", "every": 2},
            {"sparsity": 0.5, "allocation": "erk", "mode": "soft"},
        ),
    ),
    "pruning.snip": Contract(
        "wrap",
        ({"sparsity": 0.5, "allocation": "uniform"}, {"sparsity": 0.75}, {"pattern": "2:4"}),
    ),
    "pruning.grasp": Contract(
        "wrap",
        ({"sparsity": 0.5, "allocation": "uniform"}, {"sparsity": 0.75, "mode": "soft"}),
    ),
    "pruning.saliency": Contract(
        "wrap",
        (
            {"sparsity": 0.5, "score": sharpness},
            {"sparsity": 0.75, "score": sharpness, "gradients": True, "allocation": "global"},
        ),
    ),
    "pruning.rewind": Contract(
        "wrap",
        ({"rounds": 1, "steps": 1}, {"rounds": 2, "steps": 1, "begin": 1, "to": 1}),
    ),
    "pruning.proximal": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": ramp, "penalty": "hoyer", "every": 2},
            {"sparsity": 0.5, "penalty": "group_lasso"},
            {"sparsity": ramp, "allocation": "global", "delete": "on_arrival"},
        ),
    ),
    "pruning.random_mask": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": ramp, "allocation": "global", "mode": "soft"},
            {"pattern": "2:4"},
            {"sparsity": 0.5, "allocation": "erk", "pattern": (2, 2)},
        ),
    ),
    "pruning.wanda": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": 0.75, "pattern": None, "mode": "soft"},
            {"pattern": "2:4"},
        ),
    ),
    "pruning.rigl": Contract(
        "wrap",
        (
            {"sparsity": 0.5, "end_step": 10, "every": 1},
            {"sparsity": 0.75, "end_step": 10, "every": 2, "allocation": "uniform"},
            {"sparsity": 0.5, "end_step": 10, "every": 1, "pattern": (2, 2)},
        ),
    ),
    "pruning.sparse_evolution": Contract(
        "wrap",
        ({"sparsity": 0.5, "every": 1}, {"sparsity": 0.75, "every": 2, "allocation": "uniform"}),
    ),
    "pruning.soft_threshold": Contract(
        "wrap",
        (
            {"sparsity": 0.5},
            {"sparsity": ramp, "allocation": "global", "every": 2, "mode": "frozen"},
        ),
    ),
    "pruning.learned_threshold": Contract(
        "wrap",
        ({"start": -1.0, "decay": 0.01},),
    ),
    "transfer.freeze": Contract(
        "wrap",
        ({},),
        straight_through=False,
    ),
    "transfer.lora": Contract(
        "wrap",
        ({"rank": 2}, {"rank": 2, "alpha": 3, "rank_stabilized": True, "freeze": None}),
        straight_through=False,
    ),
    "transfer.dora": Contract(
        "wrap",
        ({"rank": 2},),
        straight_through=False,
    ),
}
