"""A finished run folder of made-up numbers, as the runner would leave it, for tests of the report."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from kdzoo.storage.run_folder import RunFolder

CLASSES = ["airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def entry(label: str, model: str, top1: float, agreement: float, ece: float, params: float, size: float, macs: float,
          p50: float) -> dict[str, Any]:  # fmt: skip
    """What results.json holds of a network; the label says which."""
    network, _, index = label.partition(" ")
    return {
        "label": label,
        "model": model,
        "network": network,
        "index": int(index or 0),
        "format": None,
        "quantize": None,
        "of": None,
        "top1_percent": top1,
        "top5_percent": 99.5,
        "agreement_percent": agreement,
        "ece": ece,
        "nll": 0.3,
        "params_m": params,
        "size_mib": size,
        "macs_g": macs,
        "latency_ms": {"p50": p50, "p95": p50 * 1.21},
    }


def file_entry(label: str, network: dict[str, Any], name: str, **measured: Any) -> dict[str, Any]:
    """What results.json holds of a file that was made from a network."""
    file_format, _, quantize = label.removesuffix(f" of {network['label']}").partition(" ")
    about = {"label": label, "format": file_format, "quantize": quantize or None, "of": network["label"], "file": name}
    usage = {"title": "With onnxruntime alone", "code": f"file = 'export/{name}'"}
    return {**network, **about, "usage": usage, "rejected": [], **measured}


STUDENT_ENTRY = entry("student", "cifar_resnet8", 89.02, 90.87, 0.0193, 0.078042, 0.3161, 0.01256, 0.591)

RESULTS: dict[str, Any] = {
    "teacher": entry("teacher", "cifar_resnet110", 93.57, 100.0, 0.0412, 1.730714, 6.89, 0.2553, 9.87),
    "teachers": [],
    "control": entry("control", "cifar_resnet8", 87.61, 88.93, 0.0278, 0.078042, 0.3161, 0.01256, 0.583),
    "student": STUDENT_ENTRY,
    "peers": [],
    "exports": [
        file_entry("onnx", STUDENT_ENTRY, "student.onnx", size_mib=0.3092, latency_ms={"p50": 0.211, "p95": 0.255}),
        file_entry(
            "onnx int8",
            STUDENT_ENTRY,
            "student.int8.onnx",
            top1_percent=88.87,
            agreement_percent=90.61,
            ece=0.0201,
            size_mib=0.1104,
            latency_ms={"p50": 0.127, "p95": 0.154},
        ),
    ],
    "paired": {"both": 8427, "student_only": 475, "control_only": 334, "neither": 764},
    "per_class": {
        "classes": CLASSES,
        "top1_percent": {
            label: [base + 5 * math.sin(k * 2.4) + tilt * k for k in range(10)]
            for label, base, tilt in (("teacher", 91.0, 0.3), ("control", 84.0, 0.5), ("student", 87.0, 0.2))
        },
    },
    "data": {"name": "cifar10", "test_samples": 10000, "train": 45000, "validation": 5000, "test": 10000},
    "algorithm": "example_algorithm",
    "pairing": {
        "student": [
            "stride 1: layer1 (16, 32, 32) <- layer1 (16, 32, 32)",
            "stride 2: layer2 (32, 16, 16) <- layer2 (32, 16, 16)",
            "stride 4: layer3 (64, 8, 8) <- layer3 (64, 8, 8)",
        ]
    },
    "stages": [
        {"name": "teacher", "key": "0f1e2d3c4b5a", "best_epoch": 28, "seconds": 5321.0, "precision": "bf16"},
        {"name": "control", "key": "a1b2c3d4e5f6", "best_epoch": 29, "seconds": 401.4, "precision": "fp32"},
        {"name": "student", "key": "99aabbccddee", "best_epoch": 27, "seconds": 612.9, "precision": "fp32"},
    ],
    "warnings": ["stage 'student': term 'kd' is 63 times the term 'task' after its weight"],
    "seconds": 6391.2,
    "test_evaluations": 1,
    "usage": {
        "kind": "image",
        "inputs": "float32 `(N, 3, 32, 32)`, pixels scaled to [0, 1].",
        "title": "With timm alone",
        "code": "import timm",
    },
}

#: The control in the student's coarse format.
OF_CONTROL = file_entry("onnx int8 of control", RESULTS["control"], "control.int8.onnx", top1_percent=87.3)

#: A file that lost too much accuracy: it is measured, and not delivered.
REJECTED = file_entry(
    "onnx int4",
    STUDENT_ENTRY,
    "student.int4.onnx.rejected",
    top1_percent=71.25,
    latency_ms={"p50": 0.1, "p95": 0.1},
    usage=None,
    rejected=["top1_percent 71.25 is 17.77 points below the student's 89.02; 1.0 is allowed"],
)

#: One item of each kind, as results.json holds them, and two variants.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
ITEMS: list[dict[str, Any]] = [
    {
        "kind": "table",
        "title": "Assistants",
        "columns": ["model", "accuracy, %", "parameters"],
        "rows": [["cifar_resnet20", 91.256, 272474], ["none", None, 0]],
        "note": "One row a size.",
    },
    {
        "kind": "heat_map",
        "title": "Accuracy after each task",
        "rows": ["after 1", "after 2"],
        "columns": ["task 1", "task 2"],
        "values": [[98.5, None], [61.25, 97.0]],
        "unit": "%",
        "note": "Rows are later.",
    },
    {
        "kind": "scatter",
        "title": "Cost and accuracy",
        "x_label": "parameters, millions",
        "y_label": "accuracy, %",
        "points": [
            {"x": 0.1, "y": 88.0, "label": "a", "group": "front"},
            {"x": 0.4, "y": 91.0, "label": "b", "group": "front"},
            {"x": 0.3, "y": 87.0, "label": "c", "group": "tried"},
        ],
        "front": "front",
        "note": "Up and to the left is better.",
    },
    {"kind": "images", "title": "Samples", "images": [PIXEL, PIXEL], "captions": ["cat"], "note": "Made up."},
]
VARIANTS: list[dict[str, Any]] = [
    {**STUDENT_ENTRY, "label": "exit 1", "top1_percent": 80.123, "agreement_percent": 82.0, "latency_ratio": 0.34},
    {**STUDENT_ENTRY, "label": "ensemble", "top1_percent": 90.5, "agreement_percent": 92.0, "latency_ratio": 2.03},
]

PROVENANCE: dict[str, Any] = {
    "environment": {
        "kdzoo": "0.1.0", "torch": "2.15.0", "timm": "1.0.31", "python": "3.11.2",
        "device": "cpu", "cpu": "x86_64", "isa": "AVX512", "threads": 2,
        "settings": {"torch's gradient mode": True, "torch.backends.cuda.math_sdp": True},
    },
    "plugins": {
        "example": {"distribution": "example", "version": "2.0"},
        "vision": {"distribution": "kdzoo", "version": "0.1.0"},
    },
    "recipe_hash": "5e0f" * 16,
    "seed": 0,
    "commit": "0123456789ab",
    "processes": 1,
    "data": {
        "name": "cifar10",
        "fingerprint": "c0ffee" * 10,
        "splits": {"train": 45000, "validation": 5000, "test": 10000},
        "classes": CLASSES,
        "source": "made up",
        "licence": "none",
    },
}  # fmt: skip

RECIPE = """\
version: 1
name: made-up-numbers
description: Synthetic numbers for tests; nobody trained this.
algorithm:
  name: example_algorithm
  options: {temperature: 4.0}
  loss_weights: {task: 0.1, kd: 0.9}
