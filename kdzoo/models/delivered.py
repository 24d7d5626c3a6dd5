"""The student of a run folder as the plain network that it is."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
from torch import nn

from kdzoo.errors import ModelError, in_words, plain
from kdzoo.storage.sealed import read_tensors


def delivered_model(folder: Path, record: Mapping[str, Any]) -> nn.Module:
    """Return the network that student.json describes, with the weights of student.safetensors, in eval mode on the CPU.

    Raises ModelError where the plugin that offers it is missing, CorruptError where the weights are not those recorded.
    """
    weights = read_tensors(folder / "student.safetensors", record["sha256"])
    if module := record["imports"]:
        try:
            import_module(module)  # it makes the network known to timm
        except Exception as error:  # whatever keeps a plugin from being imported
            raise ModelError(
                f"{folder}: the student '{plain(record['model'])}' is of {plain(module)}, which cannot be imported: "
                f"{in_words(error)}"
            ) from error
    args = {"num_classes": len(record["classes"]), **record["args"]}
    model = timm.create_model(record["model"], **{key: _as_made(value) for key, value in args.items()})
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _as_made(value: Any) -> Any:
    """JSON has no tuples; networks are made with them."""
    return tuple(value) if isinstance(value, list) else value
