"""Transforms that are wrong on purpose: the check named for each fault must fail."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays import Masked, Quantized, materialize, store
from nnopt_jax.ops.grid import fit_grid, quantize
from nnopt_jax.transform import matrices, refining, wrapping
from tests.contract import checks


def _registered(cls: Any) -> Any:
    """A node of a test: a pytree, but unknown to manifests."""
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    jax.tree_util.register_dataclass(cls, cls.names(), cls.names(is_static=True))
    return cls


@_registered
class _RoundsScaleWhenStored(Quantized):
    def store(self):
        return Quantized.store(self.replace(scale=self.scale.astype(jnp.bfloat16)))


@_registered
class _KeepsNegativeZero(Quantized):
    def materialize(self):
        dense = Quantized.materialize(self)
        return jnp.where(dense == 0, -0.0, dense)


@_registered
class _LosesMask(Masked):
    def store(self):
        return self.values


def _quantized(cls: Any = Quantized, *, rounding: Any = quantize, use_mask: bool = True) -> Any:
    """A plain 8-bit grid with one part exchanged."""

    def grid(slot: Any) -> Any:
        mask = slot.mask if use_mask else None
        scale, _ = fit_grid(slot.array, 8, slot.array.shape, mask=mask)
        return scale

    def encode(slot: Any, learned: Any, scale: Any, train: bool) -> Any:
        if rounding is quantize:
            codes = quantize(jax.lax.stop_gradient(slot.array), scale, None, -127, 127)
            return cls(codes, scale, None, slot.array)
        return cls(rounding(slot.array, scale), scale)

    return refining(
        "faulty",
        matrices,
        init=lambda slot, start: (None, grid(slot)),
        encode=encode,
        refresh=lambda slot, learned, rest, now: (learned, grid(slot)),
        kinds=("value",),
    )


def _clipped_plainly(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Straight-through rounding before a plain clip, whose gradient is 1/2 at the ends."""
    v = x / scale
    return jnp.clip(v + jax.lax.stop_gradient(jnp.round(v) - v), -127, 127)


def _pruned(
    *, rest: Any = None, update: Any = None, encode: Any = None, capacity: int | None = None
) -> nnopt.Transform:
    """A mask of positive weights with one part exchanged."""

    def masks(leaves: Any) -> Any:
        return {path: {"mask": leaf > 0, "extra": jnp.float32(1)} for path, leaf in leaves.items()}

    def wrap(leaf: Any, rest: Any, train: bool) -> Any:
        return Masked(leaf, rest["mask"], capacity)

    return wrapping(
        "faulty",
        matrices,
        init=lambda leaves, start: ({}, (rest or masks)(leaves)),
        encode=_each(encode or wrap),
        update=update or (lambda leaves, state, now: ({}, masks(leaves))),
    )


def _each(encode: Any) -> Any:
    """Encodes leaves one by one."""
    return lambda leaves, state, train: {
        path: encode(leaf, state.rest[path], train) for path, leaf in leaves.items()
    }


def _with_extra(extra: Any) -> Any:
    return lambda leaves: {p: {"mask": x > 0, "extra": extra} for p, x in leaves.items()}


_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class _PacksWithoutLooking(nnopt.Transform):
    def pack(self, params, state, *, capacities=None):
        return store(self.encode(params, state), capacities=capacities)


@dataclasses.dataclass(frozen=True)
class _DropsLeaf(nnopt.Transform):
    def pack(self, params, state, *, capacities=None):
        packed = super().pack(params, state, capacities=capacities)
        return {name: leaf for name, leaf in packed.items() if name != "head"}


def _as(cls: Any, tx: nnopt.Transform) -> nnopt.Transform:
    return cls(**{field.name: getattr(tx, field.name) for field in dataclasses.fields(tx)})


def _stuck(tx: nnopt.Transform) -> nnopt.Transform:
    """Never counts its updates."""

    def update(params: Any, state: Any, **others: Any) -> Any:
        params, fresh = tx.update(params, state, **others)
        return params, fresh._replace(count=state.count)

    return dataclasses.replace(tx, update=update)


def _shows_more_in_training(leaf: Any, rest: Any, train: bool) -> Any:
    return leaf if train else Masked(leaf, rest["mask"])


def _double_straight_through(leaf: Any, rest: Any, train: bool) -> Any:
    return Masked(2.0 * leaf - jax.lax.stop_gradient(leaf), rest["mask"])


def _axis_matters() -> nnopt.Transform:
    """Declares itself exact although it sums floats."""
    scaled = refining(
        "faulty",
        matrices,
        init=lambda slot, start: (None, jnp.exp(3 * slot.array).sum(0, keepdims=True)),
        encode=lambda slot, learned, rest, train: Quantized(jnp.zeros_like(slot.array), rest),
    )
    return dataclasses.replace(scaled, exact=True)


