from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdzoo
from kdzoo.errors import CorruptError, OutputError
from kdzoo.storage import atomic, owner, sealed, state_codec
from kdzoo.storage.checkpoints import Checkpoints
from kdzoo.storage.owner import Owner
from kdzoo.storage.store import Store
from kdzoo.storage.uses import Uses


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if owner.TEMPORARY.fullmatch(path.name)]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in type, shape and every bit, NaN included."""
    bits = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def error_of(action) -> str:
    """The text of the OutputError that an action ends with, empty when it ends well."""
    try:
        action()
    except OutputError as error:
        return str(error)
    return ""


class Events:
    """Counts the calls by which a file gets to the disk and lets the n-th of them fail."""

    CALLS = ("fsync", "replace", "rename", "mkdir")

    def __init__(self, monkeypatch, fail_at: int, number: int) -> None:
        self.count = 0
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), fail_at, number))

    def _wrap(self, call, fail_at, number):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == fail_at:
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        return wrapped


# --- writing ----------------------------------------------------------------------------------


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    assert atomic.write_json(path, {"x": 0.1}) == atomic.sha256_file(path)
    assert json.loads(path.read_text()) == {"x": 0.1}
    atomic.write_text(path, "später")
    assert path.read_text() == "später"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_at_every_step(tmp_path, monkeypatch):
    path = tmp_path / "a"
    failures = []
    for fail_at in range(1, 20):
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            events = Events(patch, fail_at, errno.EIO)
            text = error_of(lambda: atomic.write_bytes(path, b"new"))
        assert leftovers(tmp_path) == []
        if events.count < fail_at:
            break
        failures.append(text)
        # Only the folder's fsync comes after the file is in place.
        assert path.read_bytes() == (b"new" if "it may not survive a power cut" in text else b"old")
    assert (text, path.read_bytes()) == ("", b"new")
    unchanged = "what was there before is unchanged; choose a folder that can be written"
    assert failures == [
        f"{path}: cannot be written: Input/output error; {unchanged}",  # fsync of the file
        f"{path}: cannot be written: Input/output error; {unchanged}",  # replace
        f"{path}: cannot be written: Input/output error; written, but it may not survive a power cut; "
        "choose a folder that can be written",  # fsync of the folder
    ]


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path, monkeypatch):
    Events(monkeypatch, 3, errno.EINVAL)
    atomic.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_how_much_room_is_needed(tmp_path, monkeypatch, number):
    path = tmp_path / "a"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 7 * 2**20 + 2**19 // 10))
    Events(monkeypatch, 1, number)
    with pytest.raises(OutputError) as error:
        atomic.write_bytes(path, b"x" * (2**20 + 1))
    assert str(error.value) == (
        f"{path}: cannot be written: {os.strerror(number)} (1.1 MiB needed, 7.0 MiB free); "
        "what was there before is unchanged; make room, or choose another folder"
    )
    assert error.value.exit_code == 4


def test_room_is_looked_for_before_writing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))
    monkeypatch.setattr(atomic, "write_through", lambda *_: pytest.fail("wrote although there is no room"))
    with pytest.raises(OutputError, match=r"No space left on device \(0\.1 MiB needed, 0\.0 MiB free\)"):
        atomic.write_bytes(path, b"x" * 11)
    assert path.read_bytes() == b"old"


def test_a_disk_that_returns_other_bytes_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "a"
    monkeypatch.setattr(atomic, "sha256_file", lambda _: "0" * 64)
    with pytest.raises(OutputError) as error:
        atomic.write_bytes(path, b"x")
    assert str(error.value) == (
        f"{path}: cannot be written: what was read back is not what was written; "
        "what was there before is unchanged; choose a folder that can be written"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path):
    # Root may write where permissions say no, so these are places where nobody can.
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as error:
        atomic.probe_writable(tmp_path / "file" / "runs")
    assert str(error.value) == (
        f"{tmp_path}/file/runs: cannot be written: Not a directory; what was there before is unchanged; "
        "choose a folder that can be written"
    )
    with pytest.raises(OutputError, match=r"^/proc/kdzoo: cannot be written: "):
        atomic.probe_writable(Path("/proc/kdzoo"))
    atomic.probe_writable(tmp_path / "new" / "runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_a_line_is_appended_whole_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    atomic.append_line(path, "one")
    atomic.append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OutputError, match="No space left on device"):
        atomic.append_line(path, "three")


# --- left-overs -------------------------------------------------------------------------------


def forged(folder: Path, **changes) -> Path:
    owner = Owner(**(vars(Owner.me()) | changes))
    path = folder / f".kdzoo-{'-'.join(map(str, owner.tag))}-0.tmp"
    path.write_text("half")
    return path


def test_only_left_overs_of_dead_processes_are_swept(tmp_path):
    mine = forged(tmp_path)
    reused = forged(tmp_path, started=Owner.me().started - 1)
    rebooted = forged(tmp_path, boot="another")
    hidden = forged(tmp_path, namespace="1")
    remote = forged(tmp_path, boot="another", host="elsewhere")
    foreign = tmp_path / ".other.tmp"
    foreign.write_text("")
    assert owner.sweep(tmp_path) == 2
    assert not reused.exists()
    assert not rebooted.exists()
    assert owner.sweep(tmp_path, exclusive=True) == 2
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign])
    assert not hidden.exists()
    assert not remote.exists()


def test_a_folder_that_is_written_to_is_swept_first(tmp_path):
    dead, mine = forged(tmp_path, started=Owner.me().started - 1), forged(tmp_path)
    atomic.probe_writable(tmp_path)
    assert not dead.exists()
    assert mine.exists()


def test_a_process_is_known_by_its_start_time():
    me = Owner.me()
    assert me.fate() == "alive"
    assert Owner(**(vars(me) | {"started": me.started + 1})).fate() == "dead"
    assert Owner(**(vars(me) | {"boot": "earlier"})).fate() == "dead"
    assert Owner(**(vars(me) | {"namespace": "1"})).fate() == "hidden"
    assert Owner(**(vars(me) | {"boot": "its", "host": "elsewhere"})).fate() == "remote"


def test_a_process_that_only_waits_to_be_reaped_is_dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert Owner(**(vars(Owner.me()) | {"pid": child})).fate() == "dead"
    os.waitpid(child, 0)


# --- tensors ----------------------------------------------------------------------------------

TYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_tensors_come_back_as_they_were(tmp_path, dtype):
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    base = torch.arange(5).to(dtype)
    tensors = {
        "plain": values.to(dtype),
        "channels_last": values.to(dtype).contiguous(memory_format=torch.channels_last),
        "strided": values.to(dtype)[:, ::2],
        "turned": values.to(dtype)[0, :, 0].T,
        "scalar": values.to(dtype)[1, 2, 1, 1],
        "empty": torch.empty(0, 3, dtype=dtype),
        "tied": base,
        "tied too": base,
        "part": base[2:],
    }
    sha256 = atomic.write_tensors(tmp_path / "t.safetensors", tensors, {"b": "2", "a": "1"})
    read = sealed.read_tensors(tmp_path / "t.safetensors", sha256)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(read[name], tensor), name
        assert read[name].is_contiguous()


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = {"w": torch.arange(6.0), "b": torch.ones(3, dtype=torch.int8)}
    metadata = {key: key * 3 for key in "abcdefgh"}
    hashes = {
        atomic.write_tensors(tmp_path / "t", tensors, dict(random.Random(i).sample(list(metadata.items()), 8)))
        for i in range(8)
    }
    assert len(hashes) == 1
    control = {safetensors.torch.save(tensors, metadata) for _ in range(20)}
    assert len(control) > 1, "safetensors has become deterministic: tensor_bytes can be simpler"
    with safetensors.safe_open(tmp_path / "t", "pt") as file:
        assert file.metadata() == metadata
        assert torch.equal(file.get_tensor("w"), tensors["w"])


def test_damaged_tensors_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    sha256 = atomic.write_tensors(path, {"w": torch.zeros(100)})
    flip(path, 8 * 300)
    assert safetensors.torch.load_file(path)["w"].shape == (100,)  # nobody else would notice
    with pytest.raises(CorruptError) as error:
        sealed.read_tensors(path, sha256)
    assert str(error.value) == f"{path}: damaged: its sha256 is not the recorded one"
    assert error.value.exit_code == 3
    path.unlink()
    with pytest.raises(CorruptError) as error:
        sealed.read_tensors(path, sha256)
    assert str(error.value) == f"{path}: missing"


# --- sealed files -----------------------------------------------------------------------------


def test_a_sealed_file_refuses_every_change(tmp_path):
    path = tmp_path / "run.json"
    sealed.write_sealed(path, {"seed": 0, "lr": 0.1, "share": (1, None)})
    content = sealed.read_sealed(path)
    assert content == {"schema_version": 1, "kdzoo": kdzoo.__version__, "seed": 0, "lr": 0.1, "share": [1, None]}
    data = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), 400):
        path.write_bytes(data)
        flip(path, bit)
        with pytest.raises(CorruptError):
            sealed.read_sealed(path)
    for other in (data + b"\n", b" " + data, data.replace(b"0.1,", b"1e-1,"), data.replace(b'"seed"', b'"\\u0073eed"')):
        assert other != data
        path.write_bytes(other)
        with pytest.raises(CorruptError, match="its spaces or its spelling are not as written"):
            sealed.read_sealed(path)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "damaged: not JSON: Expecting value"),
        (b"\xff", "damaged: not JSON: not UTF-8"),
        (b"[" * 100_000, "damaged: not JSON as kdzoo writes it: nested more than 200 levels deep"),
        (b"[1]", "damaged: not a JSON object but [1]"),
        (b"{}", "damaged: its content does not match its seal"),
        (b'{"schema_version": "abc"}', "damaged: its content does not match its seal"),
        (
            b'{"schema_version": 999, "kdzoo": "9.0"}',
            f"made by a newer kdzoo (9.0, format 999); this is {kdzoo.__version__} "
            "and reads formats up to 1: update kdzoo",
        ),
    ],
)
def test_a_sealed_file_says_what_is_wrong(tmp_path, data, text):
    path = tmp_path / "run.json"
    path.write_bytes(data)
    with pytest.raises(CorruptError) as error:
        sealed.read_sealed(path)
    assert str(error.value) == f"{path}: {text}"


# --- checkpoints ------------------------------------------------------------------------------

STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=12) | st.integers() | st.sampled_from(["__tuple__", "__pairs__"]), inner)
    ),
    max_leaves=12,
)


def exactly(one, other) -> bool:
    """Equal in value and in type, all the way down; NaN equals NaN and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(exactly, one, other))
    if isinstance(one, dict):
        return exactly(list(one), list(other)) and exactly(list(one.values()), list(other.values()))
    return one == other


