"""Runs in trackio's local database."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdzoo.api.export import NeedsError
from kdzoo_trackio import trackio_tracker
from kdzoo_trackio.trackio_tracker import Trackio

KILLED_AND_RESUMED = """
import json, sys
from pathlib import Path
from tracked_run import RESULTS, ROWS, log, started, write_folder
from kdzoo_trackio.trackio_tracker import Trackio
folder = write_folder(Path(sys.argv[1]))
before = started(Trackio, folder, project="digits")
log(before, ROWS[:5])
before.finish("stopped", {})
tracker = started(Trackio, folder, resumed=True, project="digits")
log(tracker)
tracker.finish("finished", RESULTS)
from trackio.sqlite_storage import SQLiteStorage
import trackio
[run] = trackio.Api().runs("digits")
print(json.dumps([run.name, SQLiteStorage.get_logs("digits", run.name)], default=str))
"""


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackio_tracker, "find_spec", lambda name: None)
    with pytest.raises(NeedsError) as caught:
        Trackio.check(Trackio.Options())
    assert str(caught.value) == 'needs the library trackio, which is not installed; pip install "kdzoo[trackio]"'


@pytest.mark.slow
def test_a_killed_run_goes_on_as_one_and_nothing_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip('needs the extra: pip install "kdzoo[trackio]"')
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at its import, so in a process of its own
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    command = [sys.executable, "-c", KILLED_AND_RESUMED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, logs = json.loads(done.stdout)  # nothing else is printed
    assert name == "tiny-0001-seed0-012345"
    points = [(key, row["step"]) for row in logs for key in row if key not in ("step", "timestamp")]
    assert len(points) == len(set(points)), "no point is there twice"
    assert {("student/task", 8), ("teacher/validation/top1_percent", 4), ("test/gain_points", 0)} <= set(points)
