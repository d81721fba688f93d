"""Models, structures, adapters and training state that golden files hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnopt_jax.arrays import (
    BSR,
    CSR,
    ELL,
    Bits,
    BlockELL,
    Codebook,
    Factored,
    InputQuantized,
    LookupQuantized,
    Masked,
    Normalized,
    Powers,
    Quantized,
    Reshaped,
    SoftCodebook,
    SoftThresholded,
    Sparse,
    Sum,
)
from nnopt_jax.transfer import Structure, capture
from tests.golden.draws import FP4, SHAPE, Draws


def dense() -> dict[str, Any]:
    """Arrays for `apply`."""
    draws = Draws(50)
    return {
        "embed": draws.eighths(11, 16),
        "layers": [{"kernel": draws.eighths(), "bias": draws.eighths(24)}],
        "head": draws.eighths(24, 3),
    }


def packed() -> dict[str, Any]:
    """The same tree of packed leaves, an adapter among them."""
    draws = Draws(51)
    grid = Quantized(draws.codes(-7, 7, 11, 16), jnp.full((1, 16), 0.125), low=-7, high=7)
    shared = Codebook(draws.indices(4), jnp.array([-1.0, -0.25, 0.5, 1.0]))
    signs = LookupQuantized(draws.codes(0, 1, 24, 3), jnp.full((1, 3), 0.25)).store()
    return {
        "embed": grid.store(),
        "layers": [{"kernel": Masked(shared, draws.mask(0.3)).store(), "bias": draws.eighths(24)}],
        "head": Sum(signs, Factored(draws.eighths(24, 2), draws.eighths(2, 3))),
    }


def apply(params: Any, tokens: Any, weight: Any) -> Any:
    """A small network over tokens, with two outputs."""
    x = (params["embed"][tokens] * weight[..., None]).mean(1)
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return {"logits": x @ params["head"], "hidden": (x, [x.sum(1)])}


def train(params: Any, tokens: Any, weight: Any, key: Any) -> Any:
    """The same with weights that a key drops."""
    kept = jax.random.bernoulli(key, 0.5, (params["head"].shape[0],))
    head = jnp.where(kept[:, None], params["head"], 0.0)
    return apply(params | {"head": head}, tokens, weight)["logits"]


def inputs(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What `apply` takes."""
    rng = np.random.default_rng(52)
    tokens = rng.integers(0, 11, (batch, length)).astype(np.int32)
    return tokens, (rng.integers(1, 9, (batch, length)) / 8).astype(np.float32)


def structure(params: Any, **settings: Any) -> Structure:
    """The structure of `apply`, for batches of any size."""
    shapes = ["b, t", "b, t"]
    return capture(apply, params, *inputs(1, 1), shapes=shapes, constraints=["t <= 16"], **settings)


