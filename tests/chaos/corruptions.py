"""Files of runs and of the store damaged at random: every command says so, or is not touched by it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import CommandLine, lasting, run_folder
from outcomes import Case, Tally, run_all

from kdzoo.report.writing import WRITTEN

#: Exit codes that say "damaged": of recipes and reports, of stored files.
DAMAGED = {2, 3}
VERBS = ("report", "compare", "verify-run", "export")


@contextmanager
def damage(path: Path, others: list[Path], rng: random.Random) -> Iterator[str]:
    """One file is not what it was inside; yields how."""
    before = path.read_bytes()
    kinds = ["flip", "cut", "delete", "empty", "swap", "grow", "digit", "brackets"]
    kind = rng.choice(kinds)
    after: bytes | None = before
    spot = rng.randrange(max(1, len(before)))
    if kind == "flip" and before:
        after = before[:spot] + bytes([before[spot] ^ (1 << rng.randrange(8))]) + before[spot + 1 :]
    elif kind == "cut":
        after = before[:spot]
    elif kind == "delete":
        after = None
    elif kind == "empty":
        after = rng.choice((b"", b"{}", b"[]", b"null"))
    elif kind == "swap":
        after = rng.choice(others).read_bytes()
    elif kind == "grow":
        after = before + rng.choice((b"\n", b"x", before[-50:]))
    elif kind == "digit":
        digits = [i for i, byte in enumerate(before) if 0x30 <= byte <= 0x39]
        i = rng.choice(digits or [0])
        after = before[:i] + b"%d" % ((before[i] - 0x30 + 1) % 10) + before[i + 1 :] if digits else before + b"1"
    else:
        after = rng.choice((b"[" * 5000, b'{"a": ' + b"9" * 6000 + b"}", b'{"files": 1}'))
    if after == before:
        after = before + b" "
    try:
        path.unlink() if after is None else path.write_bytes(after)
        yield kind
    finally:
        path.write_bytes(before)


def files_of(folder: Path) -> list[Path]:
    """Files of a run that its manifest vouches for, and the manifest itself."""
    skipped = ("lock", "uses")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)


def corrupt(count: int, seed: int, place: Path) -> Tally:
    """Damage ``count`` files: of a finished run under every command that reads it, and of the store under ``run``."""
    rng = random.Random(f"corruptions {seed}")
    tally = Tally("corruptions", count)
    cli = CommandLine(place)
    place.mkdir(parents=True, exist_ok=True)
    recipe = cli.recipe({"control": True, "export": [{"format": "onnx"}]})
    ended = cli("run", recipe, "--out", "out")
    assert ended.code == 0, ended
    ended = cli("run", recipe, "--out", "out", "--new")
    assert ended.code == 0, ended
    folder = run_folder(place / "out")
    other = next(path for path in folder.parent.iterdir() if path.name[:4].isdecimal() and path != folder)
    whole = {path: path.read_bytes() for path in files_of(folder)}
    for number in range(count * 3 // 4):
        verb = "export" if number % 25 == 0 else VERBS[number % 3]
        path = rng.choice(list(whole))
        with damage(path, [each for each in whole if each != path], rng) as kind:
            name = path.relative_to(folder).as_posix()
            arguments = (verb, str(folder), str(other)) if verb == "compare" else (verb, str(folder))
            ((_, code, err),) = run_all([Case(arguments, place, name)])
            seen = {each: each.read_bytes() if each.exists() else None for each in whole if each != path}
            changed = [each for each, data in seen.items() if data != whole[each]]
        again = verb == "report" and kind == "delete" and path.name in WRITTEN  # which it then writes again
        tally.counts[f"{verb}: {'refused' if code in DAMAGED else 'written again' if again else code}"] += 1
        if code not in ({0} if again else DAMAGED):
            tally.faults.append(f"{verb} after '{kind}' of {name}: {code}: {err.strip()[-200:]}")
        if changed and not again:
            tally.faults.append(f"{verb} after '{kind}' of {name} changed {', '.join(each.name for each in changed)}")
        for each, data in whole.items():
            each.write_bytes(data)
    of_the_store(tally, count - count * 3 // 4, rng, cli, recipe, folder)
    ended = cli("verify-run", folder)
    if ended.code != 0:
        tally.faults.append(f"with every file as it was, verify-run says {ended.code}: {ended.err[-200:]}")
    return tally


def of_the_store(tally: Tally, count: int, rng: random.Random, cli: CommandLine, recipe: Path, folder: Path) -> None:
    """A damaged stored stage is an error, or the new run has the old one's bits."""
    expected = lasting(folder)
    store = cli.place / "out" / ".store"
    stored = sorted(path for path in store.rglob("*") if path.is_file())
    for _ in range(count):
        path = rng.choice(stored)
        with damage(path, [each for each in stored if each != path], rng) as kind:
            name = path.relative_to(store).as_posix()
            ended = cli("run", recipe, "--out", "out", "--new", "-o", "export=[]")
        if ended.code in DAMAGED:
            tally.counts["run: refused"] += 1
        elif ended.code == 0 and lasting(run_folder(cli.place / "out"))["student"] == expected["student"]:
            tally.counts["run: the same bits"] += 1
        else:
            tally.counts[f"run: {ended.code}"] += 1
            tally.faults.append(f"run after '{kind}' of the store's {name}: {ended.code}: {ended.err[-200:]}")
        newest = run_folder(cli.place / "out")
        if newest != folder:
            shutil.rmtree(newest, ignore_errors=True)
