"""A frozen teacher in a training step, and the exact store of its outputs.

Augmentation is a pure function of (seed, view, sample index), so the pixels of a view repeat and the teacher need never
see them twice. Outputs are kept per (teacher, sample, view) and reused only for the very same pixels.

The bits of an output depend on the batch that it is computed in: other numbers of rows run other kernels. So outputs
are computed, and later verified, in the same chunks: ``batch_size`` samples in index order, text as wide as the longest
row of the split.

A view is stored in shards of some chunks each. A run that is killed loses one shard, and neither writing nor reading
holds more than one in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdzoo.contract.step import Batch, Outputs
from kdzoo.errors import CorruptError
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.network import evaluating, freeze
from kdzoo.models.weights import weights_sha256
from kdzoo.storage.atomic import write_tensors
from kdzoo.storage.mapped import MappedRows
from kdzoo.storage.store import Store
from kdzoo.training.device import Precision
from kdzoo.training.kept_logits import ROUNDING, KeptLogits
from kdzoo.types import derive_seed, stable_hash

if TYPE_CHECKING:
    from kdzoo.data.loader import Loader
    from kdzoo.models.network import Network


#: The most samples in a shard of a view, and the most bytes; a shard holds one chunk at least.
SHARD_SAMPLES, SHARD_BYTES = 2**16, 2**24


class Teacher:
    """A network that only answers: frozen, in eval mode, its BatchNorm folded, in its own precision."""

    def __init__(
        self,
        network: Network,
        levels: Sequence[int],
        pre_logits: bool,
        precision: Precision,
        kept: KeptLogits | None = None,
    ) -> None:
        """``kept`` is what an algorithm gets to see of the logits, as a store would hold it; None: all of them."""
        self.network = network
        self.kept = kept
        self.levels = tuple(levels)
        self.pre_logits = pre_logits
        self.precision = precision
        freeze(network)
        precision.place(network)
        self.sha256 = weights_sha256(network.model)
        self._fast = precision.place(fold_batchnorm(network))
        freeze(self._fast)

    def outputs(self, batch: Batch) -> Outputs:
        """Answer a training batch without gradient."""
        outputs = self.live(batch.inputs)
        return outputs if self.kept is None else Outputs(self._seen(self.kept.pack(outputs.logits)))

    def live(self, inputs: Tensor) -> Outputs:
        # One layout, whatever the student's, as kernels of another give other bits.
        layout = torch.channels_last if self.precision.channels_last else torch.contiguous_format
        inputs = inputs.contiguous(memory_format=layout)
        # no_grad, not inference_mode: its tensors break the backward of a projector or a squared error
        with torch.no_grad(), self.precision.autocast():
            return self._fast(inputs, levels=self.levels, pre_logits=self.pre_logits).float()

    def _seen(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The logits (N, K) that an algorithm gets to see of what is stored of them."""
        on_device = {name: tensor.to(self.precision.device) for name, tensor in stored.items()}
        return on_device["logits"] if self.kept is None else self.kept.unpack(on_device)

    def through(self, inputs: Tensor) -> Outputs:
        """Answer new inputs and let gradients through to them, never to the weights."""
        with self.precision.autocast(), evaluating(self.network):
            return self.network(inputs, levels=self.levels, pre_logits=self.pre_logits).float()

    def state(self) -> dict[str, Any]:
        """What a resumed stage goes on with; JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned."""

    def check_untouched(self, stage: str) -> None:
        """Raise when training changed a weight or a buffer."""
        if weights_sha256(self.network.model) != self.sha256:
            raise CorruptError(f"stage '{stage}': the teacher's weights or buffers changed during training")


@dataclass
class Hits:
    """How many samples were answered from the store, and how many of these answers were recomputed and compared."""

    samples: int = 0
    verified: int = 0


