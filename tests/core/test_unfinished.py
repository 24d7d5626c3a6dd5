"""What is kept of stages that are not finished."""

from __future__ import annotations

from pathlib import Path

from kdzoo.storage.store import Store
from kdzoo.storage.unfinished import Claim, forget_stored, place_of


def test_what_a_kill_left_of_a_stored_stage_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("stored", "claimed"):
        store.publish("stage", key, lambda folder: (folder / "result.json").write_text("{}"))
    for key in ("stored", "begun"):
        Claim(tmp_path, key).release()
    claim = Claim(tmp_path, "claimed")
    forget_stored(tmp_path)
    assert [place_of(tmp_path, key).exists() for key in ("stored", "begun", "claimed")] == [False, True, True]
    claim.remove()
