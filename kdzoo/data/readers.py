"""Readers of a split: from memory, from files, from token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdzoo.contract.extension_points import ArraySplit, FileSplit, TokenSplit
from kdzoo.data.checking import read_sample
from kdzoo.errors import DataError

if TYPE_CHECKING:
    from kdzoo.data.images import Decoder
    from kdzoo.data.splitting import Part


class MemoryReader:
    """A split that lives on the device as uint8."""

    def __init__(self, part: Part, split: ArraySplit, device: torch.device) -> None:
        images = torch.from_numpy(np.asarray(split.images)[part.rows])
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        self.images = images.contiguous().to(device)
        self.targets = torch.from_numpy(part.targets).to(device)

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield uint8 (N, C, H, W) for each batch of indices."""
        for rows in batches:
            yield self.images.index_select(0, torch.from_numpy(rows).to(self.images.device))


class TokenReader:
    """A split of text that lives on the device."""

    def __init__(self, part: Part, split: TokenSplit, pad: int, device: torch.device) -> None:
        ids = np.asarray(split.ids)[part.rows]
        self.lengths = (ids != pad).sum(axis=1)  # (N,), tokens without fill
        self.ids = torch.from_numpy(ids.astype(np.int64)).to(device)
        self.targets = torch.from_numpy(part.targets).to(device)

    def batches(self, batches: Sequence[np.ndarray], widths: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield ids (N, L) for each batch of indices, L its longest row's length or the width that is given."""
        for number, rows in enumerate(batches):
            width = int(self.lengths[rows].max()) if widths is None else widths[number]
            yield self.ids[:, :width].index_select(0, torch.from_numpy(rows).to(self.ids.device))


class FileReader:
    """A split that worker processes read and decode sample by sample; their number changes no bit."""

    def __init__(
        self,
        part: Part,
        split: FileSplit,
        decoder: Decoder,
        device: torch.device,
        workers: int,
        timeout_s: float,
    ) -> None:
        self.samples = Samples(split, part.rows, decoder)
        self.targets = torch.from_numpy(part.targets).to(device)
        self.device, self.workers, self.timeout_s = device, workers, timeout_s

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield uint8 (N, C, H, W) for each batch of indices; raise DataError for what cannot be read."""
        loader = torch.utils.data.DataLoader(
            self.samples,
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=self.workers,
            timeout=self.timeout_s if self.workers else 0,
            collate_fn=_stacked,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its base seed must not come out of the global one
        )
        iterator = iter(loader)
        try:
            while (images := self._next(iterator)) is not None:
                if isinstance(images, str):
                    raise DataError(images)
                yield images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        finally:
            del iterator  # the workers end now, not when an error's traceback is collected

    def _next(self, iterator: Iterator[Tensor | str]) -> Tensor | str | None:
        """The next batch, a problem, or None at the end."""
        try:
            return next(iterator, None)
        except RuntimeError as error:  # a worker that hangs or was killed
            return (
                f"{self.workers} workers gave no batch within data.timeout_s: {self.timeout_s:g}, or died; set "
                f"data.workers: 0 to see what hangs, or raise data.timeout_s\n  {error}"
            )


class Samples(torch.utils.data.Dataset[Any]):
    """Rows of a file split. A problem is returned as its text, as exceptions do not travel well between processes."""

    def __init__(self, split: FileSplit, rows: np.ndarray, decoder: Decoder) -> None:
        self.split, self.rows, self.decoder = split, rows, decoder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray | str:
        return read_sample(self.split, int(self.rows[index]), self.decoder)


def _stacked(samples: list[np.ndarray | str]) -> Tensor | str:
    """A batch of uint8 (N, H, W, C), or the first problem in it."""
    problem = next((sample for sample in samples if isinstance(sample, str)), None)
    return problem if problem is not None else torch.from_numpy(np.stack(samples))  # type: ignore[arg-type]
