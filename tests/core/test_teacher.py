"""A frozen teacher answers as the plain network does, and its stored outputs are exact or refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_algorithms import Match, engine
from torch import Tensor, nn

from kdzoo.contract.stage import ModelSpec
from kdzoo.contract.step import Batch, Outputs
from kdzoo.data.data_set import open_data
from kdzoo.data.inputs import Pixels
from kdzoo.data.loader import Loader
from kdzoo.errors import CorruptError, NeedsError
from kdzoo.models.building import build_network
from kdzoo.models.network import Network
from kdzoo.recipe.sections import DataRecipe
from kdzoo.storage.atomic import write_tensors
from kdzoo.storage.sealed import read_tensors
from kdzoo.storage.store import Store
from kdzoo.testing.tiny import Stripes
from kdzoo.training.device import Precision
from kdzoo.training.teacher import CachedTeacher, Teacher

CPU = torch.device("cpu")
FP32, BF16 = Precision(CPU, None, False), Precision(CPU, torch.bfloat16, True)
MODELS = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit")


@functools.cache
def built(name: str, seed: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    network = build_network(ModelSpec(name), inputs=Pixels(3, (size, size), mean, std), num_classes=4, seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2, generator=drawn)
            part.running_var.uniform_(0.5, 2, generator=drawn)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=drawn)
    return network


def network(
    name: str = "test_resnet",
    seed: int = 0,
    size: int = 32,
    mean: tuple[float, ...] = (0.5,) * 3,
    std: tuple[float, ...] = (0.25,) * 3,
) -> Network:
    """A network with lively BatchNorm statistics; those of a fresh one change next to nothing."""
    return copy.deepcopy(built(name, seed, size, mean, std))


def pixels(samples: int = 6) -> Tensor:
    return torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def parts_of(outputs: Outputs) -> list[Tensor]:
    return [outputs.logits, *outputs.features, *([] if outputs.pre_logits is None else [outputs.pre_logits])]


# --- live -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_teacher_answers_as_the_plain_network(name: str) -> None:
    plain = network(name).eval()
    with torch.no_grad():
        expected = plain(pixels(), levels=(1, 3), pre_logits=True)
    teacher = Teacher(network(name), (1, 3), True, FP32)
    for got, wanted in zip(parts_of(teacher.live(pixels())), parts_of(expected), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
        assert (got.dtype, got.requires_grad) == (torch.float32, False)
    norms = [m for m in teacher._fast.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms or name == "test_convnext"


def test_a_teacher_is_frozen_and_in_eval_mode() -> None:
    teacher = Teacher(network().train(), (), False, FP32)
    assert not any(part.training for part in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_answers_can_enter_a_trained_loss() -> None:
    """Tensors of inference mode could not: a projector's backward would fail."""
    teacher = Teacher(network(), (), False, FP32)
    projector = nn.Linear(4, 4)
    projector(teacher.live(pixels()).logits).square().mean().backward()
    assert projector.weight.grad is not None


