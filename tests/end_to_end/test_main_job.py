"""The first thing every user does: ``kdzoo run recipes/quickstart.yaml``, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
from command_line import RECIPES, CommandLine, Ended, lasting, results, run_folder

EPOCHS = 3
SHORTER = ["-o", f"train.epochs={EPOCHS}", "-o", "threads=1", "-o", "device=cpu"]

ENTRY = {"label", "model", "top1_percent", "agreement_percent", "ece", "params_m", "size_mib", "macs_g", "latency_ms"}


class Quickstart:
    def __init__(self, cli: CommandLine, ended: Ended) -> None:
        self.cli, self.ended = cli, ended
        self.folder = run_folder(cli.place / "runs", "quickstart")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    cli = CommandLine(tmp_path_factory.mktemp("quickstart"))
    ended = cli.cold("run", RECIPES / "quickstart.yaml", *SHORTER)
    assert ended.code == 0, ended
    return Quickstart(cli, ended)


def test_the_run_folder_is_complete(quickstart: Quickstart) -> None:
    folder = quickstart.folder
    assert folder == quickstart.cli.place / "runs" / "quickstart" / "0001-seed0"
    assert quickstart.ended.out.splitlines()[-1] == "run folder: runs/quickstart/0001-seed0"
    wanted = ["recipe.yaml", "provenance.json", "metrics.jsonl", "student.safetensors", "student.json", "results.json"]
    wanted += ["export/student.onnx", "report.html", "README.md", "manifest.json", "run.json"]
    for name in wanted:
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").rglob("events.out.*"))
    assert not list((folder / "checkpoints").iterdir())
    files = json.loads((folder / "manifest.json").read_text())["files"]
    for name in wanted[:-2]:
        assert files[name]["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest(), name
    assert not [p for p in folder.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".pickle", ".rejected")]


def test_results_hold_every_promised_number(quickstart: Quickstart) -> None:
    content = results(quickstart.folder)
    exported = content["exports"]
    assert [entry["file"] for entry in exported] == ["student.onnx"]
    for entry in (content["teacher"], content["control"], content["student"], *exported):
        assert entry.keys() >= ENTRY
        assert entry["latency_ms"].keys() == {"p50", "p95"}
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert 0 <= entry["top1_percent"] <= 100
        assert 0 <= entry["agreement_percent"] <= 100
        assert 0 <= entry["ece"] <= 1
        assert entry["size_mib"] > 0
    teacher, control, student = (content[role] for role in ("teacher", "control", "student"))
    assert teacher["agreement_percent"] == 100
    assert teacher["top1_percent"] > 90, "even three epochs teach the teacher digits"
    assert control["params_m"] == student["params_m"] == 868 / 1e6 < teacher["params_m"]
    assert exported[0]["top1_percent"] == student["top1_percent"]
    assert content["test_evaluations"] == 1
    assert content["data"].pop("most_common_class_percent") == pytest.approx(100 * 81 / 797)
    assert content["data"] == {"name": "digits", "test_samples": 797, "train": 900, "validation": 100, "test": 797}
    assert [stage["name"] for stage in content["stages"]] == ["teacher", "control", "student"]


def test_metrics_hold_each_epoch_of_each_stage(quickstart: Quickstart) -> None:
    rows = [json.loads(line) for line in (quickstart.folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (stage, epoch, 14 * (epoch + 1), split)  # 900 samples in whole batches of 64
        for stage in ("teacher", "control", "student")
        for epoch in range(EPOCHS)
        for split in ("train", "validation")
    ]
    assert [(row["stage"], row["epoch"], row["step"], row["split"]) for row in rows] == expected
    for row in rows:
        wanted = {"top1_percent"} if row["split"] == "validation" else {"task", "grad_norm", "lr"}
        wanted |= {"kd"} if row["stage"] == "student" and row["split"] == "train" else set()
        assert row.keys() >= wanted
        assert "seconds" not in row


def test_progress_off_a_terminal_is_a_line_an_epoch(quickstart: Quickstart) -> None:
    lines = quickstart.ended.err.splitlines()
    epochs = [re.match(r"  (\w+) epoch (\d)/3  task \d", line) for line in lines]
    found = [(match[1], int(match[2])) for match in epochs if match]
    assert found == [(stage, epoch) for stage in ("teacher", "control", "student") for epoch in (1, 2, 3)]
    assert all("validation_top1_percent" in line for line, match in zip(lines, epochs, strict=True) if match)
    assert "\x1b" not in quickstart.ended.err + quickstart.ended.out
    assert len(lines) == len(found) + 4, "three stages and an export are announced, and nothing else is said"


class Loads(HTMLParser):
    """Collects everything that a browser would fetch by itself."""

    LOADING = {"src", "srcset", "poster", "data", "background", "xlink:href", "action"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "svg"
        for name, value in attributes:
            fetched = name in self.LOADING or (name == "href" and tag != "a")
            if fetched and value and not value.startswith(("#", "data:")):
                self.found.append(f"<{tag} {name}={value}>")


def test_the_report_fetches_nothing(quickstart: Quickstart) -> None:
    text = (quickstart.folder / "report.html").read_text()
    loads = Loads()
    loads.feed(text)
    assert loads.pictures >= 2
    assert not loads.found
    assert not re.findall(r"@import|url\((?!['\"]?(?:#|data:))", text)
    assert "<script" not in text
    outside = Loads()
    outside.feed('<link href="https://x/y.css"><img src="//x"><a href="https://x">')
    assert len(outside.found) == 2, "what would be fetched is found"


ALONE = """
import json, sys
from pathlib import Path
import numpy as np
import timm
import torch
from safetensors.torch import load_file