def whole_structure() -> Structure:
    """A structure of shapes alone, with all there is to say of a model."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dense())
    return structure(
        shapes,
        train=train,
        train_args=(jax.random.key(0),),
        initializers={
            "embed": {"name": "normal", "stddev": 0.02},
            "**/kernel": {"name": "variance_scaling", "scale": 1.0, "mode": "fan_in",
                          "distribution": "truncated_normal"},
            "**/bias": "zeros", "head": {"name": "constant", "value": 0.5},
        },
        constructor="fractions:Fraction",
        config={"numerator": 3, "denominator": 6},
    )  # fmt: skip


def adapters() -> dict[str, tuple[Any, Any]]:
    """By name a base, and the packed tree that was learned over it."""
    draws = Draws(53)

    def factors() -> Factored:
        return Factored(draws.eighths(16, 2), draws.eighths(2, 24))

    length = jnp.asarray((5 * np.arange(24)).astype(np.float32)[None])
    triangles = jnp.zeros(SHAPE).at[0].set(3).at[1].set(4)
    mask = draws.mask(0.3)
    plain = {"kernel": draws.eighths(), "head": draws.eighths(24, 3), "bias": draws.eighths(24)}
    coded = {
        "levels": LookupQuantized(draws.codes(0, 14), jnp.full((4, 24), 0.125), levels=FP4).store(),
        "grid": Quantized(triangles, jnp.ones((1, 24)), low=-7, high=7).store(),
        "sparse": Masked(draws.int4(), mask).store(),
        "bias": draws.eighths(24),
    }
    over_plain = {"kernel": Sum(plain["kernel"], factors()), "head": draws.eighths(24, 3),
                  "bias": plain["bias"]}  # fmt: skip
    zeros = Factored(jnp.zeros((16, 1)), jnp.zeros((1, 24)))
    over_coded = {
        "levels": Sum(coded["levels"], factors()),
        "grid": Normalized(Sum(coded["grid"], zeros), length),
        "sparse": Masked(Sum(coded["sparse"], factors()), coded["sparse"].support),
        "bias": coded["bias"],
    }
    return {"over_arrays": (plain, over_plain), "over_packed": (coded, over_coded)}


def training_state() -> dict[str, Any]:
    """What a checkpoint holds: leaves in training and packed, moments, keys, plain numbers."""
    draws = Draws(54)
    weights = {"kernel": draws.floats(), "bias": draws.floats(24, dtype=jnp.bfloat16)}
    optimizer = optax.adam(1e-3)
    moments = optimizer.init(weights)
    _, moments = optimizer.update({"kernel": draws.eighths(), "bias": weights["bias"]}, moments)
    mask = draws.mask(0.2)
    return {
        "params": weights | {
            "pruned": Masked(draws.floats(), mask, mode="straight_through"),
            "grid": Masked(draws.int4(carry=draws.floats()), mask, capacity=100),
            "packed": packed(),
            "sparse": Masked(draws.floats(), draws.n_of_m(2, 4), format="2:4").store(),
            "inputs": InputQuantized(draws.int4(), jnp.full((1, 1), 0.5)).store(),
            "view": Reshaped.of(draws.int4().store(), (1, 0)),
        },
        "moments": moments,
        "key": jax.random.wrap_key_data(jnp.array([0, 7], np.uint32), impl="threefry2x32"),
        "narrow": jnp.asarray(np.arange(-8, 8), jnp.int4),
        "host": [np.arange(3, dtype=np.int64), np.float64(0.1), (np.zeros((0, 2), np.float16),)],
    }  # fmt: skip


PLAIN = {"step": 7, "rate": 0.1, "name": "golden", "flag": True, "none": None, "z": 1 - 2j}
"""Python's own values in a checkpoint."""


def exportable() -> dict[str, Any]:
    """One leaf of each node that a packed program takes, of the shape `SHAPE`."""
    draws = Draws(55)
    mask, blocks = draws.mask(0.1), draws.blocks(0.3, (4, 8))
    grid, values = draws.int4(), draws.eighths()
    table = jnp.array([-1.0, -0.25, 0.5, 1.0])
    exponents = jnp.full((1, 24), 124, np.uint8)
    factors = Factored(draws.eighths(16, 2), draws.eighths(2, 24))
    ternary = LookupQuantized(draws.codes(0, 2), Powers(exponents), levels=(-1.0, 0.0, 1.0))
    lists = {"2:4": draws.n_of_m(2, 4), (4, 8): blocks, "gaps": mask}
    stored = {str(form): Masked(values, kept, format=form).store() for form, kept in lists.items()}
    return stored | {
        "rows": Sparse(jnp.ones(int(mask.sum())), CSR.of(mask), SHAPE),
        "blocks": Sparse(jnp.ones(int(blocks.sum())), BSR.of(blocks, (4, 8)), SHAPE),
        "bits": Quantized(Bits.of(draws.codes(-8, 7), 4, -8), jnp.full((1, 24), 0.125)),
        "masked": Masked(values, mask),
        "grid": grid,
        "shared": Codebook(draws.indices(4), table).store(),
        "soft": SoftCodebook(table[np.asarray(draws.indices(4))], table, jnp.float32(2.0**-6)),
        "ternary": ternary.store(),
        "lora": Sum(grid.store(), factors),
        "dora": Normalized(jnp.zeros(SHAPE).at[0].set(3).at[1].set(4), jnp.full((1, 24), 10.0)),
        "shrunk": SoftThresholded(grid.store(), jnp.float32(0.25)),
        "view": Reshaped.of(draws.eighths(24, 16), (1, 0)),
        "inputs": InputQuantized(grid.store(), jnp.full((1, 1), 0.5)),
        "lists": ELL.of(values, mask),
        "lists_of_blocks": BlockELL.of(values, (4, 8), blocks),
    }


def product(params: Any, x: Any, materialize: Callable[[Any], Any]) -> Any:
    """What the packed program computes."""
    return jax.tree.map(lambda w: x @ w, materialize(params))
