from __future__ import annotations

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kdzoo
from kdzoo.errors import CorruptError, LockedError, OutputError, ReportError, ResumeError, UnfinishedError
from kdzoo.storage import atomic, lock, owner, runs, sealed
from kdzoo.storage.owner import Owner
from kdzoo.storage.recipe_changes import diff_fields
from kdzoo.storage.run_folder import RunFolder

FIELDS = {"train": {"epochs": 3, "optimizer": {"lr": 0.1}}, "export": []}


def start(out: Path, lr: float = 0.1, **options) -> RunFolder:
    fields = {"train": {"epochs": 3, "optimizer": {"lr": lr}}, "export": ()}
    arguments = {"name": "digits-kd", "seed": 0, "recipe_text": f"lr: {lr}\n", "recipe_hash": f"hash of {lr}"}
    return RunFolder.start(out, **arguments | {"recipe_fields": fields} | options)


def begun(out: Path, **options) -> Path:
    """An unfinished run that nobody owns."""
    with start(out, **options) as folder:
        return folder.root


def ended(out: Path, **options) -> Path:
    with start(out, **options) as folder:
        folder.write_json("results.json", {"student": {"top1_percent": 90.0}})
        folder.finish()
        return folder.root


def refusal(kind: type[Exception], action) -> str:
    with pytest.raises(kind) as error:
        action()
    return str(error.value)


# --- which run --------------------------------------------------------------------------------


def test_a_run_gets_a_folder_of_its_own(tmp_path):
    with start(tmp_path / "runs", seed=7) as folder:
        assert folder.root == tmp_path / "runs" / "digits-kd" / "0001-seed7"
        assert (folder.outcome, folder.run_id, folder.finished, folder.resumed) == ("new", "0001-seed7", False, False)
        assert sorted(path.name for path in folder.root.iterdir()) == [
            "checkpoints",
            "lock",
            "recipe.yaml",
            "run.json",
            "uses",
        ]
        assert sealed.read_sealed(folder.root / "run.json") == {
            "schema_version": 1,
            "kdzoo": kdzoo.__version__,
            "run_id": "0001-seed7",
            "uid": folder.uid,
            "sequence": 1,
            "name": "digits-kd",
            "seed": 7,
            "status": "running",
            "checkpointed": [],
            "recipe_hash": "hash of 0.1",
            "recipe": FIELDS,
        }
        assert folder.path("recipe.yaml").read_text() == "lr: 0.1\n"


@pytest.mark.parametrize("remembered", [(), ("study.log",)])
def test_a_finished_run_keeps_the_folder_of_planning_only_if_something_is_in_it(tmp_path, remembered):
    with start(tmp_path) as folder:
        for name in remembered:
            (folder.folder_of("planning") / name).touch()
        folder.folder_of("planning")
        folder.finish()
    assert (folder.root / "planning").exists() is bool(remembered)


def test_an_unfinished_run_is_resumed(tmp_path):
    root = begun(tmp_path)
    (root / "recipe.yaml").unlink()
    for options in ({}, {"resume": True}):
        with start(tmp_path, **options) as folder:
            assert (folder.root, folder.outcome, folder.resumed) == (root, "resumed", True)
            assert folder.path("recipe.yaml").read_text() == "lr: 0.1\n"


def test_new_begins_another_run(tmp_path):
    begun(tmp_path)
    assert begun(tmp_path, new=True).name == "0002-seed0"
    assert begun(tmp_path).name == "0002-seed0"


def test_each_seed_has_runs_of_its_own(tmp_path):
    begun(tmp_path)
    assert begun(tmp_path, seed=1).name == "0002-seed1"
    assert begun(tmp_path).name == "0001-seed0"
    assert begun(tmp_path, seed=-1).name == "0003-seed-1"


