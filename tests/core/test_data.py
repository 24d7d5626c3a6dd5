"""Splits are stated and seeded, batches are pure functions, and the test split stays shut."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, FileSplit, OfferOptions
from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data.data_set import DataSet, data_root, open_data
from kdzoo.data.loader import Loader
from kdzoo.data.splitting import stratified
from kdzoo.errors import ContractError, DataError
from kdzoo.recipe.sections import DataRecipe

CPU = torch.device("cpu")


def images(count: int, seed: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def array_splits(train: int = 40, test: int = 11, classes: int = 4) -> DataSplits:
    return DataSplits(
        train=ArraySplit(images(train, 0), np.arange(train) % classes),
        test=lambda: ArraySplit(images(test, 1), np.arange(test) % classes),
        classes=tuple(f"class {k}" for k in range(classes)),
        channels=3,
        size=(6, 5),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )


class Given(DataSource):
    """Splits that a test made."""

    name = "given"

    def __init__(self, splits: DataSplits) -> None:
        super().__init__(OfferOptions())
        self.splits = splits

    def load(self, root: Path) -> DataSplits:
        return self.splits


def opened(splits: DataSplits | None = None, seed: int = 0, **changes: object) -> DataSet:
    recipe = DataRecipe.model_validate({"name": "given", "validation": 8, **changes})
    return open_data(Given(splits or array_splits()), recipe, seed, partial(Preprocessing, (6, 5), 1.0))


def as_files(splits: DataSplits) -> DataSplits:
    """The same samples, read one by one."""
    train = splits.train
    assert isinstance(train, ArraySplit)
    names = tuple(f"{i}.png" for i in range(len(train.targets)))
    encoded = tuple(png(image) for image in train.images)
    files = FileSplit(names, train.targets, encoded.__getitem__)
    return replace(splits, train=files)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def all_bits(data: DataSet, workers: int = 0, augment: str = "crop_flip") -> list[torch.Tensor]:
    loader = Loader(data, CPU, 7, augment, seed=3, workers=workers, timeout_s=60)
    batches = [*loader.train_batches(1, 1), *loader.canonical_batches(2)]
    batches += loader.eval_batches("validation", 3)
    tensors = [t for b in batches for t in (b.inputs, b.targets, b.index)]
    assert len(tensors) == 3 * len(batches)
    return tensors


# --- splits ---------------------------------------------------------------------------------


def test_validation_is_carved_stratified_seeded_and_disjoint() -> None:
    data = opened()
    train, validation = data.parts["train"].rows, data.parts["validation"].rows
    assert data.split_sizes == {"train": 32, "validation": 8}
    assert np.bincount(data.parts["validation"].targets).tolist() == [2, 2, 2, 2]
    assert sorted([*train, *validation]) == list(range(40))
    assert np.array_equal(opened().parts["validation"].rows, validation)
    assert not np.array_equal(opened(seed=1).parts["validation"].rows, validation)


@pytest.mark.parametrize(("validation", "held_out"), [(0, 0), (0.25, 10), (4, 4)])
def test_validation_is_a_share_or_a_number(validation: float, held_out: int) -> None:
    data = opened(validation=validation)
    assert data.split_sizes.get("validation", 0) == held_out
    assert data.num_train == 40 - held_out


def test_a_source_with_validation_keeps_it() -> None:
    own = ArraySplit(images(6, 7), np.zeros(6, dtype=np.int64))
    data = opened(replace(array_splits(), validation=own))
    assert data.split_sizes == {"train": 40, "validation": 6}


def test_train_limit_takes_classes_in_proportion() -> None:
    data = opened(train_limit=12)
    assert np.bincount(data.parts["train"].targets).tolist() == [3, 3, 3, 3]
    assert data.split_sizes == {"train": 12, "validation": 8}
    assert not set(data.parts["train"].rows) & set(data.parts["validation"].rows)


def test_stratified_takes_exactly_the_number_and_leaves_what_it_must() -> None:
    targets = np.array([0] * 50 + [1] * 5 + [2] * 1)
    for count in (1, 2, 9, 30, 53):
        rows = stratified(targets, count, 0, keep=1)
        assert rows is not None
        assert len(set(rows.tolist())) == count
        assert 55 not in rows
    assert stratified(targets, 54, 0, keep=1) is None
    assert stratified(targets, 56, 0, keep=0) is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"validation": 39},
            "data set 'given': data.validation takes 39 of 40 training samples, which leaves none of some class to "
            "train on; lower it",
        ),
        ({"train_limit": 33}, "data set 'given': data.train_limit is 33, but there are 32 training samples"),
    ],
)
def test_splits_that_cannot_be_had(changes: dict, text: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(**changes)
    assert str(caught.value) == text


def test_fingerprint_is_of_content_not_of_seed_or_limit() -> None:
    assert opened().fingerprint == opened(seed=5, train_limit=12, validation=0).fingerprint
    assert opened().fingerprint == opened(replace(array_splits(), source="elsewhere")).fingerprint
    other = array_splits()
    other.train.images[7, 3, 2, 1] ^= 1
    assert opened(other).fingerprint != opened().fingerprint
    relabelled = array_splits()
    relabelled.train.targets[7] = 0
    assert opened(relabelled).fingerprint != opened().fingerprint


def test_the_same_image_in_two_splits_is_noted() -> None:
    splits = array_splits()
    test = images(11, 1)
    test[:3] = splits.train.images[:3]
    data = opened(replace(splits, test=lambda: ArraySplit(test, np.arange(11) % 4)), validation=0)
    assert data.notes == []
    data.test_gate.open()
    assert data.notes == ["3 images of test are also in train"]
    splits.train.images[1] = splits.train.images[0]
    splits.train.images[2:] = splits.train.images[2]
    assert any(note.endswith("of validation are also in train") for note in opened(splits).notes)


def test_a_class_without_training_samples_is_noted() -> None:
    splits = array_splits()
    splits.train.targets[:] %= 2
    assert opened(splits).notes == ["no training sample of: class 2, class 3"]


# --- the gate -------------------------------------------------------------------------------


def test_test_data_cannot_be_read_before_the_gate_is_open() -> None:
    calls = []
    splits = array_splits()
    data = opened(replace(splits, test=lambda: calls.append(1) or splits.test()))
    loader = Loader(data, CPU, 8)
    with pytest.raises(ContractError) as caught:
        next(loader.eval_batches("test", 4))
    assert str(caught.value) == "the test split was asked for before selection closed; open test_gate first"
    assert (calls, data.test_gate.is_open, data.test_gate.reads) == ([], False, 0)
    data.test_gate.open()
    data.test_gate.open()
    assert sum(len(batch.index) for batch in loader.eval_batches("test", 4)) == 11
    assert (calls, data.test_gate.is_open, data.test_gate.reads) == ([1], True, 1)
    assert data.split_sizes["test"] == 11


def test_a_split_that_is_not_there() -> None:
    with pytest.raises(DataError) as caught:
        next(Loader(opened(validation=0), CPU, 8).eval_batches("validation", 4))
    assert str(caught.value) == "data set 'given': has no validation split; set data.validation above 0"


# --- what a source may get wrong --------------------------------------------------------------


def broken(**changes: object) -> DataSplits:
    return replace(array_splits(), **changes)


TEN = np.arange(10) % 4


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        (broken(classes=("a",)), ": needs at least 2 classes of different names, got ['a']"),
        (broken(size=(6, 0)), ": 3 channels of size (6, 0) are no images"),
        (
            broken(std=(0.2, 0.2, 0.0)),
            ": mean (0.5, 0.5, 0.5) and std (0.2, 0.2, 0.0) must be 3 finite numbers each, one a channel, "
            "and std above 0",
        ),
        (broken(train=ArraySplit(images(0, 0), TEN[:0])), ", split train: has no samples"),
        (
            broken(train=ArraySplit(images(10, 0) / 255, TEN)),
            ", split train: images are float64 (10, 6, 5, 3); uint8 (10, 6, 5, 3) would be right",
        ),
        (
            broken(train=ArraySplit(images(10, 0).transpose(0, 3, 1, 2), TEN)),
            ", split train: images are uint8 (10, 3, 6, 5); uint8 (10, 6, 5, 3) would be right",
        ),
        (
            broken(train=ArraySplit(images(10, 0), TEN[:9])),
            ", split train: targets are int64 (9,); int64 (10,) would be right",
        ),
        (
            broken(train=ArraySplit(images(10, 0), TEN / 2)),
            ", split train: targets are float64 (10,); int64 (10,) would be right",
        ),
        (
            broken(train=ArraySplit(images(10, 0), TEN + 1)),
            ", split train: targets lie in 1..4; 0..3 would be right",
        ),
    ],
)
def test_inconsistent_splits_are_refused(splits: DataSplits, text: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(splits)
    assert str(caught.value) == f"data set 'given'{text}"


def test_a_broken_test_split_is_found_when_it_is_opened() -> None:
    data = opened(broken(test=lambda: ArraySplit(images(5, 1), np.full(5, 9))))
    with pytest.raises(DataError) as caught:
        data.test_gate.open()
    assert str(caught.value) == "data set 'given', split test: targets lie in 9..9; 0..3 would be right"
    assert not data.test_gate.is_open


# --- batches --------------------------------------------------------------------------------


def test_batches_hold_the_pixels_of_their_index() -> None:
    data = opened()
    rows = data.parts["train"].rows
    for batch in Loader(data, CPU, 8).train_batches(0, 0):
        at = rows[batch.index.numpy()]
        expected = torch.from_numpy(data._splits.train.images[at]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(batch.inputs, expected)
        assert batch.targets.tolist() == data._splits.train.targets[at].tolist()
        assert (batch.inputs.dtype, batch.targets.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)


def test_grey_images_have_one_channel() -> None:
    grey = ArraySplit(images(12, 0, (6, 5)), np.arange(12) % 4)
    data = opened(broken(train=grey, channels=1, mean=(0.5,), std=(0.5,)), validation=0)
    assert next(Loader(data, CPU, 4).train_batches(0, 0)).inputs.shape == (4, 1, 6, 5)


def test_an_epoch_is_a_permutation_by_seed_and_epoch_and_drops_the_short_batch() -> None:
    data = opened()
    loader = Loader(data, CPU, 5)
    orders = [torch.cat([batch.index for batch in loader.train_batches(epoch, 0)]).tolist() for epoch in (0, 0, 1)]
    assert loader.steps_per_epoch == 6
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 30
    assert orders[0] != torch.cat([b.index for b in Loader(data, CPU, 5, seed=1).train_batches(0, 0)]).tolist()


def test_an_epoch_can_start_in_the_middle() -> None:
    loader = Loader(opened(), CPU, 5, "crop_flip")
    whole = list(loader.train_batches(2, 2))
    rest = list(loader.train_batches(2, 2, start_step=4))
    assert len(rest) == 2
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(whole[4:], rest, strict=True))


def test_ranks_share_each_batch_in_order() -> None:
    loader = Loader(opened(), CPU, 8, "crop_flip")
    shares = [list(loader.train_batches(0, 0, 0, rank, 2)) for rank in (0, 1)]
    for whole, first, second in zip(loader.train_batches(0, 0), *shares, strict=True):
        assert torch.equal(whole.inputs, torch.cat([first.inputs, second.inputs]))
        assert torch.equal(whole.index, torch.cat([first.index, second.index]))


def test_a_view_of_a_sample_does_not_depend_on_batch_size_or_order() -> None:
    data = opened()
    canonical = torch.cat([b.inputs[: len(b.index)] for b in Loader(data, CPU, 7, "crop_flip").canonical_batches(4)])
    for size in (3, 32):
        for batch in Loader(data, CPU, size, "crop_flip").train_batches(1, 4):
            assert torch.equal(batch.inputs, canonical[batch.index])


def test_canonical_batches_are_full_and_say_what_counts() -> None:
    loader = Loader(opened(), CPU, 10)
    batches = list(loader.canonical_batches(0))
    assert [len(batch.inputs) for batch in batches] == [10, 10, 10, 10]
    assert [len(batch.index) for batch in batches] == [10, 10, 10, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(32))
    assert [len(batch.targets) for batch in batches] == [10, 10, 10, 2]


def test_canonical_batches_of_a_split_smaller_than_a_batch() -> None:
    (batch,) = Loader(opened(), CPU, 100).canonical_batches(0)
    assert (len(batch.inputs), len(batch.index)) == (100, 32)


def test_evaluation_goes_through_a_split_in_order_and_does_not_augment() -> None:
    data = opened()
    batches = list(Loader(data, CPU, 8, "crop_flip").eval_batches("validation", 3))
    assert [len(batch.index) for batch in batches] == [3, 3, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(8))
    plain = torch.from_numpy(data._splits.train.images[data.parts["validation"].rows]).permute(0, 3, 1, 2) / 255
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), plain)


def test_channels_last_changes_the_layout_and_no_bit() -> None:
    data = opened()
    plain = next(Loader(data, CPU, 8, "crop_flip").train_batches(0, 0)).inputs
    turned = next(Loader(data, CPU, 8, "crop_flip", channels_last=True).train_batches(0, 0)).inputs
    assert turned.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, turned)


def test_a_batch_larger_than_the_split_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        Loader(opened(), CPU, 33).steps_per_epoch  # noqa: B018
    assert str(caught.value) == (
        "data.batch_size: 33 is more than the 32 training samples that 'given' has after validation is held out; "
        "lower it"
    )


# --- files ----------------------------------------------------------------------------------


def test_same_bits_for_0_1_and_2_workers_and_from_memory() -> None:
    expected = all_bits(opened())
    for workers in (0, 1, 2):
        got = all_bits(opened(as_files(array_splits())), workers)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)), workers


def test_file_batches_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    all_bits(opened(as_files(array_splits())), workers=1)
    assert torch.equal(torch.get_rng_state(), state)


class Faulty:
    """A reader of which one sample is bad in some way once ``bad`` is set."""

    def __init__(self, how: str) -> None:
        self.how, self.bad, self.files = how, False, [png(image) for image in images(40, 0)]

    def __call__(self, i: int) -> bytes:
        if not self.bad or i != 5:
            return self.files[i]
        if self.how == "data":
            raise DataError("5.png: cannot be read: gone")
        if self.how == "other":
            raise KeyError("nothing")
        if self.how == "hang":
            time.sleep(60)
        if self.how == "die":
            os._exit(3)
        return self.files[i][:50] if self.how == "cut" else np.zeros(4)  # type: ignore[return-value]


def faulty(how: str) -> DataSet:
    reader = Faulty(how)
    names = tuple(f"{i}.png" for i in range(40))
    files = FileSplit(names, np.arange(40) % 4, reader)
    data = opened(broken(train=files), validation=0)
    reader.bad = True
    return data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("data", "5.png: cannot be read: gone"),
        ("other", "5.png: cannot be read: KeyError: 'nothing'"),
        ("cut", "5.png: cannot be read as an image: "),
        ("array", "5.png: its content is ndarray; the bytes of an image file would be right"),
    ],
)
def test_a_sample_that_cannot_be_read_is_an_error_and_never_replaced(how: str, text: str, workers: int) -> None:
    loader = Loader(faulty(how), CPU, 8, workers=workers, timeout_s=60)
    with pytest.raises(DataError) as caught:
        list(loader.canonical_batches(0))
    assert str(caught.value).startswith(text)


def test_splits_of_arrays_and_of_files_do_not_mix() -> None:
    names = ("0.png",)
    files = FileSplit(names, np.zeros(1, dtype=int), lambda i: b"")
    with pytest.raises(DataError, match="split validation: encoded images, but another split has arrays"):
        opened(replace(array_splits(), validation=files))


@pytest.mark.parametrize("how", ["hang", "die"])
def test_a_worker_that_hangs_or_dies_is_an_error(how: str) -> None:
    loader = Loader(faulty(how), CPU, 8, workers=1, timeout_s=1)
    begin = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(loader.canonical_batches(0))
    assert time.monotonic() - begin < 25
    assert str(caught.value).startswith(
        "1 workers gave no batch within data.timeout_s: 1, or died; set data.workers: 0 to see what hangs, or raise "
        "data.timeout_s\n  "
    )


def test_a_cheaper_digest_is_used_where_a_source_has_one() -> None:
    splits = as_files(array_splits())
    digested = replace(splits, train=replace(splits.train, digest=lambda i: f"{i:032x}"))
    assert opened(digested)._digests["train"] == [f"{i:032x}" for i in opened(digested).parts["train"].rows]
    assert opened(digested).fingerprint != opened(splits).fingerprint == opened(splits).fingerprint


def test_the_root_is_the_recipe_s_then_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDZOO_DATA", "/elsewhere")
    assert data_root("here") == Path("here")
    assert data_root(None) == Path("/elsewhere")
    monkeypatch.delenv("KDZOO_DATA")
    assert data_root(None) == Path("data")


def worker_ids() -> set[int]:
    return {process.pid or 0 for process in multiprocessing.active_children()}


def test_workers_stay_for_the_next_pass_and_end_with_their_reader() -> None:
    others = worker_ids()
    loader = Loader(opened(as_files(array_splits())), CPU, 7, "crop_flip", seed=3, workers=2, timeout_s=60)
    first = [batch.inputs for batch in loader.train_batches(0, 0)]
    stayed = worker_ids() - others
    assert len(stayed) == 2
    broken_off = loader.train_batches(0, 0)
    next(broken_off)
    broken_off.close()
    again = loader.train_batches(0, 0)
    assert torch.equal(next(again).inputs, first[0])
    assert worker_ids() - others == stayed
    inner = [batch.inputs for batch in loader.train_batches(0, 0)]  # inside the pass above, with workers of its own
    assert len(worker_ids() - others) == 4
    rest = [batch.inputs for batch in again]
    assert all(torch.equal(one, other) for one, other in zip(first[1:], rest, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first, inner, strict=True))
    del loader, broken_off, again
    gc.collect()
    assert worker_ids() == others
