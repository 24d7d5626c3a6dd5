"""Things that go wrong, or are slowed down, in a process under test: each is called before the command starts."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import resource
import signal
import sys
import time
import types
from typing import Any

import numpy as np
import torch

from kdzoo.data.loader import Loader
from kdzoo.run import builder as building
from kdzoo.run import delivery, runner
from kdzoo.storage import uses
from kdzoo.training import engine, sharding, teacher


def slow_steps() -> None:
    """Every optimizer step takes 20 ms longer, so that a signal can meet one."""
    whole = engine.Engine._train_step

    def slow(self: Any, *arguments: Any) -> None:
        time.sleep(0.02)
        whole(self, *arguments)

    engine.Engine._train_step = slow


def die_before_a_change() -> None:
    """From now on, die before the KDZOO_TEST_CALL-th call that changes the disk."""
    left = int(os.environ["KDZOO_TEST_CALL"])

    def counted(call: Any) -> Any:
        def wrapped(*arguments: Any, **settings: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **settings)

        return wrapped

    for name in ("fsync", "replace", "rename", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


def die_late() -> None:
    """The same, counted from the end of training."""
    measure = delivery.Delivery.measure

    def counting(self: Any, *arguments: Any) -> Any:
        die_before_a_change()
        return measure(self, *arguments)

    delivery.Delivery.measure = counting


def forget_the_optimizer() -> None:
    """A resumed stage starts with fresh momenta."""
    restore = engine.Engine.restore

    def forgetful(self: Any, tensors: Any, state: Any) -> None:
        restore(self, {n: t * 0 if n.startswith("optimizer/") else t for n, t in tensors.items()}, state)

    engine.Engine.restore = forgetful


def order_by_the_clock() -> None:
    """Samples come in another order each time the program is started."""
    order, started = Loader.order, time.time_ns()
    Loader.order = lambda self, epoch: order(self, epoch + started % 1_000_003)


def slow_delivery() -> None:
    """Say that the evaluation has begun, and wait a second before it ends."""
    whole = delivery.Delivery._latency

    def slow(self: Any, *arguments: Any) -> None:
        print("measuring", file=sys.stderr)
        time.sleep(1)
        whole(self, *arguments)

    delivery.Delivery._latency = slow


def slow_data() -> None:
    """Opening the data set takes a second."""
    whole = building.open_data

    def slow(*arguments: Any) -> Any:
        print("opening", file=sys.stderr)
        time.sleep(1)
        return whole(*arguments)

    building.open_data = slow


def endless_step() -> None:
    """The fortieth optimizer step takes a minute, and says so."""
    whole = engine.Engine._train_step

    def slow(self: Any, *arguments: Any) -> None:
        if self.step == 40:
            print("endless", file=sys.stderr)
            time.sleep(60)
        whole(self, *arguments)

    engine.Engine._train_step = slow


# --- disks --------------------------------------------------------------------------------------


def small_files() -> None:
    """No file can grow past 16 KiB, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, resource.RLIM_INFINITY))


def full_disk() -> None:
    """Run the command on a disk of 100 KiB, then, as if somebody had made room, once more on the same disk.

    Where the system lets nobody mount a disk, files cannot grow in the first go instead.
    """
    mounted = _own_mounts() and _mount("./out", "size=100k")
    pid = os.fork()
    if pid == 0:
        if not mounted:
            small_files()
        return
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(f"first: exit code {code}, {'a small disk' if mounted else 'small files'}", file=sys.stderr)
    if mounted:
        assert _mount("./out", "size=64m", REMOUNT)


def read_only_disk() -> None:
    """The folder ./out lies on a disk that cannot be written."""
    assert _own_mounts(), "no mounts"
    assert _mount("./out", "size=1m")
    assert _mount("./out", "size=1m", REMOUNT | READ_ONLY)


READ_ONLY, REMOUNT = 1, 32


def _own_mounts() -> bool:
    """Give this process mounts of its own; False where the system does not allow it."""
    system = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    new_user = 0 if user == 0 else 0x10000000
    if system.unshare(0x00020000 | new_user):
        return False
    if new_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    return system.mount(b"none", b"/", None, 0x44000, None) == 0  # nothing done here is seen outside


def _mount(place: str, options: str, flags: int = 0) -> bool:
    system = ctypes.CDLL(None, use_errno=True)
    os.makedirs(place, exist_ok=True)
    return system.mount(b"small", os.fsencode(place), b"tmpfs", flags, options.encode()) == 0


def no_models() -> None:
    """Building a network is an error."""

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a network was built")

    building.build_network = refuse


