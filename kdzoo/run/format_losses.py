"""What a format in coarse numbers costs the student, compared with what it costs the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


def format_losses(student: Entry, control: Entry | None, exports: Sequence[Entry], samples: int) -> list[str]:
    """Warn of each quantized file in which the student loses more accuracy than its control does.

    ``student`` and ``control`` are the networks' entries, ``exports`` those of files, ``samples`` the number of test
    samples; the text has their number too, because a difference of one or two samples says little.
    """
    if control is None:
        return []
    measured = [entry for entry in exports if entry["quantize"] and entry["top1_percent"] is not None]
    warnings = []
    for entry in (each for each in measured if each["network"] == "student"):
        twin = twin_of(entry, [each for each in measured if each["network"] == "control"])
        if twin is None:
            continue
        lost = student["top1_percent"] - entry["top1_percent"]
        usual = max(control["top1_percent"] - twin["top1_percent"], 0.0)
        if lost > usual:
            warnings.append(
                f"export {entry['label']}: the student loses {lost:.2f} points of accuracy, the control "
                f"{control['top1_percent'] - twin['top1_percent']:.2f}, a difference of "
                f"{round((lost - usual) * samples / 100)} of {samples:,} samples; what distillation gave does not all "
                "survive in this format"
            )
    return warnings


def twin_of(entry: Entry, others: Sequence[Entry]) -> Entry | None:
    """The control's file to compare with: quantized alike, else, as it is never trained quantized, quantized at all."""
    of_format = [other for other in others if other["format"] == entry["format"]]
    return next((other for other in of_format if other["quantize"] == entry["quantize"]), next(iter(of_format), None))
