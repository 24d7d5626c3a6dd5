"""Images, arrays, texts and weights changed at random, through ``kdzoo check`` and ``kdzoo run``."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from outcomes import Case, Tally, judge, run_all, save
from PIL import Image

MODEL = {"name": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}}
BASE: dict[str, Any] = {
    "version": 1,
    "name": "chaos",
    "algorithm": {"name": "kd"},
    "models": {"teacher": MODEL, "student": MODEL},
    "train": {"epochs": 1},
    "control": False,
    "trackers": [],
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}
MODES = ("RGB", "L", "P", "LA", "RGBA", "CMYK", "1", "I;16", "I", "F")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few changes of the kinds that disks, networks and strangers make."""
    for _ in range(rng.choice((1, 1, 3))):
        spot = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:spot]
        elif kind == 1 and data:
            flipped = bytearray(data)
            flipped[spot % len(data)] ^= 1 << rng.randrange(8)
            data = bytes(flipped)
        elif kind == 2:
            data = data[:spot] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 30))) + data[spot:]
        elif kind == 3:
            data = data[:spot] + b"\0" * rng.randrange(1, 200) + data[spot + 100 :]
        elif kind == 4:
            data = data[:spot] + data[spot // 2 :]
        elif rng.random() < 0.1:
            data = b""
    return data


def picture(rng: random.Random) -> tuple[bytes, str]:
    """An image file of some mode, size and format."""
    size = (rng.choice((1, 5, 24)), rng.choice((1, 7, 24)))
    mode, kind = rng.choice(MODES), rng.choice(("png", "jpg", "bmp", "webp"))
    image = Image.new(mode if mode != "I;16" else "I;16", size)
    file = io.BytesIO()
    try:
        image.save(file, {"jpg": "JPEG"}.get(kind, kind.upper()))
    except (OSError, ValueError, KeyError):  # not every format holds every mode
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        kind = "png"
    return file.getvalue(), kind


def image_folder(place: Path, rng: random.Random) -> dict[str, Any]:
    """A folder of images with one that is odd."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = place / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                values = np.full((12, 12, 3), rng.randrange(256), np.uint8)
                Image.fromarray(values).save(folder / f"{i}.png")
    data, kind = picture(rng)
    victim = place / "data" / rng.choice(("train", "test")) / rng.choice(("cat", "dog")) / f"odd.{kind}"
    victim.write_bytes(damaged(data, rng) if rng.random() < 0.7 else data)
    steps = {"size": 12}
    return {"name": "image_folder", "preprocessing": steps, "root": "data", "batch_size": 2, "validation": 0.2}


def arrays(place: Path, rng: random.Random) -> dict[str, Any]:
    """Two .npz files, one of them odd."""
    kinds = (np.uint8, np.uint8, np.uint8, np.int64, np.float32, np.complex64, np.bool_, "U3")
    shapes = ((8, 12, 12, 3), (8, 12, 12), (8, 3, 12, 12), (0, 12, 12), (8, 12), (8, 1, 1, 1), (8, 12, 12, 3, 1))
    labels = ((0, 1), (0, 1), (-1, 1), (0, 10**12), (0, 255), (0, 1.5), (0, float("nan")), ("a", "b"), (True, False))
    odd = rng.choice(("train", "test"))
    (place / "data").mkdir(parents=True)
    for split in ("train", "test"):
        shape, kind, pair = (8, 12, 12, 3), np.uint8, (0, 1)
        if split == odd and rng.random() < 0.6:
            shape, kind, pair = rng.choice(shapes), rng.choice(kinds), rng.choice(labels)
        values = np.zeros(shape).astype(kind)
        file = io.BytesIO()
        np.savez(file, images=values, labels=np.array([pair[i % 2] for i in range(len(values))]))
        content = file.getvalue()
        if split == odd and rng.random() < 0.6:
            content = damaged(content, rng)
        (place / "data" / f"{split}.npz").write_bytes(content)
    return {"name": "arrays", "root": "data", "batch_size": 2, "validation": 0.2}


def texts(place: Path, rng: random.Random) -> dict[str, Any]:
    """Two files of labelled texts, one of them odd."""
    odd, kind = rng.choice(("train", "test")), rng.choice(("csv", "tsv", "jsonl"))
    (place / "data").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [(f"the {word} runs {i}", word) for i in range(6) for word in ("cat", "dog")]
        if split == odd and rng.random() < 0.4:
            rows[3] = rng.choice(
                (("", "cat"), ("x", ""), ("\ud800", "cat"), ('a "quote', "dog"), ("a\x1b[2J", "cat\x1b"))
            )
        if kind == "jsonl":
            lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
            if split == odd and rng.random() < 0.3:
                lines[2] = rng.choice(
                    ('{"text": 1}', "[" * 5000, '{"text": "\\ud800", "label": "cat"}', "null", "1" * 6000)
                )
        else:
            tab = "," if kind == "csv" else "\t"
            header = rng.choice(("text,text,label", "label", "TEXT,LABEL", "")) if rng.random() < 0.1 else "text,label"
            lines = [header.replace(",", tab), *(tab.join(row) for row in rows)]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        if split == odd and rng.random() < 0.5:
            content = damaged(content, rng)
        (place / "data" / f"{split}.{kind}").write_bytes(content)
    options = {"train": f"train.{kind}", "test": f"test.{kind}", "vocab_size": 60}
    return {"name": "text_files", "options": options, "root": "data", "batch_size": 2, "validation": 0.2}


def weights(place: Path, rng: random.Random) -> dict[str, Any]:
    """Plain arrays, and a teacher from an odd file of weights."""
    import timm
    import torch
    from safetensors.torch import save as packed

    import kdzoo_vision.cifar_resnet  # noqa: F401  # makes the network known to timm

    data = arrays(place, random.Random(1))
    for split in ("train", "test"):
        np.savez(place / "data" / f"{split}.npz", images=np.zeros((8, 12, 12, 3), np.uint8), labels=np.arange(8) % 2)
    state = timm.create_model(MODEL["name"], num_classes=2, **MODEL["args"]).state_dict()
    key = rng.choice(list(state))
    odd = rng.randrange(6)
    if odd == 0:
        state[key] = state[key].to(rng.choice((torch.int64, torch.complex64, torch.float64, torch.bool)))
    elif odd == 1:
        state[f"module.{key}"] = state.pop(key)
    elif odd == 2:
        state[key] = state[key].float() * float("nan")
    elif odd == 3:
        state[key] = torch.zeros(3, 3).to_sparse() if rng.random() < 0.5 else torch.zeros(2)
    file = io.BytesIO()
    suffix = rng.choice((".pt", ".pth", ".safetensors", ".pth.tar"))
    if suffix == ".safetensors" and not any(value.is_sparse for value in state.values()):
        content = packed({name: value.contiguous() for name, value in state.items()})
    else:
        torch.save({"state_dict": state} if rng.random() < 0.5 else state, file)
        content = file.getvalue()
    (place / f"teacher{suffix}").write_bytes(damaged(content, rng) if rng.random() < 0.6 else content)
    return data | {"_weights": f"teacher{suffix}"}


KINDS: tuple[Callable[[Path, random.Random], dict[str, Any]], ...] = (image_folder, arrays, texts, weights)


def prepared(kind: Callable[[Path, random.Random], dict[str, Any]], place: Path, rng: random.Random) -> Path:
    """The recipe over an odd data set, written into ``place``."""
    data = kind(place, rng)
    recipe = json.loads(json.dumps(BASE))
    if "_weights" in data:
        recipe["models"]["teacher"]["weights"] = data.pop("_weights")
    if kind is texts:
        recipe["models"] = {"teacher": {"name": "text_bert_tiny"}, "student": {"name": "text_bert_tiny"}}
    return save(place / "recipe.json", recipe | {"data": data})


def fuzz(count: int, seed: int, place: Path) -> Tally:
    """Check ``count`` odd data sets and files of weights; every twentieth is run as well."""
    tally = Tally("inputs", count)
    size = 100
    for start in range(0, count, size):
        cases = []
        for number in range(start, min(count, start + size)):
            kind = KINDS[number % len(KINDS)]
            folder = place / f"{kind.__name__}-{number}"
            folder.mkdir(parents=True)
            prepared(kind, folder, random.Random(f"inputs {seed} {number}"))
            verb = ("run", "recipe.json", "--out", "out") if number % 20 < 2 else ("check", "recipe.json")
            cases.append(Case(verb, folder, f"{verb[0]} of {kind.__name__} {number} (seed {seed})"))
        judge(tally, run_all(cases))
        shutil.rmtree(place)
    return tally