def test_a_changed_recipe_is_not_resumed(tmp_path):
    root = begun(tmp_path)
    text = refusal(ResumeError, lambda: start(tmp_path, lr=0.2))
    assert text == (
        f"{root}: begun with another recipe, so it cannot be resumed\n"
        "  train.optimizer.lr 0.1 -> 0.2\n"
        "undo the change, or start a new run with --new"
    )
    assert begun(tmp_path).name == "0001-seed0", "the refused one has given the lock back"
    assert begun(tmp_path, lr=0.2, new=True).name == "0002-seed0"


def test_a_hash_that_differs_alone_is_told_too(tmp_path):
    begun(tmp_path)
    text = refusal(ResumeError, lambda: start(tmp_path, recipe_hash="other"))
    assert "\n  no field, but kdzoo's format of recipes\n" in text


def test_nothing_to_resume_is_said(tmp_path):
    expected = f"nothing to resume: no run of 'digits-kd' with seed 0 in {tmp_path}; start one without --resume"
    assert refusal(ResumeError, lambda: start(tmp_path, resume=True)) == expected
    begun(tmp_path, seed=1)
    assert refusal(ResumeError, lambda: start(tmp_path, resume=True)) == expected
    assert refusal(ResumeError, lambda: start(tmp_path, resume=True, new=True)) == (
        "--new and --resume exclude each other"
    )


def test_a_finished_run_is_an_outcome_of_its_own(tmp_path):
    root = ended(tmp_path)
    with start(tmp_path, resume=True) as folder:
        assert (folder.root, folder.outcome, folder.finished, folder.resumed) == (root, "finished", True, False)
        assert folder.read_json("results.json") == {"student": {"top1_percent": 90.0}}
    assert "lr 0.1 -> 0.2" in refusal(ResumeError, lambda: start(tmp_path, lr=0.2, resume=True))


def test_a_finished_recipe_is_not_run_again_unless_asked(tmp_path):
    root = ended(tmp_path)
    with start(tmp_path) as folder:
        assert (folder.root, folder.outcome) == (root, "finished")
    assert ended(tmp_path, lr=0.2).name == "0002-seed0", "another recipe"
    with start(tmp_path) as folder:
        assert (folder.root, folder.outcome) == (root, "finished"), "though another recipe ran since"
    assert begun(tmp_path, new=True).name == "0003-seed0"
    with start(tmp_path) as folder:
        assert (folder.run_id, folder.outcome) == ("0003-seed0", "resumed")


def test_a_run_that_finished_from_other_code_or_data_does_not_count_as_finished(tmp_path):
    with start(tmp_path) as folder:
        folder.finish("key of today")
    told = []
    with start(tmp_path, result_key=lambda: "key of today", warn=told.append) as folder:
        assert (folder.outcome, told) == ("finished", [])
    with start(tmp_path, result_key=lambda: "of tomorrow", warn=told.append, resume=True) as folder:
        assert (folder.outcome, told) == ("finished", []), "resuming begins nothing new"
    with start(tmp_path, result_key=lambda: "of tomorrow", warn=told.append) as folder:
        assert folder.run_id == "0002-seed0"
        folder.finish("of tomorrow")
    assert told == [
        f"{tmp_path}/digits-kd/0001-seed0 is finished, but from other code, data or library versions than now; "
        "a new run begins"
    ]
    for key, run_id in (("key of today", "0001-seed0"), ("of tomorrow", "0002-seed0")):
        with start(tmp_path, result_key=lambda key=key: key) as folder:
            assert (folder.run_id, folder.outcome) == (run_id, "finished")


WITH_ONNX = {
    "recipe_fields": {**FIELDS, "export": [{"format": "onnx"}]},
    "recipe_hash": "with onnx",
    "recipe_text": "export: [onnx]\n",
    "training_key": lambda: "trained",
}


