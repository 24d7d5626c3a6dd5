"""Runs in Weights & Biases, offline."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracked_run import RESULTS, ROWS, log, started, write_folder

from kdzoo.api.export import NeedsError
from kdzoo_wandb import wandb_tracker
from kdzoo_wandb.wandb_tracker import WandB


def refusal(options: WandB.Options) -> str:
    with pytest.raises(NeedsError) as caught:
        WandB.check(options)
    return str(caught.value)


def test_what_is_missing_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_tracker, "find_spec", lambda name: None)
    assert refusal(WandB.Options()) == 'needs the library wandb, which is not installed; pip install "kdzoo[wandb]"'
    monkeypatch.setattr(wandb_tracker, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(api=SimpleNamespace(api_key=None)))  # type: ignore[arg-type]
    not_logged_in = "wandb is not logged in; `wandb login`, WANDB_API_KEY or the option mode: offline would be right"
    assert refusal(WandB.Options()) == not_logged_in
    WandB.check(WandB.Options(mode="offline"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandB.check(WandB.Options())
    assert refusal(WandB.Options(mode="online")) == not_logged_in


@pytest.mark.slow
def test_offline_a_killed_run_goes_on_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip('needs the extra: pip install "kdzoo[wandb]"')
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    folder = write_folder(tmp_path)
    before = started(WandB, folder, mode="offline", project="digits")
    log(before, ROWS[:5])
    before.close()
    before.finish("failed", {})
    tracker = started(WandB, folder, resumed=True, mode="offline", project="digits")
    log(tracker)
    tracker.close()
    tracker.finish("finished", RESULTS)
    [written] = (folder / "trackers" / "wandb").glob("offline-run-*/run-*.wandb")
    assert written.stem == f"run-{tracker.run.id}"
    records = list(read(written))
    history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    assert len(history) == len(ROWS)
    keys = {"/".join(item.nested_key) or item.key for row in history for item in row.item}
    assert {"student/task", "student/step", "teacher/validation/top1_percent"} <= keys
    artifacts = [
        r.request.log_artifact.artifact for r in records if r.request.WhichOneof("request_type") == "log_artifact"
    ]
    artifacts += [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    [artifact] = artifacts
    assert artifact.type == "model"
    assert {entry.path for entry in artifact.manifest.contents} == {
        "export/student.onnx",
        "manifest.json",
        "results.json",
        "student.json",
        "student.safetensors",
    }


def read(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run: a LevelDB log, in blocks of 32 KiB, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a head
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record
