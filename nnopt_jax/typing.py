"""The types that signatures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
from jax.typing import ArrayLike as ArrayLike, DTypeLike as DTypeLike

Array: TypeAlias = jax.Array
Shape: TypeAlias = tuple[int, ...]

Key: TypeAlias = jax.Array
"""A typed PRNG key, as `jax.random.key` makes it."""

PyTree: TypeAlias = Any
"""Any nesting of containers that JAX can flatten."""

Params: TypeAlias = Any
"""A pytree of parameters, whose leaves are arrays or packed leaves (nodes)."""

Path: TypeAlias = str
"""The name of a leaf: `encoder/layers_0/kernel`."""

Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
"""A number as a function of the step count, like `optax.Schedule`."""

ScalarOrSchedule: TypeAlias = float | Schedule
"""A number, or a schedule that returns it."""

Metrics: TypeAlias = Mapping[str, Any]
"""Scalars by name, such as those to be logged."""