@given(state=STATES)
@settings(max_examples=150, deadline=None)
def test_states_come_back_as_they_were(state):
    assert exactly(state_codec.unpacked(json.loads(atomic.json_bytes(state_codec.packed(state)))), state)


def saved(folder: Path, count: int, run_id: str = "") -> Checkpoints:
    checkpoints = Checkpoints(folder, run_id)
    for i in range(1, count + 1):
        assert (
            checkpoints.save({"w": torch.full((40,), float(i)), "b": torch.tensor(i)}, {"step": i, "pair": (i, None)})
            == i
        )
    return checkpoints


def loaded(folder: Path, run_id: str = "", **options) -> tuple[int | None, list[str]]:
    """The step that was loaded, once it is sure that all of it belongs together, and the warnings."""
    warnings: list[str] = []
    result = Checkpoints(folder, run_id, warn=warnings.append, **options).load()
    if result is None:
        return None, warnings
    tensors, state = result
    step = state["step"]
    assert torch.equal(tensors["w"], torch.full((40,), float(step)))
    assert int(tensors["b"]) == step
    assert state == {"step": step, "pair": (step, None)}
    return step, warnings


def test_the_newest_checkpoint_is_loaded_and_two_are_kept(tmp_path):
    saved(tmp_path, 5)
    assert loaded(tmp_path) == (5, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000004", "00000005", "latest.json"]


def test_no_checkpoint_is_not_a_damaged_one(tmp_path):
    assert Checkpoints(tmp_path / "none").load() is None


def test_neither_names_nor_times_order_checkpoints(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "00000002").rename(tmp_path / "a")
    (tmp_path / "00000001").rename(tmp_path / "00000009")
    os.utime(tmp_path / "a", (0, 0))
    assert loaded(tmp_path) == (2, [])
    assert Checkpoints(tmp_path).save({}, {}) == 10  # no number is given twice


@pytest.mark.parametrize("part", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "zeros", "other"])
def test_a_damaged_newest_checkpoint_falls_back_loudly(tmp_path, part, damage):
    saved(tmp_path, 2)
    path = tmp_path / "00000002" / part
    data = path.read_bytes()
    match damage:
        case "flip":
            flip(path, 8 * (len(data) // 2) + 1)
        case "cut":
            path.write_bytes(data[:-2])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "zeros":
            path.write_bytes(bytes(len(data)))
        case "other":
            path.write_bytes((tmp_path / "00000001" / part).read_bytes())
    step, warnings = loaded(tmp_path)
    assert step == 1
    if (part, damage) == ("manifest.json", "other"):
        problem = f"{tmp_path}: checkpoint 2 is missing"  # two folders claim number 1 now, and the files decide
        assert warnings == [f"{tmp_path}: checkpoint 1 is used, because others are not as saved\n  {problem}"]
        return
    problem = {
        "cut": f"damaged: {len(data) - 2} bytes instead of {len(data)}",
        "empty": f"damaged: 0 bytes instead of {len(data)}",
        "gone": "missing",
    }.get(damage, "damaged: its sha256 is not the recorded one")
    if part == "manifest.json":
        problem = {"gone": "missing", "flip": problem}.get(damage, "damaged: not JSON")
    if (part, damage) == ("manifest.json", "flip"):
        assert len(warnings) == 1
        assert f"{path}: damaged: " in warnings[0]
        return
    (warning,) = warnings
    told = f"{tmp_path}: checkpoint 1 is used, because others are not as saved\n  {path}: {problem}"
    assert warning == told or (problem == "damaged: not JSON" and warning.startswith(f"{told}: "))


def test_after_a_fall_back_the_damaged_one_goes_first(tmp_path):
    saved(tmp_path, 2)
    flip(tmp_path / "00000002" / "tensors.safetensors", -5)
    checkpoints = Checkpoints(tmp_path, warn=lambda text: None)
    assert checkpoints.load()[1]["step"] == 1
    assert checkpoints.save({"w": torch.full((40,), 3.0), "b": torch.tensor(3)}, {"step": 3, "pair": (3, None)}) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000003", "latest.json"]
    flip(tmp_path / "00000003" / "tensors.safetensors", -5)
    assert loaded(tmp_path)[0] == 1


def test_every_single_bit_counts(tmp_path):
    saved(tmp_path, 2)
    path = tmp_path / "00000002" / "tensors.safetensors"
    data = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(data)), 200)
    detected = silent = 0
    for bit in bits:
        flip(path, bit)
        step, warnings = loaded(tmp_path)
        detected += step == 1 and len(warnings) == 1
        try:
            silent += safetensors.torch.load(path.read_bytes()).keys() == {"w", "b"}
        except Exception:  # the control reads damaged files, which may fail in any way
            silent += 0
        path.write_bytes(data)
    assert detected == 200
    assert silent > 100, "the control: without hashes most flips load silently"
    assert loaded(tmp_path) == (2, [])


