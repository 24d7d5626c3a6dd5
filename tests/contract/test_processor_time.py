"""The guard on processor time: it fails what takes too long, whoever's it is, and spares what is marked or shared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
import subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < {}: pass"

@pytest.fixture(scope="module")
def shared():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass

def burn():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass

def test_own():
    burn()

def test_of_a_child(shared):
    subprocess.run([sys.executable, "-S", "-c", BURN.format(0.6)], check=True)

def test_of_a_child_that_lives_on():
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", BURN.format(0.6) + "\\nprint(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    child.stdout.readline()
    globals()["kept"] = child

@pytest.mark.slow
def test_marked():
    burn()

def test_with_what_is_shared(shared):
    pass

def test_end():
    kept.kill()
    kept.wait()
"""


def test_a_test_above_the_limit_fails_and_says_whose_time_it_was(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow\n")
    command = [sys.executable, "-m", "pytest", "--processor-limit", "0.4", "--dearest", "3", "-p", "xdist", "-n", "1"]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    said = subprocess.run([*command, "."], cwd=tmp_path, env=alone, capture_output=True, text=True).stdout
    took = (
        r"took 0\.\d s of processor time \({} s in its own process, {} s in processes that it started\), at most 0.4 s"
    )
    much, little = r"0\.[5-9]", r"0\.[01]"
    assert re.search(f"test_own: {took.format(much, little)}", said), said
    assert re.search(f"test_of_a_child: {took.format(little, much)}", said), said
    if sys.platform == "linux":  # elsewhere a process counts when it has ended
        assert re.search(f"test_of_a_child_that_lives_on: {took.format(little, much)}", said), said
        assert "3 failed, 3 passed" in said
    section = said.partition(" processor time ===")[2]
    assert len(re.findall(r"^ +\d\.\d\d s  test_it.py::test_", section, re.MULTILINE)) == 3
    (total, tests) = re.search(r"^ +(\d+) s in all, (\d+) s of them in 6 tests", section, re.MULTILINE).groups()
    assert int(total) >= int(tests) >= 2
