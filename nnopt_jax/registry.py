"""The registry of methods, which recipes use to find methods without importing them all."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nnopt_jax.errors import SelectionError, nearest

__all__ = ["METHODS", "Method", "get"]


@dataclass(frozen=True)
class Method:
    """A registered method, imported only by `load`.

    Args:
        name: the name in recipes, such as `"pruning.magnitude"`.
        source: `"module:attribute"`.

    Example:
        >>> from nnopt_jax import registry
        >>> registry.get("pruning.magnitude").load()(0.5).name
        'pruning.magnitude'
    """

    name: str
    source: str

    def load(self) -> Callable[..., Any]:
        """Import the method, a function of settings that returns a `Transform`."""
        module, _, attribute = self.source.partition(":")
        return getattr(importlib.import_module(module), attribute)


# Adding a word here registers a method; the contract suite then demands test cases for it.
_NAMES = {
    "compression": "codebook dkm tie low_rank sparse",
    "quantization": "lsq uniform quantize_activations binary_connect xnor twn ttq nf4 fp4 mxfp4 "
    "grouped",
    "pruning": "magnitude taylor movement fisher snip grasp wanda saliency rewind proximal "
    "random_mask rigl sparse_evolution soft_threshold learned_threshold",
    "transfer": "freeze lora dora",
}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        f"{mission}.{name}": Method(f"{mission}.{name}", f"nnopt_jax.{mission}:{name}")
        for mission, names in _NAMES.items()
        for name in names.split()
    }
)


def get(name: str) -> Method:
    """Look up a method by name.

    Args:
        name: the name without `nnopt_jax.`, such as `"pruning.magnitude"`.

    Returns:
        The method.

    Raises:
        SelectionError: the method does not exist; the text suggests the nearest names.

    Example:
        >>> from nnopt_jax import registry
        >>> registry.get("pruning.magnitud")
        Traceback (most recent call last):
        nnopt_jax.errors.SelectionError: registry: no method 'pruning.magnitud'. Did you mean pruning.magnitude?
    """  # noqa: E501 - printed by the doctest
    if name not in METHODS:
        raise SelectionError(f"registry: no method {name!r}.{nearest(name, METHODS)}")
    return METHODS[name]
