"""What is kept of a teacher's logits: how much room it takes, and which logits come out of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_teacher import FP32, Shelf, first, loader, network, shelf
from torch import Tensor

from kdzoo.contract.step import Batch, Outputs
from kdzoo.errors import CorruptError, NeedsError, OutputError
from kdzoo.recipe.sections import KeepRecipe
from kdzoo.storage.atomic import write_tensors
from kdzoo.storage.sealed import read_tensors
from kdzoo.storage.store import Store
from kdzoo.training.kept_logits import KeptLogits
from kdzoo.training.teacher import SHARD_BYTES, CachedTeacher, Teacher

__all__ = ["loader", "shelf"]  # fixtures

KEEP = KeepRecipe(top_k=10)
TWO = KeptLogits(4, 2, torch.float16)


def drawn(samples: int = 64, classes: int = 100, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(samples, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("classes", "size"), [(100, 42), (1000, 42), (65_536, 42), (65_537, 62), (10**6, 62)])
def test_ten_of_any_number_of_classes_take_at_most_64_bytes(classes: int, size: int) -> None:
    kept = KeptLogits.of_recipe(KEEP, classes)
    stored = kept.pack(drawn(3, classes))
    assert kept.bytes_of_a_sample == size <= 64
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored.values()) == 3 * size
    likeliest = [logits.topk(10).indices.sort().values for logits in (kept.unpack(stored), drawn(3, classes))]
    assert torch.equal(*likeliest)


@pytest.mark.parametrize(("dtype", "off"), [("float16", 4e-3), ("float32", 1e-5)])
def test_kept_probabilities_come_back_and_the_rest_is_spread_evenly(dtype: Any, off: float) -> None:
    logits = drawn()
    kept = KeptLogits.of_recipe(KeepRecipe(top_k=10, dtype=dtype), 100)
    before, after = logits.softmax(1), kept.unpack(kept.pack(logits)).softmax(1)
    likeliest = logits.topk(10).indices
    torch.testing.assert_close(after.gather(1, likeliest), before.gather(1, likeliest), rtol=off, atol=1e-6)
    others = torch.ones_like(before, dtype=torch.bool).scatter(1, likeliest, False)
    spread = after[others].view(64, 90)
    assert torch.equal(spread, spread[:, :1].expand(-1, 90))
    torch.testing.assert_close(spread.sum(1), before[others].view(64, 90).sum(1), rtol=off, atol=1e-6)


def test_above_temperature_1_the_rest_weighs_more_than_the_teacher_gave_it() -> None:
    """As its even spread is the softest; docs/stored-answers.md and the report say so."""
    logits, kept = drawn(), KeptLogits.of_recipe(KEEP, 100)
    likeliest = logits.topk(10).indices
    came_back = kept.unpack(kept.pack(logits))

    def rest(given: Tensor, temperature: float) -> Tensor:
        return 1 - (given / temperature).softmax(1).gather(1, likeliest).sum(1)

    assert bool((rest(came_back, 4) > rest(logits, 4)).all())
    assert bool((rest(came_back, 0.5) < rest(logits, 0.5)).all())


@pytest.mark.parametrize("size", [200.0, 1e4, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    for top_k in (2, None):
        kept = KeptLogits(4, top_k, torch.float16)
        came_back = kept.unpack(kept.pack(torch.tensor([[size, -size, 0.0, 1.0]])))
        assert bool(came_back.isfinite().all())
        assert int(came_back.argmax()) == 0


def test_all_classes_may_be_kept_in_half_the_room() -> None:
    kept = KeptLogits.of_recipe(KeepRecipe(), 100)
    assert kept.bytes_of_a_sample == 200
    torch.testing.assert_close(kept.unpack(kept.pack(drawn())), drawn(), rtol=1e-3, atol=1e-3)


def test_as_many_as_there_are_classes_are_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        KeptLogits.of_recipe(KeepRecipe(top_k=10), 10)
    assert str(caught.value) == (
        "cache.keep.top_k: 10 of 10 classes leaves no rest; leave out top_k to keep all, or keep at most 9"
    )


# --- in the store ---------------------------------------------------------------------------------


def test_stored_answers_are_those_that_a_teacher_without_a_store_shows(shelf: Shelf) -> None:
    cached, live = shelf(network(), kept=TWO), Teacher(network(), (), False, FP32, TWO)
    for batch in shelf.loader.train_batches(0, view=0):
        assert torch.equal(cached.outputs(batch).logits, live.outputs(batch).logits)
    assert cached.hits.verified == cached.hits.samples == 3 * 8
    (folder,) = shelf.views
    stored = read_tensors(folder / "outputs.safetensors")
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == {
        "classes": (torch.uint16, (30, 2)),
        "values": (torch.float16, (30, 3)),
    }
    assert cached.gib_of_a_view(30) * 2**30 == sum(t.numel() * t.element_size() for t in stored.values())


def test_what_is_kept_is_part_of_the_question(shelf: Shelf) -> None:
    keeps = (None, TWO, KeptLogits(4, 1, torch.float16), KeptLogits(4, 2, torch.float32))
    for number, kept in enumerate(keeps, start=1):
        shelf(network(), kept=kept).outputs(first(shelf.loader))
        assert len(shelf.views) == number


@pytest.mark.parametrize("key", ["classes", "values"])
def test_kept_answers_of_other_samples_are_found_out(key: str, shelf: Shelf) -> None:
    shelf(network(), kept=TWO).outputs(first(shelf.loader))
    (folder,) = shelf.views
    tensors = read_tensors(folder / "outputs.safetensors")
    tensors[key].view(torch.int16)[0, 0] ^= 1
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    Store(shelf.root).publish(
        "teacher_outputs", folder.name, lambda place: write_tensors(place / "outputs.safetensors", tensors) and None
    )
    with pytest.raises(CorruptError, match="differ from the teacher's own: logits of sample 0, view 0"):
        all(map(shelf(network(), kept=TWO).outputs, shelf.loader.train_batches(0, view=0)))


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two chunks of 8 samples, so that 30 samples take two, the last of them short."""
    monkeypatch.setattr("kdzoo.training.teacher.SHARD_SAMPLES", 23)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("kept", [None, TWO])
