"""The rules that the folder tree promises, read from the sources without importing them.

Each rule is a function from the sources to complaints, so that it can be shown a planted fault:
a rule that cannot fail proves nothing.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "nnopt_jax"

# From the bottom up. A unit imports itself and what lies below it, never beside or above.
LAYERS = (
    ("errors", "typing", "columns"),
    ("settings",),
    ("tree",),
    ("ops",),
    ("arrays",),
    ("transform",),
    ("trace", "artifact"),
    ("compression", "quantization", "pruning", "transfer", "parallel"),
    ("interop", "report", "zoo"),
    ("registry",),
    ("recipe",),
    ("cli",),
    ("__main__", ""),  # the top-level module itself
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
MISSIONS = LAYERS[7]

# What only the edge of the library knows; elsewhere a function may still import one when it runs.
FRAMEWORKS = {"flax", "optax", "orbax", "rich", "yaml", "matplotlib"}
EDGE = {"interop", "report", "zoo", "recipe", "cli"}

DISTRIBUTIONS = {"yaml": "pyyaml", "orbax": "orbax-checkpoint", "sklearn": "scikit-learn"}
MAX_FILE, MAX_BODY = 400, 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "common", "misc"}

Sources = dict[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def package_sources() -> Sources:
    """Every module of the package: dotted name -> source."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    }


