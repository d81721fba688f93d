"""What a device of a large mesh would hold of a large model, worked out on paper.

    python benchmarks/scaling.py [--models 1B,7B,70B]

No weight is made and no device asked: `jax.eval_shape` gives the shapes of Llama, an `AbstractMesh`
has only names and sizes, and the plan that would train counts the bytes. Two ways of training:
everything in bfloat16 with Adam's moments in float32; and adapters of rank 16 in float32 over
kernels packed in four bits, in groups of 32. Printed are GiB of one device, in Markdown.
`gradients` are those of all trained arrays at once. Activations, weights while they are gathered,
and with `accumulate` the sums of gradients in float32 come on top. `of ideal` is what lies there
between steps (parameters, adapters, moments) over an even share of it.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax import parallel
from nnopt_jax.parallel.train_state import layout
from nnopt_jax.zoo.llama import Llama

MODELS = {
    "1B": Llama(width=2048, layers=22, heads=32, shared=4, hidden=5632),
    "7B": Llama(width=4096, layers=32, heads=32, shared=32, hidden=11008),
    "70B": Llama(width=8192, layers=80, heads=64, shared=8, hidden=28672),
}
"""The sizes of TinyLlama (arXiv:2401.02385) and Llama 2 (arXiv:2307.09288)."""

MESHES = [
    {"fsdp": 8}, {"fsdp": 2, "model": 4},
    {"fsdp": 64}, {"fsdp": 16, "model": 4},
    {"fsdp": 512}, {"fsdp": 128, "model": 4},
]  # fmt: skip
COLUMNS, ROWS = (None, "model"), ("model",)
MEGATRON: list[tuple[str, Any]] = [
    *((f"**/{name}/kernel", COLUMNS) for name in ("q", "k", "v", "gate", "up")),
    *((f"**/{name}/kernel", ROWS) for name in ("o", "down")),
    ("embed", ROWS),
    ("head/kernel", COLUMNS),
]
GIB = 2**30


def narrow(model: Llama) -> Any:
    """Shapes of the parameters, in bfloat16."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes)


def packed(shapes: Any) -> Any:
    """The same, kernels in four bits."""
    tx = nnopt.quantization.grouped(where="**/kernel")
    return jax.eval_shape(lambda params: tx.pack(params, tx.init(params)), shapes)


def wide_adamw() -> optax.GradientTransformation:
    """Adam whose two moments are float32, whatever is moved."""
    inner = optax.adamw(1e-4)

    def init(params: Any) -> Any:
        return inner.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))

    return optax.GradientTransformation(init, inner.update)


def gradient_bytes(plan: parallel.Shards, dense: Any) -> int:
    """Of the gradients of all dense weights on one device, each lying as its weight does."""
    leaves = jax.tree.leaves(dense)
    specs = jax.tree.leaves(plan.logical, is_leaf=lambda x: isinstance(x, jax.P))
    shapes = [jax.sharding.NamedSharding(plan.mesh, spec).shard_shape(leaf.shape)
              for leaf, spec in zip(leaves, specs, strict=True)]  # fmt: skip
    return sum(
        leaf.dtype.itemsize * math.prod(shape) for leaf, shape in zip(leaves, shapes, strict=True)
    )


def whole_bytes(base: Any, tx: nnopt.Transform) -> int:
    """Of parameters, adapters and moments on one device that has all."""
    plan = parallel.specs(base, AbstractMesh((1,), ("fsdp",)))
    return sum(layout(tx, wide_adamw(), plan).device_bytes)


def row(base: Any, dense: Any, tx: nnopt.Transform, axes: dict[str, int], whole: int) -> list[str]:
    """Cells of one mesh."""
    sizes, names = tuple(axes.values()), tuple(axes)
    mesh = AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    plan = parallel.specs(base, mesh, MEGATRON if "model" in axes else [])
    held = layout(tx, wide_adamw(), plan).device_bytes
    slopes = held.state or gradient_bytes(plan, dense)  # adapters are all that is trained
    told = [held.params, held.state, slopes, held.opt_state, sum(held) + slopes]
    written = " x ".join(f"{name} {size}" for name, size in axes.items())
    return [str(math.prod(sizes)), written, *(f"{n / GIB:.3f}" for n in told),
            f"{sum(held) * math.prod(sizes) / whole:.3f}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="which sizes")
    options = parser.parse_args()
    console = Console(width=160)
    kinds = {
        "bfloat16, Adam in float32": (nnopt.chain(), lambda shapes: shapes),
        "four bits and adapters": (nnopt.transfer.lora(rank=16, where="**/kernel"), packed),
    }
    for kind, (tx, make) in kinds.items():
        console.print(f"{kind}, GiB of one device\n", highlight=False)
        out = Table("model", "devices", "mesh", "parameters", "adapters", "gradients", "moments",
                    "total", "of ideal", box=MARKDOWN)  # fmt: skip
        for name in options.models.split(","):
            dense = narrow(MODELS[name])
            base = make(dense)
            whole = whole_bytes(base, tx)
            for axes in MESHES:
                out.add_row(name, *row(base, dense, tx, axes, whole))
        console.print(out)


if __name__ == "__main__":
    main()