def test_every_truncation_counts(tmp_path):
    saved(tmp_path, 2)
    for part in ("tensors.safetensors", "state.json", "manifest.json"):
        path = tmp_path / "00000002" / part
        data = path.read_bytes()
        for length in random.Random(0).sample(range(len(data) - 1), 40):
            path.write_bytes(data[:length])
            step, warnings = loaded(tmp_path)
            assert (step, len(warnings)) == (1, 1)
        path.write_bytes(data)


def test_when_no_checkpoint_verifies_each_part_is_named(tmp_path):
    saved(tmp_path, 2)
    flip(tmp_path / "00000001" / "tensors.safetensors", -5)
    (tmp_path / "00000002" / "state.json").unlink()
    with pytest.raises(CorruptError) as error:
        Checkpoints(tmp_path).load()
    assert str(error.value) == (
        f"{tmp_path}: no checkpoint can be used\n"
        f"  {tmp_path}/00000002/state.json: missing\n"
        f"  {tmp_path}/00000001/tensors.safetensors: damaged: its sha256 is not the recorded one\n"
        "put the files back, or start a new run with --new"
    )
    assert error.value.exit_code == 3


def test_lost_checkpoints_are_never_a_fresh_start(tmp_path):
    saved(tmp_path, 2)
    shutil.rmtree(tmp_path / "00000002")
    assert loaded(tmp_path) == (
        1,
        [f"{tmp_path}: checkpoint 1 is used, because others are not as saved\n  {tmp_path}: checkpoint 2 is missing"],
    )
    shutil.rmtree(tmp_path / "00000001")
    with pytest.raises(CorruptError, match=r"no checkpoint can be used\n  .*: checkpoint 2 is missing\n"):
        Checkpoints(tmp_path).load()
    shutil.rmtree(tmp_path)
    with pytest.raises(CorruptError) as error:
        Checkpoints(tmp_path, expected=True).load()
    assert str(error.value) == (
        f"{tmp_path}: no checkpoint can be used\n  all of them are gone\n"
        "put the files back, or start a new run with --new"
    )