folder = Path(sys.argv[1])
about = json.loads((folder / "student.json").read_text())
import kdzoo_vision.plain_cnn as networks

model = timm.create_model(about["model"], **about["args"])
model.load_state_dict(load_file(folder / "student.safetensors"), strict=True)
model.eval()
with np.load(Path(networks.__file__).with_name("digits.npz")) as file:
    images, targets = file["test_images"], file["test_targets"]
inputs = (torch.from_numpy(images)[:, None].float() / 255 - about["mean"][0]) / about["std"][0]
with torch.no_grad():
    logits = model(inputs).numpy()

import onnxruntime

session = onnxruntime.InferenceSession(folder / "export" / "student.onnx", providers=["CPUExecutionProvider"])
(name,) = [put.name for put in session.get_inputs()]
exported = session.run(None, {name: inputs.numpy()})[0]
alone = session.run(None, {name: inputs[:1].numpy()})[0]
print(json.dumps({
    "top1_percent": float((logits.argmax(1) == targets).mean() * 100),
    "onnx_top1_percent": float((exported.argmax(1) == targets).mean() * 100),
    "furthest": float(np.abs(exported - logits).max() / np.abs(logits).max()),
    "alone": float(np.abs(alone - logits[:1]).max()),
    "metadata": session.get_modelmeta().custom_metadata_map,
    "imported": [name for name in sys.modules if name.startswith("kdzoo.")],
}))
"""


@pytest.mark.costly(20)
def test_what_is_delivered_runs_without_kdzoo(quickstart: Quickstart) -> None:
    ended = quickstart.cli.shell(sys.executable, "-c", ALONE, quickstart.folder).wait()
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    student = results(quickstart.folder)["student"]
    assert found["top1_percent"] == pytest.approx(student["top1_percent"], abs=1e-9)
    assert found["onnx_top1_percent"] == pytest.approx(student["top1_percent"], abs=1e-9)
    assert found["furthest"] < 1e-5
    assert found["alone"] < 1e-4
    about = json.loads((quickstart.folder / "student.json").read_text())
    assert json.loads(found["metadata"]["classes"]) == about["classes"] == list("0123456789")
    assert json.loads(found["metadata"]["preprocessing"])["mean"] == about["mean"]
    running = {
        "kdzoo.run.runner",
        "kdzoo.training.engine",
        "kdzoo.models.network",
        "kdzoo.data.data_set",
        "kdzoo.zoo.loading",
    }
    assert not running & set(found["imported"])


def test_a_second_run_takes_the_teacher_from_the_store(quickstart: Quickstart, cli: CommandLine) -> None:
    runs = cli.place / "läufe, 走る  and spaces"
    shutil.copytree(quickstart.folder.parent.parent, runs)
    keys = {stage["name"]: stage["key"] for stage in results(quickstart.folder)["stages"]}
    (student,) = (runs / ".store" / "stage").glob(f"{keys['student']}*")
    shutil.rmtree(student)
    ended = cli("run", RECIPES / "quickstart.yaml", *SHORTER, "-o", "export=[]", "--out", runs, "--new")
    assert ended.code == 0, ended
    lines = ended.err.splitlines()
    assert lines[:3] == ["teacher: taken from the store", "control: taken from the store", "student: training"]
    again = run_folder(runs, "quickstart")
    assert again.name == "0002-seed0"
    assert lasting(again) == lasting(quickstart.folder)
