"""Every method by name: where it lives, how it composes, and the settings its laws are tested with.

A new transform is one entry in the file of its mission: recipes can name it, and the contract
suite runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nnopt_jax.errors import SelectionError, nearest
from nnopt_jax.registry import compression, pruning, quantization, transfer
from nnopt_jax.registry.entry import Entry as Entry

ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {**compression.ENTRIES, **quantization.ENTRIES, **pruning.ENTRIES, **transfer.ENTRIES}
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