def test_a_damaged_note_of_the_newest_is_told_and_does_no_harm(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "latest.json").write_text("{")
    step, warnings = loaded(tmp_path)
    assert step == 2
    assert warnings == [
        f"{tmp_path}: checkpoint 2 is used, because others are not as saved\n"
        f"  {tmp_path}/latest.json: damaged: not JSON: Expecting property name enclosed in double quotes"
    ]
    assert Checkpoints(tmp_path).save({}, {}) == 3
    assert sealed.read_sealed(tmp_path / "latest.json")["sequence"] == 3


def test_checkpoints_of_another_run_are_not_used(tmp_path):
    saved(tmp_path, 1, "0001-seed0")
    with pytest.raises(CorruptError, match="belongs to run '0001-seed0', not to '0002-seed0'"):
        Checkpoints(tmp_path, "0002-seed0").load()
    assert loaded(tmp_path, "0001-seed0") == (1, [])


def test_without_a_listener_a_fall_back_is_a_python_warning(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "00000002" / "state.json").unlink()
    with pytest.warns(UserWarning, match="checkpoint 1 is used"):
        Checkpoints(tmp_path).load()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_failed_save_keeps_the_last_good_one_at_every_step(tmp_path, monkeypatch, number):
    failures = 0
    for fail_at in range(1, 40):
        folder = tmp_path / str(fail_at)
        checkpoints = saved(folder, 2)
        third = {"w": torch.full((40,), 3.0), "b": torch.tensor(3)}, {"step": 3, "pair": (3, None)}
        with monkeypatch.context() as patch:
            events = Events(patch, fail_at, number)
            text = error_of(lambda checkpoints=checkpoints, third=third: checkpoints.save(*third))
        assert leftovers(folder) == []
        assert loaded(folder) in ([(3, [])] if not text else [(2, []), (3, [])])
        if events.count < fail_at:
            break
        assert not text or os.strerror(number) in text
        failures += bool(text)
    assert failures == 11, (
        "each mkdir, fsync, rename and replace of a save failed once, but that of a folder that is there"
    )
    assert events.count == 12


