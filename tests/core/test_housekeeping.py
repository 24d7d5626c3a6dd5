"""Runs listed, removed and collected, whatever is damaged, full or in use."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_run_folder import begun, ended, start

from kdzoo.errors import CorruptError, LockedError, OutputError, ReportError, UnknownName
from kdzoo.report.run_table import run_rows, run_table
from kdzoo.storage import collection, run_list
from kdzoo.storage.atomic import write_text
from kdzoo.storage.collection import collect, needed_results
from kdzoo.storage.lock import Lock
from kdzoo.storage.owner import TEMPORARY, Owner, temporary_in
from kdzoo.storage.removal import remove_runs
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.run_list import list_runs
from kdzoo.storage.store import Store
from kdzoo.storage.uses import Uses

RESULTS = {"student": {"top1_percent": 90.0}, "control": {"top1_percent": 88.5}, "stages": [{"key": "0123456789ab"}]}
DAY = 86400.0


def finished(out: Path, **options) -> Path:
    with start(out, **options) as folder:
        folder.write_json("results.json", RESULTS)
        folder.finish()
        return folder.root


def silent(text: str) -> None:
    raise AssertionError(text)


def dead_owner() -> Owner:
    """A process of this machine that has ended."""
    return replace(Owner.me(), pid=2**22 + 1, started=1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- listing ----------------------------------------------------------------------------------


def test_each_run_is_listed_with_its_state_and_how_far_it_is(tmp_path):
    done, stopped = finished(tmp_path, seed=1), begun(tmp_path, seed=2)
    with RunFolder.start(tmp_path, **arguments(seed=3)) as live:
        live.log.append({"stage": "teacher", "epoch": 4, "step": 10, "split": "train"})
        assert states(tmp_path) == {done: "finished", stopped: "stopped", live.root: "running"}
        row = run_rows(tmp_path)[2]
        assert (row["stage"], row["epoch"], row["gain_points"]) == ("teacher", 5, None)
        assert row["owner"].startswith(f"process {os.getpid()} on host ")
        live.checkpoints("student").save({}, {})
        assert (run_rows(tmp_path)[2]["stage"], run_rows(tmp_path)[2]["epoch"]) == ("student", None)
    assert states(tmp_path)[live.root] == "stopped"
    first = run_rows(tmp_path)[0]
    assert (first["run"], first["recipe"], first["seed"], first["problem"]) == (str(done), "digits-kd", 1, "")
    assert (first["top1_percent"], first["control_top1_percent"], first["gain_points"]) == (90.0, 88.5, 1.5)
    assert first["size_bytes"] == sum(path.stat().st_size for path in done.rglob("*") if path.is_file())
    assert 0 <= first["age_seconds"] < 60


def arguments(seed: int) -> dict:
    return {"name": "digits-kd", "seed": seed, "recipe_text": "", "recipe_hash": "", "recipe_fields": {}}


def states(out: Path) -> dict[Path, str]:
    return {run.folder: run.state for run in list_runs(out)}


def test_a_run_of_another_host_is_said_to_be_elsewhere(tmp_path):
    root = begun(tmp_path)
    owner = asdict(replace(Owner.me(), host="far", boot="another"))
    (root / "lock").write_text(json.dumps({"owner": owner, "since": "2026-11-21 10:00:00 UTC"}))
    assert states(tmp_path) == {root: "elsewhere"}
    said = run_table(run_rows(tmp_path), tmp_path)
    assert f"elsewhere: {root}: process {owner['pid']} on host 'far' since 2026-11-21 10:00:00 UTC" in said


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("run.json", None, "missing"),
        ("run.json", "{", "damaged: not JSON"),
        ("manifest.json", None, "missing"),
        ("results.json", None, "No such file"),
        ("results.json", '{"student": 3, "control": null}', "cannot be read"),
        ("results.json", "[" * 5000, "nested"),
    ],
)
def test_a_damaged_run_is_a_row_that_says_so(tmp_path, name, content, problem):
    good, bad = finished(tmp_path, seed=1), finished(tmp_path, seed=2)
    (bad / name).unlink() if content is None else (bad / name).write_text(content)
    rows = run_rows(tmp_path)
    assert [(row["run"], row["state"]) for row in rows] == [(str(good), "finished"), (str(bad), "damaged")]
    assert rows[1]["problem"].startswith(str(bad / name))
    assert problem in rows[1]["problem"]
    assert (rows[1]["recipe"], rows[1]["seed"]) == ("digits-kd", 2)
    assert f"damaged: {bad / name}: " in run_table(rows, tmp_path)


def test_what_is_no_run_is_not_listed_and_an_empty_folder_has_none(tmp_path):
    root = finished(tmp_path)
    (root.parent / "study").mkdir()
    (root.parent / "notes.txt").touch()
    Store(tmp_path / ".store").publish("stage", "a", lambda folder: None)
    assert states(tmp_path) == {root: "finished"}
    for empty in (tmp_path / "nowhere", root / "checkpoints"):
        assert run_table(run_rows(empty), empty) == f"no runs in {empty}"


def test_runs_are_chosen_by_the_names_of_their_recipes(tmp_path):
    for name in ("digits-kd", "digits-dkd", "cifar"):
        finished(tmp_path, name=name)
    assert [row["recipe"] for row in run_rows(tmp_path, ["digits-*"])] == ["digits-dkd", "digits-kd"]
    with pytest.raises(UnknownName) as caught:
        run_rows(tmp_path, ["cifr"])
    known = "did you mean 'cifar'? known: cifar, digits-dkd, digits-kd"
    assert str(caught.value) == f"{tmp_path}: no run of a recipe 'cifr'; {known}"


def test_a_run_that_goes_while_runs_are_listed_is_left_out(tmp_path, monkeypatch):
    stays, goes = finished(tmp_path, seed=1), finished(tmp_path, seed=2)
    room_of = run_list.room_of

    def removing(folder: Path):
        shutil.rmtree(goes, ignore_errors=True)
        return room_of(folder)

    monkeypatch.setattr(run_list, "room_of", removing)
    assert states(tmp_path) == {stays: "finished"}


def test_the_table_fits_the_terminal(tmp_path):
    finished(tmp_path, name="a-recipe-with-a-rather-long-name-of-forty-4")
    for width in (60, 80, 100):
        assert max(map(len, run_table(run_rows(tmp_path), tmp_path, width).splitlines())) <= width


def test_two_thousand_runs_are_listed_in_two_seconds(tmp_path):
    root = finished(tmp_path)
    for recipe in range(20):
        for number in range(100):
            copy = tmp_path / f"recipe-{recipe}" / f"{number:04d}-seed{number}"
            copy.mkdir(parents=True)
            for file in ("run.json", "manifest.json", "results.json"):
                os.link(root / file, copy / file)
    begin = time.process_time()
    assert run_table(run_rows(tmp_path), tmp_path).splitlines()[-1].startswith("2001 runs, ")
    assert time.process_time() - begin < 2


def test_runs_are_listed_without_torch(tmp_path):
    finished(tmp_path)
    command = "import sys; from kdzoo.cli import main; sys.argv = ['kdzoo', 'runs', '--out', sys.argv[1]]\n"
    command += "try: main()\nfinally: assert 'torch' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "+1.50" in ended.stdout


# --- removing ---------------------------------------------------------------------------------


def test_runs_are_removed_and_what_they_took_is_said(tmp_path):
    runs = [finished(tmp_path, seed=1), begun(tmp_path, seed=2)]
    (tmp_path / "digits-kd" / "0002-seed2" / "run.json").unlink()
    sizes = [sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) for root in runs]
    assert [gone.size_bytes for gone in remove_runs([*runs, runs[0]], silent, dry_run=True)] == sizes
    assert all(root.exists() for root in runs)
    assert [(gone.folder, gone.size_bytes) for gone in remove_runs(runs, silent)] == list(zip(runs, sizes, strict=True))
    assert names(tmp_path / "digits-kd") == set(), "nothing is left, not even half a folder"


def test_what_is_left_of_a_run_folder_is_removed(tmp_path):
    root = tmp_path / "digits-kd" / "0001-seed0"
    root.mkdir(parents=True)
    assert states(tmp_path) == {root: "damaged"}
    remove_runs([root], silent)
    assert states(tmp_path) == {}


def test_a_run_in_use_stays_and_so_do_those_named_with_it(tmp_path):
    other = finished(tmp_path, seed=1)
    with start(tmp_path, seed=2) as live:
        for dry_run in (False, True):
            with pytest.raises(LockedError) as caught:
                remove_runs([other, live.root], silent, dry_run)
            assert str(caught.value).startswith(f"{live.root}: in use by process {os.getpid()} on host ")
            assert str(caught.value).endswith("; wait for it to end")
    assert other.exists()
    assert live.root.exists()
    assert remove_runs([live.root], silent)


def test_a_run_that_a_dead_process_held_is_removed_on_a_full_disk(tmp_path, monkeypatch):
    root = begun(tmp_path)
    record = json.dumps({"owner": asdict(dead_owner()), "since": ""})
    (root / "lock").write_text(record)

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("pwrite", "write"):
        monkeypatch.setattr(os, call, full)
    remove_runs([root], silent, dry_run=True)
    assert (root / "lock").read_text() == record
    remove_runs([root], silent)
    assert not root.exists()


def test_what_is_no_run_folder_is_not_removed(tmp_path):
    root = finished(tmp_path)
    (root.parent / "0009-seed0").symlink_to(root)
    for path, problem in (
        (tmp_path / "nowhere", "no such run folder"),
        (root.parent, f"not a run folder; name the runs in it, such as {root}"),
        (tmp_path, f"not a run folder; name the runs in it, such as {root}"),
        (root / "checkpoints", "not a run folder"),
        (root / "run.json", "no such run folder"),
        (root.parent / "0009-seed0", "a link; name the run folder itself"),
    ):
        with pytest.raises(ReportError) as caught:
            remove_runs([root, path], silent)
        assert str(caught.value) == f"{path}: {problem}"
    assert root.exists()


def test_a_folder_that_cannot_be_changed_is_an_error_and_stays(tmp_path, monkeypatch):
    root = finished(tmp_path)

    def refused(*given):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OutputError) as caught:
        remove_runs([root], silent)
    assert str(caught.value).startswith(f"{root}: cannot be written: Read-only file system; it could not be removed")
    assert RunFolder.view(root).verify() == 2


# --- collecting -------------------------------------------------------------------------------


def stored(store: Store, *results: str) -> None:
    for result in results:
        kind, key = result.split("/")
        store.publish(kind, key, lambda folder: write_text(folder / "a.txt", "x" * 100))


def content(out: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in (out / ".store").glob("*/*")}


def removed(found: collection.Collected) -> dict[str, int]:
    return {kind: amount.count for kind, amount in found.removed.items()}


def test_what_no_run_needs_goes_and_the_rest_stays(tmp_path):
    done, stopped = finished(tmp_path, seed=1), begun(tmp_path, seed=2)
    stored(Store(tmp_path / ".store", Uses(done)), "stage/a", "test_logits/b")
    stored(Store(tmp_path / ".store", Uses(stopped)), "stage/c", "latency/d")
    teacher = finished(tmp_path / ".answers-0123", seed=3)
    stored(Store(tmp_path / ".store", Uses(teacher)), "stage/e")
    study = tmp_path / "which-loss" / "study"
    study.mkdir(parents=True)
    Store(tmp_path / ".store", Uses(study)).find("stage", "f")  # a task of the study will store it
    stored(Store(tmp_path / ".store"), "stage/f", "stage/g", "teacher_outputs/h")
    kept = {"stage/a", "test_logits/b", "stage/c", "latency/d", "stage/e", "stage/f"}
    everything = kept | {"stage/g", "teacher_outputs/h"}
    assert content(tmp_path) == everything
    would = collect(tmp_path, 0, dry_run=True)
    assert content(tmp_path) == everything
    found = collect(tmp_path, 0)
    assert content(tmp_path) == kept
    assert would == found
    assert removed(found) == {"stage": 1, "teacher_outputs": 1}
    assert (found.needed.count, found.recent.count, found.leftovers.count) == (6, 0, 0)
    assert found.removed["stage"].size_bytes > 100
    remove_runs([done, stopped], silent)
    assert removed(collect(tmp_path, 0)) == {"stage": 2, "test_logits": 1, "latency": 1}
    assert content(tmp_path) == {"stage/e", "stage/f"}


def test_what_was_used_lately_stays(tmp_path):
    store = Store(tmp_path / ".store")
    stored(store, "stage/old", "stage/new", "stage/found")
    for key in ("old", "found"):
        os.utime(tmp_path / ".store" / "stage" / key, (time.time() - 2 * DAY,) * 2)
    store.find("stage", "found")
    assert removed(collect(tmp_path, 3 * DAY)) == {}
    found = collect(tmp_path, DAY)
    assert (removed(found), found.recent.count) == ({"stage": 1}, 2)
    assert content(tmp_path) == {"stage/new", "stage/found"}


def test_a_result_that_is_found_while_others_are_collected_stays(tmp_path, monkeypatch):
    """The worst moment: after it was listed and nobody referred to it, and before it is removed."""
    stored(Store(tmp_path / ".store"), "stage/a", "stage/b")
    root = begun(tmp_path)
    room_of = collection.room_of

    def finding(folder: Path):
        if folder.name == "a":
            assert Store(tmp_path / ".store", Uses(root)).find("stage", "a") is not None
        return room_of(folder)

    monkeypatch.setattr(collection, "room_of", finding)
    assert removed(collect(tmp_path, 0)) == {"stage": 1}
    assert content(tmp_path) == {"stage/a"}


def test_a_run_without_a_record_of_what_it_uses_needs_the_stages_of_its_results(tmp_path):
    root = finished(tmp_path)
    (root / "uses").unlink()
    stored(Store(tmp_path / ".store"), "stage/0123456789abcdef", "stage/fedcba9876543210")
    collect(tmp_path, 0)
    assert content(tmp_path) == {"stage/0123456789abcdef"}


@pytest.mark.parametrize("damage", ["uses", "results", "old", "run"])
def test_nothing_is_removed_while_a_run_does_not_say_what_it_needs(tmp_path, damage):
    root = begun(tmp_path) if damage == "old" else finished(tmp_path)
    stored(Store(tmp_path / ".store"), "stage/a")
    if damage == "uses":
        (root / "uses").write_bytes(b"stage/a\0\n")
    else:
        (root / "uses").unlink()
        if damage == "results":
            (root / "results.json").write_text("{}")
        elif damage == "run":
            (root / "run.json").write_text("{}")
    with pytest.raises(CorruptError) as caught:
        collect(tmp_path, 0)
    assert str(root) in str(caught.value)
    assert "remove these runs with `kdzoo rm`" in str(caught.value)
    assert content(tmp_path) == {"stage/a"}
    remove_runs([root], silent)
    assert removed(collect(tmp_path, 0)) == {"stage": 1}


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path, monkeypatch):
    root = finished(tmp_path)
    stored(Store(tmp_path / ".store"), "stage/a")
    places = [tmp_path, root.parent, root / "checkpoints", tmp_path / ".store" / "stage"]
    live = [temporary_in(place) for place in places]
    dead = dead_owner()
    monkeypatch.setattr(Owner, "me", staticmethod(lambda: dead))
    left = [temporary_in(place) for place in places]
    monkeypatch.undo()
    for path in (*live, *left[1:]):
        write_text(path, "x" * 50)
    (left[0] / "inside").mkdir(parents=True)
    would = collect(tmp_path, DAY, dry_run=True)
    assert all(path.exists() for path in left)
    found = collect(tmp_path, DAY)
    assert would == found
    assert (found.leftovers.count, found.leftovers.size_bytes) == (4, 150)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in live)
    assert RunFolder.view(root).verify() == 2


def test_stages_that_a_study_began_stay_while_they_are_needed_or_trained(tmp_path):
    store = Store(tmp_path / ".store")
    places = {key: tmp_path / ".store" / "unfinished" / key for key in ("needed", "trained", "given_up", "finished")}
    for place in places.values():
        write_text_in(place / "checkpoints" / "tensors.safetensors")
        (place / "lock").touch()
    study = tmp_path / "which-loss" / "study"
    study.mkdir(parents=True)
    for key in ("needed", "finished"):
        Store(store.root, Uses(study)).find("stage", key)
    stored(store, "stage/finished")
    lock = Lock(places["trained"] / "lock", silent)
    lock.acquire()
    assert removed(collect(tmp_path, DAY)) == {}, "checkpoints were saved lately"
    assert removed(collect(tmp_path, 0)) == {"unfinished": 2}
    assert content(tmp_path) == {"unfinished/needed", "unfinished/trained", "stage/finished"}
    lock.release()
    assert removed(collect(tmp_path, 0)) == {"unfinished": 1}


def write_text_in(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("x")


def test_a_store_that_cannot_be_changed_is_an_error(tmp_path, monkeypatch):
    stored(Store(tmp_path / ".store"), "stage/a")

    def refused(*given):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OutputError) as caught:
        collect(tmp_path, 0)
    assert str(caught.value).startswith(f"{tmp_path / '.store' / 'stage' / 'a'}: cannot be written: Permission denied")
    assert content(tmp_path) == {"stage/a"}


def test_two_that_collect_at_a_time_do_not_disturb_each_other(tmp_path, monkeypatch):
    stored(Store(tmp_path / ".store"), "stage/a", "stage/b")
    room_of, again = collection.room_of, []

    def collecting(folder: Path):
        if not again:
            again.append(None)
            assert removed(collect(tmp_path, 0)) == {"stage": 2}
        return room_of(folder)

    monkeypatch.setattr(collection, "room_of", collecting)
    assert removed(collect(tmp_path, 0)) == {}
    assert content(tmp_path) == set()


def use_results(out: Path, seed: int, end: float, forget: bool) -> int:
    """Runs that find or store results, look at them again later, and go; how often one was there when it was needed."""
    draw, looked = random.Random(seed), 0
    while time.monotonic() < end:
        with start(out, seed=seed) as folder:
            store = Store(out / ".store", None if forget else folder.uses)
            used: list[str] = []
            for _ in range(6):
                key = f"key{draw.randrange(8)}"
                if store.find("stage", key) is None:
                    stored(store, f"stage/{key}")
                used.append(key)
                time.sleep(draw.random() / 200)
                for each in used:
                    assert (out / ".store" / "stage" / each / "a.txt").exists(), f"{each} is gone, and still needed"
                looked += len(used)
            folder.abandon()
    return looked


def said(told: Any, action: Callable[..., int], *given: Any) -> None:
    try:
        told.put(action(*given))
    except Exception as error:
        told.put(repr(error))


def collect_on(out: Path) -> None:
    with open(out / "removals", "ab", buffering=0) as file:
        while True:
            found = collect(out, 0).removed.get("stage", collection.Amount())
            file.write(b"x" * found.count)


def used_meanwhile(out: Path, seconds: float, forget: bool = False) -> tuple[list[Any], int, int]:
    """What three users of results say while others collect; how many results went, how many collectors were killed."""
    fork = multiprocessing.get_context("fork")
    told, end = fork.SimpleQueue(), time.monotonic() + seconds
    users = [fork.Process(target=said, args=(told, use_results, out, seed, end, forget)) for seed in range(3)]
    collectors: list[Any] = []
    ended: list[int] = []
    for user in users:
        user.start()
    while any(user.is_alive() for user in users):
        while len(collectors) < 2:
            collectors.append(fork.Process(target=collect_on, args=(out,)))
            collectors[-1].start()
        time.sleep(0.05 + len(ended) % 7 / 100)
        ended.append(killed(collectors.pop(0)))
    ended += [killed(each) for each in collectors]
    assert set(ended) == {-signal.SIGKILL}, "a collector ended by itself"
    return [told.get() for _ in users], (out / "removals").stat().st_size, len(ended)


def killed(process: Any) -> int:
    process.kill()
    process.join()
    return process.exitcode


def test_nothing_that_a_run_needs_goes_while_many_runs_begin_and_end_and_collectors_are_killed(tmp_path):
    looked, removals, kills = used_meanwhile(tmp_path, 3)
    assert all(isinstance(each, int) for each in looked), looked
    assert min(looked) >= 100
    assert removals >= 20
    assert kills >= 5
    collect(tmp_path, 0)
    left = [path for path in tmp_path.rglob("*") if TEMPORARY.fullmatch(path.name)]
    assert left == [], "what killed collectors left is collected"


def test_without_a_record_of_uses_results_go_that_runs_need(tmp_path):
    """The negative control of the test above."""
    looked, _, _ = used_meanwhile(tmp_path, 1, forget=True)
    assert any("is gone" in str(each) or "AssertionError" in str(each) for each in looked), looked


def test_where_nothing_is_there_is_nothing_to_collect(tmp_path):
    assert collect(tmp_path / "nowhere", 0) == collection.Collected()
    assert needed_results(tmp_path) == set()
    assert removed(collect(ended(tmp_path).parent.parent, 0)) == {}