def test_a_finished_run_goes_on_with_other_exports(tmp_path):
    with start(tmp_path) as folder:
        folder.write_json("results.json", {"exports": []})
        folder.finish("key", "trained")
    for _ in range(2):  # the second time after a kill
        with start(tmp_path, **WITH_ONNX) as folder:
            assert (folder.run_id, folder.outcome, folder.finished) == ("0001-seed0", "resumed", False)
            assert (folder.root / "recipe.yaml").read_text() == "export: [onnx]\n"
    with start(tmp_path, **WITH_ONNX) as folder:
        folder.write_json("export/files.json", {})
        folder.finish("other key", "trained")
    with start(tmp_path, **WITH_ONNX, result_key=lambda: "other key") as folder:
        assert (folder.outcome, folder.verify()) == ("finished", 3)


def test_a_finished_run_that_cannot_go_on_stays_finished(tmp_path):
    with start(tmp_path) as folder:
        folder.finish("key", "trained")
    with start(tmp_path, **WITH_ONNX) as folder:
        folder.abandon()
    with start(tmp_path, result_key=lambda: "key") as folder:
        assert (folder.outcome, folder.verify()) == ("finished", 1)
    (tmp_path / "digits-kd" / "0001-seed0" / "recipe.yaml").write_text("damaged")
    assert "recipe.yaml: damaged" in refusal(CorruptError, lambda: start(tmp_path, **WITH_ONNX))
    with start(tmp_path, **{**WITH_ONNX, "training_key": lambda: "trained with other code"}) as folder:
        assert folder.run_id == "0002-seed0"


def test_a_key_is_asked_for_only_where_a_run_of_the_recipe_is_finished(tmp_path):
    ended(tmp_path, lr=0.2)
    with start(tmp_path, result_key=pytest.fail) as folder:
        assert folder.outcome == "new"
    with start(tmp_path, result_key=pytest.fail) as folder:
        assert folder.outcome == "resumed"


def test_a_finished_run_that_does_not_verify_is_not_shown_as_finished(tmp_path):
    root = ended(tmp_path)
    (root / "results.json").write_text((root / "results.json").read_text().replace("90.0", "99.0"))
    for resume in (False, True):
        assert refusal(CorruptError, lambda resume=resume: start(tmp_path, resume=resume)) == (
            f"{root}: 1 of 2 files do not verify\n"
            f"  {root}/results.json: damaged: its sha256 is not the recorded one\n"
            "put the files back, or start a new run with --new"
        )
    assert begun(tmp_path, new=True).name == "0002-seed0"


def test_neither_names_nor_times_tell_which_run_is_the_latest(tmp_path):
    first, second = begun(tmp_path), begun(tmp_path, new=True)
    first.rename(first.parent / "0009-seed0")
    os.utime(second / "run.json", (0, 0))
    assert begun(tmp_path) == second
    assert begun(tmp_path, new=True).name == "0010-seed0"


def test_whoever_loses_the_race_for_a_number_looks_again(tmp_path, monkeypatch):
    rename, tried = atomic.rename_new, []

    def another_is_first(folder, place):
        tried.append(place.name)
        if len(tried) == 1:
            shutil.copytree(folder, place)
        return rename(folder, place)

    monkeypatch.setattr(runs, "rename_new", another_is_first)
    with start(tmp_path, new=True) as folder:
        assert tried == ["0001-seed0", "0002-seed0"]
        assert folder.run_id == "0002-seed0"
    tried.clear()
    with start(tmp_path, seed=1) as folder:
        assert tried == ["0003-seed1"]
        assert folder.resumed, "what the other process began is there to be resumed, once it is dead"
    assert list((tmp_path / "digits-kd").glob(".*")) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ends_while_it_is_taken_over_is_finished(tmp_path, monkeypatch, resume):
    root, acquire = begun(tmp_path), lock.Lock.acquire

    def its_owner_is_faster(lock):
        if lock.path == root / "lock":
            RunFolder(root, sealed.read_sealed(root / "run.json"), "new", None, pytest.fail).finish()
        acquire(lock)

    monkeypatch.setattr(lock.Lock, "acquire", its_owner_is_faster)
    with start(tmp_path, resume=resume) as folder:
        assert (folder.run_id, folder.outcome) == ("0001-seed0", "finished")
    assert (root / "lock").read_text() == ""


