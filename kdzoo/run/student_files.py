"""The student on disk: its plain weights, how to build it, and how to use it without kdzoo."""

from __future__ import annotations

from kdzoo.contract.stage import StageResult
from kdzoo.models.weights import delivered_weights, files_beside, usage_beside
from kdzoo.run.builder import Builder
from kdzoo.storage.atomic import sha256_file, write_bytes, write_tensors
from kdzoo.storage.run_folder import RunFolder


def write_student(build: Builder, folder: RunFolder, result: StageResult) -> dict[str, str]:
    """Write student.safetensors, student.json and what else the student needs; return how the student is used."""
    network, classes = build.trained_network(result), list(build.data.classes)
    write_tensors(folder.path("student.safetensors"), delivered_weights(network.model), {"model": result.model.name})
    beside = files_beside(network.model, "student.safetensors", classes)
    for name, content in (network.inputs.files(at_root=bool(beside)) | beside).items():
        path = folder.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    folder.write_json(
        "student.json",
        {
            "model": result.model.name,
            "args": network.create_args,
            "imports": network.module_to_import,
            "classes": classes,
            **network.inputs.record(),
            "sha256": sha256_file(folder.path("student.safetensors")),
        },
    )
    usage = network.inputs.usage(result.model.name, network.create_args, network.module_to_import, classes)
    return usage | (usage_beside(network.model) if beside else {})
