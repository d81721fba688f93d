"""Writes what each test costs, children included: `pytest -p tests.processor_times`.

A line for each test goes to `processor_times.txt`, its seconds first. Most tests of a second and
a half or more, and cases of 0.8 s or more beside a cheaper case of the same test, are listed in
`tests/slow.txt`, which `conftest.py` marks as slow.
"""

from __future__ import annotations

import pathlib
import resource
from collections.abc import Iterator

import pytest


def processor_seconds() -> float:
    """The processor time of this process and of those that it has waited for."""
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in each)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test with its fixtures."""
    start = processor_seconds()
    found = yield
    with pathlib.Path("processor_times.txt").open("a") as file:
        file.write(f"{processor_seconds() - start:.2f} {item.nodeid}\n")
    return found