def test_a_damaged_run_is_not_passed_over(tmp_path):
    root = begun(tmp_path)
    (root / "run.json").unlink()
    text = refusal(CorruptError, lambda: start(tmp_path))
    assert text == f"{root}/run.json: missing; mend or remove the folder, or start a new run with --new"
    assert begun(tmp_path, seed=1).name == "0002-seed1"
    assert begun(tmp_path, new=True).name == "0003-seed0"


def test_a_run_of_a_newer_kdzoo_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(sealed, "SCHEMA_VERSION", 2)
        newer.setattr(sealed, "__version__", "9.0")
        root = begun(tmp_path)
    expected = (
        f"{root}/run.json: made by a newer kdzoo (9.0, format 2); "
        f"this is {kdzoo.__version__} and reads formats up to 1: update kdzoo"
    )
    assert refusal(CorruptError, lambda: RunFolder.view(root)) == expected
    assert refusal(CorruptError, lambda: start(tmp_path)).startswith(expected)


def test_an_output_folder_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    text = refusal(OutputError, lambda: start(tmp_path / "file"))
    assert text.startswith(f"{tmp_path}/file/digits-kd: cannot be written: Not a directory; ")


def test_fields_are_compared_one_by_one():
    old = {"a": {"b": 1, "gone": {}}, "list": [1, {"x": None}], "same": "s", "kind": 1}
    new = {"a": {"b": 1.5}, "list": [1, {"x": "y"}, 3], "same": "s", "kind": {"name": "k"}}
    assert diff_fields(old, new) == [
        "a.b 1 -> 1.5",
        "a.gone a mapping -> (absent)",
        "list.1.x nothing -> 'y'",
        "kind 1 -> (absent)",
        "list.2 (absent) -> 3",
        "kind.name (absent) -> 'k'",
    ]
    assert diff_fields(old, old) == []


# --- one owner --------------------------------------------------------------------------------


def test_a_second_owner_is_refused_by_name(tmp_path):
    with start(tmp_path) as folder:
        record = json.loads((folder.root / "lock").read_text())
        assert record["owner"] == vars(Owner.me())
        for lr in (0.1, 0.2):
            text = refusal(LockedError, lambda lr=lr: start(tmp_path, lr=lr))
            assert text == (
                f"{folder.root}: in use by process {os.getpid()} on host '{os.uname().nodename}' "
                f"since {record['since']}; wait for it to end, or start another run with --new"
            )
        with start(tmp_path, new=True) as other:
            assert other.run_id == "0002-seed0"
    assert (folder.root / "lock").read_text() == "", "given up"


def record_of(root: Path, **changes) -> None:
    owner = vars(Owner.me()) | changes
    (root / "lock").write_text(json.dumps({"owner": owner, "since": "2026-11-21 10:00:00 UTC"}))


@pytest.mark.parametrize(
    "changes",
    [{"pid": 2**22 + 1}, {"started": 1}, {"boot": "an earlier one"}, {"namespace": "1"}],
    ids=["gone", "number reused", "rebooted", "container gone"],
)
def test_a_dead_owners_lock_is_taken_over(tmp_path, changes):
    root = begun(tmp_path)
    record_of(root, **changes)
    with start(tmp_path) as folder:
        assert folder.resumed
        assert json.loads((root / "lock").read_text())["owner"] == vars(Owner.me())


def test_a_live_owner_counts_even_where_file_locks_mean_nothing(tmp_path):
    root = begun(tmp_path)
    parent = os.getppid()
    record_of(root, pid=parent, started=owner._started(parent))
    assert refusal(LockedError, lambda: start(tmp_path)) == (
        f"{root}: in use by process {parent} on host '{os.uname().nodename}' since 2026-11-21 10:00:00 UTC; "
        "wait for it to end, or start another run with --new"
    )


