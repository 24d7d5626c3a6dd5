"""A finished run with one damaged file is refused by every command that reads it, and none of them changes a byte."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Trained

from kdzoo.cli import main
from kdzoo.report.writing import WRITTEN
from kdzoo.storage.run_folder import RunFolder

COMMANDS = ("verify-run", "report", "compare", "export")

#: Hold nothing of the result: the name of a live owner, the stored results that it used, and unfinished checkpoints.
OUTSIDE = ("lock", "uses", "checkpoints")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A copy of a finished run, to be damaged and mended."""
    return Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("out") / "tiny" / trained.folder.name))


def kdzoo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and errors of a command, in this process: importing torch for each would take minutes."""
    monkeypatch.setattr(sys, "argv", ["kdzoo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


def flipped(data: bytes, other: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def cut(data: bytes, other: bytes) -> bytes:
    return data[:-2]


def longer(data: bytes, other: bytes) -> bytes:
    return data + b"\n"


def swapped(data: bytes, other: bytes) -> bytes:
    return other


def other_digit(data: bytes, other: bytes) -> bytes:
    """Another digit in the first number, or another first byte where there is none."""
    match = re.search(rb"\d", data)
    place = match.start() if match else 0
    digit = b"7" if data[place : place + 1] != b"7" else b"3"
    return data[:place] + digit + data[place + 1 :]


def emptied(data: bytes, other: bytes) -> bytes:
    return b"{}"


def gone(data: bytes, other: bytes) -> None:
    return None


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_corruption_of_every_file_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path for path in content(run) if path.name not in OUTSIDE]
    assert {"run.json", "manifest.json", "results.json", "student.json"} < {path.name for path in files}
    others = dict(zip(files, [*files[1:], files[0]], strict=True))
    corruptions: tuple[Callable[[bytes, bytes], bytes | None], ...] = (
        flipped,
        cut,
        swapped,
        other_digit,
        emptied,
        gone,
    )
    for path in files:
        data = path.read_bytes()
        for corruption in corruptions:
            damaged = corruption(data, others[path].read_bytes())
            assert damaged != data
            path.unlink() if damaged is None else path.write_bytes(damaged)
            before = content(run)
            for command in COMMANDS:
                if command == "report" and path.name in WRITTEN and damaged is None:
                    continue
                arguments = [str(run)] * (2 if command == "compare" else 1)
                code, err = kdzoo(monkeypatch, capsys, command, *arguments)
                assert code == 3, (command, path.name, corruption.__name__, err)
                assert err.startswith("error: ")
                assert path.name in err
                assert content(run) == before, (command, path.name, corruption.__name__)
        path.write_bytes(data)
    assert kdzoo(monkeypatch, capsys, "verify-run", str(run)) == (0, "")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_report_that_was_changed_is_written_again_only_once_it_is_deleted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (run / name).write_text("not what was written")
    assert kdzoo(monkeypatch, capsys, "verify-run", str(run))[0] == 3
    code, err = kdzoo(monkeypatch, capsys, "report", str(run))
    assert code == 3
    assert err.endswith(f"\n`kdzoo report` writes {name} again once deleted\n")
    (run / name).unlink()
    assert kdzoo(monkeypatch, capsys, "report", str(run)) == (0, "")
    assert kdzoo(monkeypatch, capsys, "verify-run", str(run)) == (0, "")


def test_an_unfinished_run_is_an_outcome_of_its_own(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"name": "tiny", "seed": 0, "recipe_text": "", "recipe_hash": "", "recipe_fields": {}}
    with RunFolder.start(tmp_path, **settings) as folder:
        root = folder.root
    for command in set(COMMANDS) - {"compare"}:  # which shows it as a row
        code, err = kdzoo(monkeypatch, capsys, command, str(root))
        assert code == 2
        assert err.startswith(
            f"error: {root}: not finished, so it has no manifest to verify; the command that began it"
        )


def test_the_number_of_files_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdzoo", "verify-run", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    outside = {"run.json", "manifest.json", "lock", "uses"}
    count = len([path for path in content(run) if path.name not in outside])
    assert capsys.readouterr().out == f"{run}: {count} files verify\n"
