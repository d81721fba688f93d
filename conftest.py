"""What every test and doctest runs under: eight simulated CPU devices, strict ranks, fixed draws.

The environment is set before JAX is imported, and the command lines that tests start inherit it.
"""

from __future__ import annotations

import doctest
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time, and programs run once: they are not optimized, but where
# XLA_FLAGS says so, as `.ci/run` does for the tests that depend on the order of sums.
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
_as_for_users = "--xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
if not _as_for_users and importlib.metadata.version("jaxlib").startswith("0.10."):
    # Small programs are compiled in two thirds of the time; later versions have no such flag.
    _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

# What one test has compiled serves all others, in all workers; small programs are compiled anew in
# less time than they are stored. JAX may read what another process has half written: it warns
# (pyproject.toml lets that pass) and compiles again.
_COMPILED = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Loaded before pytest does, which loads a module of doctests by its file and then names it in its
# package, in place of a function of the same name.
import nnopt_jax.cli.commands  # noqa: E402, F401

jax.config.update("jax_numpy_rank_promotion", "raise")

# The draws are the same in every run, so that a red test stays red until it is mended.
settings.register_profile("nnopt", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("nnopt")

_REFERENCES = ("torch", "transformers", "peft", "gguf", "torch_pruning")


def pytest_unconfigure() -> None:
    """Removes what was compiled, where this process made the folder."""
    if _COMPILED is not None:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@functools.cache
def _converts_float16() -> bool:
    """Whether XLA can: on x86 it needs F16C, which `--xla_cpu_max_isa=SSE4_2` takes away."""
    try:
        jax.numpy.zeros(1).astype(jax.numpy.float16)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _skipped_without_float16():
    try:
        return (yield)
    except (jax.errors.JaxRuntimeError, doctest.UnexpectedException) as error:
        cause = error.exc_info[1] if isinstance(error, doctest.UnexpectedException) else error
        if "Failed to materialize symbols" in str(cause) and not _converts_float16():
            pytest.skip("XLA does not convert float16 on a processor without F16C")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    """Skips tests whose fixtures need float16 where XLA does not convert it."""
    return (yield from _skipped_without_float16())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skips tests that need float16 where XLA does not convert it."""
    return (yield from _skipped_without_float16())


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests listed as slow; skip comparisons with PyTorch libraries that are missing."""
    slow = set((pathlib.Path(__file__).parent / "tests/slow.txt").read_text().splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
    missing = [name for name in _REFERENCES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    skip = pytest.mark.skip(
        reason=f"{', '.join(missing)} not installed: pip install -e '.[reference]'"
    )
    for item in items:
        if item.get_closest_marker("reference"):  # keywords hold folder names as well
            item.add_marker(skip)