def test_an_owner_on_another_machine_cannot_be_asked(tmp_path):
    root = begun(tmp_path)
    record_of(root, pid=4711, host="box", boot="its own")
    assert refusal(LockedError, lambda: start(tmp_path)) == (
        f"{root}: in use by process 4711 on host 'box' since 2026-11-21 10:00:00 UTC, and from here nobody can tell "
        f"whether it still runs; if it does not, delete {root}/lock, or start another run with --new"
    )
    (root / "lock").unlink()
    assert begun(tmp_path) == root


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"owner": {"pid": 1}}', b"\xff" * 5000])
def test_a_torn_record_is_nobodys(tmp_path, record):
    root = begun(tmp_path)
    (root / "lock").write_bytes(record)
    assert begun(tmp_path) == root


def test_an_owner_that_has_not_written_its_name_yet_is_one(tmp_path):
    root = begun(tmp_path)
    with open(root / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal(LockedError, lambda: start(tmp_path)) == (
            f"{root}: in use by a process that has not said its name yet; "
            "wait for it to end, or start another run with --new"
        )
    assert begun(tmp_path) == root


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    root = begun(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuses)
    told = []
    with start(tmp_path, warn=told.append) as folder:
        assert folder.resumed
    assert told == [f"{root}/lock: this file system cannot lock files (No locks available); only the record guards it"]


def test_left_overs_are_swept_when_a_run_is_resumed(tmp_path):
    root = begun(tmp_path)
    dead = Owner(**(vars(Owner.me()) | {"started": 1}))
    remote = Owner(**(vars(Owner.me()) | {"host": "elsewhere", "boot": "its own"}))
    (root / "checkpoints" / "student").mkdir()
    for number, other in enumerate((dead, remote)):
        for place in (root.parent, root, root / "checkpoints" / "student"):
            (place / f".kdzoo-{'-'.join(map(str, other.tag))}-{number}.tmp").write_text("half")
    (root / "notes.txt").write_text("mine")
    begun(tmp_path)
    left = list(root.parent.rglob(".kdzoo-*"))
    assert [path.parent for path in left] == [root.parent], "only the lock's owner may sweep what another machine left"
    assert (root / "notes.txt").exists()


# --- files ------------------------------------------------------------------------------------


def test_metrics_rows_come_back_and_a_torn_one_goes(tmp_path):
    with start(tmp_path) as folder:
        assert folder.log.rows() == []
        rows = [{"stage": "student", "step": i, "kd": 0.1 * i} for i in range(3)]
        for row in rows:
            folder.log.append(row)
        assert folder.log.rows() == rows
        with open(folder.path("metrics.jsonl"), "ab") as file:
            file.write(b'{"stage": "stu')
        assert folder.log.rows() == rows
    with start(tmp_path) as folder:
        folder.log.append({"step": 3})
        assert folder.log.rows() == [*rows, {"step": 3}]
        folder.log.truncate(2)
        assert folder.log.rows() == rows[:2]
        assert refusal(CorruptError, lambda: folder.log.truncate(3)) == (
            f"{folder.root}/metrics.jsonl: 2 rows, at least 3 expected"
        )
        folder.log.truncate(0)
        assert folder.path("metrics.jsonl").read_bytes() == b""
        folder.path("metrics.jsonl").write_bytes(b'{"a": 1}\n{"a\n{"a": 3}\n')
        assert refusal(CorruptError, folder.log.rows) == f"{folder.root}/metrics.jsonl: line 2 is damaged"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "export/../../x"])
def test_files_stay_inside_the_folder(tmp_path, name):
    with start(tmp_path) as folder:
        assert refusal(OutputError, lambda: folder.write_text(name, "")) == (
            f"{name}: a file of a run must be inside its folder {folder.root}"
        )


