"""Augmentation by timm's operations is a pure function of (seed, view, index), and mixing one of (seed, step)."""

from __future__ import annotations

import copy
import io
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torch.nn.functional import cross_entropy, one_hot

from kdzoo.contract.classification import NO_LABEL, TaskLoss
from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, FileSplit, OfferOptions
from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.contract.step import Batch, Mixed
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.loader import Loader
from kdzoo.data.mixing import box, mixed
from kdzoo.data.sample_views import SampleViews
from kdzoo.errors import DataError, NeedsError, RecipeError
from kdzoo.plan.filled import filled
from kdzoo.recipe.image_sections import PRESETS, AugmentRecipe
from kdzoo.recipe.reading import parse_recipe
from kdzoo.recipe.sections import DataRecipe
from kdzoo.testing.harness import Harness
from kdzoo.types import derive_seed
from kdzoo.zoo.loading import load_zoo

CPU = torch.device("cpu")
SIZE = (16, 12)
EVERYTHING = AugmentRecipe(
    crop_scale=(0.2, 1.0), flip=0.5, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, erase=0.5
)


def images(count: int, shape: tuple[int, ...] = (*SIZE, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


class Given(DataSource):
    name = "given"

    def __init__(self, splits: DataSplits) -> None:
        super().__init__(OfferOptions())
        self.splits = splits

    def load(self, root: Path) -> DataSplits:
        return self.splits


def opened(files: bool = False, channels: int = 3, augment: Any = "none") -> DataSet:
    pixels = images(12, (*SIZE, channels))
    split: Any = ArraySplit(pixels, np.arange(12) % 3)
    shape: dict[str, Any] = {"channels": channels, "size": SIZE, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    if files:
        encoded = [io.BytesIO() for _ in pixels]
        for image, file in zip(pixels, encoded, strict=True):
            Image.fromarray(image).save(file, "PNG")
        contents = tuple(file.getvalue() for file in encoded)
        split, shape = FileSplit(tuple(map(str, range(12))), np.arange(12) % 3, contents.__getitem__), {}
    steps = partial(Preprocessing, SIZE, 1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    recipe = DataRecipe(name="given", validation=0, augment=augment)
    return open_data(Given(DataSplits(split, lambda: split, ("a", "b", "c"), **shape)), recipe, 0, steps)


def bits(data: DataSet, settings: AugmentRecipe = EVERYTHING, workers: int = 0, seed: int = 3) -> list[torch.Tensor]:
    loader = Loader(data, CPU, 5, settings, seed=seed, workers=workers, timeout_s=60)
    batches = [*loader.train_batches(1, 1, mix=True), *loader.canonical_batches(2), *loader.train_batches(0, 1)]
    return [batch.inputs for batch in batches]


# --- as timm does it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        PRESETS["timm_light"],
        AugmentRecipe(crop_scale=(0.08, 1.0), flip=0.5, auto_augment="rand-m9-mstd0.5-inc1"),
        AugmentRecipe(crop_scale=(0.08, 1.0), crop_interpolation="bicubic", auto_augment="original-mstd0.5"),
        AugmentRecipe(crop_scale=(0.3, 1.0), flip=0.5, auto_augment="augmix-m5-w4-d2", color_jitter=0.2),
    ],
)
def test_a_sample_s_pixels_are_those_of_timm_under_its_seed(settings: AugmentRecipe) -> None:
    inputs = opened().inputs
    views = SampleViews(settings, inputs, 7)
    theirs = transforms_imagenet_train(
        inputs.size,
        scale=settings.crop_scale,
        hflip=settings.flip,
        color_jitter=settings.color_jitter or None,  # type: ignore[arg-type]
        force_color_jitter=True,
        auto_augment=settings.auto_augment,
        interpolation=settings.crop_interpolation,
        mean=inputs.mean,
        use_prefetcher=True,
    )
    for index, pixels in enumerate(images(6, (40, 30, 3))):
        got = views.of_image(Image.fromarray(pixels), 2, index)
        seed = derive_seed(7, "augment", "sample", 2, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        assert np.array_equal(got.transpose(2, 0, 1), theirs(Image.fromarray(pixels)).numpy())


def test_the_largest_magnitude_of_posterize_leaves_black() -> None:
    views = SampleViews(AugmentRecipe(auto_augment="rand-m10-n1-inc1"), opened().inputs, 0)
    picture = Image.fromarray(images(1)[0])
    assert min(views.of_image(picture, 0, index).max() for index in range(60)) == 0


def test_without_a_crop_a_file_is_framed_as_in_evaluation() -> None:
    shown = Loader(opened(files=True), CPU, 12, AugmentRecipe(flip=0.0)).canonical_batches(0)
    plain = Loader(opened(files=True), CPU, 12).canonical_batches(0)
    assert torch.equal(next(iter(shown)).inputs, next(iter(plain)).inputs)


# --- pure -----------------------------------------------------------------------------------------


def test_the_same_bits_for_any_number_of_workers() -> None:
    settings = EVERYTHING.model_copy(update={"mixup": 0.2, "cutmix": 1.0})
    expected = bits(opened(files=True), settings)
    for workers in (1, 2):
        got = bits(opened(files=True), settings, workers)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)), workers
    assert not torch.equal(expected[0], bits(opened(files=True), settings, seed=4)[0])


def test_files_are_shown_as_the_same_images_in_memory() -> None:
    whole = EVERYTHING.model_copy(update={"crop_scale": None})
    assert all(torch.equal(*pair) for pair in zip(bits(opened(files=True), whole), bits(opened(), whole), strict=True))
    cropped = AugmentRecipe(crop_scale=(0.2, 1.0), flip=0.5)  # which torch resizes, not Pillow
    for ours, theirs in zip(bits(opened(files=True), cropped), bits(opened(), cropped), strict=True):
        assert float((ours - theirs).abs().max()) < 2.5 / 255


def test_global_generators_are_neither_read_nor_moved() -> None:
    def state() -> list[Any]:
        legacy = np.random.get_state()[1].tolist()
        return [random.getstate(), legacy, torch.get_rng_state().tolist()]

    before = state()
    first = bits(opened())
    assert state() == before
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert all(torch.equal(one, other) for one, other in zip(bits(opened()), first, strict=True))


def test_a_view_does_not_depend_on_the_batch_and_differs_from_the_next() -> None:
    views = SampleViews(EVERYTHING, opened().inputs, 0)
    pixels, index = torch.from_numpy(images(12)).permute(0, 3, 1, 2), torch.arange(12)
    whole = views.of_arrays(pixels, index, 1)
    some = torch.tensor([7, 2])
    assert torch.equal(views.of_arrays(pixels[some], index[some], 1), whole[some])
    assert (views.of_arrays(pixels, index, 2) != whole).flatten(1).any(1).all()


def test_grey_images_stay_grey() -> None:
    (whole,) = Loader(opened(channels=1), CPU, 12, EVERYTHING).canonical_batches(0)
    assert whole.inputs.shape == (12, 1, *SIZE)
    assert whole.inputs.std() > 0.1


# --- mixing ---------------------------------------------------------------------------------------


def batch_of(samples: int) -> Batch:
    inputs = torch.rand(samples, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(inputs, torch.arange(samples), torch.arange(samples))


def test_mixup_is_the_weighted_sum_of_neighbours() -> None:
    batch = batch_of(5)
    got = mixed(batch, AugmentRecipe(mixup=0.8), 0, 1, 2)
    assert got.mixed is not None
    assert got.mixed.targets.tolist() == [1, 0, 3, 2, 4]
    share = float(got.mixed.share[0])
    assert 0 < share < 1
    assert torch.allclose(got.inputs[2], share * batch.inputs[2] + (1 - share) * batch.inputs[3])
    assert torch.allclose(got.inputs[4], batch.inputs[4])
    assert (got.targets is batch.targets, got.index is batch.index) == (True, True)
    again, next_step = (mixed(batch, AugmentRecipe(mixup=0.8), 0, 1, step) for step in (2, 3))
    assert torch.equal(again.inputs, got.inputs)
    assert not torch.equal(next_step.inputs, got.inputs)


def test_cutmix_takes_a_box_of_the_neighbour_and_its_area_as_the_share() -> None:
    batch = batch_of(4)
    for step in range(20):
        got = mixed(batch, AugmentRecipe(cutmix=1.0), 0, 0, step)
        assert got.mixed is not None
        own = (got.inputs == batch.inputs).all(1).float().mean((1, 2))
        assert torch.allclose(own, got.mixed.share)
        theirs = got.inputs == batch.inputs[[1, 0, 3, 2]]
        assert ((got.inputs == batch.inputs) | theirs).all()
    draw = np.random.default_rng(0)
    for share in np.linspace(0, 1, 50):
        top, bottom, left, right = box(16, 12, share, draw)
        assert 0 <= top <= bottom <= 16
        assert 0 <= left <= right <= 12


def test_with_both_a_step_takes_one_of_them() -> None:
    batch, kinds = batch_of(2), []
    for step in range(30):
        got = mixed(batch, AugmentRecipe(mixup=1.0, cutmix=1.0), 0, 0, step).inputs[0]
        kinds.append(bool(((got == batch.inputs[0]) | (got == batch.inputs[1])).all()))
    assert 5 < sum(kinds) < 25


def test_an_epoch_that_starts_in_the_middle_and_a_process_s_share_are_mixed_alike() -> None:
    loader = Loader(opened(), CPU, 4, AugmentRecipe(flip=0.5, mixup=1.0, cutmix=1.0), seed=3)
    whole = list(loader.train_batches(1, 1, mix=True))
    later = list(loader.train_batches(1, 1, 1, mix=True))
    shares = [list(loader.train_batches(1, 1, rank=rank, world=2, mix=True)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert step == 0 or torch.equal(later[step - 1].inputs, batch.inputs)
        assert torch.equal(torch.cat([share[step].inputs for share in shares]), batch.inputs)
        parts = [share[step].mixed.targets for share in shares]  # type: ignore[union-attr]
        assert torch.equal(torch.cat(parts), batch.mixed.targets)  # type: ignore[union-attr]
    assert all(batch.mixed is None for batch in loader.train_batches(1, 1))


def test_the_task_loss_weighs_both_labels() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    labels, other, share = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 4, 4]), torch.tensor([0.9, 0.5, 0.2, 1.0])
    soft = share[:, None] * one_hot(labels, 5) + (1 - share[:, None]) * one_hot(other, 5)
    for smoothing in (0.0, 0.1):
        got = TaskLoss(smoothing)(logits, labels, mixed=Mixed(other, share))
        assert torch.allclose(got, cross_entropy(logits, soft, label_smoothing=smoothing))
    hidden = torch.tensor([0, 1, NO_LABEL, NO_LABEL])
    got = TaskLoss(0.0)(logits, hidden, 2.0, Mixed(torch.tensor([1, 0, NO_LABEL, NO_LABEL]), torch.full((4,), 0.3)))
    expected = cross_entropy(logits[:2], 0.3 * soft_of([0, 1]) + 0.7 * soft_of([1, 0]))
    assert torch.allclose(got, expected)


def soft_of(labels: list[int]) -> torch.Tensor:
    return one_hot(torch.tensor(labels), 5).float()


def test_teacher_and_student_answer_the_mixed_image_in_every_part(tmp_path: Path) -> None:
    harness = Harness(load_zoo().algorithm("kd"), load_zoo(), tmp_path)
    engine = harness.engine(data={"augment": {"mixup": 1.0}}, train={"accumulate": 2})
    seen: list[torch.Tensor] = []
    teacher = engine.job.teachers[0]
    whole = teacher.outputs
    teacher.outputs = lambda batch: (seen.append(batch.inputs), whole(batch))[1]  # type: ignore[method-assign]
    contexts = []
    make = engine.contexts.make
    engine.contexts.make = lambda *given: contexts.append(make(*given)) or contexts[-1]  # type: ignore[method-assign]
    engine.run(lambda engine: None, lambda: True)
    assert len(seen) == 2
    for inputs, ctx in zip(seen, contexts, strict=True):
        assert ctx.batch.inputs is inputs
        assert ctx.batch.mixed is not None
        assert len(ctx.batch.mixed.share) == len(inputs) == 4
        loss = TaskLoss(0.0)(ctx.student.logits, ctx.batch.targets, mixed=ctx.batch.mixed)
        assert torch.allclose(ctx.task_loss(ctx.student.logits), loss)


def test_a_stage_that_goes_on_from_its_middle_sees_the_very_same_images(tmp_path: Path) -> None:
    harness = Harness(load_zoo().algorithm("kd"), load_zoo(), tmp_path)
    ended = []
    for halt in (4, 2):
        engine, state = harness.engine(data={"augment": "timm_strong"}), None
        engine.run(lambda engine: None, lambda engine=engine, halt=halt: engine.step >= halt)
        if engine.step < engine.job.steps:
            state = copy.deepcopy(engine.state())
            engine = harness.engine(data={"augment": "timm_strong"})
            engine.restore(*state)
            engine.run(lambda engine: None, lambda: False)
        assert engine.step == engine.job.steps == 4
        ended.append(engine.job.student.model.state_dict())
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reads"), [("dkd", "reads the label of each image itself"), ("crd", "keeps values")])
def test_algorithms_that_read_labels_or_samples_themselves_get_no_mixed_images(
    name: str, reads: str, tmp_path: Path
) -> None:
    harness = Harness(load_zoo().algorithm(name), load_zoo(), tmp_path)
    with pytest.raises(NeedsError, match=rf"algorithm '{name}': {reads}.*; mixup: 0 and cutmix: 0 would be right"):
        harness.engine(data={"augment": "timm_strong"})


def test_operations_that_cannot_show_the_images_are_refused() -> None:
    with pytest.raises(DataError, match="timm's operations are for images of 1 or 3 channels, and these have 4"):
        opened(channels=4, augment="timm_light")
    with pytest.raises(DataError, match=r"data\.augment\.auto_augment: 'rand-x1' is no policy of timm"):
        SampleViews(AugmentRecipe(auto_augment="rand-x1"), opened().inputs, 0)


RECIPE = """
version: 1
name: x
algorithm: {name: kd}
models: {teacher: {name: resnet10t}, student: {name: resnet10t}}
data: {name: cifar10, augment: AUGMENT}
"""


@pytest.mark.parametrize(
    ("augment", "more", "text"),
    [
        ("crop", "", "data.augment: must be "),
        ("{crop_scale: [0.5, 0.1]}", "", "crop_scale: must be the least and the most, got [0.5, 0.1]"),
        ("{crop_scale: [0.5, 2]}", "", "crop_scale: is a share of the image, at most 1, got 2"),
        ("{auto_augment: randaugment}", "", "must be a policy of timm, e.g. rand-m9-mstd0.5"),
        ("{flipp: 0.5}", "", "flipp"),
        ("patient", "cache: {views: 2}", "cache: Mixup and CutMix show other images at each step"),
    ],
)
def test_what_a_recipe_gets_wrong(augment: str, more: str, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe((RECIPE.replace("AUGMENT", augment) + more).encode(), Path("x.yaml"))
    assert text in str(caught.value)


def test_a_whole_recipe_shows_the_values_of_a_preset() -> None:
    recipe = parse_recipe(RECIPE.replace("AUGMENT", "patient").encode(), Path("x.yaml")).recipe
    whole = filled(recipe, load_zoo())
    assert whole.data.augment == PRESETS["patient"]
    assert (whole.data.augmentation, whole.data.mixes) == (recipe.data.augmentation, True)
