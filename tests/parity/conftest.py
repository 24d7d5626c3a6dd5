"""``--goldens DIR``: compare with another set of reference numbers of the same format."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapters import ADAPTERS
from cases import OWN_SET, compared, read_cases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens", type=Path, default=OWN_SET, metavar="DIR", help="set of reference numbers (default: our own)"
    )


def goldens(config: pytest.Config) -> Path:
    # The option is unknown when pytest reads this file late, on a run over all tests.
    return config.getoption("--goldens", default=OWN_SET)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = read_cases(goldens(metafunc.config))
        assert any(case.loss in ADAPTERS for case in cases), (
            f"{goldens(metafunc.config)}: no case of a loss that has an adapter"
        )
        metafunc.parametrize("case", [compared(case, ADAPTERS) for case in cases])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cases = read_cases(goldens(config))
    without = sorted({case.loss for case in cases} - set(ADAPTERS))
    losses = {case.loss for case in cases} & set(ADAPTERS)
    terminalreporter.write_line(f"goldens {goldens(config)}: {len(losses)} losses have an adapter")
    if without:
        terminalreporter.write_line(f"  skipped, without adapter: {', '.join(without)}")
