"""Code that runs an exported .xml file without torch, timm or kdzoo."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.api.export import INPUT_NAME, OUTPUT_NAME

#: The section of the graph's runtime information that has the metadata.
SECTION = "kdzoo"
#: Without this, OpenVINO computes in bfloat16 where the CPU has instructions for it.
PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


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
            "import openvino",
            *(["from PIL import Image, ImageOps"] if pixels else []),
            "",
            *compiled(file),
            f"preprocessing = json.loads(model.get_rt_info(['{SECTION}', 'preprocessing']).value)",
            f"classes = json.loads(model.get_rt_info(['{SECTION}', 'classes']).value)",
            "mean, std = (np.float32(preprocessing[key]).reshape(1, -1, 1, 1) for key in ('mean', 'std'))",
            "",
            *(pixels or made_up),
            f"logits = compiled({{'{INPUT_NAME}': ({name} - mean) / std}})['{OUTPUT_NAME}']",
            "answer = classes[int(logits[0].argmax())]",
        ]
    )


def text_snippet(file: str) -> str:
    """Python that runs a file on one text; run from the run folder."""
    return "\n".join(
        [
            "import json",
            "",
            "import numpy as np",
            "import openvino",
            "from tokenizers import Tokenizer",
            "",
            *compiled(file),
            f"classes = json.loads(model.get_rt_info(['{SECTION}', 'classes']).value)",
            "",
            "tokenizer = Tokenizer.from_file('tokenizer/tokenizer.json')",
            "tokenizer.no_padding()",
            "ids = tokenizer.encode('your text').ids",
            f"logits = compiled({{'{INPUT_NAME}': np.array([ids])}})['{OUTPUT_NAME}']",
            "answer = classes[int(logits[0].argmax())]",
        ]
    )


def compiled(file: str) -> list[str]:
    """Lines that open the file."""
    return [
        "core = openvino.Core()",
        f"model = core.read_model({file!r})  # reads the .bin file next to it",
        "# Some CPUs compute in bfloat16 unless asked for float32; the file was checked in float32.",
        f"compiled = core.compile_model(model, 'CPU', {PRECISION!r})",
    ]
