"""YAML as people expect it: `1e-3` is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nnopt_jax.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where `1e-3` is a string and the last of equal keys wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses keys that come twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportArgumentType]
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse(text: str, where: str) -> Any:
    """Reads one YAML document.

    Args:
        text: the document.
        where: the file or option it comes from, for the error.

    Returns:
        Plain dictionaries, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: it is not YAML, or holds a key twice.

    Example:
        >>> from nnopt_jax.recipe.yaml import parse
        >>> parse("{learning_rate: 1e-3, decay_steps: 70%}", "demo")
        {'learning_rate': 0.001, 'decay_steps': '70%'}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"recipe: {where} is not YAML: {said}") from error


def dump(document: Any) -> str:
    """Writes a document in the order its keys have.

    Example:
        >>> from nnopt_jax.recipe.yaml import dump
        >>> print(dump({"name": "demo", "sizes": [1, 2]}))
        name: demo
        sizes: [1, 2]
    """
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)
