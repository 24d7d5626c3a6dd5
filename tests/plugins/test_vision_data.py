"""Data sets that come with the plugin, and those it reads."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from kdzoo.api.data import NO_LABEL, ArraySplit, DataError, DataSplits, FileSplit
from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data import file_records
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.digests import digests
from kdzoo.data.images import Decoder
from kdzoo.data.loader import Loader
from kdzoo.recipe.sections import DataRecipe
from kdzoo_vision.arrays import Arrays, moments
from kdzoo_vision.digits import FILE, Digits
from kdzoo_vision.files import Files
from kdzoo_vision.image_folder import ImageFolder
from kdzoo_vision.standard_sets import Cifar10, Mnist

RNG = np.random.default_rng(0)


def load(cls, root: Path, **options) -> DataSplits:
    return cls(cls.Options(**options)).load(root)


def refusal(cls, root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(cls, root, **options)
    return str(caught.value)


# --- digits ---------------------------------------------------------------------------------


def test_digits_are_all_there_in_a_fixed_split() -> None:
    splits = load(Digits, Path("/nowhere"))
    train, test = splits.train, splits.test()
    assert (train.images.shape, test.images.shape) == ((1000, 8, 8), (797, 8, 8))
    assert (train.images.dtype, train.images.min(), train.images.max()) == (np.uint8, 0, 255)
    assert np.bincount(train.targets).tolist() == [99, 101, 98, 102, 101, 101, 101, 100, 97, 100]
    assert np.bincount(test.targets).tolist() == [79, 81, 79, 81, 80, 81, 80, 79, 77, 80]
    assert moments(train.images) == (splits.mean, splits.std)
    assert not set(digests(train)) & set(digests(test))


def test_digits_never_drift() -> None:
    data = open_data(Digits(Digits.Options()), DataRecipe(name="digits"), 0)
    assert data.fingerprint == "b5c6a159894c971f90a72ac355beb5caf338a445b917e1c2828611b00d0a20a3"
    assert data.notes == []
    assert FILE.stat().st_size < 60_000


def test_digits_are_scikit_learn_s() -> None:
    bundled = pytest.importorskip("sklearn.datasets", reason="scikit-learn is a tool of the tests only").load_digits()
    splits = load(Digits, Path("/nowhere"))
    both = [splits.train, splits.test()]
    ours = np.concatenate([split.images for split in both]).reshape(1797, 64)
    labels = np.concatenate([split.targets for split in both])
    theirs = np.round(bundled.data * 255 / 16).astype(np.uint8)
    rows = sorted(map(tuple, np.column_stack([ours, labels]).tolist()))
    assert rows == sorted(map(tuple, np.column_stack([theirs, bundled.target]).astype(int).tolist()))


def test_the_licence_lies_beside_the_digits() -> None:
    text = FILE.with_name("digits.LICENSE.txt").read_text()
    assert "CC BY 4.0" in text
    assert "Changed:" in text


# --- public sets ----------------------------------------------------------------------------


def prepared(root: Path, train: int = 20, test: int = 10) -> Path:
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for name, count in (("train", train), ("test", test)):
        np.save(folder / f"{name}_images.npy", RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        np.save(folder / f"{name}_labels.npy", (np.arange(count) % 10).astype(np.uint8))
    (folder / "meta.json").write_text(json.dumps({"classes": [f"c{k}" for k in range(10)]}))
    return folder


def test_a_prepared_copy_is_read_and_its_test_split_later(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    splits = load(Cifar10, tmp_path)
    assert splits.classes == tuple(f"c{k}" for k in range(10))
    assert splits.train.images.shape == (20, 32, 32, 3)
    np.save(folder / "test_labels.npy", np.full(10, 3))
    assert set(splits.test().targets) == {3}


def test_a_prepared_copy_that_is_not_whole(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    (folder / "test_labels.npy").unlink()
    (folder / "meta.json").unlink()
    assert refusal(Cifar10, tmp_path) == (
        f"data set 'cifar10': the prepared copy {folder} lacks test_labels.npy, meta.json"
    )
    np.save(folder / "test_labels.npy", np.zeros(10))
    for text, words in (
        ("[]", "no JSON object with a list 'classes'"),
        ("{", "no JSON object with a list 'classes'"),
        ('{"classes": ["a"]}', "'classes' must list the 10 classes of 'cifar10'"),
    ):
        (folder / "meta.json").write_text(text)
        assert refusal(Cifar10, tmp_path) == f"{folder / 'meta.json'}: {words}"


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    np.save(folder / "train_labels.npy", np.array([print], dtype=object), allow_pickle=True)
    assert refusal(Cifar10, tmp_path).startswith(f"{folder / 'train_labels.npy'}: cannot be read as a plain array: ")


def test_without_any_copy_both_ways_out_are_named(tmp_path: Path) -> None:
    assert refusal(Mnist, tmp_path) == (
        f"data set 'mnist': not found below '{tmp_path}' (Dataset not found. You can use download=True to download it)"
        ". Set data.options.download: true to let torchvision fetch it, or data.root or $KDZOO_DATA to the folder that "
        "holds torchvision's files or mnist/train_images.npy"
    )


def test_torchvision_s_own_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem, count in (("train", 12), ("t10k", 4)):
        pixels = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + count.to_bytes(4, "big") + labels.tobytes()
        )
    monkeypatch.setattr(datasets.MNIST, "_check_exists", lambda self: True)
    splits = load(Mnist, tmp_path)
    assert (splits.train.images.shape, splits.test().images.shape) == ((12, 28, 28), (4, 28, 28))
    assert splits.train.targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert splits.classes[0] == "0 - zero"
    assert (
        open_data(Mnist(Mnist.Options()), DataRecipe(name="mnist", root=str(tmp_path), validation=0), 0).num_train == 12
    )


# --- own arrays -----------------------------------------------------------------------------


def own_arrays(root: Path, **train: np.ndarray) -> None:
    arrays = {"images": RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8), "labels": np.arange(12) % 3}
    np.savez(root / "train.npz", **{**arrays, **train})
    np.savez(root / "test.npz", images=arrays["images"][:6], labels=arrays["labels"][:6])


def test_arrays_in_npz(tmp_path: Path) -> None:
    own_arrays(tmp_path)
    splits = load(Arrays, tmp_path)
    assert (splits.classes, splits.channels, splits.size) == (("0", "1", "2"), 3, (5, 4))
    pixels = splits.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(splits.mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(splits.std, pixels.std(0), atol=1e-4)
    assert len(splits.test().targets) == 6
    data = open_data(Arrays(Arrays.Options()), DataRecipe(name="arrays", root=str(tmp_path), validation=3), 0)
    data.test_gate.open()
    assert data.split_sizes == {"train": 9, "validation": 3, "test": 6}
    assert [note.split(" of test")[1] for note in data.notes] == [" are also in train", " are also in validation"]


def test_arrays_in_npy_with_a_validation_split_and_names(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", RNG.integers(0, 256, (4, 5, 4), dtype=np.uint8))
        np.save(tmp_path / f"{name}_y.npy", np.array([0, 1, 0, 1], dtype=np.uint8))
    files = [{"images": f"{name}.npy", "labels": f"{name}_y.npy"} for name in ("a", "b", "c")]
    splits = load(
        Arrays, tmp_path, train=files[0], validation=files[1], test=files[2], classes=["x", "y"], mean=[0.4], std=[0.3]
    )
    assert isinstance(splits.validation, ArraySplit)
    assert (splits.classes, splits.channels, splits.mean, splits.std) == (("x", "y"), 1, (0.4,), (0.3,))
    assert np.array_equal(splits.test().images, np.load(tmp_path / "c.npy"))


def test_arrays_that_are_not_right(tmp_path: Path) -> None:
    assert refusal(Arrays, tmp_path) == (
        f"data set 'arrays': no file 'train.npz' below '{tmp_path}'; set data.root or data.options"
    )
    own_arrays(tmp_path)
    path = tmp_path / "train.npz"
    assert refusal(Arrays, tmp_path, images_key="x") == f"{path}: holds no 'x', but images, labels"
    assert refusal(Arrays, tmp_path, train="../train.npz") == (
        f"data set 'arrays': ../train.npz lies outside of the data root '{tmp_path}'; set data.root"
    )
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert refusal(Arrays, tmp_path, train="one.npy") == (
        "data set 'arrays': one.npy: .npz would be right; a split is one .npz, or images and labels as two .npy"
    )
    for images, words in (
        (np.zeros((12, 5, 4)), "float64 (12, 5, 4); uint8 (N, H, W) or (N, H, W, C) would be right"),
        (np.zeros((0, 5, 4), np.uint8), "uint8 (0, 5, 4); uint8 (N, H, W) or (N, H, W, C) would be right"),
    ):
        own_arrays(tmp_path, images=images)
        assert refusal(Arrays, tmp_path) == f"{path}: images are {words}"
    own_arrays(tmp_path, images=np.zeros((12, 3, 5, 4), np.uint8))
    assert refusal(Arrays, tmp_path) == (
        f"{path}: images of shape (12, 3, 5, 4) look like (N, C, H, W); (N, H, W, C) would be right"
    )
    own_arrays(tmp_path, labels=np.linspace(0, 1, 12))
    assert refusal(Arrays, tmp_path) == f"{path}: labels are float64 (12,); whole numbers (N,) would be right"
    own_arrays(tmp_path, labels=np.array([print] * 12, dtype=object))
    assert refusal(Arrays, tmp_path).startswith(f"{path}: cannot be read as plain arrays: ")
    path.write_bytes(path.read_bytes()[:200])
    assert refusal(Arrays, tmp_path).startswith(f"{path}: cannot be read as plain arrays: ")


def test_options_are_checked() -> None:
    for cls, options in ((Arrays, {"trian": "x"}), (ImageFolder, {"size": 8}), (Cifar10, {"download": "often"})):
        with pytest.raises(ValidationError):
            cls.Options(**options)


# --- folders of images ----------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).convert(mode).save(path, **save)
    return path


def read_image(path: Path, size: int, max_megapixels: float = 1.0, **steps) -> np.ndarray:
    own = Preprocessing().changed({"size": size, "crop_share": 1.0, **steps})
    return Decoder(own, max_megapixels).pixels(Files((str(path),)).content(0), str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.{('png', 'jpg')[i % 2]}")
    return tmp_path


def test_a_folder_of_images_is_a_data_set(folder: Path) -> None:
    picture(folder / "train" / "cat" / "grey.png", mode="L")
    picture(folder / "train" / "cat" / "palette.png", mode="P")
    (folder / "train" / "cat" / ".hidden").write_text("not looked at")
    splits = load(ImageFolder, folder)
    assert splits.classes == ("cat", "dog")
    assert splits.validation is None
    assert splits.train.targets.tolist() == [0] * 6 + [1] * 4
    for i in range(10):
        assert splits.train.content(i) == Path(splits.train.names[i]).read_bytes()
    data = open_data(
        ImageFolder(ImageFolder.Options()),
        DataRecipe(name="image_folder", root=str(folder), validation=2, workers=1, preprocessing={"size": 16}),
        0,
    )
    data.test_gate.open()
    assert data.split_sizes == {"train": 8, "validation": 2, "test": 4}
    batch = next(Loader(data, torch.device("cpu"), 4, "crop_flip", workers=1).train_batches(0, 0))
    assert batch.inputs.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_folder_of_its_own_for_validation(folder: Path, name: str) -> None:
    for kind in ("cat", "dog"):
        picture(folder / name / kind / "a.png")
    splits = load(ImageFolder, folder)
    assert isinstance(splits.validation, FileSplit)
    assert splits.validation.names == tuple(str(folder / name / kind / "a.png") for kind in ("cat", "dog"))
    assert load(ImageFolder, folder, test=name).validation is None


def test_one_folder_of_classes_is_divided_by_name_and_seed(tmp_path: Path) -> None:
    def named(splits) -> dict[str, set[str]]:
        all_splits = {"train": splits.train, "validation": splits.validation, "test": splits.test()}
        return {name: {os.path.relpath(path, tmp_path) for path in split.names} for name, split in all_splits.items()}

    content = picture(tmp_path / "x.png", (4, 4)).read_bytes()
    (tmp_path / "x.png").unlink()
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(100):
            (tmp_path / kind / f"{i}.png").write_bytes(content)
    shares = {"test_share": 0.2, "validation_share": 0.1}
    before = named(load(ImageFolder, tmp_path, **shares))
    assert sum(map(len, before.values())) == len(set.union(*before.values())) == 200
    assert (25 < len(before["test"]) < 55, 8 < len(before["validation"]) < 35) == (True, True)
    for kind in ("cat", "dog"):
        for i in range(0, 100, 3):
            (tmp_path / kind / f"{i}.png").unlink()
        (tmp_path / kind / "a new one.png").write_bytes(content)
    after = named(load(ImageFolder, tmp_path, **shares))
    for split, names in before.items():
        others = set.union(*(after[other] for other in after if other != split))
        assert not names & others, f"some of {split} went elsewhere"
    assert named(load(ImageFolder, tmp_path, split_seed=1, **shares))["test"] != after["test"]
    everything = load(ImageFolder, tmp_path, test_share=0.2, validation_share=0.0)
    assert everything.validation is None
    assert {os.path.relpath(path, tmp_path) for path in everything.test().names} == after["test"]


def test_a_folder_that_cannot_be_divided_is_refused(folder: Path) -> None:
    assert refusal(ImageFolder, folder, test_share=0.2) == (
        f"data set 'image_folder': '{folder / 'train'}' is a split, so there is nothing to divide; leave out "
        "data.options.test_share"
    )
    assert refusal(ImageFolder, folder / "train") == (
        f"data set 'image_folder': no folder '{folder / 'train' / 'train'}', but others; if those are the classes, "
        "data.options.test_share: 0.2 divides their images into splits"
    )
    assert refusal(ImageFolder, folder / "train", test_share=0.001).endswith(
        "of 8 images leave the test split none; more images, other shares or another split_seed would be right"
    )
    with pytest.raises(DataError, match=r"^test_share and validation_share leave nothing to train on; less than 1 "):
        load(ImageFolder, folder, test_share=0.5, validation_share=0.5)


def targets_of(splits: DataSplits) -> tuple[list[int], list[int]]:
    return splits.train.targets.tolist(), splits.test().targets.tolist()


def test_more_images_without_labels(folder: Path) -> None:
    for name in ("a.png", "b/c.png", "b/.hidden"):
        picture(folder / "unlabelled" / name) if name.endswith("png") else (folder / "unlabelled" / name).write_text("")
    splits = load(ImageFolder, folder)
    assert targets_of(splits) == ([0] * 4 + [1] * 4 + [NO_LABEL] * 2, [0, 0, 1, 1])
    assert splits.train.names[-2:] == tuple(str(folder / "unlabelled" / name) for name in ("a.png", "b/c.png"))
    data = open_data(ImageFolder(ImageFolder.Options()), DataRecipe(name="x", root=str(folder), validation=2), 0)
    assert (data.num_train, data.labels, data.split_sizes["validation"]) == (8, tuple(range(6)), 2)
    (folder / "unlabelled").rename(folder / "more")
    assert len(load(ImageFolder, folder).train.names) == 8
    assert len(load(ImageFolder, folder, unlabelled="more").train.names) == 10


def test_a_folder_of_images_alone(folder: Path) -> None:
    assert targets_of(load(ImageFolder, folder, classes=3, test="test/cat")) == ([NO_LABEL] * 8, [NO_LABEL] * 2)
    labelled = load(ImageFolder, folder, classes=["dog", "emu", "cat"], unlabelled="train/cat")
    assert targets_of(labelled) == ([NO_LABEL] * 4, [2, 2, 0, 0])
    assert (labelled.classes, labelled.unlabelled) == (("dog", "emu", "cat"), True)
    everything = load(ImageFolder, folder, classes=3, test_share=0.4)
    assert sorted(everything.train.names + everything.test().names) == sorted(map(str, folder.rglob("*.*g")))
    assert everything.classes == ("0", "1", "2")


def test_images_without_labels_that_are_not_right(folder: Path) -> None:
    name = "data set 'image_folder': "
    assert refusal(ImageFolder, folder, unlabelled="more") == (
        f"{name}no folder '{folder / 'more'}', which data.options.unlabelled names"
    )
    assert refusal(ImageFolder, folder, train="train/cat") == (
        f"{folder / 'train/cat'}: has no folders; each would be a class. Where no image has a label, "
        "data.options.classes is the number of the teacher's"
    )
    assert refusal(ImageFolder, folder, classes=["cat", "emu"]) == (
        f"{folder / 'test/dog'}: is none of the 2 classes that the recipe names"
    )
    assert refusal(ImageFolder, folder, classes=2, test_share=0.001) == (
        f"{name}test_share: 0.001 of 12 images leaves test none; more images or another share would be right"
    )
    (folder / "unlabelled").mkdir()
    assert refusal(ImageFolder, folder) == f"{folder / 'unlabelled'}: has no images"
    (folder / "unlabelled" / "a").symlink_to(folder / "train")
    assert refusal(ImageFolder, folder) == (
        f"{folder / 'unlabelled/a'}: is a link to a folder; a folder would be right"
    )
    (folder / "unlabelled" / "a").unlink()
    (folder / "unlabelled" / "a.txt").write_text("x")
    assert "is no image by its name" in refusal(ImageFolder, folder)


def test_images_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the file is the right side of the picture
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    read = read_image(tmp_path / "x.png", 16)
    assert (read[:, 9:].min(), read[:, :7].max()) == (255, 0)


def test_the_same_file_in_two_splits_is_noted(folder: Path) -> None:
    (folder / "test" / "cat" / "0.png").write_bytes((folder / "train" / "cat" / "0.png").read_bytes())
    data = open_data(ImageFolder(ImageFolder.Options()), DataRecipe(name="x", root=str(folder), validation=0), 0)
    data.test_gate.open()
    assert data.notes == ["1 image of test is also in train"]


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    def read(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_image(path, 16, max_megapixels=0.01)
        return str(caught.value)

    text = folder / "train" / "cat" / "text.jpg"
    text.write_text("no image at all")
    assert read(text).startswith(f"{text}: cannot be read as an image: cannot identify image file")
    whole = picture(folder / "train" / "cat" / "cut.jpg", (90, 90), quality=95)
    whole.write_bytes(whole.read_bytes()[:-2000])
    assert read(whole).startswith(f"{whole}: cannot be read as an image: image file is truncated")
    large = picture(folder / "large.png", (200, 100))
    assert read(large) == f"{large}: 200 x 100 pixels are more than data.max_megapixels: 0.01"
    gif = folder / "disguised.png"
    Image.new("RGB", (4, 4)).save(gif, format="GIF")
    assert read(gif).startswith(f"{gif}: cannot be read as an image: cannot identify image file")
    gone = folder / "gone.png"
    assert read(gone).startswith(f"{gone}: cannot be read: ")


def test_a_bad_file_stops_the_batch_it_is_in(folder: Path) -> None:
    bad = folder / "train" / "dog" / "9.jpg"
    bad.write_text("no image at all")
    data = open_data(ImageFolder(ImageFolder.Options()), DataRecipe(name="x", root=str(folder), validation=0), 0)
    with pytest.raises(DataError, match=r"9\.jpg: cannot be read as an image: "):
        list(Loader(data, torch.device("cpu"), 3, workers=1).canonical_batches(0))


def test_folders_that_are_not_right(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cat = folder / "train" / "cat"

    def refused_with(path: Path) -> str:
        text = refusal(ImageFolder, folder)
        if path.is_symlink() or path.is_file():
            path.unlink()
        return text.removeprefix(f"{path}: ")

    (cat / "notes.txt").write_text("x")
    assert refused_with(cat / "notes.txt") == (
        "is no image by its name; .jpg, .jpeg, .png, .webp, .bmp are read, and hidden files passed over"
    )
    (cat / "link.png").symlink_to(folder / "nothing.png")
    assert refused_with(cat / "link.png") == "is a link to nothing"
    (cat / "circle.png").symlink_to(cat / "circle.png")
    assert refused_with(cat / "circle.png") == "is a link to nothing"
    outside = picture(tmp_path_factory.mktemp("outside") / "x.png")
    (cat / "out.png").symlink_to(outside)
    assert refused_with(cat / "out.png") == f"leads to {outside}, outside of {folder}"
    (folder / "train" / "stray.png").write_bytes(outside.read_bytes())
    assert (
        refused_with(folder / "train" / "stray.png") == "is no folder; train holds one folder a class and nothing else"
    )
    (folder / "test" / "emu").mkdir()
    assert refusal(ImageFolder, folder) == f"{folder / 'test' / 'emu'}: this class has no images"
    picture(folder / "test" / "emu" / "x.png")
    assert refusal(ImageFolder, folder) == f"{folder / 'test'}: other classes than train: unknown emu"
    picture(folder / "train" / "emu" / "x.png")
    picture(folder / "train" / "fox" / "x.png")
    assert refusal(ImageFolder, folder) == f"{folder / 'test'}: other classes than train: missing fox"
    assert refusal(ImageFolder, folder, test="exam") == (
        f"data set 'image_folder': no folder '{folder / 'exam'}'; each of its folders would be a class"
    )
    assert refusal(ImageFolder, folder, folder="..") == (
        f"data set 'image_folder': '..' lies outside of the data root '{folder}'"
    )
    os.mkdir(folder / "bare")
    assert refusal(ImageFolder, folder, train="bare") == f"{folder / 'bare'}: has no folders; each would be a class"


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "train" / "cat" / "again.png").symlink_to(folder / "train" / "cat" / "0.png")
    assert len(load(ImageFolder, folder).train.names) == 9


def test_without_a_test_folder_the_error_names_the_option_that_takes_val(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert refusal(ImageFolder, folder) == (
        f"data set 'image_folder': no folder '{folder / 'test'}', but 'val'; data.options.test: val makes it the test "
        "split, and validation a share of train"
    )
    splits = load(ImageFolder, folder, test="val")
    assert (splits.validation, len(splits.test().names)) == (None, 4)


def test_grey_of_16_bits_is_read_as_its_twin_of_8_bits(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    read = read_image(tmp_path / "16.png", 16)
    assert np.array_equal(read[..., 0], grey)
    assert np.array_equal(read, read_image(tmp_path / "8.png", 16))


@pytest.mark.parametrize(("mode", "kind"), [("I", "whole numbers of 32 bits"), ("F", "floats")])
def test_images_without_a_known_white_are_refused(
    mode: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdzoo.data.images.FORMATS", ("TIFF",))  # PNG and its like hold no such images
    Image.new(mode, (8, 8), 300).save(tmp_path / "x.png", format="TIFF")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "x.png", 8)
    assert str(caught.value) == (
        f"{tmp_path / 'x.png'}: holds {kind}, and no scale that says what is white; an image of 8 or 16 bits would be "
        "right"
    )


def test_a_pipe_among_the_images_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    assert refusal(ImageFolder, folder) == f"{folder / 'train' / 'cat' / 'pipe.png'}: is no regular file"


def test_names_that_no_file_can_have(folder: Path) -> None:
    assert refusal(ImageFolder, folder, train="x" * 300).startswith("data set 'image_folder': no folder '")
    assert refusal(ImageFolder, folder, folder="a\0b").endswith("is no path: embedded null byte")
    assert refusal(Arrays, folder, train="x" * 300 + ".npz").startswith("data set 'arrays': no file 'xxx")
    assert refusal(Arrays, folder, train="a\0b.npz").endswith("is no path: embedded null byte")


# --- what is found before training ----------------------------------------------------------


def opened(folder: Path, **changes) -> DataSet:
    recipe = DataRecipe(name="image_folder", root=str(folder), validation=2, **changes)
    return open_data(ImageFolder(ImageFolder.Options()), recipe, 0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_cannot_be_decoded_are_named_before_training(split: str, folder: Path) -> None:
    bad = [folder / split / "cat" / f"bad {i}.jpg" for i in range(7)]
    for path in bad:
        path.write_text("no image at all")
    data = opened(folder)
    with pytest.raises(DataError) as caught:
        data.check_form()
    lines = str(caught.value).split("\n  ")
    assert [line.partition(": ")[0] for line in lines[:5]] == [str(path) for path in bad[:5]]
    assert lines[5:] == ["and 2 more"]
    assert data.test_gate.reads == 0


@pytest.fixture
def records(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; every image that a test makes from now on is old enough to be remembered."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is hashed and decoded, from now on."""
    found: list[str] = []
    for name in ("digest", "content"):
        whole = getattr(Files, name)

        def noted(self: Files, i: int, whole=whole, name=name):
            found.append(f"{name} {Path(self.paths[i]).relative_to(Path(self.paths[i]).parents[2])}")
            return whole(self, i)

        monkeypatch.setattr(Files, name, noted)
    return found


