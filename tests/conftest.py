"""No test asks a hub for anything; and each test's processor time is measured, as that of the whole suite is limited.

Wall time says more about the neighbours than about a test. Processor time is that of the test's own process and of all
processes below it, running or ended. What a shared fixture costs is not charged to the test that comes first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

#: Processor seconds that a test without the marker ``slow`` or ``costly`` may take.
LIMIT_S = 10.0

#: Under which name a test's processor seconds travel from a worker process to the one that reports.
PROPERTY = "processor_s"

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("processor time")
    group.addoption("--processor-limit", type=float, default=LIMIT_S, metavar="S", help="a test may take; 0: any")
    group.addoption("--dearest", type=int, default=10, metavar="N", help="tests to show with their processor time")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessorTime(config), "processor-time")


def own_seconds() -> float:
    """Processor seconds of this process."""
    return time.process_time()


def descendant_seconds() -> float:
    """Processor seconds of all processes below this one, those that have ended included."""
    times = os.times()
    return times.children_user + times.children_system + sum(map(_seconds_of, _descendants(os.getpid())))


def _descendants(pid: int) -> Iterator[int]:
    """Living processes below one. Only Linux can say; elsewhere ended ones alone count."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just ended
        return
    for child in map(int, " ".join(lists).split()):
        yield child
        yield from _descendants(child)


def _seconds_of(pid: int) -> float:
    """Of a process and of those that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * TICK_S


class ProcessorTime:
    """Measures each test, fails one above the limit, and reports at the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.begin = time.monotonic()
        self.tests: dict[str, float] = {}
        self.of_workers = 0.0
        self._start = (0.0, 0.0)
        self._shared = [0.0, 0.0]
        self._depth = 0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._start, self._shared = _now(), [0.0, 0.0]
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Do not charge a test for what others use as well."""
        if fixturedef.scope == "function" or self._depth:
            return (yield)
        self._depth, before = 1, _now()
        try:
            return (yield)
        finally:
            self._depth = 0
            self._shared = [total + new - old for total, new, old in zip(self._shared, _now(), before, strict=True)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterator[None]:
        report: Any = yield
        own, others = (
            now - start - shared for now, start, shared in zip(_now(), self._start, self._shared, strict=True)
        )
        limit = self.config.getoption("processor_limit")
        if limit and (costly := item.get_closest_marker("costly")):
            limit = costly.args[0]
        if report.when == "call" and report.passed and 0 < limit < own + others and not item.get_closest_marker("slow"):
            report.outcome = "failed"
            report.longrepr = (
                f"{item.nodeid}: took {own + others:.1f} s of processor time ({own:.1f} s in its own process, "
                f"{others:.1f} s in processes that it started), at most {limit:g} s are right; make it cheaper, or "
                "mark it slow so that make test-all runs it"
            )
        if report.when == "teardown":
            report.user_properties.append((PROPERTY, own + others))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY:
                self.tests[report.nodeid] = float(value)

    def pytest_sessionfinish(self) -> None:
        output = getattr(self.config, "workeroutput", None)  # of a worker of pytest-xdist
        if output is not None:
            output[PROPERTY] = sum(_now())

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.of_workers += getattr(node, "workeroutput", {}).get(PROPERTY, 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        wall, tests = time.monotonic() - self.begin, sum(self.tests.values())
        total = self.of_workers + own_seconds() if self.of_workers else sum(_now())
        terminalreporter.section("processor time")
        for nodeid, seconds in sorted(self.tests.items(), key=lambda test: -test[1])[
            : self.config.getoption("dearest")
        ]:
            terminalreporter.write_line(f"{seconds:7.2f} s  {nodeid}")
        terminalreporter.write_line(
            f"{total:7.0f} s in all, {tests:.0f} s of them in {len(self.tests)} tests, the rest in imports, collection "
            f"and shared fixtures; {wall / 60:.1f} minutes on the clock"
        )


def _now() -> tuple[float, float]:
    return own_seconds(), descendant_seconds()
