"""What a measured number belongs to: command, commit, hardware and versions; and the file it is kept in."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from measure import processor

from kdzoo.run.provenance import commit_of_source
from kdzoo.storage.atomic import write_bytes
from kdzoo.training.device import cpu_has_bf16
from kdzoo.training.environment import environment


def provenance() -> dict[str, Any]:
    """Return what a reader needs to repeat or to place a measurement."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit_of_source(),
        "cpu_model": processor(),
        "cpu_bf16": cpu_has_bf16(),
        **environment(torch.device("cpu")),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a benchmark's result beside what it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps({**provenance(), **result}, indent=2) + "\n").encode())
