"""What each preset of version 0.1.0 computed: its state, packed leaves and `apply`.

    python -m tests.golden.presets FILE             writes all cases as `.npz`
    python -m tests.golden.presets FILE NAME ...    writes some

Every case runs on three trees: plain `(in, out)` kernels, a small network with attention and a
convolution, bound to its graph, and a scanned stack of bfloat16, bound as well. Each run takes
three updates. Where a setting is spelled anew, the case is spelled anew, and the file stays.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt
from tests.golden.values import Values, values_of

FILE = Path(__file__).parent / "files" / "presets.npz"
UPDATES = 3
_INDEX = "index.json"
_SLOPES = ("gradient", "fisher", "hessian_gradient")


def ramp(count: Any) -> jax.Array:
    """Three quarters of zeros after three updates."""
    return 0.75 * jnp.minimum(jnp.asarray(count, jnp.float32), 3.0) / 3.0


def sharpness(path: str, weight: Any, gradient: Any) -> jax.Array:
    """A score of either sign."""
    del path
    return weight.astype(jnp.float32) + (0.0 if gradient is None else gradient)


def _sine(path: str, leaf: Any) -> jax.Array:
    del path
    return jnp.sin(3 * leaf)


CASES: dict[str, Mapping[str, Any]] = {
    "compression.codebook-0": {"clusters": 4, "every": 2},
    "compression.codebook-1": {"clusters": 4, "learned": True},
    "compression.codebook-2": {"clusters": 4, "scope": "tree", "every": 2},
    "compression.dkm-0": {"clusters": 4},
    "compression.low_rank-0": {"rank": 2},
    "compression.low_rank-1": {"ratio": 2.5},
    "compression.sparse-0": {},
    "compression.sparse-1": {"format": (2, 2)},
    "quantization.lsq-0": {"bits": 4},
    "quantization.lsq-1": {"bits": 3, "granularity": "channel"},
    "quantization.lsq-2": {"bits": 2, "group": 2, "scale_dtype": jnp.bfloat16},
    "quantization.uniform-0": {"bits": 8},
    "quantization.uniform-1": {"bits": 16, "granularity": "channel"},
    "quantization.uniform-2": {"bits": 8, "symmetric": False, "every": 2},
    "quantization.uniform-3": {"bits": 4, "group": 2, "scale_dtype": jnp.bfloat16},
    "quantization.uniform-4": {"bits": 3, "granularity": "channel", "range": "mse", "every": 2},
    "quantization.uniform-5": {
        "bits": 4,
        "granularity": "channel",
        "range": "percentile",
        "percent": 90,
    },
    "quantization.uniform-6": {"bits": 4, "group": 3, "scale_dtype": jnp.float32},
    "quantization.uniform-7": {"bits": 2, "group": 4, "range": "mse", "scale_dtype": "float32"},
    "quantization.quantize_activations-0": {"bits": 8},
    "quantization.quantize_activations-1": {"bits": 4, "scale": "static"},
    "quantization.binary_connect-0": {},
    "quantization.binary_connect-1": {"scale": "glorot"},
    "quantization.binary_connect-2": {"stochastic": True, "scale": 0.5},
    "quantization.xnor-0": {},
    "quantization.xnor-1": {"group": 4, "scale_dtype": jnp.float16},
    "quantization.twn-0": {},
    "quantization.twn-1": {"granularity": "channel", "scale_dtype": jnp.bfloat16},
    "quantization.ttq-0": {},
    "quantization.ttq-1": {"threshold": 0.2, "granularity": "channel"},
    "quantization.nf4-0": {"granularity": "channel"},
    "quantization.nf4-1": {"group": 4, "scale_dtype": jnp.bfloat16},
    "quantization.nf4-2": {"group": 2, "double": True, "scale_dtype": "float32"},
    "quantization.fp4-0": {"granularity": "channel"},
    "quantization.fp4-1": {"group": 4, "scale_dtype": jnp.float16},
    "quantization.mxfp4-0": {"granularity": "channel"},
    "quantization.mxfp4-1": {"group": 4},
    "quantization.grouped-0": {"granularity": "channel"},
    "quantization.grouped-1": {"group": 4},
    "quantization.grouped-2": {"format": "q8_0", "group": 2},
    "pruning.magnitude-0": {"sparsity": 0.5},
    "pruning.magnitude-1": {"sparsity": 0.75, "mode": "soft"},
    "pruning.magnitude-2": {"sparsity": 0.5, "allocation": "global", "every": 2},
    "pruning.magnitude-3": {"sparsity": ramp, "mode": "soft", "every": 2},
    "pruning.magnitude-4": {"pattern": "2:4"},
    "pruning.magnitude-5": {"sparsity": ramp, "allocation": "erk", "pattern": (2, 2)},
    "pruning.magnitude-6": {"sparsity": 0.5, "allocation": "lamp"},
    "pruning.magnitude-7": {"sparsity": 0.5, "mode": "frozen", "every": None},
    "pruning.taylor-0": {"sparsity": 0.5},
    "pruning.taylor-1": {
        "sparsity": ramp,
        "allocation": "global",
        "every": 2,
        "decay": None,
        "power": 1,
    },
    "pruning.taylor-2": {"sparsity": 0.5, "mode": "soft", "every": None},
    "pruning.taylor-3": {"pattern": "2:4", "mode": "soft"},
    "pruning.movement-0": {"sparsity": 0.5},
    "pruning.movement-1": {"sparsity": ramp, "allocation": "global", "every": 2, "mode": "soft"},
    "pruning.movement-2": {"pattern": "2:4"},
    "pruning.movement-3": {"sparsity": 0.5, "pattern": (2, 2), "mode": "hard"},
    "pruning.fisher-0": {"sparsity": 0.5},
    "pruning.fisher-1": {"sparsity": ramp, "allocation": "lamp", "every": 2},
    "pruning.fisher-2": {"sparsity": 0.5, "allocation": "erk", "mode": "soft"},
    "pruning.snip-0": {"sparsity": 0.5, "allocation": "uniform"},
    "pruning.snip-1": {"sparsity": 0.75},
    "pruning.snip-2": {"pattern": "2:4"},
    "pruning.grasp-0": {"sparsity": 0.5, "allocation": "uniform"},
    "pruning.grasp-1": {"sparsity": 0.75, "mode": "soft"},
    "pruning.saliency-0": {"sparsity": 0.5, "score": sharpness},
    "pruning.saliency-1": {
        "sparsity": 0.75,
        "score": sharpness,
        "gradients": True,
        "allocation": "global",
    },
    "pruning.rewind-0": {"rounds": 1, "steps": 1},
    "pruning.rewind-1": {"rounds": 2, "steps": 1, "begin": 1, "to": 1},
    "pruning.proximal-0": {"sparsity": 0.5},
    "pruning.proximal-1": {"sparsity": ramp, "penalty": "hoyer", "every": 2},
    "pruning.proximal-2": {"sparsity": 0.5, "penalty": "group_lasso"},
    "pruning.proximal-3": {"sparsity": ramp, "allocation": "global", "delete": "on_arrival"},
    "pruning.random_mask-0": {"sparsity": 0.5},
    "pruning.random_mask-1": {"sparsity": ramp, "allocation": "global", "mode": "soft"},
    "pruning.random_mask-2": {"pattern": "2:4"},
    "pruning.random_mask-3": {"sparsity": 0.5, "allocation": "erk", "pattern": (2, 2)},
    "pruning.rigl-0": {"sparsity": 0.5, "end_step": 10, "every": 1},
    "pruning.rigl-1": {"sparsity": 0.75, "end_step": 10, "every": 2, "allocation": "uniform"},
    "pruning.sparse_evolution-0": {"sparsity": 0.5, "every": 1},
    "pruning.sparse_evolution-1": {"sparsity": 0.75, "every": 2, "allocation": "uniform"},
    "pruning.soft_threshold-0": {"sparsity": 0.5},
    "pruning.soft_threshold-1": {
        "sparsity": ramp,
        "allocation": "global",
        "every": 2,
        "mode": "frozen",
    },
    "pruning.learned_threshold-0": {"start": -1.0, "decay": 0.01},
    "pruning.structured-0": {"sparsity": 0.5},
    "pruning.structured-1": {
        "sparsity": ramp,
        "score": "l1",
        "allocation": "global",
        "every": 2,
        "mode": "soft",
    },
    "pruning.structured-2": {"sparsity": 0.3, "score": _sine, "multiple": 2, "mode": "frozen"},
    "transfer.freeze-0": {},
    "transfer.lora-0": {"rank": 2},
    "transfer.lora-1": {"rank": 2, "alpha": 3, "rank_stabilized": True, "freeze": None},
    "transfer.dora-0": {"rank": 2},
}
"""Settings by the name of a preset and a number."""

NEEDS_GRAPH = ("pruning.structured",)


def _rounded(x: np.ndarray, dtype: Any) -> jax.Array:
    """Round to a few bits, so that the last bits of no machine's mathematics matter."""
    return jnp.asarray((np.round(x * 1024) / 1024).astype(np.float32), dtype)