def test_a_finished_run_can_be_verified(tmp_path):
    with start(tmp_path) as folder:
        folder.write_json("results.json", {"a": 1})
        folder.write_bytes("export/student.onnx", b"onnx")
        folder.write_text("tensorboard/events", "not ours")
        folder.checkpoints("student").save({"w": torch.ones(2)}, {})
        folder.log.append({"a": 1})
        assert refusal(UnfinishedError, folder.verify) == (
            f"{folder.root}: not finished, so it has no manifest to verify; the command that began it goes on with it"
        )
        folder.finish()
        assert folder.finished
    folder = RunFolder.view(folder.root)
    assert (folder.outcome, folder.finished, folder.verify()) == ("viewed", True, 4)
    files = sealed.read_sealed(folder.path("manifest.json"))["files"]
    assert list(files) == ["export/student.onnx", "metrics.jsonl", "recipe.yaml", "results.json"]


def test_what_changed_after_the_end_is_listed(tmp_path):
    root = ended(tmp_path)
    (root / "results.json").write_text((root / "results.json").read_text().replace("90.0", "99.0"))
    (root / "recipe.yaml").unlink()
    (root / "notes.txt").write_text("a file of the user's own is no damage")
    folder = RunFolder.view(root)
    assert refusal(CorruptError, folder.verify) == (
        f"{root}: 2 of 2 files do not verify\n"
        f"  {root}/recipe.yaml: missing\n"
        f"  {root}/results.json: damaged: its sha256 is not the recorded one"
    )
    assert refusal(CorruptError, lambda: folder.read_json("results.json")) == (
        f"{root}/results.json: damaged: its sha256 is not the recorded one"
    )


def test_a_report_made_again_is_recorded(tmp_path):
    folder = RunFolder.view(ended(tmp_path))
    folder.write_text("report.html", "<html>")
    assert folder.verify() == 3
    folder.write_text("report.html", "<html> again")
    assert folder.verify() == 3
    folder.replace({"export/student.onnx": b"onnx", "report.html": None})
    assert folder.verify() == 3


def test_a_finished_run_verifies_wherever_a_change_of_its_files_is_killed(tmp_path, monkeypatch):
    """Killed before and after each rename and removal; the next change completes or replaces what was begun."""
    root = ended(tmp_path)
    old = {"export/a.onnx": b"old", "export/a.onnx.rejected": b"bad", "report.html": b"old"}
    new = {"export/a.onnx": b"new", "export/a.onnx.rejected": None, "README.md": b"made", "report.html": b"new"}
    content = {name: {old.get(name), new.get(name)} for name in old | new}
    between = 0
    for moment in range(100):
        RunFolder.view(root).replace(old | {"README.md": None})
        if killed_at(moment, lambda: RunFolder.view(root).replace(new), monkeypatch) == 0:
            break
        assert RunFolder.view(root).verify() == delivered(root)
        found = {name: (root / name).read_bytes() if (root / name).exists() else None for name in content}
        assert all(found[name] in either for name, either in content.items())
        between += found not in ({"README.md": None} | old, new)
        RunFolder.view(root).replace({"export/b.onnx": b"another", "export/a.onnx.rejected": None})
        assert RunFolder.view(root).verify() == delivered(root)
    assert between >= 4, "hardly a kill was between two changes"
    assert not [path for path in root.rglob("*") if owner.TEMPORARY.fullmatch(path.name)]


def delivered(root: Path) -> int:
    """How many files of a run there are that a manifest records."""
    files = {path.name for path in root.rglob("*") if path.is_file()}
    return sum(not owner.TEMPORARY.fullmatch(name) for name in files - {"run.json", "manifest.json", "lock", "uses"})


def killed_at(moment: int, action: Callable[[], None], monkeypatch) -> int:
    """The exit code of a process that is killed at a moment of an action: before or after a rename or a removal."""
    moments = itertools.count()

    def watched(change):
        def changed(*given):
            for step in (None, change):
                if step is not None:
                    step(*given)
                if next(moments) == moment:
                    os._exit(9)

        return changed

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", watched(os.replace))
        monkeypatch.setattr(os, "unlink", watched(os.unlink))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_manifest_of_another_run_is_refused(tmp_path):
    first, second = ended(tmp_path), ended(tmp_path, new=True)
    shutil.copy(first / "manifest.json", second / "manifest.json")
    assert refusal(CorruptError, RunFolder.view(second).verify) == (
        f"{second}/manifest.json: of run '0001-seed0', not of '0002-seed0'"
    )


