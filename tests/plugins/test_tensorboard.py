from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdzoo_tensorboard.tensorboard import TensorBoard


def write(folder, rows):
    tracker = TensorBoard()
    tracker.start(folder)
    for row in rows:
        tracker.log(*row)
    tracker.close()


def read(folder, name):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_each_stage_is_a_sub_run(tmp_path):
    write(
        tmp_path,
        [("control", 1, {"task": 2.0}), ("student", 1, {"task": 1.0, "kd": 0.5}), ("student", 2, {"kd": 0.25})],
    )
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == ["control", "student"]
    assert read(tmp_path / "tensorboard" / "student", "kd") == [(1, 0.5), (2, 0.25)]
    assert read(tmp_path / "tensorboard" / "student", "task") == [(1, 1.0)]
    assert read(tmp_path / "tensorboard" / "control", "task") == [(1, 2.0)]


def test_a_resumed_stage_replaces_the_steps_it_logs_again(tmp_path):
    write(tmp_path, [("student", step, {"task": 10.0 + step}) for step in (1, 2, 3)])
    write(tmp_path, [("student", step, {"task": 20.0 + step}) for step in (3, 4)])
    assert read(tmp_path / "tensorboard" / "student", "task") == [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)]


def test_nothing_logged_leaves_nothing(tmp_path):
    write(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_logging_before_start_is_refused():
    with pytest.raises(AssertionError, match="log before start"):
        TensorBoard().log("student", 1, {"task": 1.0})


def test_offering_the_tracker_does_not_import_tensorboard():
    code = (
        "import sys, kdzoo_tensorboard as plugin; offered = []; plugin.register_trackers(offered.append); "
        "assert [thing.name for thing in offered] == ['tensorboard'], offered; assert 'tensorboard' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def log_without_end(tracker):
    for step in range(100_000):
        tracker.log("student", step, {"task": 1.0})
        if step % 1000 == 999:
            tracker.writers["student"].flush()


def test_a_full_disk_is_an_error_of_the_next_call_and_shows_no_traceback(tmp_path, capfd):
    tracker = TensorBoard()
    tracker.start(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file can grow further, as if the disk were full
    try:
        with pytest.raises(OSError, match="too large"):
            log_without_end(tracker)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Traceback" not in capfd.readouterr().err
