"""Code that runs an exported .onnx file without torch, timm or kdzoo."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.api.export import INPUT_NAME, OUTPUT_NAME, sample_code, text_code

#: Makes onnxruntime add products of 8 bits in more than 16, where the CPU would not; other CPUs ignore it.
PRECISE = "session.x64quantprecision"


IMPORTS = ["import onnxruntime"]


def snippet(file: str, kind: str, precise: bool, pixels: Sequence[str] = ()) -> str:
    """Python that runs a file on one image or one sample of measurements, see ``sample_code``."""
    opening = [
        *session(file, precise),
        "metadata = session.get_modelmeta().custom_metadata_map",
        "preprocessing, classes = json.loads(metadata['preprocessing']), json.loads(metadata['classes'])",
    ]
    return sample_code(IMPORTS, opening, answering, kind, pixels)


def text_snippet(file: str, precise: bool) -> str:
    """Python that runs a file on one text, see ``text_code``."""
    classes = "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])"
    return text_code(IMPORTS, [*session(file, precise), classes], answering)


def answering(inputs: str) -> list[str]:
    """The line that sets ``logits``."""
    return [f"logits = session.run(['{OUTPUT_NAME}'], {{'{INPUT_NAME}': {inputs}}})[0]"]


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
