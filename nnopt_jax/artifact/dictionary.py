"""Text that descriptions of models are made of: `deflate` refers to it instead of repeating it.

Every file that was ever written needs it as it is: a change of one character is a new version of
the format.
"""

from __future__ import annotations

import json
from typing import Any

_DTYPES = ("float64", "complex64", "int64", "uint16", "int16", "bool", "uint32", "int4", "float16")
_NAMES = (
    "embedding opt_state step scale LayerNorm_0 batch_stats mean var BatchNorm_0 query key value "
    "out Embed_0 self_attention mlp encoder decoder blocks layers_0 lora_a lora_b weight linear1 "
    "linear2 fc1 fc2 conv1 conv2"
)


def _codes(shape: list[int], width: int = 4, low: int = 0) -> dict[str, Any]:
    return {"node": "Bits", "static": {"width": width, "low": low, "shape": shape}}


def _node(kind: str, static: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {"node": kind, "version": 1, "static": static, "fields": fields}


def _shared(shape: list[int]) -> dict[str, Any]:
    fields = {"indices": _codes(shape), "table": ["float32", [16]]}
    return _node("Codebook", {"dtype": "float32"}, fields)


def _grid(codes: Any, scale: list[int]) -> dict[str, Any]:
    static = {"low": -127, "high": 127, "dtype": "float32"}
    return _node("Quantized", static, {"codes": codes, "scale": ["float32", scale]})


def _sparse(shape: list[int], values: Any) -> dict[str, Any]:
    return _node("Sparse", {"shape": shape}, {"values": values, "support": [5, 2048]})


def text() -> bytes:
    """The text; what is likely to be needed lies last.

    Example:
        >>> import zlib
        >>> f"{zlib.crc32(text()):08x}"
        '8ccc999a'
    """
    dense = [["float32", [300]], ["bfloat16", [512, 10]], ["uint8", [64]]]
    factors = {"u": ["float32", [768, 8]], "v": ["float32", [8, 768]]}
    masked = _node("Masked", {"capacity": None, "mode": "select"}, {"values": 0, "mask": 0})
    bits = {**_node("Bits", {"layout": "flat"}, {"words": ["uint8", [1]]}), "layout": "rows"}
    added = _node("Sum", {}, {"base": 0, "delta": _node("Factored", {"dtype": "float32"}, factors)})
    grid = _grid(["int8", [784, 300]], [1, 300])
    layers = {
        "Conv_0": {
            "dict": {"bias": _shared([20]), "kernel": _sparse([5, 5, 1, 20], _shared([40]))}
        },
        "Conv_1": {
            "dict": {"bias": _shared([50]), "kernel": _sparse([5, 5, 20, 50], _shared([600]))}
        },
        "Dense_0": {
            "dict": {"bias": _shared([300]), "kernel": _sparse([784, 300], _shared([4000]))}
        },
        "Dense_1": {
            "dict": {"bias": _shared([100]), "kernel": _sparse([300, 100], _shared([1200]))}
        },
        "Dense_2": {"dict": {"bias": _shared([10]), "kernel": _sparse([100, 10], _shared([100]))}},
    }
    parts = [
        _DTYPES, _NAMES, {"metadata": {"same": [], "loose": [], "version": "0.1.0"}}, masked, bits,
        added, {"tuple": dense}, {"list": [grid, _sparse([784, 300], ["float32", [2352]])]},
        [{"dict": {"params": {"dict": layers}}}],
    ]  # fmt: skip
    return "".join(json.dumps(part, separators=(",", ":")) for part in parts).encode()