def aged(folder: Path) -> Path:
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))
    return folder


def test_unchanged_images_are_neither_hashed_nor_decoded_again(
    folder: Path, records: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_records, "RECHECKED_LEAST", 2)
    aged(folder)
    first = opened(folder)
    assert first.check_form().startswith("12 images decoded; test split of 4 samples: form checked")
    assert len(reads) == 24
    reads.clear()
    again = opened(folder)
    assert again.check_form().startswith("test split of 4 samples")
    assert (again.fingerprint, again.notes) == (first.fingerprint, first.notes)
    assert len(reads) == 2 + 2  # two of train, two of test
    assert all(read.startswith("digest") for read in reads)
    reads.clear()
    opened(folder, max_megapixels=2).check_form()
    assert sum(read.startswith("content") for read in reads) == 12  # other rules: decoded anew


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_changed_image_is_noticed(how: str, folder: Path, records: Path, reads: list[str]) -> None:
    before = opened(aged(folder)).fingerprint
    path = folder / "train" / "dog" / "0.png"
    other = folder / "other.png"
    other.write_bytes(path.read_bytes()[:-1] + b"x")  # as long as it was
    if how == "written":
        path.write_bytes(other.read_bytes())
    os.utime(other, ns=(10**18, 10**18))
    if how == "replaced":
        other.replace(path)
        assert path.stat().st_mtime_ns == 10**18
    reads.clear()
    assert opened(folder).fingerprint != before
    assert "digest train/dog/0.png" in reads


