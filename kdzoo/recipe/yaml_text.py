"""YAML and overrides into plain data with positions, and back.

PyYAML takes ``1e-3`` for text and ``no`` for false, lets a duplicate key win in silence and offers tags, aliases and
merge keys, which a recipe has no use for. So plain data is built here from PyYAML's events, by stricter rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

from kdzoo.errors import CONTROL, shown
from kdzoo.recipe.problems import RecipeProblems, with_a_point

MAX_DEPTH = 32
MAX_VALUES = 10_000

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_REAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
# numbers to one YAML reader and text to another: 012, 1_000, 0x1f, 1:30, 01e3
_UNCLEAR = re.compile(r"[-+]?(0[xob][0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?([eE][-+]?[0-9]+)?)")
_ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

Mark = Callable[[str, int, int], None]  # path, line, column


def scalar(text: str) -> Any:
    """Resolve a plain scalar; raise ValueError, with the message, for a number that readers disagree about."""
    if text in _WORDS:
        return _WORDS[text]
    if _REAL.fullmatch(text):
        if len(text) > 100 or not math.isfinite(float(text)):
            raise ValueError(f"number too large: {shown(text)}")
        return int(text) if _WHOLE.fullmatch(text) else float(text)
    if _ENDLESS.fullmatch(text):
        raise ValueError(f"must be a finite number, got {shown(text)}")
    if _UNCLEAR.fullmatch(text):
        raise ValueError(f"unclear number {shown(text)}; write it in plain decimals, or in quotes if it is text")
    return text


def join(path: str, part: str | int) -> str:
    """Return the path of ``part`` below ``path``."""
    return f"{path}.{part}" if path else str(part)


class _Builder:
    """Builds plain data out of YAML events and reports the position of every path."""

    def __init__(self, text: str, problems: RecipeProblems, mark: Mark, root: str) -> None:
        self.events: Any = yaml.parse(text, Loader=yaml.SafeLoader)
        self.problems, self.mark, self.root, self.values = problems, mark, root, 0

    def document(self) -> Any:
        """Return the only document; no document at all is None."""
        next(self.events)  # the stream starts
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self.value(next(self.events), self.root, 1)
        next(self.events)  # the document ends
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            self.stop(event, "a recipe is one YAML document; remove what follows '---'")
        return value

    def stop(self, event: Any, message: str) -> None:
        """Give up at once."""
        self.mark(self.root, event.start_mark.line + 1, event.start_mark.column + 1)
        self.problems.add(self.root, message)
        self.problems.raise_if_any()

    def value(self, event: Any, path: str, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(event, f"more than {MAX_VALUES} values; a recipe is a page long")
        if depth > MAX_DEPTH:
            self.stop(event, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            self.problems.refuse(path, f"alias {shown(f'*{event.anchor}')} is not allowed; write the value out")
            return None
        if event.anchor is not None:
            self.problems.refuse(path, f"anchor {shown(f'&{event.anchor}')} is not allowed; write each value out")
        if event.tag is not None:
            self.problems.refuse(path, f"tag {shown(event.tag)} is not allowed; a recipe holds plain values only")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path, depth, bool(event.flow_style))
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.text(event, path)

    def text(self, event: Any, path: str) -> Any:
        text = event.value
        if CONTROL.search(text.replace("\n", "").replace("\t", "") if path == "description" else text):
            self.problems.refuse(path, f"must be one line without control characters, got {shown(text)}")
            return None
        try:
            return scalar(text) if event.style is None else text
        except ValueError as error:
            self.problems.refuse(path, str(error))
            return None

    def sequence(self, path: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            below = join(path, len(items))
            self.mark(below, event.start_mark.line + 1, event.start_mark.column + 1)
            items.append(self.value(event, below, depth + 1))
        return items

    def mapping(self, path: str, depth: int, in_braces: bool) -> dict[str, Any]:
        items: dict[str, Any] = {}
        lines: dict[str, int] = {}
        before = ""  # the key before
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
            key = self.key(event, path)
            below = join(path, key)
            following = next(self.events)
            if in_braces and _is_rest_of_decimal(event, following, items.get(before)):
                number = f"{items[before]},{key}"
                self.problems.refuse(join(path, before), f"must be one number, got {number}; {with_a_point(number)}")
                continue
            before = key
            if key in items:
                self.problems.add(below, f"key written twice, on lines {lines[key]} and {line}; keep one")
            else:
                self.mark(below, line, column)
            value = self.value(following, below, depth + 1)
            lines.setdefault(key, line)
            items.setdefault(key, value)
        return items

    def key(self, event: Any, path: str) -> str:
        """Return a key as text; give up where it is none."""
        if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
            self.stop(event, "a key must be plain text")
        key: str = event.value
        if key == "<<" and event.style is None:
            self.problems.refuse(join(path, key), "merge keys are not allowed; write the values out")
        elif not key or CONTROL.search(key):
            self.problems.refuse(join(path, key), "a key must be one line without control characters, and not empty")
        return key


def _is_rest_of_decimal(key: Any, value: Any, before: Any) -> bool:
    """Whether ``0`` in ``{temperature: 4,0}`` is read as a key of its own."""
    whole = isinstance(before, int) and not isinstance(before, bool)
    nothing = isinstance(value, yaml.ScalarEvent) and value.value == "" and value.style is None and not value.anchor
    return whole and nothing and key.style is None and key.value.isdecimal()


def read_yaml(text: str, problems: RecipeProblems, mark: Mark, path: str = "") -> Any:
    """Read YAML text that is written at ``path`` into plain data; where it is no YAML, raise RecipeError at once."""
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = len(_BREAK.findall(text[: bad.start()])) + 1
        message = f"control character {shown(bad.group())}"
    else:
        try:
            return _Builder(text, problems, mark, path).document()
        except yaml.MarkedYAMLError as error:
            place = error.problem_mark or error.context_mark
            line = place.line + 1 if place else 1
            hint = "; indent with spaces" if "'\\t'" in (error.problem or "") else ""
            message = f"not valid YAML: {error.problem or error.context}{hint}"
        except (ValueError, OverflowError):  # PyYAML leaves escapes beyond Unicode to chr()
            line, message = 1, "not valid YAML: an escape in quotes that is no character"
    mark(path, line, 1)
    problems.add(path, message)
    problems.raise_if_any()


# --- overrides ------------------------------------------------------------------------------------


def override(data: dict[str, Any], text: str, problems: RecipeProblems) -> None:
    """Apply one ``train.epochs=2`` to ``data`` in place; a number in the path is an index of a list."""
    path, equals, written = text.partition("=")
    path = path.strip()
    problems.positions.override(path, by=path)
    *parents, last = parts = path.split(".")
    if not equals or not all(parts):
        problems.refuse(path, f"cannot read {shown(text)}; write -o KEY=VALUE, e.g. -o train.epochs=2")
        return
    value = read_yaml(written, problems, lambda below, line, column: None, path)
    place: Any = data
    behind = ""
    for part, following in zip(parents, parts[1:], strict=True):
        if (slot := _slot(place, part, behind, path, problems)) is None:
            return
        behind = join(behind, part)
        if place[slot] is None:
            place[slot] = [] if following.isdecimal() else {}
            problems.positions.override(behind, by=path)
        place = place[slot]
    if (slot := _slot(place, last, behind, path, problems)) is not None:
        place[slot] = value
        problems.positions.override(path, by=path)


def _slot(place: Any, part: str, behind: str, path: str, problems: RecipeProblems) -> Any:
    """Return the key or index that ``part`` means in ``place``, made if new; or report why it means none."""
    if isinstance(place, dict):
        place.setdefault(part, None)
        return part
    if not isinstance(place, list):
        problems.refuse(path, f"{behind} is {shown(place)}; it has no keys")
        return None
    if not part.isdecimal() or len(part) > 9 or int(part) > len(place):
        problems.refuse(path, f"{behind} is a list of {len(place)}; {shown(part)} is none of its indices, from 0")
        return None
    if int(part) == len(place):
        place.append(None)
    return int(part)


# --- writing --------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what ``read_yaml`` would not read back as the same text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is not yaml.ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)
        try:
            name = "unclear" if value == "<<" else type(scalar(value)).__name__
        except ValueError:
            name = "unclear"
        return "tag:yaml.org,2002:" + {"NoneType": "null"}.get(name, name)


def write_yaml(data: Any) -> str:
    """Return plain data as YAML that ``read_yaml`` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def write_flow(data: Any) -> str:
    """Return plain data as YAML on one line, as an override has it."""
    text = yaml.dump([data], Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9)
    return text.strip().removeprefix("[").removesuffix("]")
