"""Export as a transaction: the folder holds a file that passed every check, or what it held before.

A file is checked the way its user will meet it: a fresh process loads it with its own runtime and runs the whole
test split, one sample alone and an odd batch.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdzoo.contract.classification import have_labels, result_entry, top1_percent
from kdzoo.contract.extension_points import Exporter
from kdzoo.errors import ExportError
from kdzoo.models.network import Network
from kdzoo.models.weights import count_parameters
from kdzoo.version import __version__

#: Samples on which the file is held against the plain model in float32 on the CPU.
SAMPLES = 64
#: Largest size of the odd batch, which no exporter can have seen.
ODD = 7
#: How far, on average and relative to the largest, logits may be from the student's own evaluation, which may have
#: run in TF32 or bfloat16. Inputs that were prepared differently are further apart than that.
ROUNDING = 0.02
#: Samples handed to the fresh process at a time, and most that it hands to the file.
BATCH = 256
#: A fresh process that takes longer than this hangs.
TIMEOUT_S = 3600.0


def export_and_verify(
    exporter: Exporter,
    network: Network,
    *,
    inputs: np.ndarray,
    targets: np.ndarray,
    student_logits: np.ndarray,
    teacher_logits: np.ndarray | None,
    calibration: Sequence[Tensor],
    write: Callable[[Mapping[str, bytes | None]], None],
    stem: str,
    classes: Sequence[str],
    threads: int | None = None,
) -> dict[str, Any]:
    """Export the plain model of ``network`` to ``<stem>[.<label>]<suffix>`` and return its results entry.

    A format may write further files next to that one. All of them are kept, rejected and measured together.

    ``inputs`` (N, C, H, W) is the whole test split as the model takes it, normalised, float32, or text, (N, L), int64;
    a memory-mapped array will do. ``targets`` are (N,), ``student_logits`` (N, K) what the student itself gave for
    these samples, and ``calibration`` training batches prepared like ``inputs``. The entry's latency is None: it means
    something only when the file is timed in turn with the models. ``expected_top1_percent`` is the accuracy of the
    student's own logits.

    ``rejected`` of the entry lists what is wrong with the file, with both numbers of each failed check. A file with
    anything wrong is kept as ``*.rejected`` for a look, and one that was there before stays. ``write`` is given
    name -> content, or None for a file to remove, and changes the folder. Raises ExportError when the exporter writes
    no file.
    """
    assert len(inputs) == len(targets) == len(student_logits), "inputs, targets and logits of other samples"
    names = exporter.file_names(stem)
    plain = plain_copy(network.model)  # the exporter gets another copy, so that it cannot change what counts as right
    with tempfile.TemporaryDirectory(prefix="kdzoo-export-") as scratch:
        made = Path(scratch) / names[0]
        example = torch.from_numpy(np.array(inputs[:2], dtype=network.inputs.dtype))
        exporter.export(plain_copy(plain), example, made, file_metadata(network, classes), calibration)
        missing = [name for name in names if not (made.parent / name).is_file()]
        if missing:
            raise ExportError(f"{exporter.name}: its exporter wrote no file; it should have written {missing[0]}")
        problems, logits = check(
            exporter, made, plain, inputs, targets, student_logits, threads, Path(scratch), network.inputs.signature()
        )
        contents = {name: (made.parent / name).read_bytes() for name in names}
    put(contents, write, rejected=bool(problems))
    outcome = {
        "expected_top1_percent": top1_percent(student_logits, targets) if have_labels(targets) else None,
        "file": f"{names[0]}.rejected" if problems else names[0],
        "rejected": problems,
    }
    size_bytes = sum(map(len, contents.values()))
    return {**measured(exporter, network, logits, targets, teacher_logits, size_bytes), **outcome}


def put(contents: dict[str, bytes], write: Callable[[Mapping[str, bytes | None]], None], *, rejected: bool) -> None:
    """Have the files of one export written, the first of which is loaded and finds the others by their names."""
    if rejected:
        write({f"{name}.rejected": content for name, content in contents.items()})
        return
    first = next(iter(contents))
    if len(contents) > 1:  # a kill then leaves no file to load, but never one next to the weights of another export
        write({first: None})
    write({name: contents[name] for name in reversed(contents)} | {f"{name}.rejected": None for name in contents})


def measured(
    exporter: Exporter,
    network: Network,
    logits: np.ndarray | None,
    targets: np.ndarray,
    teacher_logits: np.ndarray | None,
    size_bytes: int,
) -> dict[str, Any]:
    """Return what a file scores and costs; ``logits`` None is a file that does not answer."""
    if logits is None:
        return {**not_exported(exporter, network, ""), "size_mib": size_bytes / 2**20}
    return result_entry(
        label=file_label(exporter),
        model=network.spec.name,
        logits=logits,
        targets=targets,
        teacher_logits=teacher_logits,
        parameters=count_parameters(network.model),
        size_bytes=size_bytes,
        macs=network.macs,
    )


def not_exported(exporter: Exporter, network: Network, problem: str) -> dict[str, Any]:
    """Return the entry of a file that was not written, or does not answer: nothing of what it scores is known."""
    return {
        "label": file_label(exporter),
        "model": network.spec.name,
        **dict.fromkeys(("top1_percent", "top5_percent", "agreement_percent", "ece", "nll")),
        "params_m": count_parameters(network.model) / 1e6,
        "size_mib": None,
        "macs_g": network.macs / 1e9,
        "latency_ms": None,
        "expected_top1_percent": None,
        "file": None,
        "rejected": [problem],
    }


def file_label(exporter: Exporter) -> str:
    """What people call a file of this format, e.g. ``onnx int8``."""
    return " ".join(part for part in (exporter.name, exporter.label) if part)


def plain_copy(model: nn.Module) -> nn.Module:
    """Return the model as files hold it: on the CPU, in eval mode, float32, contiguous, without gradient."""
    plain = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    return plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def file_metadata(network: Network, classes: Sequence[str]) -> dict[str, str]:
    """Return what a file says of itself: all that a user needs to feed it.

    Text comes out of the tokenizer that is delivered with the student.
    """
    return {
        "model": network.spec.name,
        "classes": json.dumps(list(classes)),
        "preprocessing": json.dumps(network.inputs.metadata()),
        "kdzoo_version": __version__,
    }


def check(
    exporter: Exporter,
    path: Path,
    plain: nn.Module,
    inputs: np.ndarray,
    targets: np.ndarray,
    student_logits: np.ndarray,
    threads: int | None,
    scratch: Path,
    signature: Mapping[str, Any],
) -> tuple[list[str], np.ndarray | None]:
    """Return what is wrong with the file, each with what was got and what would be right, and its logits (N, K).

    ``signature`` is that of the inputs, see ``Inputs.signature``.
    """
    try:
        got = answers(exporter, path, inputs, threads or torch.get_num_threads(), scratch, signature)
    except ExportError as error:
        return [str(error)], None
    logits, where = got["whole"], f"all {len(targets)} test samples"
    if logits.shape != student_logits.shape:
        return [f"{where}: logits of shape {logits.shape}, the student's are {student_logits.shape}"], None
    if not np.isfinite(logits).all():
        return [f"{where}: {int((~np.isfinite(logits)).sum())} logits are not finite"], None
    problems = []
    for what, values in (("one sample alone", got["alone"]), (f"a batch of {len(got['odd'])}", got["odd"])):
        furthest = distance(values, logits[: len(values)])
        if not furthest <= (exporter.tolerance_logits or ROUNDING):
            problems.append(f"{what}: logits {furthest:.2g} of the largest away from those in a large batch")
    if exporter.tolerance_logits is not None:
        with torch.no_grad():
            first = np.array(inputs[:SAMPLES], dtype=np.dtype(signature["dtype"]).newbyteorder("="))
            expected = plain(torch.from_numpy(first)).numpy()
        furthest = distance(logits[:SAMPLES], expected)
        if not furthest <= exporter.tolerance_logits:
            problems.append(
                f"the first {len(expected)} samples: logits {furthest:.2g} of the largest away from the model's, "
                f"at most {exporter.tolerance_logits:g} is right"
            )
        average = float(np.abs(logits - student_logits).mean() / np.abs(student_logits).max())
        if not average <= ROUNDING:
            problems.append(
                f"{where}: logits {average:.2g} of the largest away from the student's on average, "
                f"at most {ROUNDING:g} is right; were the inputs prepared as in its evaluation?"
            )
    right = "right"
    if not have_labels(targets):  # what counts as right is then the student's own answer
        right, targets = "as the student answers", student_logits.argmax(axis=1)
    ours, students = top1_percent(logits, targets), top1_percent(student_logits, targets)
    allowed = max(exporter.tolerance_points, 100.0 / len(targets))  # one sample may always tip over
    if students - ours > allowed + 1e-9:
        problems.append(
            f"{where}: {ours:.2f} % {right}, the student {students:.2f} %, at most {allowed:.2f} points may be lost"
        )
    return problems, logits


def distance(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest expected value; infinite for another shape."""
    if values.shape != expected.shape:
        return float("inf")
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def answers(
    exporter: Exporter,
    path: Path,
    inputs: np.ndarray,
    threads: int,
    scratch: Path,
    signature: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Return the file's logits of the "whole" split, of one sample "alone" and of an "odd" batch of the first few."""
    request = {
        "module": type(exporter).__module__,
        "class": type(exporter).__qualname__,
        "options": exporter.options.model_dump(mode="json"),
        "path": os.fspath(path),
        "threads": threads,
        "shape": list(inputs.shape[1:]),
        **signature,
        "batch": min(BATCH, exporter.largest_batch or BATCH),
        "odd": odd_size(min(len(inputs), exporter.largest_batch or ODD)),
        "results": os.fspath(scratch),
    }
    run_in_fresh_process(request, inputs, scratch)
    return {what: np.load(scratch / f"{what}.npy", allow_pickle=False) for what in ("whole", "alone", "odd")}


def run_in_fresh_process(request: Mapping[str, Any], inputs: np.ndarray, scratch: Path) -> None:
    """Have check_file answer the request in a new interpreter; raise ExportError with its last words if it fails.

    Samples go through a pipe, batch by batch, so that no split is too large; answers come back as .npy files.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part or os.getcwd() for part in sys.path)}
    command = [sys.executable, "-m", "kdzoo.evaluation.checker", json.dumps(request)]
    with (scratch / "said.txt").open("w+b") as said:
        # A session of its own: an interrupt of the run must not look like a fault of the file.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, start_new_session=True
        ) as process:
            assert process.stdin is not None
            watch = threading.Timer(TIMEOUT_S, process.kill)
            watch.start()
            # A pipe that breaks is a process that ended early; its exit code and last words tell why.
            with contextlib.suppress(BrokenPipeError):
                for start in range(0, len(inputs), BATCH):
                    process.stdin.write(
                        np.ascontiguousarray(inputs[start : start + BATCH], dtype=request["dtype"]).data
                    )
                process.stdin.close()
            code = process.wait()
            watch.cancel()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
    if code != 0:
        raise ExportError(f"its own runtime failed in a fresh process: {words[-1] if words else f'exit code {code}'}")


def odd_size(samples: int) -> int:
    """The largest odd number of samples there are, up to ``ODD``."""
    return min(ODD, samples if samples % 2 else max(1, samples - 1))
