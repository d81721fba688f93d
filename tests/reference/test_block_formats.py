"""Block formats against the encoders of `gguf` and the table of `bitsandbytes`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnopt_jax as nnopt
from nnopt_jax.arrays.nodes import materialize
from nnopt_jax.ops.lookup_tables import NF4

pytestmark = pytest.mark.reference
BITS = {level: code for code, level in enumerate([0, 0.5, 1, 1.5, 2, 3, 4, 6])}
"""E2M1 as OCP numbers it; bit 3 is the sign."""


def _weights(kind: str) -> np.ndarray:
    """(inputs, outputs); files hold the transpose."""
    rng = np.random.default_rng(7)
    w = rng.normal(0, 0.05, (256, 96)).astype(np.float32)
    if kind == "small":  # float16 scales are subnormal
        w *= 1e-4
    if kind == "halves":  # many ties
        w = (rng.integers(-16, 17, w.shape) / 2).astype(np.float32)
    if kind == "dead":
        w[:64, :40] = 0
    return w


def _blocks(x) -> np.ndarray:
    """Entries of each block of 32 inputs, in the order of a file: (blocks, 32)."""
    return np.asarray(x).T.reshape(-1, 32)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    codes = codes.astype(np.uint8)
    return codes[:, :16] | codes[:, 16:] << 4


def _half(scale) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(scale).T).reshape(-1, 1).view(np.uint8)


def _q8_0(leaf) -> np.ndarray:
    codes = _blocks(materialize(leaf.codes)).astype(np.int8).view(np.uint8)
    return np.concatenate([_half(leaf.scale), codes], 1)


def _q4_0(leaf) -> np.ndarray:
    return np.concatenate([_half(leaf.scale), _nibbles(_blocks(materialize(leaf.codes)))], 1)


def _mxfp4(leaf) -> np.ndarray:
    levels = np.array(leaf.levels)[_blocks(materialize(leaf.codes)).astype(int)]
    codes = np.vectorize(BITS.__getitem__)(np.abs(levels)) + 8 * (levels < 0)
    exponents = np.asarray(leaf.scale.exponents).T.reshape(-1, 1)
    return np.concatenate([exponents, _nibbles(codes)], 1)


FORMATS = {
    "Q8_0": (lambda: nnopt.quantization.grouped("q8_0"), _q8_0),
    "Q4_0": (lambda: nnopt.quantization.grouped("q4_0"), _q4_0),
    "MXFP4": (lambda: nnopt.quantization.mxfp4(), _mxfp4),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", ["normal", "small", "halves", "dead"])
@pytest.mark.parametrize("format", FORMATS)
def test_gguf_agrees_to_the_bit(format, kind, compiled):
    gguf = pytest.importorskip("gguf")
    w = _weights(kind)
    make, as_bytes = FORMATS[format]
    tx, params = make(), {"w": jnp.asarray(w)}
    pack = (
        jax.jit(lambda p: tx.pack(p, tx.init(p))) if compiled else lambda p: tx.pack(p, tx.init(p))
    )
    leaf = pack(params)["w"]
    type_ = gguf.GGMLQuantizationType[format]
    wanted = gguf.quants.quantize(np.ascontiguousarray(w.T), type_)
    got = as_bytes(leaf)
    np.testing.assert_array_equal(got, wanted.reshape(got.shape))
    shown = gguf.quants.dequantize(wanted, type_)
    np.testing.assert_array_equal(np.asarray(leaf.materialize()).T, shown + 0.0)


def test_nf4_is_the_table_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.get_4bit_type("nf4", device="cpu").numpy()
    np.testing.assert_array_equal(np.array(NF4, np.float32), theirs)


def test_nf4_agrees_with_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    torch = pytest.importorskip("torch")
    w = _weights("normal")
    tx, params = nnopt.quantization.nf4(group=64), {"w": jnp.asarray(w)}
    leaf = tx.encode(params, tx.init(params))["w"]
    flat = torch.from_numpy(np.ascontiguousarray(w.T))  # blocks run along the inputs
    packed, state = functional.quantize_4bit(flat, blocksize=64, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_array_equal(np.asarray(leaf.scale).T.ravel(), state.absmax.numpy())
    np.testing.assert_allclose(np.asarray(leaf.materialize()).T, theirs, rtol=1e-6, atol=0)
