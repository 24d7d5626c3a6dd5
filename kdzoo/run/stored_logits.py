"""Logits of the test split: computed in float32 the fastest exact way, then kept in the store."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdzoo.contract.step import Batch
from kdzoo.data.inputs import Inputs
from kdzoo.errors import CorruptError, OutputError
from kdzoo.evaluation.measuring import predict
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.network import Network
from kdzoo.models.weights import weights_sha256
from kdzoo.run.builder import Builder
from kdzoo.run.keys import core_hash, model_hash
from kdzoo.storage.atomic import write_tensors
from kdzoo.storage.sealed import read_tensors
from kdzoo.training.device import Precision, choose_precision
from kdzoo.types import stable_hash

#: Images of one forward pass on the CPU: more of them leave its cache, fewer waste calls.
AT_ONCE = 16
#: Logits that take more bytes are computed anew in each run.
MOST_BYTES = 256 * 2**20

KIND = "test_logits"


class StoredLogits:
    """Networks' logits of the test split, each computed once and then taken from the store.

    What is run is a copy of the network with its BatchNorm folded, in float32 and in the memory format that suits it.
    A stored answer is found by all that decides its bits: the weights, the network and its preprocessing, the content
    of the test split, the code and the machine. A few samples are answered again each time and compared.
    """

    def __init__(self, build: Builder) -> None:
        self.build, self.store = build, build.store

    def of(self, network: Network) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, K) in float32 and targets (N,) of a network in floats.

        Raises ContractError while the test gate is shut, CorruptError where what is stored is damaged or is not what
        the network answers.
        """
        assert network.quantizer is None, "a quantized network is answered by its own kernels"
        targets = self.build.data.part("test").targets
        precision = choose_precision("fp32", None, network, self.build.device)
        key = self._key(network, precision)
        folder = self.store.find(KIND, key)
        fast: Any = precision.place(fold_batchnorm(network))
        if folder is None:
            logits = self._predict(fast, precision)
            self._publish(key, logits)
        else:
            logits = read_tensors(folder / "logits.safetensors")["logits"].numpy()
            self._verify(folder, logits, fast, precision)
        return logits, targets

    def _key(self, network: Network, precision: Precision) -> str:
        spec = {name: value for name, value in asdict(network.spec).items() if name not in ("weights", "train")}
        return stable_hash(
            {
                "weights": weights_sha256(network.model),
                "model": spec,
                "architecture": model_hash(network.spec.name),
                "made_of": network.create_args,
                "inputs": network.inputs.record(),
                "window": network.inputs.window,
                "data": [self.build.data.fingerprint, self.build.data.test_fingerprint],
                "batch_size": self.build.recipe.data.eval_batch_size,
                "at_once": self._at_once(network),
                "channels_last": precision.channels_last,
                "environment": self.build.environment,
                "code": core_hash(),
            }
        )

    def _at_once(self, network: Network) -> int | None:
        """Samples of one forward pass; None: a whole batch, as on a GPU, and as text is as wide as its longest row."""
        return AT_ONCE if self.build.device.type == "cpu" and network.inputs.has_channels else None

    def _predict(self, fast: Network, precision: Precision, rows: Sequence[int] | None = None) -> np.ndarray:
        return predict(fast, self._batches(fast.inputs, precision, rows), at_once=self._at_once(fast))[0]

    def _batches(self, inputs: Inputs, precision: Precision, rows: Sequence[int] | None) -> Iterator[Batch]:
        """The test split in one layout, as other kernels run on another and give other bits."""
        layout = torch.channels_last if precision.channels_last else torch.contiguous_format
        for batch in self.build.test_batches(inputs, rows):
            yield replace(batch, inputs=batch.inputs.contiguous(memory_format=layout))

    def _publish(self, key: str, logits: np.ndarray) -> None:
        def write(folder: Path) -> None:
            write_tensors(folder / "logits.safetensors", {"logits": torch.from_numpy(logits)})

        if self.build.ranks.first and logits.nbytes <= MOST_BYTES:
            with contextlib.suppress(OutputError):  # costs the next run some time, and this one nothing
                self.store.publish(KIND, key, write)

    def _verify(self, folder: Path, logits: np.ndarray, fast: Network, precision: Precision) -> None:
        """Answer the first forward pass of some batch again, whichever it is, and compare."""
        batch_size = self.build.recipe.data.eval_batch_size
        begin = random.SystemRandom().randrange(0, len(logits), batch_size)
        rows = range(begin, min(begin + (self._at_once(fast) or batch_size), begin + batch_size, len(logits)))
        fresh = self._predict(fast, precision, rows)
        stored = logits[rows.start : rows.stop]
        tolerance = 0.0 if precision.repeats else 1e-4 * float(np.abs(stored).max())
        if not np.allclose(fresh, stored, rtol=0, atol=tolerance, equal_nan=True):
            raise CorruptError(
                f"{folder}: the logits in it differ from those of '{fast.spec.name}'; delete the folder and run again"
            )
