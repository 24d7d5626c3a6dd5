"""Loading unknown plugins in a process of their own, which they may end or hang without harm."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kdzoo.zoo.cards import body_of
from kdzoo.zoo.finding import Found, find_plugins
from kdzoo.zoo.loading import load_plugins

LIMIT_S = 60.0  # for a plugin to load
OWN_LIMIT_S = 600.0  # for kdzoo's own plugins and the libraries that they import
CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kdzoo.zoo.survey import main; main()"


def survey(
    found: Sequence[Found], only: str, fatal: Mapping[Found, str], limit_s: float = LIMIT_S
) -> tuple[dict[str, Any] | None, dict[Found, str]]:
    """Load plugins elsewhere; return the content of their catalogue, and those that ended or hung it, with the cause.

    Plugins in ``fatal`` are not tried. The content is None where none can be had.
    """
    culprits: dict[Found, str] = {}
    while True:
        outcome = _Survey(only, {**fatal, **culprits}, limit_s).result(found)
        if not isinstance(outcome, tuple):
            return outcome, culprits
        culprit, cause = outcome
        culprits[culprit] = cause


class _Survey:
    """One process that loads plugins and says on its standard output what it does."""

    def __init__(self, only: str, fatal: Mapping[Found, str], limit_s: float) -> None:
        self.limit_s = limit_s
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        asked = {"only": only, "fatal": [[*_identity(one), cause] for one, cause in fatal.items()]}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(json.dumps(asked).encode())

    def result(self, found: Sequence[Found]) -> dict[str, Any] | tuple[Found, str] | None:
        """Return the catalogue's content, or the plugin of others that broke the process and how; None: neither."""
        known = {tuple(_identity(one)): one for one in found}
        current: Found | None = None
        try:
            while True:
                foreign = current is not None and not current.built_in
                line = self._line(self.limit_s if foreign else OWN_LIMIT_S)
                if line is None or not line:
                    if current is None or not foreign:
                        return None
                    return current, self._ending() if line is not None else f"did not load within {self.limit_s:g} s"
                said = json.loads(line)
                if "body" in said:
                    return said["body"] if isinstance(said["body"], dict) else None
                current = known.get(tuple(said["loading"] or ()))
        finally:
            self._end()

    def _line(self, limit_s: float) -> bytes | None:
        """Return the next line; empty when the process has ended, None when it says nothing in time."""
        assert self.process.stdout is not None
        descriptor, line = self.process.stdout.fileno(), b""
        end = time.monotonic() + limit_s
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(end - time.monotonic(), 0))[0]:
                return None
            # the last line is long, and nothing follows any line before it is complete
            part = os.read(descriptor, 1 if not line.startswith(b'{"body"') else 1 << 16)
            if not part:
                return b""
            line += part
        return line

    def _ending(self) -> str:
        code = self.process.wait()
        if code < 0:
            return f"ended the process by signal {signal.Signals(-code).name} while loading"
        return f"ended the process with exit code {code} while loading"

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _identity(one: Found) -> list[str]:
    return [one.info.name, one.info.distribution, one.info.version, one.info.module]


def main() -> None:
    """Load what standard input asks for and write what is loading, then the catalogue's content, a line each."""
    out = os.dup(1)
    os.dup2(2, 1)  # what a plugin prints must not be taken for an answer
    asked = json.loads(sys.stdin.buffer.read())
    causes = {tuple(each[:-1]): each[-1] for each in asked["fatal"]}
    found = find_plugins()
    fatal = {one: causes[tuple(_identity(one))] for one in found if tuple(_identity(one)) in causes}

    def say(**content: Any) -> None:
        data = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(out, data) :]

    zoo = load_plugins(found, asked["only"], fatal, before=lambda one: say(loading=_identity(one)))
    say(loading=None)
    say(body=body_of(zoo))
    os._exit(0)  # what plugins do at exit is no concern of this
