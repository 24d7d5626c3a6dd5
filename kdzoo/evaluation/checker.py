"""Run an exported file in a process of its own: ``python -m kdzoo.evaluation.checker '<request as JSON>'``.

Samples come as little-endian float32, text as int64, on standard input; logits leave as .npy files in the request's
folder.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def run(request: dict[str, Any], samples: BinaryIO) -> None:
    """Load the file with its exporter's runtime and answer the samples in the request's batches, as they come.

    Only the module of the exporter's class is imported: torch and the other plugins would take seconds for each file.
    """
    cls = getattr(import_module(request["module"]), request["class"])
    logits_of = cls(cls.Options(**request["options"])).load(Path(request["path"]), request["threads"])
    shape, results = tuple(request["shape"]), Path(request["results"])
    kind = np.dtype(request["dtype"])
    size = kind.itemsize * int(np.prod(shape))
    answers: list[np.ndarray] = []
    while content := samples.read(request["batch"] * size):
        batch = np.frombuffer(content, dtype=kind).reshape(-1, *shape)
        if not answers:
            for name, part in (("alone", batch[:1]), ("odd", batch[: request["odd"]])):
                np.save(results / f"{name}.npy", logits_of(trimmed(part, request["pad"])), allow_pickle=False)
        answers.append(logits_of(trimmed(batch, request["pad"])))
    np.save(results / "whole.npy", np.concatenate(answers), allow_pickle=False)


def trimmed(batch: np.ndarray, pad: int | None) -> np.ndarray:
    """Text (N, L) without the fill that all of its rows share; anything else, whose ``pad`` is None, as it is."""
    return batch if pad is None else batch[:, : int((batch != pad).sum(axis=1).max())]


def main() -> int:
    """Run the request in the first argument; say on one line what went wrong."""
    try:
        run(json.loads(sys.argv[1]), sys.stdin.buffer)
    except Exception as error:  # a runtime raises whatever it likes; the waiting process reports this line
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
