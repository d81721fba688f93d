"""Every error the library raises on purpose, one class for each kind of remedy."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "ArtifactError", "CapacityError", "CheckpointError", "CompositionError", "NnoptError",
    "NonFiniteError", "Problems", "ProcessLostError", "RecipeError", "ScaleError", "SelectionError",
    "ShapeError", "StatisticsError", "ValueRangeError", "nearest",
]  # fmt: skip


class NnoptError(Exception):
    """Base class: catch it to catch every deliberate error of the library."""


class SelectionError(NnoptError, LookupError):
    """A selector, path or name points at nothing, or at two things at once."""


class ShapeError(NnoptError, ValueError):
    """A shape, an axis or a group does not fit the leaf it is meant for."""


class ValueRangeError(NnoptError, ValueError):
    """An argument lies outside the values it may take."""


class ScaleError(ValueRangeError):
    """A scale that its dtype cannot hold."""


class CompositionError(NnoptError, TypeError):
    """Two transforms, or a transform and a leaf, cannot be combined this way."""


class NonFiniteError(NnoptError, ValueError):
    """A leaf holds NaN or infinity where finite numbers are needed."""


class StatisticsError(NnoptError, ValueError):
    """A method judges by gradients or other statistics that it was not given."""


class CapacityError(NnoptError, ValueError):
    """The number of stored values depends on data, and was asked for under `jax.jit`."""


class ArtifactError(NnoptError, ValueError):
    """A `.nnopt` file is malformed, damaged, too large, or of an unknown version."""


class CheckpointError(NnoptError, ValueError):
    """A checkpoint is damaged, incomplete, or does not fit what it is restored into."""


class ProcessLostError(NnoptError, RuntimeError):
    """Another process of a distributed run has ended, or cannot be reached."""


class RecipeError(NnoptError, ValueError):
    """A recipe, or something it names, is wrong."""


class Problems:
    """Collects problems of one kind, so that one error reports them all.

    Example:
        >>> problems = Problems("quantization.uniform")
        >>> problems.add("dense/kernel", "group 7 does not divide axis 0 of size 12")
        >>> bool(problems)
        True
        >>> try:
        ...     problems.raise_as(ShapeError)
        ... except ShapeError as error:
        ...     print(error)
        quantization.uniform: dense/kernel: group 7 does not divide axis 0 of size 12
    """

    def __init__(self, who: str) -> None:
        """Starts an empty list for the function called `who`."""
        self.who = who
        self.found: list[str] = []

    def __bool__(self) -> bool:
        """True as soon as one problem was added."""
        return bool(self.found)

    def add(self, path: str, message: str) -> None:
        """Adds one problem of the leaf at `path` (or of the whole, where `path` is empty)."""
        self.found.append(f"{path}: {message}" if path else message)

    def raise_as(self, kind: type[NnoptError], advice: str = "") -> None:
        """Raise all problems as one error of the given kind; do nothing where there is none.

        Args:
            kind: the class of the error.
            advice: what to type, said once after all problems.
        """
        if not self.found:
            return
        if len(self.found) == 1:
            raise kind(f"{self.who}: {self.found[0]}{advice and '; ' + advice}")
        lines = "\n".join(f"  {text}" for text in (*self.found, *([advice] if advice else [])))
        raise kind(f"{self.who}: {len(self.found)} problems\n{lines}")


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module's `__getattr__`, which says what became of former names.

    Args:
        module: the name of the module.
        names: by former name what to type now.

    Example:
        >>> from nnopt_jax.errors import former_names
        >>> former_names("zoo", {"old": "zoo.new"})("old")
        Traceback (most recent call last):
        AttributeError: zoo.old is now zoo.new
    """

    def get(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        # `from module import name` would replace an AttributeError with one that lacks the text.
        is_import = "importlib" in sys._getframe(1).f_globals.get("__name__", "")
        raise (ImportError if is_import else AttributeError)(
            f"{module}.{name} is now {names[name]}"
        )

    return get


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Names the closest known spellings, as a sentence to end an error with.

    Args:
        name: what was written.
        known: what could have been written.
        count: how many spellings to offer at most.

    Returns:
        " Did you mean a, b?" or, where nothing is close, " Known: a, b, ..." (or nothing at all).

    Example:
        >>> nearest("sparsty", ["sparsity", "where"])
        ' Did you mean sparsity?'
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if close:
        best = _likeness(name, close[0])
        close = [other for other in close if _likeness(name, other) > best - 0.15]
        return f" Did you mean {', '.join(close)}?"
    if not names:
        return ""
    tail = ", ..." if len(names) > 12 else ""
    return f" Known: {', '.join(names[:12])}{tail}."


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
