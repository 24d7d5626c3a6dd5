"""What the export formats share: what they refuse, how a failure is told, and the code that uses a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kdzoo.contract.quiet import suppress_output
from kdzoo.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextlib.contextmanager
def export_errors(name: str, model: nn.Module, learned_from: Sequence[Tensor] | None) -> Iterator[None]:
    """Turn whatever libraries raise while format ``name`` is written into an ExportError with what they printed.

    ``learned_from`` are the batches that int8 learns ranges from; None where nothing is learned. Raises ExportError for
    a model in training mode, and where there are no such batches.
    """
    if model.training:
        raise ExportError(f"{name}: the model is in training mode, its BatchNorm and dropout too; call eval() first")
    if learned_from is not None and not learned_from:
        raise ExportError(f"{name}: quantize: int8 learns activation ranges from calibration batches; got none")
    with suppress_output() as said:
        try:
            yield
        except Exception as error:  # libraries raise whatever they like, and print the cause
            hint = f"\n{said.getvalue().strip()}" if said.getvalue().strip() else ""
            raise ExportError(
                f"{name}: {type(model).__name__} cannot be exported: {type(error).__name__}: {error}{hint}"
            ) from error


def sample_code(
    imports: Sequence[str],
    opening: Sequence[str],
    answering: Callable[[str], Sequence[str]],
    kind: str,
    pixels: Sequence[str] = (),
) -> str:
    """Python that runs a file on one image or one sample of measurements; run from the run folder.

    ``opening`` are lines that open the file and set ``preprocessing`` and ``classes``; ``answering`` gives the lines
    that set ``logits``, with the expression of the normalised sample (1, C, H, W). ``pixels`` are lines that turn an
    image file into ``pixels``; without them the sample is made up.
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
            *imports,
            *(["from PIL import Image, ImageOps"] if pixels else []),
            "",
            *opening,
            "mean, std = (np.float32(preprocessing[key]).reshape(1, -1, 1, 1) for key in ('mean', 'std'))",
            "",
            *(pixels or made_up),
            *answering(f"({name} - mean) / std"),
            "answer = classes[int(logits[0].argmax())]",
        ]
    )


def text_code(imports: Sequence[str], opening: Sequence[str], answering: Callable[[str], Sequence[str]]) -> str:
    """Python that runs a file on one text, like ``sample_code``; the expression is that of ids (1, L), int64."""
    return "\n".join(
        [
            "import json",
            "",
            "import numpy as np",
            *imports,
            "from tokenizers import Tokenizer",
            "",
            *opening,
            "",
            "tokenizer = Tokenizer.from_file('tokenizer/tokenizer.json')",
            "tokenizer.no_padding()",
            "ids = tokenizer.encode('your text').ids",
            *answering("np.array([ids])"),
            "answer = classes[int(logits[0].argmax())]",
        ]
    )
