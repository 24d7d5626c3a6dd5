"""The command that limits the processor's instructions: which kinds it runs, and that a failure under one is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import instruction_sets

SUITE = """
import os

def test_it():
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2"
"""


def test_a_kind_runs_where_the_processor_can_do_it() -> None:
    def kinds(*flags: str) -> list[str]:
        return [kind for kind in instruction_sets.KINDS if instruction_sets.possible(kind, flags)]

    assert kinds() == ["unlimited"]
    assert kinds("avx", "avx2") == ["unlimited", "AVX2"]
    assert kinds("avx2", "avx512f", "avx512_bf16", "amx_tile") == list(instruction_sets.KINDS)


def test_each_kind_is_run_or_named_and_one_failure_fails_all(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    command = [sys.executable, instruction_sets.__file__, str(tmp_path), "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    flags = instruction_sets.flags_here()
    report = said.stdout.splitlines()[-len(instruction_sets.KINDS) :]
    assert report[0].startswith("unlimited    passed in")
    for kind, line in zip(instruction_sets.KINDS, report, strict=True):
        assert line.startswith(f"{kind:<12} ")
        assert ("not run: this processor has no" in line) != instruction_sets.possible(kind, flags)
    if instruction_sets.possible("AVX2", flags):
        assert report[1].startswith("AVX2         FAILED in")
        assert said.returncode == 1