def test_a_saved_state_is_a_snapshot(tmp_path):
    weights = torch.ones(4)
    Checkpoints(tmp_path).save({"w": weights}, {})
    weights.zero_()
    assert torch.equal(Checkpoints(tmp_path).load()[0]["w"], torch.ones(4))


# --- the store --------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    atomic.write_tensors(folder / "student.safetensors", {"w": torch.ones(3)})
    (folder / "more").mkdir()
    atomic.write_json(folder / "more" / "result.json", {"top1_percent": 90.0})


def test_a_result_is_found_by_its_key(tmp_path):
    results = Store(tmp_path / "store")
    assert results.find("stage", "abc") is None
    place = results.publish("stage", "abc", fill)
    assert place == results.find("stage", "abc") == tmp_path / "store" / "stage" / "abc"
    assert sorted(sealed.read_sealed(place / "manifest.json")["files"]) == ["more/result.json", "student.safetensors"]
    assert torch.equal(sealed.read_tensors(place / "student.safetensors")["w"], torch.ones(3))
    assert results.find("teacher_outputs", "abc") is None


def test_a_result_is_written_once(tmp_path):
    results = Store(tmp_path)
    results.publish("stage", "abc", fill)
    place = results.publish("stage", "abc", lambda folder: atomic.write_json(folder / "other.json", {}))
    assert not (place / "other.json").exists()
    assert leftovers(tmp_path) == []