FAULTS = {
    "stored scale differs from the applied one": ("law", _quantized(_RoundsScaleWhenStored)),
    "mask lost in storage": ("law", _pruned(encode=lambda leaf, rest, train: _LosesMask(
        leaf, rest["mask"]))),
    "leaf lost in storage": ("law", _as(_DropsLeaf, _quantized())),
    "capacity too small": ("law", _pruned(capacity=3)),
    "end codes get half the gradient": ("gradients", _quantized(rounding=_clipped_plainly)),
    "gradient counted twice": ("gradients", _pruned(encode=_double_straight_through)),
    "weakly typed state": ("fixed_point", _pruned(
        rest=_with_extra(jnp.asarray(1.0)), update=lambda leaves, state, now: ({}, state.rest))),
    "state changes its dtype": ("fixed_point", _pruned(
        update=lambda leaves, state, now: ({}, _with_extra(jnp.int32(1))(leaves)))),
    "state changes its shape": ("fixed_point", _pruned(
        update=lambda leaves, state, now: ({}, _with_extra(jnp.ones(2))(leaves)))),
    "updates are not counted": ("counts", _stuck(_pruned())),
    "negative zero out of a grid": ("no_negative_zero", _quantized(_KeepsNegativeZero)),
    "NaN turned into a code": ("nan", _as(_PacksWithoutLooking, _quantized())),
    "infinity turned into a code": ("infinity", _as(_PacksWithoutLooking, _quantized())),
    "hidden random numbers": ("deterministic", _pruned(
        rest=lambda leaves: _with_extra(jnp.float32(next(_numbers)))(leaves))),
    "training sees other weights": ("trained_is_stored", _pruned(encode=_shows_more_in_training)),
    "sums of floats called exact": ("mesh", _axis_matters()),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault):
    check, tx = FAULTS[fault]
    with pytest.raises(AssertionError):
        checks.CHECKS[check](tx, checks.example_params())


@pytest.mark.parametrize("check", [name for name in checks.CHECKS if name != "mesh"])
@pytest.mark.parametrize("sound", [_quantized, _pruned])
def test_the_same_transforms_without_fault_pass(sound, check):
    checks.CHECKS[check](sound(), checks.example_params())


def test_link_that_removes_the_mask_is_caught():
    removes = refining(
        "faulty",
        matrices,
        init=lambda slot, start: (None, jnp.full((1, 1), 0.1)),
        encode=lambda slot, learned, scale, train: Quantized(jnp.round(slot.array) + 1, scale),
    )
    forgets = dataclasses.replace(
        removes,
        encode=lambda params, state, train=False: removes.encode(
            materialize(params), state, train=train
        ),
    )
    before, params = nnopt.pruning.magnitude(0.5, mode="soft"), checks.example_params()
    checks.check_keeps_zeros(before, removes, params)
    with pytest.raises(AssertionError, match="pruned weights are shown"):
        checks.check_keeps_zeros(before, forgets, params)


def test_range_that_ignores_the_mask_is_caught():
    before, params = nnopt.pruning.magnitude(0.9), checks.example_params()
    checks.check_keeps_zeros(before, _quantized(), params)
    with pytest.raises(AssertionError, match="have a say"):
        checks.check_keeps_zeros(_keeps_smallest(), _quantized(use_mask=False), params)


def _keeps_smallest() -> nnopt.Transform:
    """Prunes the greatest weights, so that a range which sees them differs."""
    return wrapping(
        "smallest",
        matrices,
        init=lambda leaves, start: ({}, {p: {"mask": jnp.abs(x) < 0.5} for p, x in leaves.items()}),
        encode=_each(lambda leaf, rest, train: Masked(leaf, rest["mask"])),
    )


def test_too_many_values_are_caught():
    """A transform that moves weights one by one behind a codebook."""
    jitter = wrapping(
        "faulty",
        matrices,
        init=lambda leaves, start: ({}, {p: None for p in leaves}),
        encode=_each(
            lambda leaf, rest, train: nnopt.arrays.SoftThresholded(
                leaf, jnp.linspace(0, 1, leaf.size).reshape(leaf.shape)
            )
        ),
    )
    tx = nnopt.chain(nnopt.compression.codebook(4), jitter)
    with pytest.raises(AssertionError, match="values from 4"):
        checks.check_keeps_levels(tx, checks.example_params())


def test_state_of_another_tree_taken_in_silence_is_caught():
    tx = _pruned()
    lenient = dataclasses.replace(tx, encode=lambda params, state, train=False: params)
    with pytest.raises(AssertionError, match="made for another tree"):
        checks.check_mismatched_state(lenient, checks.example_params())


def test_count_that_is_data_yet_promised_is_caught():
    hides = _as(_PromisesCapacity, nnopt.pruning.magnitude(0.5, allocation="global"))
    with pytest.raises(AssertionError, match="not knowing"):
        checks.check_capacity(hides, checks.example_params())


@dataclasses.dataclass(frozen=True)
class _PromisesCapacity(nnopt.Transform):
    def pack(self, params, state, *, capacities=None):
        return params
