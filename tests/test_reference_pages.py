"""The reference in docs/reference: every public name on one page, and every argument described."""

import ast
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nnopt_jax
from nnopt_jax import zoo

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
NAMESPACES = [
    "nnopt_jax",
    *(
        f"nnopt_jax.{name}"
        for name in (
            "arrays", "artifact", "compression", "errors", "interop", "parallel", "pruning",
            "pruning.patterns", "pruning.scores", "quantization", "quantization.grids",
            "quantization.ranges", "quantization.rounding", "recipe", "report", "trace",
            "transfer", "transfer.rules", "transform", "tree",
        )
    ),
    *(f"nnopt_jax.zoo.{module.name}" for module in pkgutil.iter_modules(zoo.__path__)),
]  # fmt: skip


def value(path: str) -> Any:
    """The object of a dotted name: modules are imported on the way, attributes come first."""
    found: Any = nnopt_jax
    for part in path.split(".")[1:]:
        found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
    return found


def offered(module: types.ModuleType) -> list[str]:
    """`__all__`; without one, what is imported under its own name and what is defined here."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
    return names


def public() -> dict[int, tuple[str, Any]]:
    """By identity, because one object may be offered in several places."""
    found: dict[int, tuple[str, Any]] = {}
    for space in NAMESPACES:
        module = value(space)
        for name in offered(module):
            each = getattr(module, name)
            if not isinstance(each, types.ModuleType):
                found.setdefault(id(each), (f"{space}.{name}", each))
    return found


def directives(page: str) -> list[str]:
    return re.findall(r"^::: (\S+)$", page, re.MULTILINE)


def complaints(pages: list[str], names: dict[int, tuple[str, Any]]) -> list[str]:
    """Names that are on no page or on several, and directives that name nothing public."""
    found = []
    places = [path for page in pages for path in directives(page)]
    seen: dict[int, str] = {}
    for path in places:
        each = value(path)
        if id(each) not in names:
            found.append(f"{path} is not public")
        if id(each) in seen:
            found.append(f"{path} is described twice, as {seen[id(each)]}, too")
        seen[id(each)] = path
    return found + [f"{path} is on no page" for key, (path, _) in names.items() if key not in seen]


def undescribed(function: Any) -> Iterator[str]:
    """The parameters that the docstring of a function does not list under Args."""
    section = re.search(
        r"^Args:\n((?:    .*\n?|\n)*)", f"{inspect.getdoc(function)}\n", re.MULTILINE
    )
    listed = re.findall(r"^    \*{0,2}(\w+)", section[1] if section else "", re.MULTILINE)
    code = inspect.unwrap(function).__code__
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    yield from (name for name in code.co_varnames[:count] if name not in listed)


def test_every_public_name_is_on_one_page():
    assert complaints([page.read_text() for page in PAGES], public()) == []


def test_a_missing_name_and_a_name_on_two_pages_are_found():
    names = {id(nnopt_jax.chain): ("nnopt_jax.chain", nnopt_jax.chain)}
    twice = ["::: nnopt_jax.chain", "::: nnopt_jax.transform.chain\n::: nnopt_jax.columns.aligned"]
    assert complaints([], names) == ["nnopt_jax.chain is on no page"]
    assert complaints(twice, names) == [
        "nnopt_jax.transform.chain is described twice, as nnopt_jax.chain, too",
        "nnopt_jax.columns.aligned is not public",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_argument_of_a_public_function_is_described(page):
    functions = {path: value(path) for path in directives(page.read_text())}
    lacking = {
        path: names
        for path, function in functions.items()
        if inspect.isfunction(function) and (names := list(undescribed(function)))
    }
    assert lacking == {}


def test_an_argument_without_description_is_found():
    def area(width, *sides, height=1, **rest):
        """Return the area.

        Args:
            width: the width.
            **rest: others.
        """

    assert list(undescribed(area)) == ["height", "sides"]


def test_the_site_has_every_page_and_no_directives_of_other_tools():
    site = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f"reference/{page.name}" not in site] == []
    sources = [*(ROOT / "nnopt_jax").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    assert [path for path in sources if re.search(r"\.\. math::|:math:`", path.read_text())] == []
