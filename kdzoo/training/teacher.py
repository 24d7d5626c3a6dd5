"""A frozen teacher in a training step, and the exact store of its outputs.

Augmentation is a pure function of (seed, view, sample index), so a view's pixels repeat for ever and the teacher
need never see them twice. Outputs are kept per (teacher, sample, view) and reused only for the very same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from kdzoo.storage.sealed import read_tensors
from kdzoo.storage.store import Store
from kdzoo.training.device import Precision
from kdzoo.types import derive_seed, stable_hash

if TYPE_CHECKING:
    from kdzoo.data.loader import Loader
    from kdzoo.models.network import Network


class Teacher:
    """A network that only answers: frozen, in eval mode, its BatchNorm folded, in its own precision."""

    def __init__(self, network: Network, levels: Sequence[int], pre_logits: bool, precision: Precision) -> None:
        self.network = network
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
        return self.live(batch.inputs)

    def live(self, inputs: Tensor) -> Outputs:
        # One layout, whatever the student's, as kernels of another give other bits.
        layout = torch.channels_last if self.precision.channels_last else torch.contiguous_format
        inputs = inputs.contiguous(memory_format=layout)
        # no_grad, not inference_mode: its tensors break the backward of a projector or a squared error
        with torch.no_grad(), self.precision.autocast():
            return self._fast(inputs, levels=self.levels, pre_logits=self.pre_logits).float()

    def through(self, inputs: Tensor) -> Outputs:
        """Answer new inputs and let gradients through to them, never to the weights."""
        with self.precision.autocast(), evaluating(self.network):
            return self.network(inputs, levels=self.levels, pre_logits=self.pre_logits).float()

    def check_untouched(self, stage: str) -> None:
        """Raise when training changed a weight or a buffer."""
        if weights_sha256(self.network.model) != self.sha256:
            raise CorruptError(f"stage '{stage}': the teacher's weights or buffers changed during training")


@dataclass
class Hits:
    """How often the store answered, and how many answers were recomputed and compared."""

    samples: int = 0
    verified: int = 0


class CachedTeacher(Teacher):
    """A teacher whose outputs come from the store, view by view; a missing view is computed once."""

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
    ) -> None:
        """``batch_size``: of the parts training asks about, as the size decides the last bits; None: whole ones."""
        super().__init__(network, levels, pre_logits, precision)
        self._batch_size = batch_size or loader.batch_size
        self.hits = Hits()
        self._store, self._loader = store, loader
        self._verify_fraction, self._seed = verify_fraction, seed
        self._identity = identity | {
            "weights": self.sha256,
            "mean": network.mean,
            "std": network.std,
            "size": network.size,
            "window": network.window,
            "levels": self.levels,
            "pre_logits": pre_logits,
            "precision": precision.name,
            "channels_last": precision.channels_last,
            "batch_size": self._batch_size,
            "folded": True,
        }
        self._views: dict[int, dict[str, Tensor]] = {}

    def outputs(self, batch: Batch) -> Outputs:
        if batch.view not in self._views:
            self._views[batch.view] = self._load(batch.view)
        stored = self._views[batch.view]
        index = batch.index
        pre_logits: Any = stored["pre_logits"][index] if self.pre_logits else None
        features = tuple(stored[f"features_{i}"][index] for i in range(len(self.levels)))
        if self.network.tokens is not None:  # stored as wide as the longest text
            features = tuple(feature[:, :, : batch.inputs.shape[1]] for feature in features)
        outputs = Outputs(stored["logits"][index], features, pre_logits)
        self.hits.samples += len(index)
        self._verify(batch, outputs)
        return outputs

    def _load(self, view: int) -> dict[str, Tensor]:
        key = stable_hash(self._identity | {"view": view})
        folder = self._store.find("teacher_outputs", key)
        if folder is None:
            folder = self._store.publish("teacher_outputs", key, lambda path: self._fill(path, view))
        tensors = read_tensors(folder / "outputs.safetensors")
        return {name: tensor.to(self.precision.device) for name, tensor in tensors.items()}

    def _fill(self, folder: Path, view: int) -> None:
        """Answer the whole training split at one view, in index order."""
        parts: dict[str, list[Tensor]] = {}
        for batch in self._loader.canonical_batches(view, self._batch_size):
            valid = len(batch.index)
            outputs = self.live(batch.inputs)
            parts.setdefault("logits", []).append(outputs.logits[:valid].cpu())
            for i, feature in enumerate(outputs.features):
                parts.setdefault(f"features_{i}", []).append(feature[:valid].cpu())
            if outputs.pre_logits is not None:
                parts.setdefault("pre_logits", []).append(outputs.pre_logits[:valid].cpu())
        write_tensors(folder / "outputs.safetensors", {n: torch.cat(p).contiguous() for n, p in parts.items()}, {})

    def gib_of_a_view(self, samples: int) -> float:
        """Room that one view of ``samples`` samples takes."""
        shown = [self.network.levels[i] for i in self.levels]
        numbers = self.network.num_classes + sum(level.channels * level.height * level.width for level in shown)
        numbers += self.network.pre_logits_width if self.pre_logits else 0
        return samples * numbers * 4 / 2**30

    def _verify(self, batch: Batch, stored: Outputs) -> None:
        """Recompute a share of the hits, chosen by the seed, and compare them with what was stored."""
        draw = derive_seed(self._seed, "verify", self.hits.samples, batch.view) / 2**63
        if draw >= self._verify_fraction:
            return
        samples = len(batch.index)
        # As many samples as when they were stored, whatever the batch has.
        rows = torch.arange(max(samples, self._batch_size), device=batch.inputs.device) % samples
        fresh = _first(self.live(batch.inputs[rows]), samples)
        self.hits.verified += samples
        pairs = [
            ("logits", fresh.logits, stored.logits),
            *zip(self._names(), fresh.features, stored.features, strict=True),
        ]
        if fresh.pre_logits is not None:
            pairs.append(("pre_logits", fresh.pre_logits, stored.pre_logits))
        for name, new, old in pairs:
            if not self._same(new, old):
                bad = int((new != old).flatten(1).any(1).nonzero()[0])
                raise CorruptError(
                    f"teacher outputs in the store differ from the teacher's own: {name} of sample "
                    f"{int(batch.index[bad])}, view {batch.view}. Delete the folder teacher_outputs of the store "
                    f"({self._store.root}) and run again"
                )

    def _names(self) -> list[str]:
        return [f"features_{i}" for i in range(len(self.levels))]

    def _same(self, new: Tensor, old: Tensor) -> bool:
        # On the CPU a sample's outputs do not depend on the others of its batch, bit for bit; on a GPU they are close,
        # and so are those of text, which was filled up to another width when they were stored.
        if self.precision.device.type == "cpu" and self.network.tokens is None:
            return torch.equal(new, old)
        tolerance = 1e-4 if self.precision.dtype is None else 3e-2
        return torch.allclose(new, old, rtol=tolerance, atol=tolerance * float(old.abs().max()))


def _first(outputs: Outputs, samples: int) -> Outputs:
    features = tuple(feature[:samples] for feature in outputs.features)
    pre_logits: Any = None if outputs.pre_logits is None else outputs.pre_logits[:samples]
    return Outputs(outputs.logits[:samples], features, pre_logits)