def unit_of(module: str) -> str:
    parts = module.removesuffix(".__init__").split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def at_import_time(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from at_import_time(node)


def public_definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes, and the public methods of public classes."""
    for node in getattr(tree, "body", []):
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
        if re.search(r"overload|\.setter", decorators):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node, f"{node.name}.")


def definition(sources: Sources, module: str, name: str) -> ast.AST | None:
    """Where a name that a module offers is defined, followed through re-exports."""
    source = sources.get(f"{module}.__init__", sources.get(module))
    for node in ast.parse(source).body if source is not None else ():
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
        # From itself a package imports modules, which define no symbol.
        if isinstance(node, ast.ImportFrom) and node.module not in (None, module):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(sources, node.module, alias.name)
    return None


def upward_imports(sources: Sources) -> list[str]:
    found = []
    for module, source in sources.items():
        here = unit_of(module)
        if here not in RANK:
            found.append(f"{module}: '{here}' is in no layer")
            continue
        for line, name in imports(module, ast.parse(source)):
            if name.split(".")[0] != PACKAGE:
                continue
            there = unit_of(name)
            there = there if there in RANK else ""
            if there != here and RANK[there] >= RANK[here]:
                found.append(f"{module}:{line}: {here} must not import {name}")
    return found


def early_frameworks(sources: Sources) -> list[str]:
    return [
        f"{module}:{node.lineno}: import {name} inside the function that needs it"
        for module, source in sources.items()
        if unit_of(module) not in EDGE
        for node in at_import_time(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for _, name in imports(module, ast.Module([node], []))
        if name.split(".")[0] in FRAMEWORKS
    ]


def undeclared_dependencies(sources: Sources) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for lines in groups for line in lines}
    return [
        f"{module}:{line}: {name} is not a dependency in pyproject.toml"
        for module, source in sources.items()
        for line, name in imports(module, ast.parse(source))
        for top in [name.split(".")[0]]
        if top not in {PACKAGE, "jaxlib"} | sys.stdlib_module_names
        if DISTRIBUTIONS.get(top, top).replace("_", "-").lower() not in declared
    ]


def missing_docstrings(sources: Sources) -> list[str]:
    found = []
    for module, source in sources.items():
        tree = ast.parse(source)
        for name, node in [("", tree), *public_definitions(tree)]:
            if not ast.get_docstring(node):
                found.append(f"{module}:{name or 'module'} has no docstring")
    return found


def missing_examples(sources: Sources) -> list[str]:
    """Of what the top level and the missions export."""
    found = []
    for module in (PACKAGE, *(f"{PACKAGE}.{mission}" for mission in MISSIONS)):
        for line, name in imports(module, ast.parse(sources.get(f"{module}.__init__", ""))):
            base, _, symbol = name.rpartition(".")
            node = definition(sources, base, symbol)
            if node is not None and ">>>" not in (ast.get_docstring(node) or ""):
                found.append(f"{module}.__init__:{line}: {symbol} has no example in its docstring")
    return found


def oversized(sources: Sources) -> list[str]:
    found = []
    for module, source in sources.items():
        lines = source.count("\n")
        if lines > MAX_FILE:
            found.append(f"{module}: {lines} lines, at most {MAX_FILE}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, Function):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if length > MAX_BODY:
                    found.append(
                        f"{module}:{node.name} has a body of {length} lines, at most {MAX_BODY}"
                    )
    return found


def empty_names(sources: Sources) -> list[str]:
    return [
        f"{module}: name it for what it does"
        for module in sources
        if NAMES_THAT_SAY_NOTHING & set(module.split("."))
    ]


def repeated_names(sources: Sources) -> list[str]:
    """Classes and modules that have the name of another one, functions that of their module."""
    places: dict[str, list[str]] = {}
    found = []
    for module, source in sources.items():
        base = module.rpartition(".")[2]
        tree = ast.parse(source)
        classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        own = [] if base.startswith("__") else [base]
        for name in (*own, *(name.lstrip("_") for name in classes)):
            places.setdefault(name, []).append(module)
        functions = {node.name for node in tree.body if isinstance(node, Function)}
        found += [f"{module}: {name} has the name of its module" for name in functions & {base}]
    return found + [
        f"{name} stands for several things: {', '.join(modules)}"
        for name, modules in places.items()
        if len(modules) > 1
    ]


def hidden_effects(sources: Sources) -> list[str]:
    """`global` anywhere, `print` outside the command line."""
    found = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Global):
                found.append(f"{module}:{node.lineno}: global {', '.join(node.names)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                if unit_of(module) != "cli":
                    found.append(f"{module}:{node.lineno}: print; log, return, or leave it to cli")
    return found


DOC = '"""Doc."""\n'

# For every rule, sources that break it, and what the complaint must say.
PLANTED: list[tuple[Callable[[Sources], list[str]], Sources, str]] = [
    (upward_imports, {"nnopt_jax.tree.a": "from nnopt_jax.arrays import x"}, "tree must not"),
    (upward_imports, {"nnopt_jax.ops.a": "def f():\n import nnopt_jax.cli"}, "ops must not"),
    (upward_imports, {"nnopt_jax.pruning.a": "from ..quantization import x"}, "quantization.x"),
    (upward_imports, {"nnopt_jax.ops.a": "from nnopt_jax import chain"}, "import nnopt_jax.chain"),
    (upward_imports, {"nnopt_jax.recipe.a": "import nnopt_jax as nnopt"}, "import nnopt_jax"),
    (upward_imports, {"nnopt_jax.extra": ""}, "'extra' is in no layer"),
    (early_frameworks, {"nnopt_jax.pruning.a": "import optax"}, ":1: import optax"),
    (early_frameworks, {"nnopt_jax.tree.a": "try:\n from flax import nnx\nfinally: 0"}, "flax.nnx"),
    (early_frameworks, {"nnopt_jax.ops.a": "class A:\n import yaml"}, "import yaml"),
    (undeclared_dependencies, {"nnopt_jax.ops.a": "def f():\n import tensorflow"}, "tensorflow"),
    (missing_docstrings, {"nnopt_jax.a": "x = 1"}, "module has no docstring"),
    (missing_docstrings, {"nnopt_jax.a": DOC + "def f(): ..."}, "a:f has"),
    (missing_docstrings, {"nnopt_jax.a": DOC + f"class A:\n {DOC} def f(self): ..."}, "a:A.f has"),
    (
        missing_examples,
        {
            "nnopt_jax.__init__": "from nnopt_jax.tree import f as f",
            "nnopt_jax.tree.__init__": "from nnopt_jax.tree.a import g as f",
            "nnopt_jax.tree.a": f"def g():\n {DOC}",
        },
        "__init__:1: f has no example",
    ),
    (
        missing_examples,
        {
            "nnopt_jax.pruning.__init__": "from nnopt_jax.pruning.a import g as g",
            "nnopt_jax.pruning.a": f"class g:\n {DOC}",
        },
        "g has no example",
    ),
    (oversized, {"nnopt_jax.a": "x = 1\n" * 401}, "401 lines"),
    (oversized, {"nnopt_jax.a": "def f():\n" + " x = 1\n" * 61}, "body of 61 lines"),
    (empty_names, {"nnopt_jax.tree.utils": ""}, "name it for what it does"),
    (repeated_names, {"nnopt_jax.a": "class A: 0", "nnopt_jax.b": "class _A: 0"}, "A stands for"),
    (repeated_names, {"nnopt_jax.a.c": "", "nnopt_jax.b.c": ""}, "c stands for several"),
    (repeated_names, {"nnopt_jax.a": "def a(): 0"}, "a has the name of its module"),
    (hidden_effects, {"nnopt_jax.a": "def f():\n global x"}, "global x"),
    (hidden_effects, {"nnopt_jax.ops.a": "print(1)"}, "print"),
]

# Sources that look like faults and are none.
ALLOWED: list[tuple[Callable[[Sources], list[str]], Sources]] = [
    (upward_imports, {"nnopt_jax.recipe.a": "from nnopt_jax.zoo import data"}),
    (upward_imports, {"nnopt_jax.pruning.a": "from nnopt_jax.pruning.b import x"}),
    (upward_imports, {"nnopt_jax.pruning.a": "from nnopt_jax import errors"}),
    (early_frameworks, {"nnopt_jax.ops.a": "def f():\n import optax"}),
    (early_frameworks, {"nnopt_jax.ops.a": "if TYPE_CHECKING:\n import optax"}),
    (early_frameworks, {"nnopt_jax.interop.a": "import optax"}),
    (missing_docstrings, {"nnopt_jax.a": DOC + "def _f(): ..."}),
    (oversized, {"nnopt_jax.a": f"def f():\n {DOC}" + " x = 1\n" * 60}),
    (repeated_names, {"nnopt_jax.a.__init__": "", "nnopt_jax.b.__init__": "class A: 0"}),
]

RULES = list(dict.fromkeys(rule for rule, *_ in PLANTED))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule):
    complaints = rule(package_sources())
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(("rule", "sources", "message"), PLANTED)
def test_a_planted_fault_is_found(rule, sources, message):
    assert any(message in complaint for complaint in rule(sources))


@pytest.mark.parametrize(("rule", "sources"), ALLOWED)
def test_what_is_allowed_passes(rule, sources):
    assert rule(sources) == []


def test_the_sources_are_found():
    assert {"nnopt_jax.__init__", "nnopt_jax.errors"} <= package_sources().keys()