models:
  teacher: {name: cifar_resnet110, weights: train}
  student: {name: cifar_resnet8}
data: {name: cifar10, batch_size: 128, augment: crop_flip}
train:
  epochs: 30
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}
  schedule: {name: cosine}
export: [{format: onnx}, {format: onnx, quantize: int8}]
seed: 0
"""

STUDENT = {
    "model": "cifar_resnet8",
    "args": {"num_classes": 10, "in_chans": 3},
    "classes": CLASSES,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.247, 0.2435, 0.2616],
    "size": [32, 32],
    "channels": 3,
    "sha256": "0" * 64,
}


def rows(epochs: int = 30) -> list[dict[str, Any]]:
    """metrics.jsonl: a training and a validation row for each epoch of three stages."""
    written = []
    for stage, top, first in (("teacher", 93.2, 1.6), ("control", 87.4, 1.7), ("student", 88.8, 1.75)):
        for epoch in range(epochs):
            done = (epoch + 1) / epochs
            row = {"stage": stage, "epoch": epoch, "step": (epoch + 1) * 351, "split": "train"}
            terms = {"task": first * math.exp(-3 * done) + 0.05 * math.sin(epoch)}
            if stage == "student":
                terms["kd"] = 9.0 * math.exp(-2.2 * done)
            written.append({**row, **terms, "lr": 0.1 * (1 + math.cos(math.pi * done)) / 2})
            accuracy = top * (1 - 0.55 * math.exp(-5 * done)) + math.sin(epoch * 1.7) * (1 - done) * 2
            written.append({**row, "split": "validation", "top1_percent": accuracy})
    return written


def write_run(folder: Path, leave_out: tuple[str, ...] = (), **changes: Any) -> Path:
    """Write the run folder; ``changes`` replace entries of results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "results.json": json.dumps({**copy.deepcopy(RESULTS), **changes}),
        "provenance.json": json.dumps(PROVENANCE),
        "recipe.yaml": RECIPE,
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows()),
        "student.json": json.dumps(STUDENT),
    }
    for name, text in files.items():
        if name not in leave_out:
            (folder / name).write_text(text)
    return folder


def finished_run(folder: Path, **changes: Any) -> Path:
    """Write the run folder with its record and manifest, so that it verifies."""
    write_run(folder, **changes)
    record = {"run_id": "0001-seed0", "sequence": 1, "name": "made-up-numbers", "seed": 0, "status": "running"}
    record |= {"checkpointed": [], "recipe_hash": "", "recipe": {}}
    RunFolder(folder, record, "new").finish()
    return folder
