"""State as JSON and back: tuples, keys that are no text, and tensors come back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def packed(value: Any, tensors: dict[str, Tensor] | None = None, place: str = "") -> Any:
    """Return nested dicts, lists, tuples, strings, numbers, booleans and None as JSON holds them.

    With ``tensors``, the value may hold tensors too; they are put there under their place below ``place``, such as
    "groups/0/lr".
    """
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: packed(inner, tensors, f"{place}/{key}") for key, inner in value.items()}
        pairs = [[packed(key), packed(inner, tensors, f"{place}/{key}")] for key, inner in value.items()]
        return {"__pairs__": pairs}
    if isinstance(value, list | tuple):
        inside = [packed(inner, tensors, f"{place}/{i}") for i, inner in enumerate(value)]
        return {"__tuple__": inside} if isinstance(value, tuple) else inside
    if tensors is not None and hasattr(value, "untyped_storage"):  # a tensor; importing torch takes seconds
        tensors[place] = value
        return {"__tensor__": place}
    return value


def unpacked(value: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Return what ``packed`` was given."""
    if isinstance(value, list):
        return [unpacked(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(unpacked(inner, tensors) for inner in value["__tuple__"])
    if "__pairs__" in value:
        return {unpacked(key): unpacked(inner, tensors) for key, inner in value["__pairs__"]}
    if "__tensor__" in value:
        assert tensors is not None, "tensors were packed, so they are needed to unpack"
        return tensors[value["__tensor__"]]
    return {key: unpacked(inner, tensors) for key, inner in value.items()}
