"""A sample seen in several ways at once: who reads what, who is told which labels, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, OfferOptions
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.inputs import Measurements, Pixels
from kdzoo.data.loader import Loader
from kdzoo.errors import DataError, KdzooError, ModelError, NeedsError
from kdzoo.evaluation.verification import file_metadata
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.network import Network
from kdzoo.recipe.sections import DataRecipe
from kdzoo.run.delivered import delivered_spec
from kdzoo.testing.tiny import TINY, tiny_runner
from kdzoo.zoo.loading import load_zoo

BOTH = {"phone": (0, 2), "watch": (2, 5)}


def splits(dtype: Any = np.float32, **changes: Any) -> DataSplits:
    numbers = np.random.default_rng(0)
    images = (numbers.random((40, 8, 8, 5)) * 50).astype(dtype)
    split = ArraySplit(images, np.arange(40) % 4)
    given: dict[str, Any] = {
        "train": split,
        "test": lambda: split,
        "classes": ("a", "b", "c", "d"),
        "channels": 5,
        "size": (8, 8),
        "mean": (0.0, 1.0, 2.0, 3.0, 4.0),
        "std": (1.0, 1.0, 2.0, 2.0, 2.0),
        "modalities": BOTH,
    }
    return DataSplits(**{**given, **changes})


class Given(DataSource):
    name = "given"

    def __init__(self, made: DataSplits) -> None:
        super().__init__(OfferOptions())
        self.made = made

    def load(self, root: Path) -> DataSplits:
        return self.made


def opened(made: DataSplits, **changes: Any) -> DataSet:
    return open_data(Given(made), DataRecipe.model_validate({"name": "given", "validation": 8, **changes}), 0)


def network(modality: str | None, modalities: Any = BOTH, **args: Any) -> Network:
    data = splits()
    return build_network(
        ModelSpec(TINY, args=args, modality=modality),
        inputs=Pixels(5, (8, 8), data.mean, data.std, modalities),
        num_classes=4,
        seed=0,
    )


def refusal(error: type[KdzooError], act: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


# --- models ---------------------------------------------------------------------------------------


def test_a_model_takes_its_own_channels_and_their_normalisation() -> None:
    watch = network("watch")
    inputs = torch.rand(3, 5, 8, 8)
    torch.testing.assert_close(
        watch.preprocess(inputs), (inputs[:, 2:] - torch.tensor([2.0, 3.0, 4.0]).view(1, 3, 1, 1)) / 2
    )
    assert (watch.channels, watch.mean, watch.std) == (3, (2.0, 3.0, 4.0), (2.0, 2.0, 2.0))
    assert network("phone").channels == 2


def test_other_channels_do_not_reach_a_model() -> None:
    phone = network("phone").eval()
    inputs = torch.rand(3, 5, 8, 8)
    changed = inputs.clone()
    changed[:, 2:] += 1
    assert torch.equal(phone(inputs).logits, phone(changed).logits)
    changed[:, 0] += 1
    assert not torch.equal(phone(inputs).logits, phone(changed).logits)


def test_folding_sees_inputs_of_the_data_set() -> None:
    watch = network("watch").eval()
    inputs = torch.rand(3, 5, 8, 8)
    folded = fold_batchnorm(watch)
    torch.testing.assert_close(folded(inputs).logits, watch(inputs).logits, rtol=1e-3, atol=1e-4)


def test_what_is_delivered_names_the_modality() -> None:
    watch = network("watch")
    assert '"modality": "watch"' in file_metadata(watch, ("a", "b"))["preprocessing"]
    told = {"model": TINY, "args": {}, "mean": [0.0], "std": [1.0], "size": [8, 8], "modality": "watch"}
    assert delivered_spec(told).modality == "watch"


@pytest.mark.parametrize(
    ("modality", "modalities", "problem"),
    [
        (None, BOTH, f"model '{TINY}': which modality it reads is not said; modality: one of phone, watch"),
        ("wach", BOTH, f"model '{TINY}': reads 'wach'; did you mean 'watch'?; known: phone, watch"),
        ("watch", {}, f"model '{TINY}': reads 'watch', but the data set declares no modalities"),
    ],
)
def test_a_model_that_reads_what_is_not_there_is_refused(modality: str | None, modalities: Any, problem: str) -> None:
    assert refusal(ModelError, lambda: network(modality, modalities)) == problem


# --- data -----------------------------------------------------------------------------------------


def test_measurements_reach_models_as_they_are() -> None:
    made = splits()
    data = opened(made)
    batch = next(iter(Loader(data, torch.device("cpu"), 8).train_batches(0, 0)))
    rows = data.part("train").rows[batch.index.numpy()]
    assert isinstance(made.train, ArraySplit)
    np.testing.assert_array_equal(batch.inputs.numpy(), made.train.images[rows].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("made", "changes", "problem"),
    [
        (
            splits(modalities={"phone": (0, 6)}),
            {},
            "data set 'given': modality 'phone' has the channels 0..5; there are 5",
        ),
        (
            splits(),
            {"augment": "flip"},
            "data set 'given', split train: measurements in float32 are no pixels; data.augment: none would be right",
        ),
        (
            replace(splits(), train=ArraySplit(np.full((40, 8, 8, 5), np.inf, np.float32), np.arange(40) % 4)),
            {},
            "data set 'given', split train: some measurements are not finite",
        ),
        (splits(), {"labelled": 33}, "data set 'given': data.labelled is 33, but there are 32 training samples"),
    ],
)
def test_data_that_cannot_be_right_is_refused(made: DataSplits, changes: Any, problem: str) -> None:
    assert refusal(DataError, lambda: opened(made, **changes)) == problem


def test_the_few_labels_are_shared_out_by_class_and_seed() -> None:
    data = opened(splits(), labelled=8)
    assert data.labelled is not None
    assert np.bincount(data.part("train").targets[list(data.labelled)]).tolist() == [2, 2, 2, 2]
    assert data.labelled == opened(splits(), labelled=8).labelled
    assert opened(splits()).labelled is None


def test_the_few_samples_recur_until_the_epoch_is_full() -> None:
    loader = Loader(opened(splits()), torch.device("cpu"), 8).only((3, 5, 30), 32)
    assert loader.steps_per_epoch == 4
    order = loader.order(0).tolist()
    assert len(order) == 32
    assert [sorted(order[i : i + 3]) for i in range(0, 30, 3)] == [[3, 5, 30]] * 10
    assert order == loader.order(0).tolist() != loader.order(1).tolist()


def test_splits_of_two_types_are_refused() -> None:
    pixels = ArraySplit(np.zeros((8, 8, 8, 5), np.uint8), np.arange(8) % 4)
    assert refusal(DataError, lambda: opened(splits(validation=pixels))) == (
        "data set 'given', split validation: images are uint8 (8, 8, 8, 5); float32 (8, 8, 8, 5) would be right"
    )


def test_measurements_are_no_pixels_for_who_is_delivered_to() -> None:
    read = ("watch", (0, 2, 5))
    inputs = Measurements(2, (4, 5), (0.2, 0.3), (0.5, 0.6), read=read)
    assert inputs.metadata()["range"] is None
    assert inputs.usage("net", {}, None, ["a", "b"])["inputs"] == (
        "float32 `(N, 2, 4, 5)` of the modality watch, measurements as the data set has them, then normalised by mean "
        "`(0.2, 0.3)` and std `(0.5, 0.6)` a channel."
    )


@pytest.mark.parametrize("name", ["dafl", "gan_augment"])
def test_an_algorithm_that_makes_up_images_refuses_measurements(name: str, tmp_path: Path) -> None:
    zoo = load_zoo()
    runner = tiny_runner(zoo.algorithm(name), zoo, tmp_path)
    inputs = runner.build.data.inputs
    runner.build.data.inputs = Measurements(inputs.channels, inputs.size, inputs.mean, inputs.std)
    assert refusal(NeedsError, runner.rehearse) == (
        f"algorithm '{name}': makes up its inputs, which are images; the data set has measurements"
    )


def test_control_and_student_take_as_many_steps(tmp_path: Path) -> None:
    zoo = load_zoo()
    changes = {"data": {"labelled": 8}, "train": {"steps_per_epoch": None, "epochs": 2}, "control": True}
    runner = tiny_runner(zoo.algorithm("kd"), zoo, tmp_path, changes)
    steps = {stage["name"]: stage["steps"] for stage in runner.run()["stages"]}
    assert steps == {"teacher": 12, "control": 12, "student": 12}
    assert sum(target >= 0 for target in runner.stage_plan(()).targets) == 8
