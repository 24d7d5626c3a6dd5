"""Code that runs an exported .pte file from Python, without timm or kdzoo."""

from __future__ import annotations

from collections.abc import Sequence


def snippet(file: str, kind: str, pixels: Sequence[str] = ()) -> str:
    """Python that runs a file on one image or one sample of measurements; run from the run folder.

    ``pixels`` are lines that turn an image file into ``pixels``; without them the sample is made up.
    """
    sample = "your images, scaled to [0, 1]" if kind == "image" else "your measurements, as the data set has them"
    name = "pixels" if kind == "image" else "values"
    made_up = [
        "shape = (1, preprocessing['channels'], *preprocessing['size'])",
        f"{name} = np.random.default_rng(0).random(shape, dtype=np.float32)  # {sample}",
    ]
    return "\n".join(
        [
            "import json",
            "",
            "import numpy as np",
            "import torch",
            "from executorch.runtime import Runtime",
            *(["from PIL import Image, ImageOps"] if pixels else []),
            "",
            f"program = Runtime.get().load_program({file!r})",
            "preprocessing, classes = (",
            "    json.loads(program.load_method(f'get_{key}').execute([])[0]) for key in ('preprocessing', 'classes')",
            ")",
            "mean, std = (np.float32(preprocessing[key]).reshape(1, -1, 1, 1) for key in ('mean', 'std'))",
            "",
            *(pixels or made_up),
            f"inputs = torch.from_numpy(({name} - mean) / std)",
            "logits = program.load_method('forward').execute([inputs])[0]",
            "answer = classes[int(logits[0].argmax())]",
        ]
    )