def test_an_empty_image_is_refused(folder: Path) -> None:
    (folder / "train" / "cat" / "empty.png").touch()
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert str(caught.value) == f"{folder / 'train' / 'cat' / 'empty.png'}: is empty"


def test_where_a_rechecked_image_has_other_content_nothing_is_trusted(
    folder: Path, records: Path, reads: list[str]
) -> None:
    opened(aged(folder))
    (place,) = (records / "kdzoo" / "files").iterdir()
    known = json.loads(place.read_text())
    place.write_text(json.dumps({path: f"{record[:-41]}{'0' * 32}{record[-9:]}" for path, record in known.items()}))
    reads.clear()
    data = opened(folder)
    assert data.notes == [
        "8 of 8 files that were read again have other content, though size, times and inode are the same; all files "
        "were read anew"
    ]
    assert len(reads) == 8 + 8
    assert data.fingerprint == opened(folder).fingerprint


@pytest.mark.parametrize("content", ["", "[]", '{"/x": 1}', '{"/x": "1 2 3 4 5 6"}', "[" * 100_000])
def test_damaged_records_are_passed_over(content: str, folder: Path, records: Path) -> None:
    before = opened(aged(folder)).fingerprint
    (place,) = (records / "kdzoo" / "files").iterdir()
    place.write_text(content)
    assert opened(folder).fingerprint == before


