"""Trees of plain arrays and of streams that the entropy coder codes in each of its ways."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from nnopt_jax.arrays import Bits, Codebook, DeltaIndex, Masked, PackedTernary, Quantized, Sparse
from tests.golden.draws import Draws

_DTYPES = (
    "bool", "int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "uint64", "bfloat16", "float16", "float32", "float64", "complex64", "complex128",
    "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz",
    "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
_SHAPES = {"scalar": (), "none": (0,), "one": (1,), "flat": (3, 0), "matrix": (7, 5)}
Layer = collections.namedtuple("Layer", "kernel bias")


def _of_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any bits, those of NaN and infinities too."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if dtype == "bool" or ("int" in dtype and kind.isbuiltin != 1):
        return rng.integers(0, 2, shape).astype(kind)
    octets = rng.integers(0, 256, int(np.prod(shape)) * kind.itemsize, dtype=np.uint8)
    return octets.view(kind).reshape(shape)


def dtypes() -> Any:
    """Every dtype, empty arrays and scalars too; those of 64 bits by NumPy."""
    rng = np.random.default_rng(30)
    tree: dict[str, Any] = {
        dtype: {name: _of_bits(rng, dtype, shape) for name, shape in _SHAPES.items()}
        for dtype in _DTYPES
    }
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38], np.float32)
    words = np.array([[0, 7], [1, 2**32 - 1]], np.uint32)
    tree["special"] = {"float32": jnp.asarray(special), "float16": special[:6].astype(np.float16)}
    tree["python"] = {"int": 3, "float": 0.1, "bool": True, "complex": 1 + 2j}
    tree["keys"] = {
        "threefry": jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32"),
        "rbg": jax.random.wrap_key_data(jnp.asarray(words.ravel()), impl="rbg"),
        "unsafe": jax.random.wrap_key_data(jnp.asarray(words.ravel()), impl="unsafe_rbg"),
    }
    return tree


def containers() -> Any:
    """Dictionaries, lists, tuples, None, named tuples, keys that are numbers, no leaf at all."""
    draws = Draws(31)
    layers = [Layer(draws.floats(2, 3), None), Layer(draws.floats(3, 1), draws.floats(1))]
    return {
        "layers": layers, "pair": (draws.int4().store(), [draws.floats(2)]), "none": None,
        "nothing": {"list": [], "tuple": (), "dict": {}}, "by_number": {3: jnp.int32(1)},
        "ünïcode and spaces": {"": draws.floats(1), "a.b": draws.floats(2)},
    }  # fmt: skip


def constant() -> Any:
    """Streams of one symbol, and of none."""
    return {
        "zeros": jnp.zeros((9, 9), np.uint8), "same": jnp.full((5, 5), -3, np.int16),
        "true": jnp.ones((4, 4), bool), "bits": Bits.of(jnp.full((7, 7), 5), 3),
        "trits": PackedTernary.of(jnp.zeros((3, 3), np.int32)), "floats": jnp.full((6,), 1.5),
        "empty": Bits.of(jnp.zeros((0, 3), np.int32), 2), "one": jnp.ones((1,), np.uint8),
    }  # fmt: skip


def small() -> Any:
    """Streams that are coded bit by bit, with what neighbors tell; and too short for that."""
    draws = Draws(32)
    rng = draws.rng
    rows, columns = rng.random((40, 1)) ** 4, rng.random((1, 30)) ** 4
    busy = rng.random((40, 30)) < 0.1 + 0.6 * rows + 0.3 * columns
    image = np.exp(-((np.arange(784) // 28 - 9.0) ** 2 + (np.arange(784) % 28 - 15.0) ** 2) / 40)
    spots = rng.random((784, 12)) < 0.7 * image[:, None]
    repeats = np.tile(rng.integers(0, 16, (4, 30)), (10, 1))
    signs = np.where(spots, np.where(np.arange(784)[:, None] < 392, 3, -3), 0)
    wave = np.rint(60 * np.sin(np.arange(600) / 9)) + rng.integers(-3, 4, 600)
    return {
        "mask": jnp.asarray(busy), "turned": jnp.asarray(busy.T), "image": jnp.asarray(spots),
        "image_turned": jnp.asarray(spots.T), "repeats": jnp.asarray(repeats.astype(np.int8)),
        "signs": jnp.asarray(signs.astype(np.int8)), "wave": jnp.asarray(wave.astype(np.int8)),
        "holes": Bits.of(draws.indices(16, 30, 20) * np.asarray(draws.mask(0.2, 30, 20)), 4),
        "hole_inside": Bits.of(jnp.where(draws.mask(0.3, 30, 20), draws.indices(16, 30, 20), 9), 4),
        "noise8": draws.indices(256, 11, dtype=np.uint8), "noise3": Bits.of(draws.indices(8, 9), 3),
        "noise16": draws.indices(65536, 5, dtype=np.uint16), "two": jnp.array([1, 0], np.uint8),
    }  # fmt: skip


def tables() -> Any:
    """Flat streams too long for that, which get tables of frequencies."""
    rng = np.random.default_rng(33)
    normal = rng.normal
    narrow = np.clip(np.rint(normal(100, 12, 5000)), 0, 255).astype(np.uint8)
    skewed = np.where(rng.random(9000) < 0.04, rng.integers(0, 16, 9000), 7)
    wide = np.clip(np.rint(normal(32768, 90, 12_000)), 0, 65535).astype(np.uint16)
    wide[::400] = rng.integers(0, 65536, 30)
    sparse = rng.random(40_000) < 0.03
    return {
        "narrow": jnp.asarray(narrow), "wide": jnp.asarray(wide), "mask": jnp.asarray(sparse),
        "signed": jnp.asarray((narrow.astype(np.int16) - 100).astype(np.int8)),
        "skewed": Bits.of(jnp.asarray(skewed), 4),
        "ternary": PackedTernary.of(jnp.asarray(rng.choice(3, 20_000, p=[0.1, 0.85, 0.05]))),
        "noise": jnp.asarray(rng.integers(0, 256, 4500).astype(np.uint8)),
    }  # fmt: skip


def large() -> Any:
    """A matrix too large for contexts: its most common code apart, rows and columns by classes."""
    rng = np.random.default_rng(34)
    busy = np.exp(rng.normal(size=(2100, 1)) + rng.normal(size=(1, 2000)))
    rows, columns = np.nonzero(rng.random(busy.shape) < 0.0003 * busy)
    codes = np.ones(busy.shape, np.int32)
    codes[rows, columns] = rng.integers(0, 2, rows.size) * 2
    return {"ternary": PackedTernary.of(jnp.asarray(codes))}


def kept() -> Any:
    """Masks and the codes they keep, as one stream where that is possible."""
    draws = Draws(35)
    mask = draws.mask(0.2)
    grid = Quantized(draws.codes(0, 65535), draws.scales(1, 1), low=0, high=65535)
    return {
        name: Masked(inner, mask, format=format).store()
        for name, inner, format in (
            ("grid", draws.int4(), "bitmask"), ("table", Codebook(draws.indices(5), draws.table(5)),
            "gaps"), ("rows", draws.int4(), "csr"), ("too_many", grid, "bitmask"),
            ("floats", draws.floats(), "gaps"),
        )
    }  # fmt: skip


def apart() -> Any:
    """Words that no packing makes: bits behind the last code, gaps that end in no element."""
    codes = Bits.of(jnp.asarray(np.arange(7) % 4), 2)
    words = np.asarray(codes.words).copy()
    words[-1] |= 0xC0
    trailing = Bits.of(jnp.array([1, 2, 3, 3, 3]), 2)
    mask = jnp.asarray(np.arange(384).reshape(16, 24) % 5 == 1)
    return {
        "bits": codes.replace(words=jnp.asarray(words)),
        "gaps": DeltaIndex(trailing, (60,), 2),
        "capacity": Masked(Draws(36).int4(), mask, capacity=90).store(),
        "spare": Sparse(jnp.arange(90.0), Bits.of(mask, 1), (16, 24)),
    }


def network() -> Any:
    """Layers with dead units: what one keeps tells what the next one keeps."""
    rng = np.random.default_rng(37)
    sizes, alive, tree = (40, 32, 24, 10), np.ones(40, bool), {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        out = rng.random(outputs) < 0.6
        mask = (rng.random((inputs, outputs)) < 0.4) & alive[:, None] & out
        codes = jnp.asarray(rng.integers(-7, 8, mask.shape).astype(np.float32))
        grid = Quantized(codes, jnp.full((1, 1), 0.1), low=-7, high=7)
        kernel = Masked(grid, jnp.asarray(mask)).store()
        tree[f"layer{number}"] = {"kernel": kernel, "bias": jnp.asarray(out * np.float32(0.5))}
        alive = out
    return tree


def pools() -> Any:
    """Plain arrays: short ones are coded together, long ones alone, each byte by itself."""
    draws = Draws(38)
    return {
        "long": draws.floats(70, 60), "short": [draws.floats(9), draws.floats(3, 3)],
        "bfloat16": draws.floats(70, 60, dtype=jnp.bfloat16),
        "float16": draws.floats(4, dtype=np.float16), "integers": draws.indices(9, 5000),
        "float64": np.linspace(0, 1, 50),
    }  # fmt: skip


TREES = (
    dtypes, containers, constant, small, tables, large, kept, apart, network, pools,
)  # fmt: skip
