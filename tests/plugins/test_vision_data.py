"""Data sets that come with the plugin, and those it reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from kdzoo.api.data import ArraySplit, DataError, DataSplits, FileSplit
from kdzoo.data.data_set import digests, open_data
from kdzoo.recipe.sections import DataRecipe
from kdzoo_vision.arrays import Arrays, moments
from kdzoo_vision.digits import FILE, Digits
from kdzoo_vision.image_folder import ImageFolder, Reader
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
    for cls, options in ((Arrays, {"trian": "x"}), (ImageFolder, {"size": 0}), (Cifar10, {"download": "often"})):
        with pytest.raises(ValidationError):
            cls.Options(**options)


# --- folders of images ----------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).convert(mode).save(path, **save)
    return path


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
    splits = load(ImageFolder, folder, size=16)
    assert (splits.classes, splits.channels, splits.size) == (("cat", "dog"), 3, (16, 16))
    assert splits.validation is None
    assert splits.train.targets.tolist() == [0] * 6 + [1] * 4
    for i in range(10):
        image = splits.train.read(i)
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
    data = open_data(
        ImageFolder(ImageFolder.Options(size=16)),
        DataRecipe(name="image_folder", root=str(folder), validation=2, workers=1),
        0,
    )
    data.test_gate.open()
    assert data.split_sizes == {"train": 8, "validation": 2, "test": 4}
    batch = next(data.loader(torch.device("cpu"), 4, "crop_flip", workers=1).train_batches(0, 0))
    assert batch.inputs.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_folder_of_its_own_for_validation(folder: Path, name: str) -> None:
    for kind in ("cat", "dog"):
        picture(folder / name / kind / "a.png")
    splits = load(ImageFolder, folder)
    assert isinstance(splits.validation, FileSplit)
    assert splits.validation.names == tuple(str(folder / name / kind / "a.png") for kind in ("cat", "dog"))
    assert load(ImageFolder, folder, test=name).validation is None


def test_the_centre_is_kept_and_scaled(tmp_path: Path) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255  # the central square is white
    Image.fromarray(image).save(tmp_path / "x.png")
    read = Reader((tmp_path / "x.png",), 10, 1.0, 1.0).read(0)
    assert (read[:, 1:-1] == 255).all()  # the outermost pixels mix with their neighbours
    assert (read[:, (0, -1)] > 200).all()
    image[5:15, 15:25] = 7
    Image.fromarray(image).save(tmp_path / "x.png")
    assert (Reader((tmp_path / "x.png",), 5, 0.5, 1.0).read(0)[1:-1, 1:-1] < 10).all()


def test_images_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the file is the right side of the picture
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    read = Reader((tmp_path / "x.png",), 16, 1.0, 1.0).read(0)
    assert (read[:, 9:].min(), read[:, :7].max()) == (255, 0)


def test_the_same_file_in_two_splits_is_noted(folder: Path) -> None:
    (folder / "test" / "cat" / "0.png").write_bytes((folder / "train" / "cat" / "0.png").read_bytes())
    data = open_data(ImageFolder(ImageFolder.Options()), DataRecipe(name="x", root=str(folder), validation=0), 0)
    data.test_gate.open()
    assert data.notes == ["1 image of test is also in train"]


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    def read(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            Reader((path,), 16, 1.0, 0.01).read(0)
        return str(caught.value)

    text = folder / "train" / "cat" / "text.jpg"
    text.write_text("no image at all")
    assert read(text).startswith(f"{text}: cannot be read as an image: cannot identify image file")
    whole = picture(folder / "train" / "cat" / "cut.jpg", (90, 90), quality=95)
    whole.write_bytes(whole.read_bytes()[:-2000])
    assert read(whole).startswith(f"{whole}: cannot be read as an image: image file is truncated")
    large = picture(folder / "large.png", (200, 100))
    assert read(large) == f"{large}: 200 x 100 pixels are more than max_megapixels: 0.01"
    gif = folder / "disguised.png"
    Image.new("RGB", (4, 4)).save(gif, format="GIF")
    assert read(gif).startswith(f"{gif}: cannot be read as an image: cannot identify image file")
    gone = folder / "gone.png"
    assert read(gone).startswith(f"{gone}: cannot be read as an image: ")


def test_a_bad_file_stops_the_batch_it_is_in(folder: Path) -> None:
    bad = folder / "train" / "dog" / "9.jpg"
    bad.write_text("no image at all")
    data = open_data(ImageFolder(ImageFolder.Options(size=8)), DataRecipe(name="x", root=str(folder), validation=0), 0)
    with pytest.raises(DataError, match=r"9\.jpg: cannot be read as an image: "):
        list(data.loader(torch.device("cpu"), 3, workers=1).canonical_batches(0))


def test_folders_that_are_not_right(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cat = folder / "train" / "cat"

    def refused_with(path: Path) -> str:
        text = refusal(ImageFolder, folder)
        if path.is_symlink() or path.is_file():
            path.unlink()
        return text.removeprefix(f"{path}: ")

    (cat / "empty.png").touch()
    assert refused_with(cat / "empty.png") == "is empty"
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
