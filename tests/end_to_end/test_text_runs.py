"""Text as a user types it: a run from a recipe, its files fed as its card says, the teacher's file beside them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "data"
SIZES = "hidden_size: 32, num_attention_heads: 2, intermediate_size: 48"
RECIPE = f"""
version: 1
name: intents
algorithm: {{name: distilbert}}
models:
  teacher: {{name: text_bert_tiny, args: {{config: {{num_hidden_layers: 4, {SIZES}}}}}}}
  student:
    name: text_bert_tiny
    weights: teacher
    args: {{config: {{num_hidden_layers: 4, {SIZES}}}, layers: [1, 3], table: training}}
data: {{name: clinc150, batch_size: 16, root: {FIXTURES}, options: {{vocab_size: 300}}}}
train: {{epochs: 12, optimizer: {{name: adamw, lr: 3e-3, momentum: null, weight_decay: 0.01}}}}
export: [{{format: onnx, teacher: true}}]
trackers: []
device: cpu
threads: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    (root / "intents.yaml").write_text(RECIPE)
    done = CommandLine(root)("run", root / "intents.yaml", "--out", root / "runs")
    assert done.code == 0, done
    return root / "runs" / "intents" / "0001-seed0"


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_student_learns_from_the_text(results: dict[str, Any]) -> None:
    assert results["data"]["test_samples"] == 60
    chance = 100 / 12  # percent, of 12 intents
    assert min(results[who]["top1_percent"] for who in ("teacher", "control", "student")) > 1.5 * chance


def test_both_files_are_measured_beside_the_models(folder: Path, results: dict[str, Any]) -> None:
    student, teacher = results["exports"]
    assert [(file["network"], file["of"]) for file in (student, teacher)] == [
        (who, who) for who in ("student", "teacher")
    ]
    assert (student["label"], student["file"]) == ("onnx", "student.onnx")
    assert (teacher["label"], teacher["file"]) == ("onnx of teacher", "teacher.onnx")
    assert student["top1_percent"] == pytest.approx(results["student"]["top1_percent"], abs=2)
    assert teacher["top1_percent"] == pytest.approx(results["teacher"]["top1_percent"], abs=2)
    assert all(entry["latency_ms"]["p50"] > 0 for entry in (student, teacher))
    for file in ("student.onnx", "teacher.onnx"):
        assert (folder / "export" / file).stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert page.index("onnx of teacher") < page.index(">control<")


def test_what_is_saved_and_kept_is_shown(results: dict[str, Any]) -> None:
    (table,) = results["report_items"]
    assert table["title"] == "What the student saves and keeps"
    rows = {row[0]: dict(zip(table["columns"][1:], row[1:], strict=True)) for row in table["rows"]}
    assert set(rows) == {"teacher", "control", "student", "onnx", "onnx of teacher"}
    file, reference = results["exports"]
    expected = {
        "parameters, millions": file["params_m"],
        "MiB on disk": file["size_mib"],
        "seconds per 100 requests": file["latency_ms"]["p50"] / 10,
        "accuracy, %": file["top1_percent"],
        "fewer parameters, %": 100 * (1 - file["params_m"] / reference["params_m"]),
        "less time, %": 100 * (1 - file["latency_ms"]["p50"] / reference["latency_ms"]["p50"]),
        "of the teacher's accuracy, %": 100 * file["top1_percent"] / reference["top1_percent"],
    }
    assert rows["onnx"] == pytest.approx(expected)
    assert rows["onnx of teacher"]["fewer parameters, %"] == 0


@pytest.mark.costly(20)
def test_the_cards_python_runs(folder: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    answers = []
    for snippet in snippets:
        code = snippet.replace("your text", "what is my balance") + "\nprint(answer)"
        ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        answers.append(ran.stdout.strip())
    assert answers[0] == answers[1]
    assert answers[0] in json.loads((folder / "student.json").read_text())["classes"]


def test_the_file_takes_the_tokenizers_ids_whatever_pieces_the_student_kept(folder: Path) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    told = json.loads((folder / "student.json").read_text())
    assert told["args"]["rows"] <= told["tokens"]["vocab_size"] == 300
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    session = onnxruntime.InferenceSession(folder / "export" / "student.onnx")
    for text in ("translate hello", "a text of words like zyzzyva that the training split has never seen"):
        ids = np.array([tokenizer.encode(text).ids])
        (logits,) = session.run(["logits"], {"inputs": ids})
        assert logits.shape == (1, 12)
        assert np.isfinite(logits).all()


@pytest.mark.costly(20)
def test_the_student_is_exported_again(folder: Path, cli: CommandLine) -> None:
    before = (folder / "export" / "student.onnx").stat().st_mtime_ns
    done = cli("export", folder)
    assert done.code == 0, done
    assert (folder / "export" / "student.onnx").stat().st_mtime_ns > before
