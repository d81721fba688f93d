"""Every error that the library raises on purpose, one class for each kind of remedy."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "ArtifactError", "CapacityError", "CheckpointError", "CompositionError", "NnoptError",
    "NonFiniteError", "Problems", "ProcessLostError", "RecipeError", "ScaleError", "SelectionError",
    "ShapeError", "StatisticsError", "ValueRangeError", "nearest",
]  # fmt: skip


class NnoptError(Exception):
    """Base class of all deliberate errors of the library."""


class SelectionError(NnoptError, LookupError):
    """A selector, path or name matches nothing, or two things at once."""


class ShapeError(NnoptError, ValueError):
    """A shape, an axis or a group size does not fit its leaf."""


class ValueRangeError(NnoptError, ValueError):
    """An argument lies outside of its allowed values."""


class ScaleError(ValueRangeError):
    """A scale cannot be represented in its dtype."""


class CompositionError(NnoptError, TypeError):
    """Two transforms, or a transform and a leaf, cannot be combined this way."""


class NonFiniteError(NnoptError, ValueError):
    """A leaf holds NaN or infinity where finite numbers are needed."""


class StatisticsError(NnoptError, ValueError):
    """A method needs gradients or other statistics that were not provided."""


class CapacityError(NnoptError, ValueError):
    """The number of stored values depends on data, which `jax.jit` does not allow."""


class ArtifactError(NnoptError, ValueError):
    """A `.nnopt` file is malformed, damaged, too large, or of an unknown version."""


class CheckpointError(NnoptError, ValueError):
    """A checkpoint is damaged, incomplete, or does not fit its target."""


class ProcessLostError(NnoptError, RuntimeError):
    """Another process of a distributed run has ended or cannot be reached."""


class RecipeError(NnoptError, ValueError):
    """A recipe, or an object that it names, is wrong."""


class Problems:
    """A list of problems of one kind, which are reported in one error.

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
        """Start an empty list for the caller `who`."""
        self.who = who
        self.found: list[str] = []

    def __bool__(self) -> bool:
        """Return whether any problem was added."""
        return bool(self.found)

    def add(self, path: str, message: str) -> None:
        """Add a problem of the leaf at `path`, or of the whole call if `path` is empty."""
        self.found.append(f"{path}: {message}" if path else message)

    def raise_as(self, kind: type[NnoptError], advice: str = "") -> None:
        """Raise all problems as one error of the given kind, if there are any.

        Args:
            kind: the class of the error.
            advice: what to type, stated once after all problems.
        """
        if not self.found:
            return
        if len(self.found) == 1:
            raise kind(f"{self.who}: {self.found[0]}{advice and '; ' + advice}")
        lines = "\n".join(f"  {text}" for text in (*self.found, *([advice] if advice else [])))
        raise kind(f"{self.who}: {len(self.found)} problems\n{lines}")


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module-level `__getattr__` whose errors map former names to new ones.

    Args:
        module: the name of the module.
        names: maps former names to what to type now.

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


def call_hint(value: object) -> str:
    """Return a sentence to append to an error if a function was given in place of its result.

    Example:
        >>> call_hint(nearest), call_hint("nearest")
        (' Call the function: nearest().', '')
    """
    return f" Call the function: {value.__name__}()." if inspect.isfunction(value) else ""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return a sentence with the closest known spellings, to append to an error.

    Args:
        name: the name as written.
        known: the known names.
        count: the greatest number of spellings to suggest.

    Returns:
        " Did you mean a, b?"; if nothing is close, " Known: a, b, ..."; empty if nothing is known.

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