def test_a_failed_publisher_leaves_nothing(tmp_path):
    def fails(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        Store(tmp_path).publish("stage", "abc", fails)
    assert list((tmp_path / "stage").iterdir()) == []
    assert Store(tmp_path).find("stage", "abc") is None


def test_a_damaged_result_is_named_with_how_to_mend_it(tmp_path):
    place = Store(tmp_path).publish("stage", "abc", fill)
    flip(place / "student.safetensors", 8 * 70)
    (place / "more" / "result.json").unlink()
    with pytest.raises(CorruptError) as error:
        Store(tmp_path).find("stage", "abc")
    assert str(error.value) == (
        "stored stage: damaged\n"
        f"  {place}/more/result.json: missing\n"
        f"  {place}/student.safetensors: damaged: its sha256 is not the recorded one\n"
        f"delete {place} and run again"
    )


def test_a_result_under_another_key_is_refused(tmp_path):
    Store(tmp_path).publish("stage", "abc", fill).rename(tmp_path / "stage" / "def")
    with pytest.raises(CorruptError, match="holds stage abc"):
        Store(tmp_path).find("stage", "def")


def test_a_file_that_the_manifest_does_not_know_is_not_read(tmp_path):
    place = Store(tmp_path).publish("stage", "abc", fill)
    atomic.write_tensors(place / "teacher.safetensors", {"w": torch.ones(3)})
    with pytest.raises(CorruptError) as error:
        sealed.read_tensors(place / "teacher.safetensors")
    assert str(error.value) == f"{place}/teacher.safetensors: not in its manifest"


@pytest.mark.parametrize("key", ["../x", "a/b", "", ".hidden", "x" * 200, "a\n"])
def test_a_key_cannot_leave_the_store(tmp_path, key):
    with pytest.raises(ValueError, match="must be a plain name"):
        Store(tmp_path).find("stage", key)


def test_the_store_says_when_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        Store(tmp_path / "file").publish("stage", "abc", fill)


# --- who uses what ----------------------------------------------------------------------------


def stored(store: Store, key: str) -> Path:
    return store.publish("stage", key, lambda folder: atomic.write_text(folder / "a.txt", key))


def test_what_is_looked_for_or_stored_is_recorded_once_and_first(tmp_path):
    noted = Uses(tmp_path)
    assert Store(tmp_path / "store", noted).find("stage", "missing") is None
    store = Store(tmp_path / "store", noted)

    def write(folder: Path) -> None:
        assert noted.read() == {"stage/missing", "stage/a"}, "the record must be there before the result is"

    store.publish("stage", "a", write)
    assert store.find("stage", "a") == tmp_path / "store" / "stage" / "a"
    Store(tmp_path / "store", Uses(tmp_path)).find("stage", "a")
    assert noted.path.read_text() == "stage/missing\nstage/a\n"
    assert Store(tmp_path / "store").find("stage", "a") is not None, "nothing is recorded of a store without a record"


def test_a_record_of_uses_goes_on_after_a_line_that_was_cut(tmp_path):
    Uses(tmp_path).add("stage", "a")
    with Uses(tmp_path).path.open("a") as file:
        file.write("stage/b")
    Uses(tmp_path).add("stage", "bcd")
    assert Uses(tmp_path).read() == {"stage/a", "stage/b", "stage/bcd"}


def test_a_damaged_record_of_uses_is_named(tmp_path):
    record = Uses(tmp_path)
    for content, problem in ((None, "missing"), (b"stage/a\n\0\0\n", "line 2 is damaged"), (b"\xff", "cannot be read")):
        if content is not None:
            record.path.write_bytes(content)
        with pytest.raises(CorruptError) as caught:
            record.read()
        assert str(caught.value).startswith(f"{record.path}: {problem}")


def test_a_find_says_when_a_result_was_used_last(tmp_path, monkeypatch):
    store = Store(tmp_path)
    place = stored(store, "a")
    os.utime(place, (0, 0))
    store.find("stage", "a")
    assert place.stat().st_mtime > 1e9

    def denied(*args, **kwargs):
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "utime", denied)
    assert store.find("stage", "a") == place, "a store that can only be read serves"
