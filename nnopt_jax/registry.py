"""Every method by name: where it lives, how it composes, and the settings its laws are tested with.

A new transform is one line here: recipes can name it, and the contract suite runs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp

from nnopt_jax.errors import SelectionError, nearest
from nnopt_jax.typing import ArrayLike


@dataclass(frozen=True)
class Entry:
    """A registered method; nothing is imported before `load`.

    Args:
        source: `"module:attribute"`.
        kind: `"wrap"`: stands around a leaf and sees its dense value; `"refine"`: replaces the
            float slots inside it.
        cases: keyword arguments the contract suite runs the method with.

    Example:
        >>> from nnopt_jax import registry
        >>> registry.get("pruning.magnitude").load()(0.5).name
        'pruning.magnitude'
    """

    source: str
    kind: Literal["wrap", "refine"]
    cases: tuple[Mapping[str, Any], ...]

    def load(self) -> Callable[..., Any]:
        """Imports the method: a function of settings that returns a `Transform`."""
        module, _, attribute = self.source.partition(":")
        return getattr(importlib.import_module(module), attribute)


def _ramp(count: ArrayLike) -> ArrayLike:
    """A schedule for the cases: three quarters after three steps."""
    return 0.75 * jnp.minimum(jnp.asarray(count, jnp.float32), 3.0) / 3.0


ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "pruning.magnitude": Entry(
            "nnopt_jax.pruning:magnitude",
            "wrap",
            (
                {"sparsity": 0.5},
                {"sparsity": 0.75, "mode": "soft"},
                {"sparsity": 0.5, "scope": "global", "every": 2},
                {"sparsity": _ramp},
                {"sparsity": _ramp, "mode": "soft", "every": 2},
            ),
        ),
        "compression.codebook": Entry(
            "nnopt_jax.compression:codebook",
            "refine",
            (
                {"clusters": 4, "every": 2},
                {"clusters": 4, "learned": True},
                {"clusters": 3, "init": "quantile", "iterations": 5, "every": 1},
            ),
        ),
        "quantization.uniform": Entry(
            "nnopt_jax.quantization:uniform",
            "refine",
            (
                {"bits": 8},
                {"bits": 16, "granularity": "channel"},
                {"bits": 8, "symmetric": False, "every": 2},
                {"bits": 4, "granularity": 2, "scale_dtype": jnp.bfloat16},
            ),
        ),
    }
)


def get(name: str) -> Entry:
    """Looks a method up.

    Args:
        name: as in `nnopt_jax.<name>`, `"pruning.magnitude"`.

    Returns:
        Its entry.

    Raises:
        SelectionError: there is no such method; the text names the nearest.

    Example:
        >>> from nnopt_jax import registry
        >>> registry.get("pruning.magnitud")
        Traceback (most recent call last):
        nnopt_jax.errors.SelectionError: registry: no method 'pruning.magnitud'. Did you mean pruning.magnitude?
    """  # noqa: E501 - printed by the doctest
    if name not in ENTRIES:
        raise SelectionError(f"registry: no method {name!r}.{nearest(name, ENTRIES)}")
    return ENTRIES[name]