def test_images_that_were_just_written_are_not_remembered(folder: Path, records: Path) -> None:
    opened(folder)
    assert not (records / "kdzoo" / "files").exists()


# --- what an array may promise --------------------------------------------------------------


@pytest.mark.parametrize(("label", "count"), [(10**12, 10**12 + 1), (12, 13), (255, 256)])
def test_labels_that_the_samples_cannot_hold_are_refused(label: int, count: int, tmp_path: Path) -> None:
    own_arrays(tmp_path, labels=np.array([*range(11), label]))
    assert refusal(Arrays, tmp_path) == (
        f"data set 'arrays', split train: labels go up to {label}, which makes {count} classes of 12 samples; labels "
        "below 12 would be right, or data.options.classes that names them"
    )
    own_arrays(tmp_path, labels=np.arange(12))
    assert len(load(Arrays, tmp_path).classes) == 12


def promising(shape: str) -> bytes:
    """A .npy file whose header promises more than it holds."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(100)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    own_arrays(tmp_path)
    shape = "(1000000000000, 5, 4)"
    told = f"its header promises uint8 {shape}, 20,000,000,000,000 bytes; it has {len(promising(shape)):,} bytes"
    with zipfile.ZipFile(tmp_path / "train.npz", "a") as file:
        file.writestr("huge.npy", promising(shape))
    assert refusal(Arrays, tmp_path, images_key="huge") == f"{tmp_path / 'train.npz'}: 'huge': {told}"
    (tmp_path / "huge.npy").write_bytes(promising(shape))
    files = {"images": "huge.npy", "labels": "huge.npy"}
    assert refusal(Arrays, tmp_path, train=files) == f"{tmp_path / 'huge.npy'}: {told}"


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((6, 5, 4, 3), np.uint8), np.array([0, 1, 2, 0, 1, 7]), "targets lie in 0..7; 0..2 would be right"),
        (
            np.zeros((6, 5, 5, 3), np.uint8),
            np.arange(6) % 3,
            "images are uint8 (6, 5, 5, 3); uint8 (6, 5, 4, 3) would be right",
        ),
        (np.zeros((6, 5, 4, 3)), np.arange(6) % 3, "images are float64 (6, 5, 4, 3); uint8 (N, H, W) or"),
        (np.zeros((0, 5, 4, 3), np.uint8), np.arange(0), "images are uint8 (0, 5, 4, 3); uint8 (N, H, W) or"),
    ],
)
def test_the_form_of_the_test_split_is_checked_before_training(
    images: np.ndarray, labels: np.ndarray, words: str, tmp_path: Path
) -> None:
    own_arrays(tmp_path)
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    data = open_data(Arrays(Arrays.Options()), DataRecipe(name="arrays", root=str(tmp_path), validation=3), 0)
    with pytest.raises(DataError) as caught:
        data.check_form()
    assert words in str(caught.value)
    assert (data.test_gate.reads, "test" in data.split_sizes) == (0, False)
