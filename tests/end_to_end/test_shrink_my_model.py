"""The guide docs/shrink-my-model.md, followed as it is written, with smaller models and few generated images."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from command_line import ROOT, CommandLine, Ended, Running, results, until
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.utils import CheckpointSaver

GUIDE = (ROOT / "docs" / "shrink-my-model.md").read_text()
#: The guide's models, and others of timm that take seconds.
SMALLER = {"resnet18": "test_resnet", "mobilenetv3_small_100": "test_convnext"}
CLASSES = {"daisy": (235, 225, 120), "rose": (215, 150, 130), "violet": (160, 120, 200)}
SIZE = 32


def commands() -> dict[str, list[str]]:
    """The guide's commands by what they do, e.g. "run", with smaller models."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```$", GUIDE)
    lines = [line for block in blocks for line in block.splitlines()]
    for name, smaller in SMALLER.items():
        lines = [line.replace(name, smaller) for line in lines]
    return {" ".join(words[:2]): words for words in map(shlex.split, lines)}


def draw_images(folder: Path) -> None:
    """Draw noisy images of one colour a class, in several sizes."""
    drawn = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 16)):
        for name, colour in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                height, width = drawn.integers(30, 60, 2)
                noise = drawn.normal(0, 60, (height, width, 3)) + drawn.normal(0, 25, 3)
                image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{i}.jpg", quality=90)


def train_by_timm(place: Path) -> float:
    """Leave model_best.pth.tar as timm's own script does; return the accuracy that is in it."""
    settings = argparse.Namespace(model="test_resnet", img_size=SIZE, eval_metric="top1", data_dir=place / "flowers")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    view = create_transform(**resolve_data_config(vars(settings), model=model))
    batches = {}
    for split in ("train", "val"):
        files = sorted((place / "flowers" / split).glob("*/*.jpg"))
        pixels = torch.stack([view(Image.open(file)) for file in files])
        batches[split] = pixels, torch.tensor([list(CLASSES).index(file.parent.name) for file in files])
    for _ in range(25):
        pixels, targets = batches["train"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), targets).backward()
        optimizer.step()
    pixels, targets = batches["val"]
    with torch.no_grad():
        top1 = 100 * float((model.eval()(pixels).argmax(1) == targets).float().mean())
    CheckpointSaver(model, optimizer, settings, checkpoint_dir=str(place)).save_checkpoint(0, metric=top1)
    return top1


class Followed:
    """The guide up to its service: what each command said, and the folder it leaves."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli, self.typed, self.said = cli, commands(), dict[str, Ended]()
        draw_images(cli.place / "flowers")
        self.stated = train_by_timm(cli.place)
        self.type("kdzoo new")
        self.shorten()
        self.type("kdzoo check")
        self.type("kdzoo run")
        self.folder = cli.place / "runs" / "mine" / "0001-seed0"
        (service,) = [block for block in re.findall(r"(?ms)^```python\n(.*?)^```$", GUIDE) if "ThreadingHTTP" in block]
        (cli.place / "service.py").write_text(service)

    def type(self, command: str) -> None:
        ended = self.said[command] = self.cli(*self.typed[command][1:])
        assert ended.code == 0, ended

    def shorten(self) -> None:
        """Make the recipe one of seconds."""
        path = self.cli.place / "mine.yaml"
        self.written = path.read_text()
        changes = {"epochs: 100": "epochs: 4", "warmup_epochs: 5": "warmup_epochs: 0", "workers: 2": "workers: 0"}
        changes["control: true"] = "control: false"
        text = self.written.replace("{size: 160", f"{{size: {SIZE}")
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        path.write_text(f"{text}trackers: []\nthreads: 1\ndevice: cpu\n")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    cli = CommandLine(tmp_path_factory.mktemp("guide"))
    yield Followed(cli)
    cli.end()


def served(followed: Followed, file: str) -> tuple[Running, str]:
    """Start the guide's service with another file and port; return it and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*followed.typed["python service.py"][:-2], f"runs/mine/0001-seed0/export/{file}", port]
    running = followed.cli.shell(sys.executable, *words[1:])

    def answers() -> bool:
        assert running.alive, running.err
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(answers, "the service")
    return running, f"http://127.0.0.1:{port}"


