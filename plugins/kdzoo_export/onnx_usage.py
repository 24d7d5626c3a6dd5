"""Code that runs an exported .onnx file without torch, timm or kdzoo."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.api.export import INPUT_NAME, OUTPUT_NAME

#: Makes onnxruntime add products of 8 bits in more than 16, where the CPU would not; other CPUs ignore it.
PRECISE = "session.x64quantprecision"


def snippet(file: str, kind: str, precise: bool, pixels: Sequence[str] = ()) -> str:
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
            "import onnxruntime",
            *(["from PIL import Image, ImageOps"] if pixels else []),
            "",
            *session(file, precise),
            "metadata = session.get_modelmeta().custom_metadata_map",
            "preprocessing, classes = json.loads(metadata['preprocessing']), json.loads(metadata['classes'])",
            "mean, std = (np.float32(preprocessing[key]).reshape(1, -1, 1, 1) for key in ('mean', 'std'))",
            "",
            *(pixels or made_up),
            f"logits = session.run(['{OUTPUT_NAME}'], {{'{INPUT_NAME}': ({name} - mean) / std}})[0]",
            "answer = classes[int(logits[0].argmax())]",
        ]
    )


def text_snippet(file: str, precise: bool) -> str:
    """Python that runs a file on one text; run from the run folder."""
    return "\n".join(
        [
            "import json",
            "",
            "import numpy as np",
            "import onnxruntime",
            "from tokenizers import Tokenizer",
            "",
            *session(file, precise),
            "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])",
            "",
            "tokenizer = Tokenizer.from_file('tokenizer/tokenizer.json')",
            "tokenizer.no_padding()",
            "ids = tokenizer.encode('your text').ids",
            f"logits = session.run(['{OUTPUT_NAME}'], {{'{INPUT_NAME}': np.array([ids])}})[0]",
            "answer = classes[int(logits[0].argmax())]",
        ]
    )


def session(file: str, precise: bool) -> list[str]:
    """Lines that open the file; ``precise`` where its weights have all 8 bits."""
    providers = "providers=['CPUExecutionProvider']"
    if not precise:
        return [f"session = onnxruntime.InferenceSession({file!r}, {providers})"]
    return [
        "options = onnxruntime.SessionOptions()",
        "# Without this, an x86 CPU without VNNI adds products of 8 bits in 16 bits, where they may not fit.",
        f"options.add_session_config_entry('{PRECISE}', '1')",
        f"session = onnxruntime.InferenceSession({file!r}, options, {providers})",
    ]