def _normal(number: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return _rounded(np.random.default_rng(number).standard_normal(shape), dtype)


def dense() -> tuple[Any, Any]:
    """Two kernels and a bias, not bound."""
    return {
        "dense": {"bias": _normal(1, 4), "kernel": _normal(2, 8, 4)},
        "head": {"kernel": _normal(3, 4, 8)},
    }, None


def network() -> tuple[Any, Any]:
    """A convolution, attention whose weights have three axes, and a head, with their graph."""
    params = {
        "conv": {"kernel": _normal(4, 2, 2, 4, 8), "bias": _normal(5, 8)},
        "query": {"kernel": _normal(6, 8, 2, 4)},
        "out": {"kernel": _normal(7, 2, 4, 8)},
        "head": _normal(8, 8, 4),
    }

    def apply(params: Any, image: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            image,
            params["conv"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params["conv"]["bias"][None, None, None]).mean((1, 2))
        x = jnp.tanh(jnp.einsum("bi,ihd->bhd", x, params["query"]["kernel"]))
        return jnp.tanh(jnp.einsum("bhd,hdo->bo", x, params["out"]["kernel"])) @ params["head"]

    return params, nnopt.graph(apply, params, jnp.ones((2, 3, 3, 4)))


def stack() -> tuple[Any, Any]:
    """Three scanned layers of bfloat16, with their graph."""
    params = {
        "layers": {
            "up": _normal(9, 3, 8, 16, dtype=jnp.bfloat16),
            "down": _normal(10, 3, 16, 8, dtype=jnp.bfloat16),
        },
        "head": _normal(11, 8, 4, dtype=jnp.bfloat16),
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, one: Any) -> tuple[jax.Array, None]:
            return x + jax.nn.relu(x @ one["up"]) @ one["down"], None

        return jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]

    return params, nnopt.graph(apply, params, jnp.ones((2, 8), jnp.bfloat16))


TREES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "dense": dense,
    "network": network,
    "stack": stack,
}

