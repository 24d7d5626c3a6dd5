"""The kinds of values that a recipe holds, with their ranges, and the base of its sections."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from kdzoo.errors import CONTROL
from kdzoo.recipe.problems import requirement
from kdzoo.types import NAME


def matching(pattern: str, must_be: str) -> Any:
    """Return the type of text that matches ``pattern``, which ``must_be`` says in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise requirement(must_be)
        return text

    return Annotated[str, Strict(), AfterValidator(check), Field(json_schema_extra={"pattern": pattern})]


def _one_line(text: str) -> str:
    if CONTROL.search(text):
        raise requirement("one line without control characters")
    return text


def _path(text: str) -> str:
    if (longest := max(len(os.fsencode(part)) for part in text.split("/"))) > 255:
        raise requirement(f"a name that a file can have, at most 255 bytes between slashes and not {longest}")
    return text


def _printable(text: str) -> str:
    _one_line(text.replace("\n", "").replace("\t", ""))
    return text


# Strict, so that true is no number, "0.1" is no number and 1 is no text; lists still become tuples.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(max_length=10_000), AfterValidator(_printable)]
Line = Annotated[str, Strict(), Field(min_length=1, max_length=4096), AfterValidator(_one_line)]
PathText = Annotated[Line, AfterValidator(_path)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
Percent = Annotated[Real, Field(ge=0, le=100)]
Options = dict[Line, Any]
if TYPE_CHECKING:
    Name = str
    Device = str
else:
    Name = matching(rf"^{NAME}$", "1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or digit")
    Device = matching(r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$", "auto, cpu, cuda, cuda:N or mps")


class Section(BaseModel):
    """Base of the sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
