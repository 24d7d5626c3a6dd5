"""Real processes that are killed, full disks and read-only ones; each with a control that must fail."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from kdzoo.errors import CorruptError, LockedError, OutputError
from kdzoo.storage import atomic, checkpoints, owner, sealed
from kdzoo.storage.checkpoints import Checkpoints
from kdzoo.storage.lock import _held
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store

# A server that has imported torch once and forks: a process in milliseconds instead of seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "torch", "safetensors.torch", "kdzoo.storage.run_folder"])

KILLED = -signal.SIGKILL


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((60_000,), float(step)), "b": torch.tensor(step)}


def loaded(folder: Path) -> int | None:
    """The step of the newest checkpoint, all of it; a checkpoint that had to be passed over fails the test."""
    result = Checkpoints(folder, warn=pytest.fail).load()
    if result is None:
        return None
    tensors, state = result
    expected = weights(state["step"])
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return state["step"]


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if owner.TEMPORARY.fullmatch(path.name)]


@contextmanager
def running(target, *arguments):
    """A process with a pipe to it; it is killed at the end if it still runs."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def heard(pipe):
    assert pipe.poll(60), "the process said nothing for a minute"
    return pipe.recv()


# --- killed at random ---------------------------------------------------------------------------


def save_for_ever(pipe, folder: Path) -> None:
    checkpoints = Checkpoints(folder, warn=pytest.fail)
    step = 0 if (last := checkpoints.load()) is None else last[1]["step"]
    while True:
        step += 1
        checkpoints.save(weights(step), {"step": step})
        pipe.send(step)


def test_a_writer_killed_again_and_again_never_loses_a_checkpoint(tmp_path):
    moments = random.Random(7)
    kills = half_written = 0
    for _ in range(20):
        with running(save_for_ever, tmp_path) as (process, pipe):
            acknowledged = heard(pipe)
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
            process.join()
            while pipe.poll():
                try:
                    acknowledged = pipe.recv()
                except EOFError:
                    break
        kills += process.exitcode == KILLED
        half_written += bool(leftovers(tmp_path))
        assert loaded(tmp_path) in (acknowledged, acknowledged + 1)
        assert leftovers(tmp_path) == [], "swept when the folder is opened again"
        assert 1 <= len([path for path in tmp_path.iterdir() if path.is_dir()]) <= 3
    assert kills == 20
    assert half_written >= 3, "too few kills landed in the middle of a save"
    assert loaded(tmp_path) >= 20


def write_plainly(pipe, path: Path) -> None:
    data = atomic.tensor_bytes(weights(2), {})
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        pipe.send("half")
        time.sleep(60)


def test_the_control_a_plain_write_loses_the_last_good_file(tmp_path):
    path = tmp_path / "w.safetensors"
    sha256 = atomic.write_tensors(path, weights(1))
    with running(write_plainly, path) as (process, pipe):
        assert heard(pipe) == "half"
        process.kill()
        process.join()
    assert process.exitcode == KILLED
    with pytest.raises(CorruptError):
        sealed.read_tensors(path, sha256)


# --- killed at every step -----------------------------------------------------------------------

CALLS = ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "ftruncate", "pwrite")


def killed_at(pipe, point: int, action: Callable[[], None]) -> None:
    """Run an action and die before the ``point``-th call that changes the disk; what was not synced yet is torn."""
    count = 0

    def dying(call):
        def wrapped(*arguments, **options):
            nonlocal count
            count += 1
            if count == point:
                if call.__name__ == "fsync" and fcntl.fcntl(arguments[0], fcntl.F_GETFL) & os.O_ACCMODE:
                    truncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    truncate = os.ftruncate
    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    action()
    pipe.send(count)