RUNS = [
    f"{name}-{tree}"
    for name in CASES
    for tree in TREES
    if tree != "dense" or name.rpartition("-")[0] not in NEEDS_GRAPH
]


def make(name: str) -> nnopt.Transform:
    """Return the transform of a case, not bound."""
    family, _, method = name.rpartition("-")[0].partition(".")
    return getattr(getattr(nnopt, family), method)(**CASES[name])


def wave(tree: Any, rate: float, size: float = 1.0) -> Any:
    """Return an array of cosines for each leaf."""
    return jax.tree.map(
        lambda x: _rounded(size * np.cos(rate * np.arange(x.size)).reshape(x.shape), x.dtype), tree
    )


def run(name: str) -> dict[str, Any]:
    """Return the state, the packed leaves and the dense leaves of a run after three updates."""
    case, _, tree = name.rpartition("-")
    params, graph = TREES[tree]()
    tx = make(case) if graph is None else make(case).bind(graph)
    stats: dict[str, Any] = {key: wave(params, 1.0 + i) for i, key in enumerate(_SLOPES)}
    stats["input_absmax"] = jax.tree.map(lambda x: jnp.float32(2.0), params)
    used = {key: stats[key] for key in dict.fromkeys((*tx.needs, *tx.takes))}
    state = tx.init(params, stats=used, key=jax.random.key(7))
    for number in range(UPDATES):
        params = jax.tree.map(jnp.add, params, wave(params, 0.7 + number, 0.05))
        grads = nnopt.Grads(train=None, dense=wave(params, 3.0 + number))
        params, state = tx.update(params, state, grads=grads)
    packed = jax.tree.leaves(tx.pack(params, state))
    return {
        "params": params,
        "state": state,
        "packed": {f"{i:03}": leaf for i, leaf in enumerate(packed)},
        "apply": tx.apply(params, state),
    }


def write(file: Path, names: list[str]) -> None:
    """Write some runs, or all: the bytes of each as one array, and what they hold as JSON."""
    index: dict[str, Any] = {}
    found: dict[str, np.ndarray] = {}
    for name in names or RUNS:
        values = values_of(run(name))
        index[name] = [[path, dtype, str(x.dtype), x.shape] for path, (dtype, x) in values.items()]
        found[name] = np.frombuffer(b"".join(x.tobytes() for _, x in values.values()), np.uint8)
    found[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with file.open("xb") as out:
        np.savez_compressed(out, **found)  # pyright: ignore[reportArgumentType]


def read(file: Path) -> dict[str, Values]:
    """Read what `write` wrote: by run, the arrays by path."""
    with np.load(file, allow_pickle=False) as archive:
        index = json.loads(archive[_INDEX].tobytes())
        return {name: _parted(archive[name].tobytes(), parts) for name, parts in index.items()}


def _parted(data: bytes, parts: list[Any]) -> Values:
    values, at = {}, 0
    for path, name, bits, shape in parts:
        x = np.frombuffer(data, bits, math.prod(shape), at).reshape(shape)
        values[path] = name, x
        at += x.nbytes
    return values


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:])
