"""Labels as people write them, names or numbers, and the classes that they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdzoo.contract.classification import NO_LABEL
from kdzoo.errors import DataError, plain

if TYPE_CHECKING:
    import numpy as np

#: A class by its number, as text.
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def read_label(value: Any, where: str) -> str | None:
    """Return a label as text, None for an empty one; raise DataError, which begins with ``where``, for what is none."""
    if value is None or (isinstance(value, float) and value != value):  # how pandas writes that there is none
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        got = plain(repr(value), 40)
        raise DataError(f"{where}: a label is a name or a whole number, or empty where there is none; got {got}")
    return str(value).strip() or None


def numbered_classes(
    labels: Mapping[str, Sequence[str | None]],
    given: int | Sequence[str] | None,
    where: Callable[[str, int], str],
    title: str,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the classes, and the targets (N,) of each split; "train" is one of them.

    Where every label is a whole number, it is the number of its class; else labels are names, and the classes are those
    of train in alphabetical order. ``given`` are the classes by name, or their number; None: those of train.
    ``where(split, i)`` says where a sample's label is written. Raises DataError for a label of no class.
    """
    import numpy as np

    written = [label for split in labels.values() for label in split if label is not None]
    numbers = bool(written) and all(map(NUMBER.fullmatch, written))
    trained = {label for label in labels["train"] if label is not None}
    classes: tuple[str, ...]
    if isinstance(given, int):
        classes = tuple(map(str, range(given))) if numbers or not trained else tuple(sorted(trained))
        if len(classes) != given:
            raise DataError(f"{title}: data.options.classes: {given}, but train has {len(classes)} names of classes")
    elif given is not None:
        classes = tuple(given)
    elif not trained:
        raise DataError(
            f"{title}: no training image has a label; data.options.classes would say which classes the teacher knows, "
            "by number or by name"
        )
    else:
        classes = tuple(map(str, range(max(map(int, trained)) + 1))) if numbers else tuple(sorted(trained))
    places = {str(k): k for k in range(len(classes))} if numbers else {name: k for k, name in enumerate(classes)}
    targets = {}
    for split, found in labels.items():
        for i, label in enumerate(found):
            if label is not None and label not in places:
                known = f"the numbers 0..{len(classes) - 1}" if numbers else f"{len(classes)} names, {_some(classes)}"
                raise DataError(f"{where(split, i)}: '{plain(label, 40)}' is no class; the classes are {known}")
        targets[split] = np.array([NO_LABEL if label is None else places[label] for label in found], dtype=np.int64)
    return classes, targets


def _some(names: Sequence[str]) -> str:
    return ", ".join(plain(name, 40) for name in names[:5]) + (" ..." if len(names) > 5 else "")
