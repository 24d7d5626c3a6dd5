"""Images in tar shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import encoded, load, opened, refusal, targets_of

from kdzoo.api.data import NO_LABEL
from kdzoo.data import file_records
from kdzoo.data.loader import Loader
from kdzoo_webdataset.shards import expand
from kdzoo_webdataset.web_dataset import Images, WebDataset


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file by Python alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def samples(first: int, count: int, **more: bytes) -> dict[str, bytes]:
    found = {}
    for i in range(first, first + count):
        found |= {f"{i:04}.png": encoded(i), f"{i:04}.cls": b"%d" % (i % 2)}
        found |= {f"{i:04}.{extension}": content for extension, content in more.items()}
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shard(tmp_path / "train-000.tar", samples(0, 5))
    shard(tmp_path / "train-001.tar", samples(5, 3))
    shard(tmp_path / "test-000.tar", samples(0, 4))
    return tmp_path


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by the library
def test_shards_as_the_library_writes_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is a tool of the tests only")
    for split in ("train", "test"):
        with webdataset.ShardWriter(str(tmp_path / f"{split}-%03d.tar"), maxcount=4, verbose=0) as writer:
            for i in range(6):
                writer.write({"__key__": f"part/{i:03}", "jpg": encoded(i, kind="JPEG"), "json": {"class": i % 3}})
    data = opened(WebDataset, tmp_path, label="json", label_key="class")
    data.check_form()
    assert data.part("train").targets.tolist() == [0, 1, 2, 0, 1, 2]
    theirs = list(webdataset.WebDataset(sorted(map(str, tmp_path.glob("train-*.tar"))), shardshuffle=False))
    train = data.part("train").split
    assert [each["jpg"] for each in theirs] == [train.content(i) for i in range(6)]
    assert [each["__key__"] for each in theirs] == [name.partition(": ")[2] for name in train.names]


@pytest.mark.parametrize(
    "pattern", ["train-{000..012}.tar", "{a,b}/x-{8..11}.tar", "x-{08..11}{,.part}.tar", "plain.tar", "{1..3}{a,b}.tar"]
)
def test_braces_are_expanded_as_in_the_library(pattern: str) -> None:
    braceexpand = pytest.importorskip("braceexpand", reason="comes with webdataset, a tool of the tests only")
    assert sorted(expand(pattern)) == sorted(braceexpand.braceexpand(pattern))


def test_samples_are_read_by_their_place_in_any_order(root: Path) -> None:
    data = opened(WebDataset, root)
    expected = {i: encoded(i) for i in range(8)}
    train = data.part("train").split
    assert all(train.content(i) == expected[i] for i in (7, 0, 5, 4))
    loaders = [Loader(data, torch.device("cpu"), 4, workers=workers) for workers in (0, 1)]
    ours, theirs = ([batch.inputs for batch in loader.train_batches(1, 0)] for loader in loaders)
    assert all(map(torch.equal, ours, theirs))
    assert len(ours) == 2


def test_more_images_without_labels_and_none_at_all(root: Path) -> None:
    shard(root / "more.tar", {"a.jpg": encoded(1, kind="JPEG"), "b.webp": encoded(2, kind="WEBP"), "b.txt": b"x"})
    splits = load(WebDataset, root, unlabelled=["more.tar"])
    assert targets_of(splits) == ([0, 1] * 4 + [NO_LABEL] * 2, [0, 1, 0, 1])
    none = load(WebDataset, root, label=None, classes=5)
    assert targets_of(none) == ([NO_LABEL] * 8, [NO_LABEL] * 4)
    named = {"train": "train-{000..001}.tar", "validation": "test-000.tar", "test": ["test-000.tar"]}
    assert len(load(WebDataset, root, **named).validation.targets) == 4


def test_unchanged_shards_are_neither_hashed_nor_decoded_again(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(file_records, "RECHECKED_LEAST", 1)
    for path in root.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    first = opened(WebDataset, root)
    assert first.check_form().startswith("12 images decoded")
    read: list[str] = []
    whole = Images.content
    monkeypatch.setattr(Images, "content", lambda self, i: read.append(self.names[i]) or whole(self, i))
    again = opened(WebDataset, root)
    assert again.check_form().startswith("test split of 4 samples")
    assert (again.fingerprint, len(read) <= 2) == (first.fingerprint, True)
    shard(root / "train-001.tar", samples(6, 3))
    changed = opened(WebDataset, root)
    assert changed.check_form().startswith("3 images decoded")
    assert changed.fingerprint != first.fingerprint


def test_shards_that_are_not_right(root: Path) -> None:
    title = "data set 'webdataset': "
    bad = {"train": ["bad.tar"]}
    path = root / "bad.tar"
    assert refusal(WebDataset, root, **bad) == (
        f"{title}no shard 'bad.tar' below '{root}'; set data.options or data.root"
    )
    assert refusal(WebDataset, root, train=["train-{000..002}.tar"]).startswith(f"{title}no shard 'train-002.tar' ")
    assert refusal(WebDataset, root, train=["train-*.tar", "train-000.tar"]) == (
        f"{title}{root / 'train-000.tar'} is named twice"
    )
    assert refusal(WebDataset, root, train=["{9..1}.tar"]) == (
        "'{9..1}.tar': {9..1} is no range of at most 100,000 numbers"
    )
    shard(path, {"a.png": encoded(0), "b.cls": b"1"})
    assert refusal(WebDataset, root, **bad) == (
        f"{path}: a: no label '.cls', but .png; images without labels belong in shards of their own, which "
        "data.options.unlabelled names"
    )
    shard(path, {"b.cls": b"1"})
    assert refusal(WebDataset, root, **bad) == f"{path}: b: no image, but .cls"
    shard(path, {"a.png": encoded(0), "a.jpg": encoded(0), "a.cls": b"0"})
    assert refusal(WebDataset, root, **bad) == f"{path}: a: one image would be right, several, .png, .jpg"
    shard(path, {"a.png": encoded(0), "a.cls": b" "})
    assert refusal(WebDataset, root, **bad) == f"{path}: a: its label '.cls' is empty"
    shard(path, {"a.png": encoded(0), "a.json": json.dumps({"x": 1}).encode()})
    assert refusal(WebDataset, root, **bad, label="json", label_key="y") == f"{path}: a: '.json' has no key 'y'"
    assert refusal(WebDataset, root, label="png").startswith(f"{root / 'train-000.tar'}: 0000: '.png' cannot be read ")
    shard(path, {})
    assert refusal(WebDataset, root, **bad) == f"{path}: holds no samples"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.add(root / "train-000.tar", "a.png")
    assert refusal(WebDataset, root, **bad) == (
        f"{path}: a.png: is there twice; each key and extension belongs in once"
    )


@pytest.mark.parametrize("damage", ["cut", "header", "compressed", "text"])
def test_a_damaged_shard_is_refused_as_a_whole(damage: str, root: Path) -> None:
    path = root / "train-000.tar"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 3]
    elif damage == "header":
        with tarfile.open(path) as archive:
            third = archive.getmembers()[4]
        content[third.offset : third.offset + 512] = np.random.default_rng(0).bytes(512)
    elif damage == "compressed":
        import gzip

        content = bytearray(gzip.compress(bytes(content)))
    else:
        content = bytearray(b"no tar file")
    path.write_bytes(content)
    assert refusal(WebDataset, root).startswith(f"{path}: cannot be read as a tar file: ")


def test_an_image_that_cannot_be_decoded_is_named_before_training(root: Path) -> None:
    shard(root / "train-001.tar", {"x.jpg": b"no image at all", "x.cls": b"1"})
    with pytest.raises(Exception, match=r"train-001\.tar: x: cannot be read as an image: "):
        opened(WebDataset, root).check_form()
