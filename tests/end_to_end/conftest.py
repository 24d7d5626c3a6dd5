"""Fixtures: a command line in a folder of its own, and a store in which the teacher is trained already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine, Trained, run_folder


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    cli = CommandLine(tmp_path)
    yield cli
    cli.end()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    cli = CommandLine(tmp_path_factory.mktemp("trained"))
    said = cli("run", cli.recipe(), "--out", "out")
    assert said.code == 0, said
    return Trained(run_folder(cli.place / "out"), said)
