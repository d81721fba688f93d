"""All models of the zoo, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.trace.zoo import linen, nnx_modules, others, plain
from tests.trace.zoo.case import Case

MODELS: dict[str, Callable[[], Case]] = {
    **linen.MODELS,
    **nnx_modules.MODELS,
    **others.MODELS,
    **plain.MODELS,
}
