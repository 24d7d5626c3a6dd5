"""Code that runs an exported .xml file without torch, timm or kdzoo."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.api.export import INPUT_NAME, OUTPUT_NAME, sample_code, text_code

#: The section of the graph's runtime information that has the metadata.
SECTION = "kdzoo"
#: Without this, OpenVINO computes in bfloat16 where the CPU has instructions for it.
PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


IMPORTS = ["import openvino"]
CLASSES = f"classes = json.loads(model.get_rt_info(['{SECTION}', 'classes']).value)"


def snippet(file: str, kind: str, pixels: Sequence[str] = ()) -> str:
    """Python that runs a file on one image or one sample of measurements, see ``sample_code``."""
    preprocessing = f"preprocessing = json.loads(model.get_rt_info(['{SECTION}', 'preprocessing']).value)"
    return sample_code(IMPORTS, [*compiled(file), preprocessing, CLASSES], answering, kind, pixels)


def text_snippet(file: str) -> str:
    """Python that runs a file on one text, see ``text_code``."""
    return text_code(IMPORTS, [*compiled(file), CLASSES], answering)


def answering(inputs: str) -> list[str]:
    """The line that sets ``logits``."""
    return [f"logits = compiled({{'{INPUT_NAME}': {inputs}}})['{OUTPUT_NAME}']"]


def compiled(file: str) -> list[str]:
    """Lines that open the file."""
    return [
        "core = openvino.Core()",
        f"model = core.read_model({file!r})  # reads the .bin file next to it",
        "# Some CPUs compute in bfloat16 unless asked for float32; the file was checked in float32.",
        f"compiled = core.compile_model(model, 'CPU', {PRECISION!r})",
    ]
