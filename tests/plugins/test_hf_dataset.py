"""Images in data sets of the library datasets: parquet files, folders, what it saved; no hub in tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoded_images import encoded, load, opened, refusal, targets_of

from kdzoo.api.data import NO_LABEL
from kdzoo.data.loader import Loader
from kdzoo_datasets.hf_dataset import HFDataset

datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")

NAMES = ["dog", "cat"]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def split(first: int, labels: list[Any], kind: Any = None, **more: Any) -> Any:
    images = [
        {"bytes": encoded(first + i, mode), "path": None} for i, mode in zip(range(len(labels)), MODES, strict=False)
    ]
    features = {"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=NAMES)}
    return datasets.Dataset.from_dict({"image": images, "label": labels, **more}, datasets.Features(features))


#: Images of one data set are of several modes.
MODES = ["RGB", "L", "RGBA", "P", "1", "RGB"]


def parquet(root: Path, **splits: Any) -> Path:
    """Write splits as the Hub keeps them."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for name, made in splits.items():
        made.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("kind", ["parquet", "saved", "folder"])
def test_a_local_data_set(kind: str, tmp_path: Path) -> None:
    train, test = split(0, [0, 1, 0, 1, 0, 1]), split(10, [1, 0])
    if kind == "parquet":
        parquet(tmp_path / "set", train=train, test=test)
    elif kind == "saved":
        datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "set"))
    else:
        for name, first, labels in (("train", 0, [0, 1, 0, 1, 0, 1]), ("test", 10, [1, 0])):
            for i, label in enumerate(labels):
                path = tmp_path / "set" / name / NAMES[label] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(first + i, MODES[i]))
    data = opened(HFDataset, tmp_path, folder="set")
    assert data.check_form().startswith("8 images decoded; test split of 2 samples")
    whole = data.part("train").split
    if kind == "folder":  # the library sorts folders by name, so that cat is the first
        assert (data.classes, whole.targets.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
        assert whole.files == tuple(sorted(map(str, (tmp_path / "set" / "train").rglob("*.png"))))
    else:
        assert (data.classes, whole.targets.tolist()) == (("dog", "cat"), [0, 1, 0, 1, 0, 1])
        assert [whole.content(i) for i in (5, 0)] == [encoded(5), encoded(0)]
        assert (len(set(whole.files)), whole.members) == (1, tuple("012345"))
    batches = [next(Loader(data, torch.device("cpu"), 4, workers=n).train_batches(0, 0)).inputs for n in (0, 1)]
    assert batches[0].shape == (4, 3, 8, 8)
    assert torch.equal(*batches)


def test_labels_that_are_missing_or_in_another_order(tmp_path: Path) -> None:
    parquet(tmp_path, train=split(0, [0, -1, 1]), test=split(5, [1, 0]), more=split(8, [-1, -1]))
    assert targets_of(load(HFDataset, tmp_path)) == ([0, NO_LABEL, 1], [1, 0])
    assert targets_of(load(HFDataset, tmp_path, unlabelled="more"))[0] == [0, NO_LABEL, 1, NO_LABEL, NO_LABEL]
    assert targets_of(load(HFDataset, tmp_path, classes=["cat", "emu", "dog"])) == ([2, NO_LABEL, 0], [0, 2])
    none = load(HFDataset, tmp_path, label=None, classes=7)
    assert (targets_of(none), len(none.classes)) == (([NO_LABEL] * 3, [NO_LABEL] * 2), 7)


def test_labels_that_are_numbers_or_names(tmp_path: Path) -> None:
    numbers, names = datasets.Value("int64"), datasets.Value("string")
    parquet(tmp_path / "a", train=split(0, [3, 0, None], numbers), test=split(5, [1], numbers))
    assert targets_of(load(HFDataset, tmp_path, folder="a")) == ([3, 0, NO_LABEL], [1])
    parquet(tmp_path / "b", train=split(0, ["x", "", "a"], names), test=split(5, ["x"], names))
    assert targets_of(load(HFDataset, tmp_path, folder="b")) == ([1, NO_LABEL, 0], [1])


def test_data_sets_that_are_not_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "data set 'hf_dataset': "
    assert refusal(HFDataset, tmp_path, folder="nothing") == (
        f"{title}no folder '{tmp_path / 'nothing'}'; set data.root, data.options.folder or data.options.hub"
    )
    (tmp_path / "empty").mkdir()
    assert refusal(HFDataset, tmp_path, folder="empty").startswith(
        f"{tmp_path / 'empty'}: cannot be read as a data set: EmptyDatasetError: "
    )
    good = tmp_path / "good"
    parquet(good, train=split(0, [0, 1]), test=split(5, [1]))
    assert refusal(HFDataset, tmp_path, folder="good", validation="val") == (
        f"{good}: no split 'val', but train, test; data.options.validation names another"
    )
    assert refusal(HFDataset, tmp_path, folder="good", test="train") == (
        f"{good}: one split twice: train, train; each needs its own"
    )
    assert refusal(HFDataset, tmp_path, folder="good", label="fine_label") == (
        f"{good}[train]: no column 'fine_label', but image, label"
    )
    assert refusal(HFDataset, tmp_path, folder="good", image="label").startswith(f"{good}[train]: the column 'label' ")
    bad = good / "data" / "train-00000-of-00001.parquet"
    bad.write_bytes(bad.read_bytes()[:-30])
    assert refusal(HFDataset, tmp_path, folder="good").startswith(f"{good}: cannot be read as a data set: ")

    def offline(*given: Any, **named: Any) -> Any:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert refusal(HFDataset, tmp_path, hub="owner/name") == (
        "owner/name: the Hugging Face Hub cannot be reached: ConnectionError: Couldn't reach 'owner/name' on the Hub"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal(HFDataset, tmp_path, folder="good") == (
        f'{title}needs the library datasets, which is not installed; pip install "kdzoo[datasets]"'
    )


def test_a_row_without_an_image_or_with_a_damaged_one_is_named(tmp_path: Path) -> None:
    images = [{"bytes": encoded(0), "path": None}, None, {"bytes": b"no image", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    made = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features)
    parquet(tmp_path, train=made, test=split(5, [1]))
    with pytest.raises(Exception, match=r"\[train\] row 1: has no image in 'image'"):
        opened(HFDataset, tmp_path).check_form()
    parquet(tmp_path, train=made.select([0, 2]))
    with pytest.raises(Exception, match=r"\[train\] row 1: cannot be read as an image: "):
        opened(HFDataset, tmp_path).check_form()
