"""What a recipe holds of images: how a file becomes pixels, and how training samples are augmented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from kdzoo.recipe.problems import misfits
from kdzoo.recipe.values import Real, Section, Whole, matching

Numbers = tuple[Annotated[Real, Field(ge=-1000, le=1000)], ...]
Spreads = tuple[Annotated[Real, Field(gt=0, le=1000)], ...]
Side = Annotated[Whole, Field(ge=1, le=16_384)]


class PreprocessingRecipe(Section):
    """How an image file becomes what a network takes. What is null comes from the model's own timm config."""

    size: Side | tuple[Side, Side] | None = Field(
        None, description="Input size in pixels: one number, or [height, width]."
    )
    crop_share: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, description="Share of the resized image, by its sides, that the centre crop keeps: timm's crop_pct."
    )
    resize: Literal["center", "squash", "border"] | None = Field(
        None,
        description="center keeps the shape and cuts, squash changes the shape, border keeps all: timm's crop_mode.",
    )
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] | None = Field(
        None, description="How Pillow resizes, antialiased except for nearest."
    )
    color_mode: Literal["L", "RGB", "RGBA"] | None = Field(
        None, description="Grey, colour, or colour with alpha: 1, 3 or 4 channels."
    )
    decode: Literal["exact", "fast"] | None = Field(
        None, description="exact: Pillow's pixels, as timm has them; fast: less time, a few levels of 255 away."
    )
    mean: Numbers | None = Field(None, description="Normalisation, one number per channel, of pixels in [0, 1].")
    std: Spreads | None = Field(None, description="Standard deviations, with mean.")

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> PreprocessingRecipe:
        if len(self.mean or ()) != len(self.std or ()):
            raise misfits(("mean", "mean and std must have one number a channel each, or both be left out"))
        return self

    def given(self) -> dict[str, Any]:
        """Return the keys that have a value."""
        return {key: value for key, value in self if value is not None}


Interval = tuple[Annotated[Real, Field(gt=0, le=100)], Annotated[Real, Field(gt=0, le=100)]]
Share = Annotated[Real, Field(ge=0, le=1)]
if TYPE_CHECKING:
    Policy = str
else:
    Policy = matching(
        r"^(rand|augmix|original|originalr|v0|v0r|3a)(-[a-z]+[0-9.]*)*$",
        "a policy of timm, e.g. rand-m9-mstd0.5, original or augmix-m3-w3",
    )


class AugmentRecipe(Section):
    """Augmentation by timm's operations, in its order. Each sample draws by (seed, view, its index)."""

    crop_scale: Interval | None = Field(
        None, description="Random resized crop: least and most share of the area; null: the image as evaluated."
    )
    crop_ratio: Interval = Field((3 / 4, 4 / 3), description="Least and most ratio of the crop's width to its height.")
    crop_interpolation: Literal["random", "bilinear", "bicubic", "lanczos", "nearest"] = Field(
        "random", description="How the crop is resized; random: bilinear or bicubic."
    )
    flip: Share = Field(0.0, description="Probability of a horizontal flip.")
    auto_augment: Policy | None = Field(
        None, description="RandAugment, AutoAugment or AugMix by timm's string, e.g. rand-m9-mstd0.5."
    )
    color_jitter: Annotated[Real, Field(ge=0, le=10)] = Field(
        0.0, description="Largest relative change of brightness, contrast and saturation; also with auto_augment."
    )
    erase: Share = Field(0.0, description="Probability of random erasing, with noise of the data's mean and std.")
    mixup: Annotated[Real, Field(ge=0, le=100)] = Field(
        0.0, description="Alpha of Mixup's beta distribution; 0: none. One share a step, drawn by (seed, step)."
    )
    cutmix: Annotated[Real, Field(ge=0, le=100)] = Field(
        0.0, description="The same of CutMix; with both, each step takes one of them by chance."
    )

    @model_validator(mode="after")
    def _intervals_ascend(self) -> AugmentRecipe:
        problems = []
        for key in ("crop_scale", "crop_ratio"):
            interval = getattr(self, key)
            if interval is not None and interval[0] > interval[1]:
                problems.append((key, f"must be the least and the most, got {list(interval)}"))
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            problems.append(("crop_scale", f"is a share of the image, at most 1, got {self.crop_scale[1]:g}"))
        if problems:
            raise misfits(*problems)
        return self

    @property
    def mixes(self) -> bool:
        """Whether two samples become one."""
        return self.mixup > 0 or self.cutmix > 0


#: Augmentations by name, besides those that the core draws for a whole batch at once.
PRESETS: Mapping[str, AugmentRecipe] = {
    "timm_light": AugmentRecipe(crop_scale=(0.08, 1.0), flip=0.5, color_jitter=0.4),
    "timm_strong": AugmentRecipe(
        crop_scale=(0.08, 1.0), flip=0.5, auto_augment="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0
    ),
    "patient": AugmentRecipe(crop_scale=(0.05, 1.0), flip=0.5, mixup=1.0),
}
Batchwise = Literal["none", "flip", "crop_flip"]
Augmentation = Literal["none", "flip", "crop_flip", "timm_light", "timm_strong", "patient"] | AugmentRecipe