class CachedTeacher(Teacher):
    """A teacher that answers from the store, view by view; a view that the store lacks is computed once."""

    def __init__(
        self,
        network: Network,
        levels: Sequence[int],
        pre_logits: bool,
        precision: Precision,
        *,
        store: Store,
        loader: Loader,
        identity: dict[str, Any],
        verify_fraction: float,
        seed: int,
        batch_size: int | None = None,
        kept: KeptLogits | None = None,
    ) -> None:
        """``batch_size`` is that of one forward pass in training, as the size decides the last bits; None: a batch's.

        ``verify_fraction`` is the share of the answers that are compared with new ones, in [0, 1]. ``kept`` is what is
        stored of the logits, and then of nothing else; None: everything as it is.
        """
        super().__init__(network, levels, pre_logits, precision, kept)
        assert kept is None or not (levels or pre_logits), "refused before: what is kept are logits"
        self._batch_size = batch_size or loader.batch_size
        self.hits = Hits()
        self._store, self._loader = store, loader
        self._verify_fraction, self._seed = verify_fraction, seed
        self._identity = identity | {
            "weights": self.sha256,
            "mean": network.mean,
            "std": network.std,
            "size": network.size,
            "window": network.inputs.window,
            "inputs": network.inputs.record(),
            "levels": self.levels,
            "pre_logits": pre_logits,
            "precision": precision.name,
            "channels_last": precision.channels_last,
            "batch_size": self._batch_size,
            "folded": True,
            "kept": None if kept is None else kept.record(),
        }
        self._views: dict[int, MappedRows] = {}
        self._verified: set[tuple[int, int]] = set()  # (view, chunk)

    def state(self) -> dict[str, Any]:
        return asdict(self.hits)

    def restore(self, state: Mapping[str, Any]) -> None:
        self.hits = Hits(**state)

    def outputs(self, batch: Batch) -> Outputs:
        """Answer a training batch from the store. Raises CorruptError where a verified answer is wrong."""
        if batch.view not in self._views:
            self._views[batch.view] = self._open(batch.view)
        stored = self._views[batch.view]
        self._verify(batch, stored)
        self.hits.samples += len(batch.index)
        answers = _rows(stored, batch.index)
        logits = self._seen(answers)
        further = {n: t.to(self.precision.device) for n, t in answers.items() if n in self._further}
        features = tuple(further[f"features_{i}"] for i in range(len(self.levels)))
        features = self.network.inputs.as_wide_as(batch.inputs, features)  # stored as wide as the longest text
        return Outputs(logits, features, further.get("pre_logits"))  # type: ignore[arg-type]

    @property
    def _further(self) -> tuple[str, ...]:
        """What is stored besides logits."""
        return (*(f"features_{i}" for i in range(len(self.levels))), *(["pre_logits"] if self.pre_logits else []))

    def gib_of_a_view(self, samples: int) -> float:
        """Room that one view of ``samples`` samples takes."""
        return samples * self.bytes_of_a_sample / 2**30

    @property
    def bytes_of_a_sample(self) -> int:
        """Bytes that one sample takes in one view."""
        if self.kept is not None:
            return self.kept.bytes_of_a_sample
        shown = [self.network.levels[i] for i in self.levels]
        numbers = self.network.num_classes + sum(level.channels * level.height * level.width for level in shown)
        return 4 * (numbers + (self.network.pre_logits_width if self.pre_logits else 0))

    # --- shards -------------------------------------------------------------------------------

    @property
    def chunks_of_a_shard(self) -> int:
        most = min(SHARD_SAMPLES, SHARD_BYTES // self.bytes_of_a_sample)
        return max(1, most // self._batch_size)

    @property
    def samples_of_a_shard(self) -> int:
        return self.chunks_of_a_shard * self._batch_size

    @property
    def shards(self) -> int:
        """How many shards a view has."""
        return -(-self._loader.data.num_train // self.samples_of_a_shard)

    def _open(self, view: int) -> MappedRows:
        files = [self._stored(view, shard) / "outputs.safetensors" for shard in range(self.shards)]
        return MappedRows(files, self.samples_of_a_shard)

    def _stored(self, view: int, shard: int) -> Path:
        """The folder of a shard in the store, which it is put into if it is not there yet."""
        key = stable_hash(self._identity | {"view": view, "chunks": self.chunks_of_a_shard, "shard": shard})
        found = self._store.find("teacher_outputs", key)
        if found is not None:
            return found

        def write(folder: Path) -> None:
            write_tensors(folder / "outputs.safetensors", self.answers(view, shard), {})

        return self._store.publish("teacher_outputs", key, write)

    def answers(self, view: int, shard: int) -> dict[str, Tensor]:
        """Answer the samples of a shard, in index order, and return what is stored of it."""
        chunks, first = -(-self._loader.data.num_train // self._batch_size), shard * self.chunks_of_a_shard
        parts: dict[str, list[Tensor]] = {}
        numbers = range(first, min(first + self.chunks_of_a_shard, chunks))
        for chunk in self._loader.canonical_batches(view, self._batch_size, numbers):
            for name, answers in self._answers(chunk).items():
                parts.setdefault(name, []).append(answers.cpu())
        return {name: torch.cat(part).contiguous() for name, part in parts.items()}

    def _answers(self, chunk: Batch) -> dict[str, Tensor]:
        """Outputs of a chunk by their name in the store, without those of the samples that only fill it up."""
        outputs = self.live(chunk.inputs)
        if self.kept is not None:
            return self.kept.pack(outputs.logits[: len(chunk.index)])
        named = {"logits": outputs.logits}
        named |= {f"features_{i}": feature for i, feature in enumerate(outputs.features)}
        if outputs.pre_logits is not None:
            named["pre_logits"] = outputs.pre_logits
        return {name: tensor[: len(chunk.index)] for name, tensor in named.items()}

    # --- verification -------------------------------------------------------------------------

    def _verify(self, batch: Batch, stored: MappedRows) -> None:
        """Compute a share of the batch's chunks again and compare; a chunk that was right stays so in this process.

        The seed decides which chunks: others each time that training has gone through as many samples as there are.
        """
        if self._verify_fraction == 0:
            return
        number = batch.index // self._batch_size
        passes = self.hits.samples // self._loader.data.num_train
        chosen = [chunk for chunk in number.unique().tolist() if self._chosen(passes, batch.view, chunk)]
        self.hits.verified += int(torch.isin(number, torch.tensor(chosen, device=number.device)).sum())
        missing = [chunk for chunk in chosen if (batch.view, chunk) not in self._verified]
        if not missing:
            return
        for fresh in self._loader.canonical_batches(batch.view, self._batch_size, missing):
            self._check_inputs(batch, fresh)
            self._check_answers(fresh, stored)
        self._verified.update((batch.view, chunk) for chunk in missing)

    def _chosen(self, passes: int, view: int, chunk: int) -> bool:
        return derive_seed(self._seed, "verify", passes, view, chunk) / 2**63 < self._verify_fraction

    def _check_inputs(self, batch: Batch, fresh: Batch) -> None:
        """Raise CorruptError where training sees other inputs than those that the stored answers belong to."""
        rows = batch.index - fresh.index[0]
        for row in ((rows >= 0) & (rows < len(fresh.index))).nonzero()[:, 0].tolist():
            ours = batch.inputs[row]
            theirs = fresh.inputs[rows[row]]
            if not torch.equal(ours, theirs[: len(ours)]):  # of text, less the fill of the longest row
                raise CorruptError(
                    f"teacher outputs in the store belong to other data: sample {int(batch.index[row])}, view "
                    f"{batch.view}, was read twice with two results. Has the data set changed during the run?"
                )

    def _check_answers(self, fresh: Batch, stored: MappedRows) -> None:
        """Raise CorruptError where the answers to a chunk are not those in the store."""
        kept = _rows(stored, fresh.index)
        for name, new in self._answers(fresh).items():
            old = kept[name].to(new.device)
            if not self._same(name, new, old):
                bad = int((new != old).flatten(1).any(1).nonzero()[0])
                what = name if self.kept is None else "logits"
                raise CorruptError(
                    f"teacher outputs in the store differ from the teacher's own: {what} of sample "
                    f"{int(fresh.index[bad])}, view {fresh.view}. Delete the folder teacher_outputs of the store "
                    f"({self._store.root}) and run again"
                )

    def _same(self, name: str, new: Tensor, old: Tensor) -> bool:
        if self.precision.repeats:
            return torch.equal(new, old)
        if name == "classes":
            return True  # of two that are equally likely but for rounding, either may be kept; their values tell
        tolerance = max(1e-4 if self.precision.dtype is None else 3e-2, ROUNDING[new.dtype])
        new, old = new.float(), old.float()
        return torch.allclose(new, old, rtol=tolerance, atol=tolerance * float(old.abs().max()))


def _rows(stored: MappedRows, index: Tensor) -> dict[str, Tensor]:
    """What is stored of some samples, on the CPU."""
    return stored.take(index.cpu().numpy())
