"""Code that runs an exported .pte file from Python, without timm or kdzoo."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.api.export import sample_code


def snippet(file: str, kind: str, pixels: Sequence[str] = ()) -> str:
    """Python that runs a file on one image or one sample of measurements, see ``sample_code``."""
    opening = [
        f"program = Runtime.get().load_program({file!r})",
        "preprocessing, classes = (",
        "    json.loads(program.load_method(f'get_{key}').execute([])[0]) for key in ('preprocessing', 'classes')",
        ")",
    ]

    def answering(normalised: str) -> list[str]:
        return [
            f"inputs = torch.from_numpy({normalised})",
            "logits = program.load_method('forward').execute([inputs])[0]",
        ]

    return sample_code(["import torch", "from executorch.runtime import Runtime"], opening, answering, kind, pixels)
