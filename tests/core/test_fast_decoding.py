"""Fast decoding: enough pixels, close to Pillow's, the same bits for any number of workers, no fault missed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kdzoo.contract.extension_points import DataSource, DataSplits, FileSplit, OfferOptions
from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data.data_set import open_data
from kdzoo.data.images import Decoder, fitted_size
from kdzoo.data.inputs import Pixels
from kdzoo.data.loader import Loader
from kdzoo.data.sample_views import SampleViews
from kdzoo.errors import DataError
from kdzoo.recipe.image_sections import AugmentRecipe
from kdzoo.recipe.sections import DataRecipe


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Soft shapes and some grain, each corner in a colour of its own."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * rows + k) + np.cos(13 * columns - k) + rows - columns for k in range(3)]
    pixels = 128 + 40 * np.stack(waves, -1) + rng.normal(0, 2, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", turned: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    image.save(file, kind, quality=92, exif=exif)
    return file.getvalue()


def both(content: bytes, **steps: object) -> tuple[np.ndarray, np.ndarray]:
    """Pixels decoded exactly and fast, as integers."""
    made = [Decoder(Preprocessing().changed({**steps, "decode": way}), 100) for way in ("exact", "fast")]
    exact, fast = (decoder.pixels(content, "a file").astype(np.int64) for decoder in made)
    assert exact.shape == fast.shape
    return exact, fast


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that are decoded fast."""
    shapes: list[tuple[int, ...]] = []
    whole = Decoder.shrunk

    def shrunk(self: Decoder, *args: Any) -> tuple[np.ndarray, tuple[int, int]]:
        pixels, size = whole(self, *args)
        shapes.append(pixels.shape)
        return pixels, size

    monkeypatch.setattr(Decoder, "shrunk", shrunk)
    return shapes


@pytest.mark.parametrize("resize", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("size", "factor"), [((500, 375), 1), ((1023, 1300), 1), ((1024, 1024), 2), ((1999, 1025), 2), ((4099, 4101), 8)]
)
def test_what_is_not_decoded_in_full_is_left_twice_as_large_as_asked_for(
    size: tuple[int, int], factor: int, resize: str, decoded: list[tuple[int, ...]]
) -> None:
    steps = Preprocessing().changed({"resize": resize, "decode": "fast"})
    Decoder(steps, 100).pixels(encoded(Image.new("RGB", size, "red")), "")
    (shape,) = decoded
    wanted = fitted_size(size, steps)
    least = 1 if shape[1::-1] == size else 2
    assert shape[1] >= least * wanted[0]
    assert shape[0] >= least * wanted[1]
    if resize == "center":
        assert shape[:2] == (-(-size[1] // factor), -(-size[0] // factor))


@pytest.mark.parametrize("turned", [1, 6])
def test_without_scaling_pixels_are_pillow_s_within_two_levels(turned: int) -> None:
    exact, fast = both(encoded(photograph(500, 375), turned=turned))
    assert np.abs(exact - fast).max() <= 2
    assert np.abs(exact - fast).mean() < 0.02


@pytest.mark.parametrize("turned", [1, 3, 6])
def test_scaled_pixels_are_close_to_those_of_full_decoding(turned: int) -> None:
    exact, fast = both(encoded(photograph(1500, 1125), turned=turned))
    assert np.abs(exact - fast).mean() < 1
    assert np.abs(exact - fast).max() <= 12
    other_corner = np.abs(exact - fast[::-1]).mean()
    assert other_corner > 20


@pytest.mark.parametrize(
    ("mode", "kind", "steps"),
    [
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "JPEG", {"color_mode": "L"}),
        ("RGBA", "PNG", {"color_mode": "RGBA"}),
        ("RGB", "JPEG", {"resize": "border", "interpolation": "lanczos"}),
        ("RGB", "JPEG", {"size": (32, 64), "resize": "squash", "interpolation": "bilinear"}),
    ],
)
def test_every_kind_of_image_comes_out_alike(mode: str, kind: str, steps: dict[str, object]) -> None:
    exact, fast = both(encoded(photograph(300, 280, mode), kind), **{"size": 96, **steps})
    assert np.abs(exact - fast).mean() < 1.5


def test_a_small_image_is_enlarged_as_pillow_does() -> None:
    exact, fast = both(encoded(photograph(40, 30)), size=64)
    assert np.abs(exact - fast).max() <= 2


@pytest.mark.parametrize("size", [(500, 375), (1500, 1125)])
def test_a_file_that_ends_too_early_is_an_error(size: tuple[int, int]) -> None:
    content = encoded(photograph(*size))
    decoder = Decoder(Preprocessing(decode="fast"), 100)
    with pytest.raises(DataError, match=r"^a file: cannot be read as an image: "):
        decoder.pixels(content[: len(content) // 2], "a file")


class Photographs(DataSource):
    name = "photographs"
    encoded = True

    def load(self, root: Path) -> DataSplits:
        files = [encoded(ImageOps.expand(photograph(160 + 40 * i, 120), i), turned=1 + i % 8) for i in range(12)]
        split = FileSplit(tuple(map(str, range(12))), np.arange(12) % 2, files.__getitem__)
        return DataSplits(split, lambda: split, ("even", "odd"))


def test_bits_do_not_depend_on_workers() -> None:
    recipe = DataRecipe.model_validate({"name": "photographs", "validation": 0})

    def batches(workers: int, decode: str) -> list[torch.Tensor]:
        data = open_data(
            Photographs(OfferOptions()), recipe, 0, lambda: Preprocessing().changed({"size": 32, "decode": decode})
        )
        loader = Loader(data, torch.device("cpu"), 5, "crop_flip", workers=workers, timeout_s=60)
        return [batch.inputs for batch in (*loader.train_batches(0, 0), *loader.eval_batches("train", 5))]

    expected = batches(0, "fast")
    for workers in (1, 2):
        assert all(torch.equal(one, other) for one, other in zip(batches(workers, "fast"), expected, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(batches(0, "exact"), expected, strict=True))


def test_the_way_of_decoding_is_on_record() -> None:
    exact, fast = Preprocessing(), Preprocessing(decode="fast")
    assert not fast.same_pixels(exact)
    assert Preprocessing.from_record(fast.record()) == fast
    assert fast.sentence().endswith(", here decoded fast, a few levels of 255 from these pixels")
    with pytest.raises(ValueError, match="an unknown way of decoding"):
        Preprocessing.from_record({**fast.record(), "decode": "sloppy"})


@pytest.mark.parametrize("turned", [1, 6])
def test_a_crop_is_cut_from_as_few_pixels_as_it_needs(turned: int, decoded: list[tuple[int, ...]]) -> None:
    content = encoded(photograph(1500, 1125), turned=turned)
    decoder = Decoder(Preprocessing().changed({"size": 64}), 100)
    views = SampleViews(AugmentRecipe(crop_scale=(0.3, 1.0), flip=0.5), Pixels(3, (64, 64), (0.5,), (0.5,)), seed=0)
    for index in range(4):
        fast = views.of_file(decoder, content, "", 0, index).astype(np.int64)
        exact = views.of_image(decoder.decoded(content, ""), 0, index).astype(np.int64)
        assert np.abs(fast - exact).mean() < 2
    assert all(max(shape) <= 750 for shape in decoded)
    assert min(min(shape[:2]) for shape in decoded) >= 64
