"""What a chaos run counts, and commands that run one after the other in a process that may be lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import base_environment, processes

#: A command that is not done after so many seconds hangs.
HANG_S = 90
#: Memory that one process may address; more than any of these commands needs.
MEMORY_BYTES = 24 * 2**30
#: Exit codes that a user can cause, as documented, and success.
EXPECTED = {0, *range(2, 11)}


@dataclass
class Tally:
    """Counts of one kind of chaos. ``faults`` are what must never happen, each with what led to it."""

    name: str
    wanted: int
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        found = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        lines = [f"{self.name}: {sum(self.counts.values())} of {self.wanted}: {found or 'nothing'}"]
        return "\n".join([*lines, *(f"  FAULT {fault}" for fault in self.faults[:20])])

    @property
    def good(self) -> bool:
        return not self.faults and sum(self.counts.values()) >= self.wanted


@dataclass(frozen=True)
class Case:
    """A command line in a folder, and what to call it where something goes wrong."""

    arguments: tuple[str, ...]
    place: Path
    what: str


#: A case, its exit code or what happened instead, and what it wrote to stderr.
Result = tuple[Case, "int | str", str]


def run_all(cases: Sequence[Case]) -> list[Result]:
    """Run the cases in forked processes, as many at a time as there are processors; results come in their order."""
    shares = min(len(cases), os.cpu_count() or 1)
    with ThreadPoolExecutor(shares) as pool:
        done = list(pool.map(run_in_turn, [cases[i::shares] for i in range(shares)]))
    return [done[i % shares][i // shares] for i in range(len(cases))]


def run_in_turn(cases: Sequence[Case]) -> list[Result]:
    """Run the cases one after the other, many in one process; a process that dies or hangs costs one case."""
    results: list[Result] = []
    while len(results) < len(cases):
        with tempfile.TemporaryDirectory() as place:
            log = Path(place) / "log.jsonl"
            log.touch()
            rest = cases[len(results) :]
            process = processes.Process(target=_work, args=([(c.arguments, str(c.place)) for c in rest], str(log)))
            process.start()
            seen, since = 0, time.monotonic()
            while process.is_alive():
                process.join(0.2)
                if (done := log.read_bytes().count(b"\n")) > seen:
                    seen, since = done, time.monotonic()
                elif time.monotonic() - since > HANG_S:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    break
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            for case, row in zip(rest, rows, strict=False):
                results.append((case, row["code"], row["err"]))
            if len(rows) < len(rest):
                hung = time.monotonic() - since > HANG_S
                what = f"hung for {HANG_S} s" if hung else f"died with exit code {process.exitcode}"
                results.append((rest[len(rows)], what, ""))
    return results


def _work(cases: list[tuple[tuple[str, ...], str]], log: str) -> None:
    """Run each case as the command line would; one line of the log for each."""
    os.environ.update(base_environment())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from kdzoo.cli import main

    for arguments, place in cases:
        os.chdir(place)
        sys.argv = ["kdzoo", *arguments]
        out, err = io.StringIO(), io.StringIO()
        code: int | str = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
            except BaseException:  # whatever it is, the command line let it through
                code = "traceback"
                err.write(traceback.format_exc())
        said = err.getvalue()
        if "Traceback (most recent call last)" in said:
            code = "traceback"
        with open(log, "a") as file:
            file.write(json.dumps({"code": code, "err": said[-3000:]}) + "\n")


def judge(tally: Tally, results: Sequence[Result]) -> None:
    """Count what was accepted and refused; anything else is a fault."""
    for case, code, err in results:
        if code in EXPECTED:
            tally.counts["accepted" if code == 0 else f"refused with {code}"] += 1
        else:
            tally.counts[str(code) if isinstance(code, str) else f"exit code {code}"] += 1
            tally.faults.append(f"{case.what}: {code}: {_last(err)}")
        if "\x1b" in err:
            tally.faults.append(f"{case.what}: an escape byte reached the terminal")


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-2:])[:300]


def save(path: Path, content: Any) -> Path:
    """Write JSON, which is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
