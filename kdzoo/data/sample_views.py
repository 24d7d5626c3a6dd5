"""Augmentation by timm's operations, one sample after the other: a pure function of (seed, view, sample index).

timm's operations draw from Python's, numpy's and torch's global generators. Here all three are seeded for each sample
and put back after it. So a sample's pixels at a view do not depend on its batch, on workers or on what ran before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import Compose

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data.images import Decoder, array_of, framed, image_of, quick, quickly_resized
from kdzoo.data.inputs import Inputs
from kdzoo.errors import DataError
from kdzoo.recipe.image_sections import AugmentRecipe
from kdzoo.types import derive_seed


class SampleViews:
    """Shows samples as ``settings`` augment them; worker processes get a copy."""

    def __init__(self, settings: AugmentRecipe, inputs: Inputs, seed: int) -> None:
        """``inputs`` are the data set's. Raises DataError for a policy that timm does not know."""
        self.settings, self.seed = settings, seed
        self.size, self.mean, self.std = inputs.size, inputs.mean, inputs.std
        self.steps: Preprocessing | None = inputs.steps
        try:
            self._operations  # noqa: B018 so that a wrong policy is found before the first step
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"data.augment.auto_augment: '{settings.auto_augment}' is no policy of timm: {error}"
            ) from error

    def of_image(self, image: Image.Image, view: int, index: int) -> np.ndarray:
        """Return sample ``index`` at ``view``: an image of any size -> uint8 (H, W, C)."""
        if self._crop is None and self.steps is not None:
            image = framed(image, self.steps)
        with self._drawing(view, index):
            return self._operated(array_of(image if self._crop is None else self._crop(image)))

    def of_file(self, decoder: Decoder, content: bytes, name: str, view: int, index: int) -> np.ndarray:
        """Return sample ``index`` at ``view``: an encoded image -> uint8 (H, W, C). Raises DataError.

        A random crop is drawn before the image is decoded, which then is decoded no larger than the crop needs, and
        resized by torch: the pixels of ``of_image`` but for a few levels.
        """
        if self._crop is None:
            pixels = decoder.pixels(content, name)
            with self._drawing(view, index):
                return self._operated(pixels)
        with self._drawing(view, index):
            return self._operated(self._cropped(self._crop, decoder, content, name))

    def _drawing(self, view: int, index: int) -> AbstractContextManager[None]:
        return seeded(derive_seed(self.seed, "augment", "sample", view, index))

    def _cropped(
        self, crop: RandomResizedCropAndInterpolation, decoder: Decoder, content: bytes, name: str
    ) -> np.ndarray:
        """Draw timm's crop of an image, decode it, cut and resize; (H, W, C)."""
        height, width = self.size
        box = (0, 0, 1, 1)  # left, top, right, bottom

        def spare(size: tuple[int, int]) -> float:
            nonlocal box
            shape = torch.empty(1).expand(1, size[1], size[0])  # all that timm asks of an image here
            top, left, tall, wide = crop.get_params(shape, crop.scale, crop.ratio)
            box = (left, top, left + wide, top + tall)
            return min(wide / width, tall / height)

        pixels, size = decoder.shrunk(content, name, spare)
        way = crop.interpolation
        interpolation = (random.choice(way) if isinstance(way, tuple | list) else way).value
        right, down = pixels.shape[1] / size[0], pixels.shape[0] / size[1]
        left, top = math.floor(box[0] * right), math.floor(box[1] * down)
        pixels = pixels[top : math.ceil(box[3] * down), left : math.ceil(box[2] * right)]
        if quick(decoder.preprocessing.color_mode, interpolation):
            return quickly_resized(pixels, (width, height), interpolation)
        return array_of(image_of(pixels).resize((width, height), Image.Resampling[interpolation.upper()]))

    def _operated(self, pixels: np.ndarray) -> np.ndarray:
        """Return (H, W, C) of the right size after all that follows the crop: flip, policy, jitter and erasing."""
        if self.settings.flip > 0 and torch.rand(1) < self.settings.flip:  # as torchvision draws it
            pixels = pixels[:, ::-1]
        if self._operations.transforms:
            image = image_of(pixels)
            shown = self._operations(image.convert("RGB") if image.mode == "L" else image)
            pixels = array_of(shown.convert(image.mode))
        return self._erased(pixels)

    def of_arrays(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        """Return a batch at ``view``: uint8 (N, C, H, W) and (N,) -> uint8 (N, C, H, W)."""
        rows = images.permute(0, 2, 3, 1).cpu().numpy()
        pictures = (Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row) for row in rows)
        shown = [self.of_image(image, view, i) for image, i in zip(pictures, index.tolist(), strict=True)]
        return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).to(images.device)

    @cached_property
    def _crop(self) -> RandomResizedCropAndInterpolation | None:
        settings = self.settings
        if settings.crop_scale is None:
            return None
        interpolation = settings.crop_interpolation
        return RandomResizedCropAndInterpolation(
            self.size, settings.crop_scale, settings.crop_ratio, interpolation=interpolation
        )

    @cached_property
    def _operations(self) -> Any:
        """Policy and colour jitter, in timm's order."""
        settings, jitter = self.settings, self.settings.color_jitter
        _, second, _ = transforms_imagenet_train(
            self.size,
            color_jitter=jitter or None,  # type: ignore[arg-type]  # None is none, as it says below
            force_color_jitter=jitter > 0,
            auto_augment=settings.auto_augment,
            interpolation=settings.crop_interpolation,
            mean=self.mean if len(self.mean) == 3 else self.mean[:1] * 3,
            separate=True,
        )
        for operation in _policy_operations(second.transforms):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterized
        return Compose(second.transforms)

    def _erased(self, pixels: np.ndarray) -> np.ndarray:
        if self.settings.erase == 0:
            return pixels
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(255).sub_(mean).div_(std)
        RandomErasing(self.settings.erase, mode="pixel", device="cpu")(values)
        shown = values.mul_(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        return shown.permute(1, 2, 0).numpy()


def _policy_operations(transforms: list[Any]) -> Iterator[Any]:
    """Yield the operations of policies among timm's transforms: a policy of AutoAugment has lists of them."""
    for transform in transforms:
        for found in getattr(transform, "ops", getattr(transform, "policy", ())):
            yield from found if isinstance(found, list) else [found]


def _posterized(image: Image.Image, bits_to_keep: int, **settings: Any) -> Image.Image:
    """timm's posterize; of its largest magnitude nothing is kept, which Pillow refuses since 12."""
    return posterize(image, bits_to_keep, **settings) if bits_to_keep > 0 else image.point(lambda value: 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch's CPU inside; they are as they were after."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.default_generator.set_state(cpu)