def test_what_is_no_run_cannot_be_viewed(tmp_path):
    assert refusal(ReportError, lambda: RunFolder.view(tmp_path)) == (
        f"{tmp_path}: not a run folder: it holds no run.json"
    )
    assert refusal(ReportError, lambda: RunFolder.view(tmp_path / "x")) == f"{tmp_path}/x: no such run folder"
    text = refusal(ReportError, lambda: RunFolder.view(tmp_path / ("x" * 300)))
    assert text.endswith(": no such run folder: File name too long")


# --- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["student", "Student 1/2", "../../escape", "", "x" * 100])
def test_each_stage_has_checkpoints_of_its_own(tmp_path, stage):
    with start(tmp_path) as folder:
        assert not folder.has_checkpoints(stage)
        assert folder.checkpoints(stage).load() is None
        folder.checkpoints(stage).save({"w": torch.ones(1)}, {"step": 5})
        folder.checkpoints("another").save({"w": torch.ones(1)}, {"step": 6})
    with start(tmp_path) as folder:
        assert folder.has_checkpoints(stage)
        assert folder.checkpoints(stage).load()[1] == {"step": 5}
        assert len(list((folder.root / "checkpoints").iterdir())) == 2
        folder.drop_checkpoints(stage)
        assert not folder.has_checkpoints(stage)
        assert folder.checkpoints(stage).load() is None
        assert [path.name for path in (folder.root / "checkpoints").iterdir()] == ["another"]


def test_removed_checkpoints_are_never_a_fresh_start(tmp_path):
    with start(tmp_path) as folder:
        folder.checkpoints("student").save({"w": torch.ones(1)}, {})
    shutil.rmtree(folder.root / "checkpoints")
    with start(tmp_path) as folder:
        assert folder.has_checkpoints("student")
        assert refusal(CorruptError, folder.checkpoints("student").load) == (
            f"{folder.root}/checkpoints/student: no checkpoint can be used\n  all of them are gone\n"
            "put the files back, or start a new run with --new"
        )


def test_a_fall_back_is_told_at_once_and_kept(tmp_path):
    with start(tmp_path) as folder:
        for step in (1, 2):
            folder.checkpoints("student").save({"w": torch.ones(1)}, {"step": step})
    (folder.root / "checkpoints" / "student" / "00000002" / "state.json").unlink()
    told = []
    with start(tmp_path, warn=told.append) as folder:
        assert folder.checkpoints("student").load()[1] == {"step": 1}
        assert told == folder.warnings
        assert len(told) == 1
        assert "checkpoint 1 is used" in told[0]


def test_checkpoints_copied_from_another_run_are_refused(tmp_path):
    with start(tmp_path) as first:
        first.checkpoints("student").save({"w": torch.ones(1)}, {})
    with start(tmp_path, new=True) as second:
        shutil.copytree(first.root / "checkpoints" / "student", second.root / "checkpoints" / "student")
        text = refusal(CorruptError, second.checkpoints("student").load)
        assert "belongs to run '0001-seed0', not to '0002-seed0'" in text


# --- workers ----------------------------------------------------------------------------------

processes = multiprocessing.get_context("fork")


def own_and_wait(out: Path, told) -> None:
    """Own a run that has a worker, until it is killed."""
    folder = start(out)
    worker = processes.Process(target=work, args=(folder.root, Owner.me(), told))
    worker.start()
    told.send(worker.pid)
    while True:
        time.sleep(1)


