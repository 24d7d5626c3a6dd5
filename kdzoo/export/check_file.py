"""Run an exported file in a process of its own: ``python -m kdzoo.export.check_file '<request as JSON>'``.

Samples come as little-endian float32 on standard input; logits leave as .npy files in the request's folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kdzoo.zoo import load_zoo

BATCH = 256


def run(request: dict[str, Any], samples: BinaryIO) -> None:
    """Load the file with its exporter's runtime and answer the samples in batches, as they come."""
    cls = load_zoo().exporter(request["exporter"])
    logits_of = cls(cls.Options(**request["options"])).load(Path(request["path"]), request["threads"])
    shape, results = tuple(request["shape"]), Path(request["results"])
    size = 4 * int(np.prod(shape))
    answers: list[np.ndarray] = []
    while content := samples.read(BATCH * size):
        batch = np.frombuffer(content, dtype="<f4").reshape(-1, *shape)
        if not answers:
            np.save(results / "alone.npy", logits_of(batch[:1]), allow_pickle=False)
            np.save(results / "odd.npy", logits_of(batch[: request["odd"]]), allow_pickle=False)
        answers.append(logits_of(batch))
    np.save(results / "whole.npy", np.concatenate(answers), allow_pickle=False)


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
