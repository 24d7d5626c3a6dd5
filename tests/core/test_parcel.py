from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kdzoo.errors import CorruptError, OutputError
from kdzoo.storage import owner
from kdzoo.storage.parcel import FORMAT, pack, unpack
from kdzoo.storage.sealed import sealed_bytes
from kdzoo.storage.store import Store


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(folder: Path) -> Path:
    (folder / "checkpoints" / "student").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "student.safetensors").write_bytes(bytes(range(256)) * 5)
    (folder / "checkpoints" / "student" / "1.json").write_text("{}")
    (folder / "nothing").write_bytes(b"")
    return folder


def parcel_of(files: dict[str, bytes], **changes) -> bytes:
    """A parcel with a valid seal, whatever its files are called."""
    records = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} | changes for name, data in files.items()
    }
    header = sealed_bytes({"files": records})
    return FORMAT + len(header).to_bytes(8, "little") + header + b"".join(files.values())


def test_a_folder_arrives_as_it_was(tmp_path):
    folder = filled(tmp_path / "here")
    content = pack(folder)
    assert unpack(content, tmp_path / "new" / "there")
    assert tree(tmp_path / "new" / "there") == tree(folder)
    assert pack(tmp_path / "new" / "there") == content, "equal folders give equal bytes"


def test_links_half_written_files_and_what_is_left_out_stay_behind(tmp_path):
    folder = filled(tmp_path / "here")
    (folder / "link").symlink_to("/etc/hostname")
    owner.temporary_in(folder).mkdir()
    (owner.temporary_in(folder / "checkpoints")).write_text("half")
    (folder / "lock").write_text("")
    unpack(pack(folder, lambda name: name == "lock"), tmp_path / "there")
    assert set(tree(tmp_path / "there")) == {"checkpoints/student/1.json", "nothing", "student.safetensors"}


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    content = pack(filled(tmp_path / "here"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    assert not unpack(content, tmp_path / "there")
    assert tree(tmp_path / "there") == {"mine": b"x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def test_no_flipped_bit_and_no_cut_arrives(tmp_path):
    content = pack(filled(tmp_path / "here"))
    place = tmp_path / "there" / "place"
    damaged = [content[:length] for length in range(0, len(content), 97)] + [content + b"x"]
    for bit in range(0, 8 * len(content), 331):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for each in damaged:
        with pytest.raises(CorruptError, match=r"place: the folder that arrived for it: (damaged|made by)"):
            unpack(each, place)
    assert len(damaged) > 50
    assert not place.parent.exists()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "a\0", ".", "", "a//b", "./a"])
def test_a_file_outside_the_folder_is_refused(tmp_path, name):
    with pytest.raises(CorruptError, match=r"is no name of a file|is not one of a file in this folder"):
        unpack(parcel_of({name: b"x"}), tmp_path / "in" / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_file_below_a_file_and_a_size_that_lies_are_refused(tmp_path):
    for content, problem in (
        (parcel_of({"a": b"x", "a/b": b"y"}), "damaged: 'a/b' is no name of a file in a folder"),
        (parcel_of({"a": b"xy"}, size=-1), "damaged: a: 2 bytes instead of -1"),
        (parcel_of({"a": b"xy"}, size=3), "damaged: a: 2 bytes instead of 3"),
        (parcel_of({"a": b"xy"}, size=True), "damaged: a: 2 bytes instead of True"),
        (b"PK\3\4", r"damaged: it begins with b'PK\\x03\\x04', not with b'kdzoo parcel 1\\n'"),
    ):
        with pytest.raises(CorruptError, match=problem):
            unpack(content, tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_nothing_is_half_unpacked(tmp_path, monkeypatch, call):
    content = pack(filled(tmp_path / "here"))
    usual, calls, texts = getattr(os, call), 0, []

    def fails(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(28, "No space left on device")
        return usual(*args, **kwargs)

    for fail_at in range(1, 30):
        calls, place = 0, tmp_path / str(fail_at) / "there"
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            try:
                unpack(content, place)
            except OutputError as error:
                texts.append(str(error))
        if calls < fail_at:
            break
        whole = place.exists()  # after a mkdir that was not needed, or when only the folder around it is not synced
        assert whole or texts
        assert not whole or tree(place) == tree(tmp_path / "here")
        assert list(place.parent.glob(".*")) == []
    assert len(texts) >= 1
    assert all("No space left on device (0.1 MiB needed" in text for text in texts)
    assert tree(place) == tree(tmp_path / "here")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CorruptError, match=f"{tmp_path}/gone: no such folder to send"):
        pack(tmp_path / "gone")


def test_what_was_checked_away_leaves_nothing(tmp_path):
    def refuse(folder: Path) -> None:
        assert tree(folder) == {"a": b"x"}
        raise CorruptError("not what was asked for")

    with pytest.raises(CorruptError, match="not what was asked for"):
        unpack(parcel_of({"a": b"x"}), tmp_path / "there", refuse)
    assert list(tmp_path.iterdir()) == []


# --- a store on another machine ---------------------------------------------------------------


def published(root: Path, key: str = "abc", text: str = "{}") -> Path:
    return Store(root).publish("stage", key, lambda folder: (folder / "result.json").write_text(text) and None)


def test_a_result_travels_from_store_to_store(tmp_path):
    content = pack(published(tmp_path / "one"))
    place = Store(tmp_path / "other").receive("stage", "abc", content)
    assert place == Store(tmp_path / "other").find("stage", "abc")
    assert tree(place) == tree(tmp_path / "one" / "stage" / "abc")


def test_a_result_that_is_stored_already_stays(tmp_path):
    content = pack(published(tmp_path / "one"))
    before = published(tmp_path / "other", text="{ }")
    kept = tree(before)
    assert Store(tmp_path / "other").receive("stage", "abc", content) == before
    assert tree(before) == kept


def test_a_result_of_another_key_is_not_stored(tmp_path):
    content = pack(published(tmp_path / "one", key="def"))
    with pytest.raises(
        CorruptError, match=r"other/stage/abc: the stage that arrived for it is damaged\n.*holds stage def"
    ):
        Store(tmp_path / "other").receive("stage", "abc", content)
    assert list((tmp_path / "other" / "stage").iterdir()) == []