def no_steps() -> None:
    """Training is an error."""

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a step was taken")

    engine.Engine._train_step = refuse


# --- what an algorithm can reach ------------------------------------------------------------------


def shut_training_data() -> None:
    """Asking for a training batch is an error once the teacher is ready."""
    train = runner.Runner.train
    shut = []

    def watched(self: Any, stage: Any) -> Any:
        shut.append(stage.name != "teacher")
        try:
            return train(self, stage)
        finally:
            shut.pop()

    def guarded(name: str) -> None:
        whole = getattr(Loader, name)

        def batches(self: Any, *arguments: Any, **settings: Any) -> Any:
            if shut and shut[-1]:
                raise AssertionError(f"{name} was called after the teacher was ready")
            return whole(self, *arguments, **settings)

        setattr(Loader, name, batches)

    runner.Runner.train = watched
    for name in ("train_batches", "canonical_batches"):
        guarded(name)


def look_for_images() -> None:
    """In the student's first step, look for training images in all that the algorithm can reach from its arguments."""
    train, context = runner.Runner.train, engine.Engine.context
    data: list[Any] = []

    def watched(self: Any, stage: Any) -> Any:
        data.append(self.data)
        return train(self, stage)

    def looking(self: Any, *arguments: Any, **settings: Any) -> Any:
        ctx = context(self, *arguments, **settings)
        if self.job.name == "student" and not os.path.exists("reached.json"):
            with open("reached.json", "w") as file:
                json.dump(look(data[-1], ctx, self.job.algorithm), file)
        return ctx

    runner.Runner.train = watched
    engine.Engine.context = looking


def look(data: Any, *starts: Any) -> dict[str, int]:
    """Count the objects and tensors below ``starts``, and the training images among the tensors' rows."""
    part = data.parts["train"]
    known = {np.ascontiguousarray(image).tobytes() for image in part.split.images[part.rows]}
    pixels = part.split.images[0].size
    counts = {"objects": 0, "tensors": 0, "images": 0}
    seen: set[int] = set()
    kept = list(starts)
    stack = list(starts)
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType, types.CodeType)):
            continue
        seen.add(id(thing))
        kept.append(thing)  # so that no number is given twice
        counts["objects"] += 1
        if isinstance(thing, torch.Tensor):
            counts["tensors"] += 1
            counts["images"] += images_in(thing.detach().cpu().numpy(), pixels, known)
        elif isinstance(thing, np.ndarray) and thing.dtype != object:
            counts["tensors"] += 1
            counts["images"] += images_in(thing, pixels, known)
        everywhere = getattr(thing, "__globals__", None)  # of a function: what its whole module sees
        stack += [below for below in gc.get_referents(thing) if below is not everywhere]
    return counts


def images_in(array: np.ndarray, pixels: int, known: set[bytes]) -> int:
    """How many rows of an array, as bytes or as shares of 255, are one of the known images."""
    if array.dtype.kind not in "uif" or array.size == 0 or array.size % pixels:
        return 0
    rows = array.reshape(-1, pixels)
    if array.dtype.kind == "f":
        rows = np.where(np.abs(rows) <= 1, rows * 255, 0).round()
    return sum(row.astype(np.uint8).tobytes() in known for row in rows if row.min() >= 0 and row.max() <= 255)


# --- teacher outputs ------------------------------------------------------------------------------


def silent_teacher() -> None:
    """Asking the teacher itself, and not the store of its outputs, is an error."""

    def refuse(self: Any, inputs: Any) -> None:
        raise AssertionError("the teacher was asked")

    teacher.Teacher.live = refuse


# --- several processes ----------------------------------------------------------------------------


def note_state() -> None:
    """Write a hash of everything that a process trained into a file of its own when a stage ends."""
    run = engine.Engine.run

    def noting(self: Any, *arguments: Any) -> bool:
        finished = run(self, *arguments)
        tensors, _ = self.state()
        hashes = {name: hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest() for name, value in tensors.items()}
        with open(f"state-{self.job.name}-{self.job.ranks.rank}.json", "w") as file:
            json.dump(hashes, file)
        return finished

    engine.Engine.run = noting


def small_blocks() -> None:
    """Every block of a network is sharded by itself."""
    sharding.BLOCK_PARAMETERS = 0


def slow_steps_in_small_blocks() -> None:
    """The same, and steps are slow."""
    small_blocks()
    slow_steps()


def one_gpu() -> None:
    """The machine looks as if it had one GPU."""
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1


def forget_uses() -> None:
    """The run does not record which stored results it uses."""
    uses.Uses.add = lambda self, kind, key: None  # type: ignore[method-assign]
