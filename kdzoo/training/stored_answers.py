"""A teacher that is known by its stored answers only: no network of it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.contract.declared import Level
from kdzoo.contract.stage import ModelSpec
from kdzoo.contract.step import Batch, Outputs
from kdzoo.errors import ContractError, CorruptError, NeedsError
from kdzoo.storage.answer_folder import AnswerFolder, different
from kdzoo.storage.mapped import MappedRows
from kdzoo.storage.sealed import listed, read_tensors
from kdzoo.training.kept_logits import KeptLogits
from kdzoo.training.teacher import Hits

if TYPE_CHECKING:
    from kdzoo.data.loader import Loader

#: Of how many samples of each view the folder holds what the teacher saw, and at most how many pixels wide.
SEEN_SAMPLES, SEEN_PIXELS = 4, 16
#: How far two machines may be apart in what they make of a sample, in grey levels of 256.
SEEN_OFF = 2


class StoredAnswers:
    """A teacher's folder of answers in the place of its network. Raises CorruptError where a file is damaged."""

    levels: tuple[Level, ...] = ()
    pre_logits_width = 0

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.answers is not None
        self.spec = spec
        self.root = Path(spec.answers).expanduser()
        self.folder = AnswerFolder.read(self.root)
        facts = self.folder.facts
        self.views: int = facts["views"]
        self.kept = KeptLogits.of_record(facts["kept"])
        self.num_classes = self.kept.num_classes
        self.mean, self.std = tuple(facts["teacher"]["mean"]), tuple(facts["teacher"]["std"])
        if "entry" not in facts["teacher"]:
            raise NeedsError(
                f"{self._title}: its writing was broken off; the command that began it, `kdzoo teacher answer`, goes on"
            )

    @property
    def _title(self) -> str:
        return f"models.teacher.weights: {self.spec.weights}"

    @property
    def key(self) -> str:
        return self.folder.key

    @property
    def metrics(self) -> dict[str, float]:
        """The teacher's metrics of the validation split."""
        return dict(self.folder.facts["teacher"]["validation"])

    def entry(self) -> dict[str, Any]:
        """What the teacher reached on the test split when it answered; how fast it is belongs to that machine."""
        return {**self.folder.facts["teacher"]["entry"], "latency_ms": None}

    def chosen(self, test_split: str) -> np.ndarray | None:
        """The classes (N,) that the teacher chose on the test split; None where it was another than ``test_split``."""
        if self.folder.facts["teacher"]["test_split"] != test_split:
            return None
        sha256 = self.folder.files[self.folder.test]["sha256"]
        return read_tensors(self.root / self.folder.test, sha256)["chosen"].numpy()

    def describe(self) -> str:
        """On one line, as `kdzoo check` prints it."""
        kept, samples = self.kept, self.folder.facts["identity"]["training samples"]
        what = "all" if kept.top_k is None else f"the {kept.top_k} likeliest of"
        top1 = self.folder.facts["teacher"]["entry"]["top1_percent"]
        reached = "" if top1 is None else f"; {top1:.2f} % on the test split when it answered"
        return (
            f"{self.spec.name}: stored answers, {self.views} views of {samples} samples, {what} {kept.num_classes} "
            f"classes, {kept.bytes_of_a_sample} bytes each{reached}"
        )

    def check(self, identity: Mapping[str, Any], views: int, keep: Mapping[str, Any] | None) -> None:
        """Raise NeedsError where a recipe asks another question than the folder answers, CorruptError for damage.

        ``identity`` is the recipe's, of all but the teacher's weights; ``keep`` its section, if it has one.
        """
        theirs = {name: value for name, value in self.folder.facts["identity"].items() if name in identity}
        wrong = different(theirs, identity)
        kept = {name: value for name, value in self.kept.record().items() if name != "classes"}
        if keep is not None and keep != kept:
            wrong += different({"cache.keep": kept}, {"cache.keep": dict(keep)})
        if views > self.views:
            wrong.append(f"views: {self.views} in the folder, {views} now (cache.views, or without it one an epoch)")
        if wrong:
            raise NeedsError(
                f"{self._title}: answers another question than the recipe asks{listed(wrong)}\nchange the recipe, or "
                "let the teacher answer again: kdzoo teacher answer RECIPE --out <another folder>"
            )
        if damaged := self.folder.problems([*self.folder.of_views(views), self.folder.test]):
            raise CorruptError(
                f"{self._title}: damaged{listed(damaged)}\n`kdzoo teacher answer` writes these files again, where the "
                "teacher is"
            )

    def check_seen(self, loader: Loader, views: int) -> None:
        """Raise NeedsError where the samples look otherwise here than when the teacher saw them."""
        for view in range(views):
            stored = read_tensors(
                self.root / self.folder.seen(view), self.folder.files[self.folder.seen(view)]["sha256"]
            )
            ours = seen(loader, view)
            off = (ours.int() - stored["seen"].int()).abs() if ours.shape == stored["seen"].shape else None
            if off is None or int(off.max()) > (SEEN_OFF if ours.dtype == torch.uint8 else 0):
                raise NeedsError(
                    f"{self._title}: the data and its augmentation are as when the teacher answered, and yet the first "
                    f"samples look otherwise here (view {view}): another version of kdzoo, or of a library that reads "
                    "the files, makes other inputs of them; let the teacher answer again with these versions"
                )


def seen(loader: Loader, view: int) -> Tensor:
    """The first samples as a view shows them: (N, C, H, W), small, in grey levels, or ids of tokens (N, L)."""
    samples = min(SEEN_SAMPLES, loader.data.num_train)
    inputs = next(iter(loader.canonical_batches(view, samples, [0]))).inputs.cpu()
    if not inputs.is_floating_point():
        return inputs
    height, width = (min(side, SEEN_PIXELS) for side in inputs.shape[2:])
    return (F.adaptive_avg_pool2d(inputs, (height, width)).clamp(0, 1) * 255).round().to(torch.uint8)


class AnsweringTeacher:
    """Answers training batches from a folder. There is no network that could be asked anything else."""

    network = None

    def __init__(self, answers: StoredAnswers, device: torch.device) -> None:
        self.kept = answers.kept
        self.hits = Hits()
        self._answers, self._device = answers, device
        self._views: dict[int, MappedRows] = {}

    def outputs(self, batch: Batch) -> Outputs:
        """The stored answers to a training batch."""
        if batch.view not in self._views:
            self._views[batch.view] = self._answers.folder.rows(batch.view)
        stored = self._views[batch.view].take(batch.index.cpu().numpy())
        self.hits.samples += len(batch.index)
        return Outputs(self.kept.unpack({name: tensor.to(self._device) for name, tensor in stored.items()}))

    def through(self, inputs: Tensor) -> Outputs:
        raise ContractError(
            "an algorithm asked for the network of a teacher that is known by its stored answers only; one that needs "
            "it declares needs.of_teacher = 'network'"
        )

    def state(self) -> dict[str, Any]:
        return asdict(self.hits)

    def restore(self, state: Mapping[str, Any]) -> None:
        self.hits = Hits(**state)

    def check_untouched(self, stage: str) -> None:
        """There are no weights that training could change."""
