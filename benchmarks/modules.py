"""Count the modules that a tree passes on its way through `save`, and a recipe through `run`.

    python benchmarks/modules.py save
    python benchmarks/modules.py run                    # configs/compression/deep_compression.yaml
    python benchmarks/modules.py run configs/quantization/uniform.yaml

A module counts if at least one of its functions is called on the way, as `sys.settrace` sees it
(code that runs on import is not called), and if it belongs to the layers that do the work: for
`save` to `artifact`, for `run` to `recipe`, `registry`, `report` or `interop`. All other modules
are printed as well, by layer. Below are the layers that every part of the library speaks (errors,
paths, nodes, transforms); methods, the graph and the zoo are named by the recipe; and the file that
a run writes is counted by `save`.

The tree has dense leaves, small and large, and leaves that are pruned, shared and quantized, so
that every way of coding is taken. A run trains each stage for one epoch in a temporary folder.
Before their modules were merged, `save` passed 19, and `run` 34 with configs/quantization/uniform.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import os
import pathlib
import pkgutil
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import nnopt_jax as nnopt

ROOT = pathlib.Path(nnopt.__file__).parent
LAYERS = {"save": {"artifact"}, "run": {"recipe", "registry", "report", "interop"}}
RECIPE = ROOT.parent / "configs/compression/deep_compression.yaml"


def passed(function: Callable[[], Any]) -> list[str]:
    """List the modules of the package of which functions are called.

    Args:
        function: called once, after all modules are imported.

    Returns:
        Paths below the package, sorted.
    """
    for module in pkgutil.walk_packages([str(ROOT)], "nnopt_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    files = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            files.add(frame.f_code.co_filename)

    # Tracing, not profiling: it is told of calls of Python functions alone, which are few.
    threading.settrace(note)
    sys.settrace(note)
    try:
        function()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # pyright: ignore[reportArgumentType]
    inside = (pathlib.Path(file) for file in files if file.startswith(str(ROOT)))
    return sorted(path.relative_to(ROOT).as_posix() for path in inside)


def tree() -> Any:
    """Return a tree that takes every way of coding."""
    rng = np.random.default_rng(0)
    params = {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape).astype(np.float32)),
            "bias": jnp.zeros(shape[1]),
        }
        for name, shape in {"dense": (90, 60), "large": (700, 600), "pruned": (90, 60)}.items()
    }
    tx = nnopt.chain(
        nnopt.pruning.magnitude(0.9, where="pruned/kernel"),
        nnopt.compression.codebook(8, where="pruned/kernel"),
        nnopt.quantization.uniform(8, where="re:(large|pruned)/kernel"),
    )
    return tx.pack(params, tx.init(params))


def save() -> list[str]:
    """List the modules that a tree passes through `nnopt.save`."""
    packed = tree()
    with tempfile.TemporaryDirectory() as folder:
        return passed(lambda: nnopt.save(f"{folder}/model.nnopt", packed))


def run(path: pathlib.Path) -> list[str]:
    """List the modules that a recipe passes from its file through `run`.

    Args:
        path: the recipe.
    """
    from nnopt_jax import recipe

    text = re.sub(r"epochs: \d+", "epochs: 1", path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pathlib.Path("recipe.yaml").write_text(text)
        return passed(lambda: recipe.run(recipe.load("recipe.yaml")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # pyright: ignore
    parser.add_argument("way", choices=LAYERS)
    parser.add_argument("recipe", nargs="?", default=RECIPE, type=pathlib.Path)
    options = parser.parse_args()
    modules = save() if options.way == "save" else run(options.recipe.resolve())
    layers = collections.defaultdict(list)
    for module in modules:
        layers[module.split("/")[0].removesuffix(".py")].append(module)
    counted = sum(len(layers[layer]) for layer in LAYERS[options.way])
    for layer, names in sorted(layers.items()):
        mark = "*" if layer in LAYERS[options.way] else " "
        print(f"{mark} {layer} {len(names)}: {', '.join(names)}")
    print(f"{options.way}: {counted} modules of {', '.join(sorted(LAYERS[options.way]))}; "
          f"{len(modules)} of the whole package")  # fmt: skip


if __name__ == "__main__":
    main()
