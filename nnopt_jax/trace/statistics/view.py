"""A leaf on its way through a program, and where its own axes lie in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from nnopt_jax.typing import Array, Shape

Place = tuple[int, ...]
"""Where in a program something happens: numbers of steps, of programs inside of them, and of an
operand in the end."""


class Factor(NamedTuple):
    """A part of one axis of a leaf: index along the axis = sum of `stride * index` over factors.

    Args:
        axis: of the leaf.
        stride: how far apart along the axis two neighbours are.
        size: number of entries.
        back: whether it runs backwards.
    """

    axis: int
    stride: int
    size: int
    back: bool = False


Dim = tuple[Factor, ...]
"""One axis of what a leaf has become: factors of the leaf's axes, the last one the fastest; none
where it is repeated."""


class Level(NamedTuple):
    """A scan that goes over a leaf, layer by layer.

    Args:
        depth: length of the scan's place.
        dim: what of the leaf it goes over.
    """

    depth: int
    dim: Dim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What a leaf has become by being moved.

    Args:
        x: the array.
        copies: for gradients, the same array once more for each place where it will be used.
        path: the leaf.
        dims: for each axis of the array.
        levels: of the scans that it is inside of, from the outermost.
        number: of the leaf among what goes into the function.
    """

    x: Array
    copies: dict[Place, Array]
    path: str = dataclasses.field(metadata={"static": True})
    dims: tuple[Dim, ...] = dataclasses.field(metadata={"static": True})
    levels: tuple[Level, ...] = dataclasses.field(default=(), metadata={"static": True})
    number: int = dataclasses.field(default=0, metadata={"static": True})

    def moved(self, move: Callable[[Array], Array], dims: Sequence[Dim]) -> View:
        """The view of what was moved once more."""
        copies = {place: move(x) for place, x in self.copies.items()}
        return dataclasses.replace(self, x=move(self.x), copies=copies, dims=tuple(dims))

    def at(self, place: Place) -> Array:
        """The array to use at a place, or in all of a part of the program."""
        inside = [at for at in self.copies if at[: len(place)] == place]
        return self.copies[min(inside)] if inside else self.x

    def layer(self, depth: int) -> View:
        """The view of one layer, which a scan has cut out."""
        levels = (*self.levels, Level(depth, self.dims[0]))
        return dataclasses.replace(self, dims=self.dims[1:], levels=levels)


def is_view(x: object) -> bool:
    """Whether a value of a program is a leaf that is followed."""
    return isinstance(x, View)


def own_dims(shape: Shape) -> tuple[Dim, ...]:
    """The axes of a leaf as it is."""
    return tuple((Factor(axis, 1, size),) for axis, size in enumerate(shape))


def in_order(factors: Sequence[Factor]) -> list[int]:
    """The order in which factors lie in the leaf."""
    return sorted(range(len(factors)), key=lambda i: (factors[i].axis, -factors[i].stride))


def regrouped(factors: Dim, sizes: Shape) -> list[Dim] | None:
    """The same elements along axes of other sizes; None where a factor would have to be torn.

    Example:
        >>> from nnopt_jax.trace.statistics.view import Factor, regrouped
        >>> regrouped((Factor(0, 1, 6),), (2, 3))
        [(Factor(axis=0, stride=3, size=2, back=False),), (Factor(axis=0, stride=1, size=3, back=False),)]
    """  # noqa: E501 - printed by the doctest
    left, dims = list(factors), []
    for size in sizes:
        dim: list[Factor] = []
        if size == 1 and left and left[0].size == 1:
            dim.append(left.pop(0))
        while size > 1:
            if not left:  # what is repeated
                break
            first = left.pop(0)
            if size % first.size == 0:
                size //= first.size
            elif first.size % size == 0:
                rest = first.size // size
                left.insert(0, first._replace(size=rest))
                first, size = first._replace(stride=first.stride * rest, size=size), 1
            else:
                return None
            dim.append(first)
        dims.append(tuple(dim))
    if dims and all(factor.size == 1 for factor in left):
        dims[-1] = (*dims[-1], *left)
        left = []
    known = math.prod(f.size for f in factors) == math.prod(f.size for dim in dims for f in dim)
    return dims if known and not any(f.size != 1 for f in left) else None