@pytest.fixture
def in_memory(tmp_path):
    """A folder where syncing costs nothing, if there is one: these tests sync thousands of times."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def every_crash(
    begin: Callable[[Path], None], action: Callable[[Path], None], check: Callable[[Path], None], out: Path
):
    """Kill ``action`` at each of its steps, each time from where ``begin`` leaves off; return how many kills landed."""
    begin(out / "begin")
    for point in range(1, 200):
        folder = out / str(point)
        shutil.copytree(out / "begin", folder)
        with running(killed_at, point, functools.partial(action, folder)) as (process, _):
            process.join(60)
        assert process.exitcode in (0, KILLED)
        check(folder)
        if process.exitcode == 0:
            return point - 1
        shutil.rmtree(folder)
    raise AssertionError("the action never came to an end")


def two_checkpoints(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    folder.mkdir(parents=True)
    for step in (1, 2):
        checkpoints.save(weights(step), {"step": step})


def third_checkpoint(folder: Path) -> None:
    Checkpoints(folder).save(weights(3), {"step": 3})


def is_second_or_third(folder: Path) -> None:
    step = loaded(folder)
    assert step in (2, 3)
    assert leftovers(folder) == []
    Checkpoints(folder).save(weights(step + 1), {"step": step + 1})
    assert loaded(folder) == step + 1
    assert len(list(folder.iterdir())) == 3, "two checkpoints and the note of the newest"


def test_a_save_killed_at_any_step_leaves_the_old_or_the_new_checkpoint(in_memory):
    assert every_crash(two_checkpoints, third_checkpoint, is_second_or_third, in_memory) >= 15


def save_in_place(folder: Path) -> None:
    """The control: the same files, written where they belong."""
    with open(folder / "00000002" / "tensors.safetensors", "wb") as file:
        file.write(atomic.tensor_bytes(weights(3), {}))
        file.flush()
        os.fsync(file.fileno())


def test_the_control_a_save_in_place_is_found_out(in_memory):
    with pytest.raises(pytest.fail.Exception, match="damaged"):
        every_crash(two_checkpoints, save_in_place, is_second_or_third, in_memory)


def old_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    atomic.write_json(folder / "results.json", "old")


def new_file(folder: Path) -> None:
    atomic.write_json(folder / "results.json", "new")


def is_old_or_new(folder: Path) -> None:
    assert json.loads((folder / "results.json").read_text()) in ("old", "new")
    owner.sweep(folder)
    assert len(list(folder.iterdir())) == 1


def test_a_write_killed_at_any_step_leaves_the_old_or_the_new_file(in_memory):
    assert every_crash(old_file, new_file, is_old_or_new, in_memory) >= 3


def publish(folder: Path) -> None:
    def write(temporary: Path) -> None:
        atomic.write_tensors(temporary / "w.safetensors", weights(1))
        (temporary / "more").mkdir()
        atomic.write_json(temporary / "more" / "result.json", {})

    Store(folder).publish("stage", "key", write)


def is_none_or_whole(folder: Path) -> None:
    place = Store(folder).find("stage", "key")
    if place is not None:
        assert torch.equal(sealed.read_tensors(place / "w.safetensors")["b"], torch.tensor(1))
    publish(folder)
    assert leftovers(folder) == []
    assert [path.name for path in (folder / "stage").iterdir()] == ["key"]


def test_a_publisher_killed_at_any_step_leaves_nothing_or_the_whole(in_memory):
    assert every_crash(Path.mkdir, publish, is_none_or_whole, in_memory) >= 12


def start(out: Path, **options) -> RunFolder:
    fields = {"recipe_text": "a: 1\n", "recipe_hash": "hash", "recipe_fields": {}}
    return RunFolder.start(out, name="kd", seed=0, warn=pytest.fail, **fields | options)


def whole_run(out: Path) -> None:
    with start(out) as folder:
        checkpoints = folder.checkpoints("student")
        step = 0 if (last := checkpoints.load()) is None else last[1]["step"]
        checkpoints.save(weights(step + 1), {"step": step + 1})
        folder.log.truncate(0)
        folder.log.append({"kd": 1.0})
        folder.write_json("results.json", {"done": True})
        folder.drop_checkpoints("student")
        folder.finish()


def can_be_finished(out: Path) -> None:
    finished = [RunFolder.view(root) for root in (out / "kd").glob("0*")]
    assert len(finished) <= 1
    if not finished or not finished[0].finished:
        whole_run(out)
        finished = [RunFolder.view(root) for root in (out / "kd").glob("0*")]
    assert [folder.run_id for folder in finished] == ["0001-seed0"], "a killed run is resumed, not begun again"
    assert finished[0].verify() == 3
    assert finished[0].log.rows() == [{"kd": 1.0}]
    assert leftovers(out) == []


def test_a_run_killed_at_any_step_can_be_resumed_and_finished(in_memory):
    assert every_crash(Path.mkdir, whole_run, can_be_finished, in_memory) >= 50


# --- no room, no right --------------------------------------------------------------------------


def in_a_small_file_limit(pipe, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    checkpoints = Checkpoints(folder)
    checkpoints.save(weights(1), {"step": 1})
    try:
        checkpoints.save({"w": torch.zeros(100_000)}, {"step": 2})
    except OutputError as error:
        pipe.send(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    pipe.send((loaded(folder), len(leftovers(folder))))
    checkpoints.save(weights(2), {"step": 2})


def test_a_file_that_grows_too_large_keeps_the_last_good_one(tmp_path):
    with running(in_a_small_file_limit, tmp_path) as (process, pipe):
        text = heard(pipe)
        assert text.startswith(f"{tmp_path}/00000002: cannot be written: File too large (0.4 MiB needed, ")
        assert text.endswith(" MiB free); the checkpoint before it is unchanged; make room, or choose another folder")
        assert heard(pipe) == (1, 0)
        process.join()
    assert process.exitcode == 0
    assert loaded(tmp_path) == 2


def own_mounts() -> bool:
    """Give this process mounts of its own; False where the system does not allow it."""
    system = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    new_user = 0x10000000 if user else 0
    if system.unshare(0x00020000 | new_user):
        return False
    if new_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return mount(b"none", "/", None, 0x44000, None)  # nothing done here is seen outside


def mount(source: bytes, place: str | Path, kind: bytes | None, flags: int, options: bytes | None) -> bool:
    return ctypes.CDLL(None, use_errno=True).mount(source, os.fsencode(place), kind, flags, options) == 0


REMOUNT, READ_ONLY = 0x20, 0x1


def on_a_small_disk(pipe, disk: Path) -> None:
    if not (own_mounts() and mount(b"small", disk, b"tmpfs", 0, b"size=1m")):
        pipe.send("no mounts")
        return
    pipe.send("mounted")
    folder = disk / "student"
    two_checkpoints(folder)
    third = Checkpoints(folder).save
    pipe.send(error_of(lambda: third({"w": torch.zeros(200_000)}, {"step": 3})))  # more than there is room for
    atomic.check_room = checkpoints.check_room = lambda folder, size: None
    pipe.send(error_of(lambda: third({"w": torch.zeros(200_000)}, {"step": 3})))  # found out half way
    pipe.send((loaded(folder), len(leftovers(disk))))
    mount(b"small", disk, b"tmpfs", REMOUNT, b"size=4m")
    third(weights(3), {"step": 3})
    pipe.send((loaded(folder), len(leftovers(disk))))
    mount(b"small", disk, b"tmpfs", REMOUNT | READ_ONLY, b"size=4m")
    pipe.send(error_of(lambda: third(weights(4), {"step": 4})))
    pipe.send(error_of(lambda: atomic.probe_writable(disk / "runs")))
    pipe.send((loaded(folder), len(leftovers(disk))))


def error_of(action) -> str:
    try:
        action()
    except OutputError as error:
        return str(error)
    return "no error"


def test_a_full_disk_and_a_read_only_one_keep_the_last_good_checkpoint(tmp_path):
    """On a real small disk where the system lets us mount one, else on the disk that is always full."""
    with running(on_a_small_disk, tmp_path) as (_, pipe):
        if heard(pipe) == "no mounts":
            with pytest.raises(OutputError, match="No space left on device"):
                on_the_full_device()
            return
        full = (
            f"{tmp_path}/student/00000003: cannot be written: No space left on device (0.8 MiB needed, 0.5 MiB free); "
        )
        full += "the checkpoint before it is unchanged; make room, or choose another folder"
        early = full.replace("/00000003", "").replace("the checkpoint before it", "what was there before")
        assert [heard(pipe), heard(pipe)] == [early, full]
        assert heard(pipe) == (2, 0)
        assert heard(pipe) == (3, 0)
        read_only = "cannot be written: Read-only file system; "
        assert heard(pipe).startswith(f"{tmp_path}/student/00000004: {read_only}the checkpoint before it is unchanged")
        assert heard(pipe).startswith(f"{tmp_path}/runs: {read_only}")
        assert heard(pipe) == (3, 0)


def on_the_full_device() -> None:
    with atomic.writing(Path("/dev/full"), 1), io.FileIO("/dev/full", "w") as file:
        file.write(b"x")


def test_the_device_that_is_always_full_is_told():
    with pytest.raises(
        OutputError, match=r"^/dev/full: cannot be written: No space left on device \(0\.1 MiB needed, "
    ):
        on_the_full_device()


# --- one owner ----------------------------------------------------------------------------------


def own(pipe, out: Path, workers: str) -> None:
    folder = start(out)
    if workers == "that keep the lock":
        _held.clear()
    worker = os.fork() if workers else 0
    if workers and worker == 0:
        time.sleep(60)
        os._exit(0)
    pipe.send((folder.run_id, worker))
    time.sleep(60)


def test_a_second_run_is_told_the_owner_and_takes_over_when_it_is_dead(tmp_path):
    taken_over = 0
    for _ in range(3):
        with running(own, tmp_path, "") as (process, pipe):
            assert heard(pipe)[0] == "0001-seed0"
            with pytest.raises(LockedError) as error:
                start(tmp_path)
            assert str(error.value).startswith(
                f"{tmp_path}/kd/0001-seed0: in use by process {process.pid} on host '{os.uname().nodename}' since "
            )
            assert error.value.exit_code == 5
            process.kill()
            process.join()
        with start(tmp_path) as folder:
            taken_over += folder.resumed
    assert taken_over == 3


def test_workers_that_outlive_a_killed_run_do_not_keep_its_lock(tmp_path):
    with running(own, tmp_path, "that live on") as (process, pipe):
        _, worker = heard(pipe)
        process.kill()
        process.join()
        os.kill(worker, 0)  # it does live on
        with start(tmp_path) as folder:
            assert folder.resumed
        os.kill(worker, signal.SIGKILL)


def test_the_control_a_worker_with_the_lock_would_keep_it(tmp_path):
    with running(own, tmp_path, "that keep the lock") as (process, pipe):
        _, worker = heard(pipe)
        process.kill()
        process.join()
        with pytest.raises(LockedError):
            start(tmp_path)
        os.kill(worker, signal.SIGKILL)


def test_the_record_guards_where_locks_exclude_nobody(tmp_path, monkeypatch):
    with running(own, tmp_path, "") as (process, pipe):
        heard(pipe)
        monkeypatch.setattr("fcntl.flock", lambda descriptor, flags: None)
        with pytest.raises(LockedError, match=f"in use by process {process.pid} on host"):
            start(tmp_path)
        process.kill()
        process.join()
        with start(tmp_path) as folder:
            assert folder.resumed


# --- one key, many publishers -------------------------------------------------------------------

KEYS = 15


def publish_all(pipe, root: Path, stuck_at: int | None) -> None:
    """Publish every key; ``stuck_at`` stops half way in one of them and waits to be killed."""

    def write(folder: Path) -> None:
        atomic.write_tensors(folder / "w.safetensors", weights(key))
        if key == stuck_at:
            pipe.send("half way")
            time.sleep(60)
        atomic.write_json(folder / "result.json", {"key": key})

    for key in range(KEYS):
        Store(root).publish("stage", f"key{key}", write)
    pipe.send("done")


def test_many_publish_one_key_and_some_are_killed(tmp_path):
    stuck = [3, 7, 11]
    kills = seen = 0
    with ExitStack() as publishers:
        dying, living = (
            [publishers.enter_context(running(publish_all, tmp_path, key)) for key in keys]
            for keys in (stuck, [None, None, None])
        )
        for process, pipe in dying:
            while not pipe.poll(0.01):
                seen += read_all(tmp_path)
            assert pipe.recv() == "half way"
            seen += read_all(tmp_path)
            process.kill()
            process.join()
            kills += process.exitcode == KILLED
        for process, pipe in living:
            assert heard(pipe) == "done"
            process.join()
            assert process.exitcode == 0
    assert kills == 3
    assert seen > 0, "nothing was read while it was being written"
    assert read_all(tmp_path) == KEYS
    Store(tmp_path).publish("stage", "another", lambda folder: None)
    assert leftovers(tmp_path) == [], "what the killed ones left is swept by the next publisher"
    assert len(list((tmp_path / "stage").iterdir())) == KEYS + 1


def read_all(root: Path) -> int:
    """How many keys a reader sees; each is whole, or this raises."""
    found = 0
    for key in range(KEYS):
        place = Store(root).find("stage", f"key{key}")
        if place is not None:
            assert json.loads((place / "result.json").read_text()) == {"key": key}
            assert int(sealed.read_tensors(place / "w.safetensors")["b"]) == key
            found += 1
    return found


def publish_in_place(pipe, root: Path) -> None:
    place = root / "stage" / "key0"
    place.mkdir(parents=True)
    atomic.write_tensors(place / "w.safetensors", weights(0))
    pipe.send("half way")
    time.sleep(60)


def test_the_control_a_publisher_in_place_is_seen_half_way(tmp_path):
    with running(publish_in_place, tmp_path) as (process, pipe):
        assert heard(pipe) == "half way"
        process.kill()
        process.join()
    with pytest.raises(CorruptError, match=r"manifest\.json: missing"):
        read_all(tmp_path)