def ask(address: str, content: bytes) -> Any:
    with urllib.request.urlopen(urllib.request.Request(address, data=content), timeout=60) as response:
        return json.load(response)


def test_the_recipe_has_each_models_own_preprocessing(followed: Followed) -> None:
    assert followed.said["kdzoo new"].out == "mine.yaml\nkdzoo.schema.json\n"
    recipe = yaml.safe_load(followed.written)
    teacher, data = recipe["models"]["teacher"]["preprocessing"], recipe["data"]
    assert (teacher["size"], teacher["crop_share"], teacher["interpolation"]) == (SIZE, 0.95, "bilinear")
    assert (data["preprocessing"]["size"], data["options"]) == (160, {"test": "val"})
    schema = json.loads((followed.cli.place / "kdzoo.schema.json").read_text())
    assert followed.written.startswith("# yaml-language-server: $schema=kdzoo.schema.json\n")
    assert schema["properties"].keys() >= recipe.keys()


def test_the_teacher_is_measured_as_timm_measures_it(followed: Followed) -> None:
    lines = followed.said["kdzoo check"].out.splitlines()
    assert not [line for line in lines if line.startswith("warning")], lines
    (weights,) = [line for line in lines if line.startswith("weights")]
    assert f"{followed.stated:.2f} % stated by model_best.pth.tar" in weights
    assert followed.stated > 50
    assert results(followed.folder)["teacher"]["top1_percent"] == pytest.approx(followed.stated), (
        "the test split is val"
    )


@pytest.mark.parametrize("file", ["student.onnx", "student.int8.onnx"])
def test_the_service_reaches_the_reports_accuracy_to_the_sample(followed: Followed, file: str) -> None:
    running, address = served(followed, file)
    images = sorted((followed.cli.place / "flowers" / "val").glob("*/*.jpg"))
    answers = {image: ask(address, image.read_bytes())["class"] for image in images}
    right = sum(answer == image.parent.name for image, answer in answers.items())
    (entry,) = [entry for entry in results(followed.folder)["exports"] if entry["file"] == file]
    assert round(entry["top1_percent"] * len(images) / 100, 6) == right
    assert len(set(answers.values())) > 1
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, b"no image")
    assert (caught.value.code, "cannot identify" in caught.value.read().decode()) == (400, True)
    assert running.alive
    running.kill()
    if entry["usage"] and file == "student.onnx":
        answered: dict[str, Any] = {}
        exec(as_typed(entry["usage"]["code"], followed.folder, images[0]), answered)
        assert answered["answer"] == answers[images[0]]


def as_typed(code: str, folder: Path, image: Path) -> str:
    """The report's code, run from elsewhere and on an image of ours."""
    return code.replace("'export/", f"'{folder}/export/").replace("'your.jpg'", repr(str(image)))


@pytest.mark.slow
def test_one_more_file_can_be_had(followed: Followed) -> None:
    followed.type("kdzoo export")
    assert json.loads(followed.said["kdzoo export"].out)["file"] == "student.int8.onnx"


def test_every_command_of_the_guide_is_known_here() -> None:
    typed = {"kdzoo new", "kdzoo check", "kdzoo run", "kdzoo export", "python service.py", "curl --data-binary"}
    elsewhere = {"kdzoo suggest"}  # it measures a dozen networks; tests/core/test_candidates.py types it
    assert set(commands()) == typed | elsewhere


def test_the_service_is_the_file_in_the_repository() -> None:
    assert (ROOT / "docs" / "examples" / "service.py").read_text() in GUIDE