def test_shards_answer_as_one_file_would(kept: KeptLogits | None, shelf: Shelf) -> None:
    cached, live = shelf(network(), kept=kept), Teacher(network(), (), False, FP32, kept)
    for batch in shelf.loader.train_batches(0, view=0):
        assert torch.equal(cached.outputs(batch).logits, live.outputs(batch).logits)
    assert cached.shards == len(shelf.views) == 2


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("broken", ["disk full", "killed"])
def test_a_view_that_was_broken_off_goes_on_with_the_shard_it_was_at(
    broken: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    answers = CachedTeacher.answers

    def failing(self: CachedTeacher, view: int, shard: int) -> dict[str, Tensor]:
        computed.append(shard)
        if computed == [0, 1]:
            raise OutputError("no room") if broken == "disk full" else KeyboardInterrupt
        return answers(self, view, shard)

    monkeypatch.setattr(CachedTeacher, "answers", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        shelf(network(), kept=TWO).outputs(first(shelf.loader))
    assert len(shelf.views) == 1
    shelf(network(), kept=TWO).outputs(first(shelf.loader))
    assert computed == [0, 1, 1]


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_shard_is_noticed_by_its_hash(shelf: Shelf) -> None:
    shelf(network(), kept=TWO, verify_fraction=0.0).outputs(first(shelf.loader))
    file = shelf.views[1] / "outputs.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(CorruptError, match="its sha256 is not the recorded one"):
        shelf(network(), kept=TWO, verify_fraction=0.0).outputs(first(shelf.loader))


class Million:
    """A loader of a million samples, of which the inputs are made up when they are asked for."""

    batch_size = 1000

    class data:  # noqa: N801
        num_train = 1_000_000

    def canonical_batches(self, view: int, batch_size: int, numbers: Sequence[int]) -> Iterator[Batch]:
        inputs = drawn(batch_size)
        for number in numbers:
            index = torch.arange(number * batch_size, (number + 1) * batch_size)
            yield Batch(inputs, index, index, view)


def own_memory() -> int:
    """Bytes of this process's memory that no file stands behind."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own memory")
def test_a_million_samples_take_seconds_and_bounded_memory_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = Million()
    kept = KeptLogits.of_recipe(KEEP, 100)
    settings: dict[str, Any] = {"identity": {}, "verify_fraction": 0.0, "seed": 0, "kept": kept}
    cached = CachedTeacher(network(), (), False, FP32, store=Store(tmp_path), loader=data, **settings)
    monkeypatch.setattr(cached, "live", lambda inputs: Outputs(inputs))
    answers = kept.unpack(kept.pack(drawn(1000)))
    peak, over = [own_memory()], threading.Event()
    before = peak[0]
    watch = threading.Thread(target=lambda: [peak.append(own_memory()) for _ in iter(lambda: over.wait(0.01), True)])
    watch.start()
    try:
        for seed in range(20):
            index = torch.randint(0, 10**6, (128,), generator=torch.Generator().manual_seed(seed))
            logits = cached.outputs(Batch(torch.zeros(128), index, index, 0)).logits
            assert torch.equal(logits, answers[index % 1000])
    finally:
        over.set()
        watch.join()
    assert cached.shards > 10
    assert max(peak) - before < 4 * SHARD_BYTES, "of a view of 42 MB, that takes 400 MB as it is"
    on_disk = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert on_disk < 1.01 * 42e6