def test_through_lets_gradients_to_inputs_and_not_to_weights() -> None:
    teacher = Teacher(network(), (3,), True, FP32)
    inputs = pixels().requires_grad_()
    outputs = teacher.through(inputs)
    torch.testing.assert_close(outputs.logits, teacher.live(pixels()).logits, atol=1e-4, rtol=1e-3)
    (outputs.logits.sum() + outputs.features[0].sum() + outputs.pre_logits.sum()).backward()
    assert inputs.grad is not None
    assert float(inputs.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    assert not teacher.network.training


def test_through_leaves_batch_statistics_alone_in_any_mode() -> None:
    teacher = Teacher(network(), (), False, FP32)
    teacher.network.train()  # as an algorithm's carelessness might
    teacher.through(pixels())
    assert teacher.network.training
    teacher.check_untouched("student")


@pytest.mark.parametrize("change", ["weight", "buffer"])
def test_a_changed_weight_or_buffer_is_noticed(change: str) -> None:
    teacher = Teacher(network(), (), False, FP32)
    teacher.check_untouched("student")
    model: Any = teacher.network.model
    (model.fc.bias.data if change == "weight" else model.conv1[1].running_mean)[0] += 1e-6
    with pytest.raises(CorruptError) as caught:
        teacher.check_untouched("student")
    assert str(caught.value) == "stage 'student': the teacher's weights or buffers changed during training"


def test_half_precision_answers_in_float32() -> None:
    half, full = (Teacher(network(), (3,), True, precision) for precision in (BF16, FP32))
    for got, wanted in zip(parts_of(half.live(pixels())), parts_of(full.live(pixels())), strict=True):
        assert got.dtype == torch.float32
        assert not torch.equal(got, wanted)
        assert float((got - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


# --- from the store -------------------------------------------------------------------------------

BATCH = 8


@pytest.fixture(scope="module")
def loader() -> Loader:
    """30 samples, so that the last stored batch is short."""
    source = Stripes(Stripes.Options(samples=30, size=(32, 32)))
    data = open_data(source, DataRecipe(name="stripes", batch_size=BATCH, validation=0), 0)
    return Loader(data, CPU, BATCH, "crop_flip", 0)


@dataclasses.dataclass
class Shelf:
    """Makes cached teachers over one store."""

    root: Path
    loader: Loader

    def __call__(
        self, teacher: Network, precision: Precision = FP32, levels: tuple[int, ...] = (), **changes: Any
    ) -> CachedTeacher:
        identity = {"data": "stripes", "seed": 0}
        settings = {"pre_logits": False, "identity": identity, "verify_fraction": 1.0, "seed": 0, **changes}
        pre_logits = settings.pop("pre_logits")
        return CachedTeacher(
            teacher, levels, pre_logits, precision, store=Store(self.root), loader=self.loader, **settings
        )

    @property
    def views(self) -> list[Path]:
        return sorted((self.root / "teacher_outputs").glob("[0-9a-f]*"))


@pytest.fixture
def shelf(tmp_path: Path, loader: Loader) -> Shelf:
    return Shelf(tmp_path, loader)


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_stored_and_live_answers_are_the_same_bits(name: str, precision: Precision, shelf: Shelf) -> None:
    levels = (1, 3)
    live = Teacher(network(name), levels, True, precision)
    cached = shelf(network(name), precision, levels, pre_logits=True, verify_fraction=0.0)
    for epoch in (0, 1):
        for batch in shelf.loader.train_batches(epoch, view=epoch):
            pairs = zip(parts_of(cached.outputs(batch)), parts_of(live.outputs(batch)), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    assert (cached.hits.samples, cached.hits.verified) == (2 * 3 * BATCH, 0)
    assert len(shelf.views) == 2


def counted(teacher: CachedTeacher) -> Callable[[], int]:
    """How often the teacher itself was run."""
    calls: list[int] = []
    teacher._fast.register_forward_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def first(loader: Loader, view: int = 0) -> Batch:
    return next(loader.train_batches(0, view))


def test_a_view_is_computed_once_and_reused_by_the_next_run(shelf: Shelf) -> None:
    filling, reusing = (shelf(network(), verify_fraction=0.0) for _ in range(2))
    runs = counted(filling), counted(reusing)
    for _ in range(2):
        filling.outputs(first(shelf.loader))
        reusing.outputs(first(shelf.loader))
    assert [count() for count in runs] == [4, 0]  # 30 samples in batches of 8, once


CHANGES: dict[str, Callable[[Shelf], CachedTeacher]] = {
    "weights": lambda shelf: shelf(network(seed=1)),
    "mean": lambda shelf: shelf(network(mean=(0.4, 0.5, 0.5))),
    "std": lambda shelf: shelf(network(std=(0.25, 0.25, 0.3))),
    "precision": lambda shelf: shelf(network(), dataclasses.replace(BF16, channels_last=False)),
    "layout": lambda shelf: shelf(network(), dataclasses.replace(FP32, channels_last=True)),
    "levels": lambda shelf: shelf(network(), levels=(3,)),
    "embedding": lambda shelf: shelf(network(), pre_logits=True),
    "seed": lambda shelf: shelf(network(), identity={"data": "stripes", "seed": 1}),
    "data": lambda shelf: shelf(network(), identity={"data": "dots", "seed": 0}),
    "size": lambda shelf: shelf(network(size=24)),
    "batch": lambda shelf: shelf(network(), batch_size=4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_question_is_never_answered_from_the_store(change: str, shelf: Shelf) -> None:
    batch = first(shelf.loader)
    shelf(network()).outputs(batch)
    shelf(network()).outputs(batch)
    assert len(shelf.views) == 1
    CHANGES[change](shelf).outputs(batch)
    assert len(shelf.views) == 2


def test_another_view_is_another_question(shelf: Shelf) -> None:
    cached = shelf(network())
    outputs = [cached.outputs(first(shelf.loader, view)) for view in (0, 1)]
    assert len(shelf.views) == 2
    assert not torch.equal(outputs[0].logits, outputs[1].logits)


def swap(tensor: Tensor) -> None:
    """Exchange two samples' answers, as a wrong index would."""
    tensor[[3, 4]] = tensor[[4, 3]]


def flip_a_bit(tensor: Tensor) -> None:
    tensor.view(torch.int32)[3, 0] ^= 1


def spoil(shelf: Shelf, key: str, change: Callable[[Tensor], None]) -> None:
    """Change the answers of the one view that is stored; every digest is right."""
    (folder,) = shelf.views
    tensors = read_tensors(folder / "outputs.safetensors")
    change(tensors[key])
    name = folder.name
    store = Store(shelf.root)
    for path in folder.iterdir():
        path.chmod(0o644)
        path.unlink()
    folder.rmdir()
    store.publish("teacher_outputs", name, lambda place: write_tensors(place / "outputs.safetensors", tensors, {}))


@pytest.mark.parametrize("key", ["logits", "features_0", "pre_logits"])
def test_swapped_answers_are_found_out(key: str, shelf: Shelf) -> None:
    def teacher(fraction: float) -> CachedTeacher:
        return shelf(network(), levels=(3,), pre_logits=True, verify_fraction=fraction)

    batches = list(shelf.loader.train_batches(0, view=0))
    teacher(0.0).outputs(batches[0])
    spoil(shelf, key, swap)
    trusting = teacher(0.0)
    for batch in batches:
        trusting.outputs(batch)
    checking = teacher(1.0)
    with pytest.raises(CorruptError) as caught:
        all(map(checking.outputs, batches))
    assert str(caught.value) == (
        f"teacher outputs in the store differ from the teacher's own: {key} of sample 3, view 0. Delete the "
        f"folder teacher_outputs of the store ({shelf.root}) and run again"
    )


def moody(teacher: CachedTeacher) -> CachedTeacher:
    """A teacher that answers a sample by the batch it comes in, as a CPU does in the last bits.

    The number of samples, the place among them and their mean all count.
    """

    def depend(module: nn.Module, inputs: Any, outputs: Outputs) -> Outputs:
        rows = torch.arange(len(outputs.logits))[:, None]
        return Outputs(outputs.logits + 1e-3 * len(rows) + 1e-4 * rows + outputs.logits.mean())

    teacher._fast.register_forward_hook(depend)
    return teacher


@pytest.mark.parametrize("chunk", [4, 8, 30])
def test_what_is_verified_is_the_chunk_that_was_stored(chunk: int, shelf: Shelf) -> None:
    def teacher() -> CachedTeacher:
        return moody(shelf(network(), batch_size=chunk))

    cached = teacher()
    batches = list(shelf.loader.train_batches(0, view=0))
    for batch in batches:
        stored, live = cached.outputs(batch).logits, cached.live(batch.inputs).logits
        assert not torch.equal(stored, live), "this teacher's answers do not depend on the batch"
    assert cached.hits.samples == cached.hits.verified == 3 * BATCH
    spoil(shelf, "logits", flip_a_bit)
    with pytest.raises(CorruptError, match="logits of sample 3, view 0"):
        all(map(teacher().outputs, batches))


def test_a_chunk_is_computed_again_at_most_once(shelf: Shelf) -> None:
    shelf(network(), verify_fraction=0.0).outputs(first(shelf.loader))
    cached = shelf(network())
    runs = counted(cached)
    for _ in range(2):
        for batch in shelf.loader.train_batches(0, view=0):
            cached.outputs(batch)
    assert runs() == 4  # chunks of 8 in 30 samples


def test_other_inputs_than_those_that_were_stored_are_found(shelf: Shelf) -> None:
    cached = shelf(network())
    batch = first(shelf.loader)
    other = batch.inputs.clone()
    other[2, 0, 0, 0] += 1e-6
    with pytest.raises(CorruptError) as caught:
        cached.outputs(dataclasses.replace(batch, inputs=other))
    assert str(caught.value) == (
        f"teacher outputs in the store belong to other data: sample {int(batch.index[2])}, view 0, was read twice with "
        "two results. Has the data set changed during the run?"
    )
    cached.outputs(batch)


@pytest.mark.parametrize("precision", [FP32, dataclasses.replace(FP32, channels_last=True)], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_part_of_a_batch_in_any_layout_is_verified_without_false_alarm(
    name: str, precision: Precision, shelf: Shelf
) -> None:
    """Smaller batches and other layouts run other kernels, whose bits differ from those that were stored."""
    cached = shelf(network(name), precision)
    batch = first(shelf.loader)
    cached.outputs(batch)
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in (1, 3, 4):
            part = dataclasses.replace(
                batch, inputs=batch.inputs[:size].contiguous(memory_format=layout), index=batch.index[:size]
            )
            cached.outputs(part)
    assert cached.hits.samples == cached.hits.verified == BATCH + 2 * (1 + 3 + 4)


def test_a_share_of_the_hits_is_verified(shelf: Shelf) -> None:
    cached = shelf(network(), verify_fraction=0.3)
    batch = first(shelf.loader)
    for _ in range(60):
        cached.outputs(batch)
    assert 0.1 < cached.hits.verified / cached.hits.samples < 0.5
    again = shelf(network(), verify_fraction=0.3)
    for _ in range(60):
        again.outputs(batch)
    assert again.hits == cached.hits  # which ones is fixed by the seed


def test_a_cache_above_its_limit_is_refused_with_what_it_would_take(tmp_path: Path) -> None:
    with pytest.raises(NeedsError) as caught:
        engine(Match, tmp_path, train={"epochs": 100_000}, cache={"views": 100_000, "max_gib": 0.05})
    gib = 100_000 * 48 * 4 * 4 / 2**30  # views, samples, classes, bytes
    assert str(caught.value) == (
        f"cache: 100000 views of the teacher's outputs take {gib:.3g} GiB, above cache.max_gib: 0.05; lower "
        "cache.views, raise cache.max_gib, or leave out the cache"
    )


def test_the_size_of_a_view_counts_what_is_stored(shelf: Shelf) -> None:
    cached = shelf(network(), levels=(1, 3), pre_logits=True)
    cached.outputs(first(shelf.loader))
    (folder,) = shelf.views
    stored = sum(t.numel() * 4 for t in read_tensors(folder / "outputs.safetensors").values())
    assert cached.gib_of_a_view(30) * 2**30 == stored


@pytest.mark.parametrize(
    ("dtype", "off", "accepted"),
    [(None, 5e-5, True), (None, 1e-3, False), (torch.bfloat16, 1e-2, True), (torch.bfloat16, 0.1, False)],
)
def test_answers_that_need_not_repeat_to_the_bit_are_compared_closely(dtype: Any, off: float, accepted: bool) -> None:
    """Where kernels give other bits each time: to rounding, which is coarser in half precision."""
    asked = SimpleNamespace(precision=SimpleNamespace(repeats=False, dtype=dtype))
    old = torch.tensor([[4.0, -4.0, 4.0]])
    assert CachedTeacher._same(asked, "logits", old * (1 + off), old) is accepted  # type: ignore[arg-type]
