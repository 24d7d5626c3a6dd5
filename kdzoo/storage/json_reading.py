"""Reads JSON files that anything may have happened to: within limits, and with one kind of error.

Python's own reader raises three kinds of errors for hostile JSON and has no limit on size.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from kdzoo.errors import plain

#: No file of a run is larger than this, except for those with weights.
MAX_BYTES = 256 * 2**20

#: No JSON written here is nested deeper: a recipe may have 32 levels, and a checkpoint's codec takes three for one.
MAX_LEVELS = 200

#: More digits than any integer written here; every such integer can also be converted to a float.
MAX_DIGITS = 100

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """Says why a text holds no usable JSON object; ``line`` counts from 1."""

    def __init__(self, problem: str, line: int = 1) -> None:
        super().__init__(problem)
        self.line = line


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Return the JSON object in ``data``; raise JsonError where there is none, or one beyond the limits above.

    NaN and Infinity are read as Python writes them.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError as error:
        raise JsonError("not JSON: not UTF-8", data[: error.start].count(b"\n") + 1) from None  # type: ignore[arg-type]
    _check_levels(text)
    try:
        content = json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg}", error.lineno) from None
    if not isinstance(content, dict):
        raise JsonError(f"not a JSON object but {plain(text.strip(), 40)}")
    if _SURROGATE.search(text):
        _check_text(content)
    return content


def _check_levels(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_LEVELS:
        return
    level = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if level > MAX_LEVELS:
            line = text.count("\n", 0, match.start()) + 1
            raise JsonError(f"not JSON as kdzoo writes it: nested more than {MAX_LEVELS} levels deep", line)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"not JSON as kdzoo writes it: an integer of {len(digits)} digits")
    return int(digits)


def _check_text(content: dict[str, Any]) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError("not JSON as kdzoo writes it: half a surrogate pair in a text") from None


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file of at most MAX_BYTES; raise OSError for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe nobody writes to would block
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a regular file")
        if found.st_size > MAX_BYTES:
            raise OSError(f"{found.st_size} bytes are too many; at most {MAX_BYTES} are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(descriptor)