def work(root: Path, owner: Owner, told) -> None:
    """Write something each time that a file ``go`` appears, and tell what came of it."""
    os.setsid()
    folder = RunFolder.view(root, owner=owner)
    checkpoints = folder.checkpoints("teacher")
    actions = {
        "save": lambda: checkpoints.save({"w": torch.ones(2)}, {"step": 1}),
        "dump": lambda: folder.write_json("nan_dump.json", {}),
        "drop": lambda: folder.drop_checkpoints("teacher"),
        "plan": lambda: folder.folder_of("planning"),
    }
    for name in ("save", "save", *actions):
        while not (root.parent / "go").exists():
            time.sleep(0.005)
        (root.parent / "go").unlink()
        try:
            actions[name]()
            told.send("done")
        except Exception as error:
            told.send(f"{type(error).__name__}: {error}")


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_a_worker_that_outlives_its_owner_cannot_write_into_a_run_that_another_owns(tmp_path):
    told, sender = processes.Pipe()
    owning = processes.Process(target=own_and_wait, args=(tmp_path, sender))
    owning.start()
    worker = told.recv()

    def answer() -> str:
        (tmp_path / "digits-kd" / "go").touch()
        assert told.poll(30)
        return told.recv()

    try:
        assert answer() == "done", "while its owner lives"
        owning.kill()
        owning.join()
        assert answer() == "done", "its owner is dead and nobody has taken the run over: what it trained is not lost"
        with start(tmp_path) as folder:
            assert folder.resumed
            assert folder.checkpoints("teacher").load()[1] == {"step": 1}
            folder.drop_checkpoints("teacher")
            folder.write_json("results.json", {})
            refused = [answer()]
            folder.finish()
        before = bytes_below(folder.root)
        refused += [answer() for _ in range(3)]
        assert bytes_below(folder.root) == before
    finally:
        os.kill(worker, signal.SIGKILL)
    me = f"process {os.getpid()} on host '{os.uname().nodename}' since "
    assert refused[0].startswith(f"LockedError: {folder.root}: in use by {me}")
    ending = f"; this worker of process {owning.pid} must not write into it, and stops"
    assert refused[0].endswith(ending)
    assert refused[1:] == [f"LockedError: {folder.root}: given up by its owner{ending}"] * 3
    assert RunFolder.view(folder.root).verify() == 2


def test_a_new_owner_waits_for_a_worker_in_the_middle_of_a_write(tmp_path, monkeypatch):
    root = begun(tmp_path)
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)
    with lock.write_lock(root, shared=True), lock.write_lock(root, shared=True):
        assert refusal(LockedError, lambda: start(tmp_path)) == (
            f"{root}: another process, perhaps a worker of its last owner, stopped in the middle of a write; "
            "wait for that process or end it, or start another run with --new"
        )
    monkeypatch.setattr(lock, "PATIENCE_S", 30)
    writing = lock.write_lock(root, shared=True)
    writing.__enter__()
    threading.Timer(0.3, writing.__exit__, (None, None, None)).start()
    with start(tmp_path) as folder:
        assert folder.resumed


def test_other_exports_may_be_asked_for_when_a_run_is_resumed(tmp_path):
    def asking(points: float, epochs: int = 3) -> dict:
        export = [{"format": "onnx", "options": {"tolerance_points": points}}]
        fields = {"train": {"epochs": epochs}, "export": export}
        return {"recipe_fields": fields, "recipe_hash": f"hash of {fields}", "recipe_text": f"points: {points}\n"}

    root = begun(tmp_path, **asking(0.5))
    with start(tmp_path, **asking(5.0)) as folder:
        assert (folder.root, folder.outcome) == (root, "resumed")
        assert folder.path("recipe.yaml").read_text() == "points: 5.0\n"
    assert begun(tmp_path, **asking(5.0)) == root, "the record is of the recipe that was resumed"
    text = refusal(ResumeError, lambda: start(tmp_path, **asking(1.0, epochs=4)))
    assert "\n  train.epochs 3 -> 4\nundo" in text
