"""Write what each test costs, child processes included: `pytest -p tests.processor_times`.

The plugin appends a line for each test to `processor_times.txt`, its processor seconds first.
`python tests/processor_times.py` then adds the expensive tests of that file to `tests/slow.txt`,
which `conftest.py` marks as slow. Only `-m ""` runs and measures tests that are marked.
"""

from __future__ import annotations

import collections
import pathlib
import resource
from collections.abc import Iterator

import pytest

TIMES = pathlib.Path("processor_times.txt")
SLOW = pathlib.Path(__file__).parent / "slow.txt"
# With these limits two cores run the tests of every day in six minutes; `.ci/run` may take 15.
EXPENSIVE = 1.5
EXPENSIVE_BESIDE_CHEAPER = 0.8


def processor_seconds() -> float:
    """Return the processor time of this process and of the children that it has waited for."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(times.ru_utime + times.ru_stime for times in usage)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test with its fixtures."""
    start = processor_seconds()
    outcome = yield
    with TIMES.open("a") as file:
        file.write(f"{processor_seconds() - start:.2f} {item.nodeid}\n")
    return outcome


def expensive(lines: list[str]) -> set[str]:
    """Return the tests to mark as slow.

    A test is marked from `EXPENSIVE` seconds on, and from `EXPENSIVE_BESIDE_CHEAPER` on if a
    cheaper case of the same function remains among the tests of every day.
    """
    cases = collections.defaultdict(list)
    for line in lines:
        seconds, test = line.split(" ", 1)
        cases[test.split("[")[0]].append((float(seconds), test))
    return {
        test
        for function in cases.values()
        for rank, (seconds, test) in enumerate(sorted(function))
        if seconds >= EXPENSIVE or (seconds >= EXPENSIVE_BESIDE_CHEAPER and rank > 0)
    }


if __name__ == "__main__":
    marked = set(SLOW.read_text().splitlines()) | expensive(TIMES.read_text().splitlines())
    SLOW.write_text("".join(f"{test}\n" for test in sorted(marked, key=str.encode)))
