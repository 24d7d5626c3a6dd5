"""Readers of a split: from memory, from files, from token ids."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdzoo.contract.extension_points import ArraySplit, FileSplit, TokenSplit
from kdzoo.data.checking import read_sample
from kdzoo.errors import DataError

if TYPE_CHECKING:
    from kdzoo.data.images import Decoder
    from kdzoo.data.sample_views import SampleViews
    from kdzoo.data.splitting import Part

#: A sample's index, and the view of it, None for the image as evaluation sees it.
Shown = tuple[int, "int | None"]


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
    """A split that worker processes read and decode; their number changes no bit.

    Workers stay for the next pass over the split. A pass that begins inside another one has workers of its own.
    """

    def __init__(
        self,
        part: Part,
        split: FileSplit,
        decoder: Decoder,
        device: torch.device,
        workers: int,
        timeout_s: float,
        pinned: bool = False,
        views: SampleViews | None = None,
    ) -> None:
        """``views`` augments sample by sample, where a pass asks for a view."""
        self.samples = Samples(split, part.rows, decoder, views)
        self.targets = torch.from_numpy(part.targets).to(device)
        self.device, self.workers, self.timeout_s, self.pinned = device, workers, timeout_s, pinned
        self._idle: list[DataLoader[Any]] = []  # with workers that wait for the next pass

    def batches(self, batches: Sequence[np.ndarray], view: int | None = None) -> Iterator[Tensor]:
        """Yield uint8 (N, C, H, W) for each batch of indices; raise DataError for what cannot be read.

        ``view`` None: as evaluation sees them.
        """
        loader = self._idle.pop() if self._idle else self._new()
        assert isinstance(loader.batch_sampler, Order)
        loader.batch_sampler.batches = [[(row, view) for row in rows.tolist()] for rows in batches]
        answers = self._answers(loader)
        try:
            for images in answers:
                if isinstance(images, str):
                    raise DataError(images)
                yield images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        except DataError:
            answers.close()
            del loader  # the workers end now, not when an error's traceback is collected
            raise
        except GeneratorExit:  # a pass that is broken off
            answers.close()
        self._idle.append(loader)

    def _new(self) -> DataLoader[Any]:
        return DataLoader(
            self.samples,
            batch_sampler=Order(),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            timeout=self.timeout_s if self.workers else 0,
            collate_fn=_as_it_is,
            pin_memory=self.pinned,
            generator=torch.Generator(),  # its base seed must not come out of the global one
        )

    def _answers(self, loader: DataLoader[Any]) -> Generator[Tensor | str, None, None]:
        """Yield batches; a problem comes last."""
        try:
            yield from loader
            return
        except RuntimeError as error:  # a worker that hangs or was killed
            problem = (
                f"{self.workers} workers gave no batch within data.timeout_s: {self.timeout_s:g}, or died; set "
                f"data.workers: 0 to see what hangs, or raise data.timeout_s\n  {error}"
            )
        yield problem


class Order(torch.utils.data.Sampler[list[Shown]]):
    """The batches of the pass that comes next, for workers that stay."""

    def __init__(self) -> None:
        self.batches: list[list[Shown]] = []

    def __iter__(self) -> Iterator[list[Shown]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Samples(torch.utils.data.Dataset[Any]):
    """Rows of a file split. A problem is returned as its text, as exceptions do not travel well between processes."""

    def __init__(self, split: FileSplit, rows: np.ndarray, decoder: Decoder, views: SampleViews | None = None) -> None:
        self.split, self.rows, self.decoder, self.views = split, rows, decoder, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, wanted: list[Shown]) -> Tensor | str:
        """A batch of uint8 (N, H, W, C), or the first problem in it."""
        batch: Tensor | None = None
        for place, (index, view) in enumerate(wanted):
            show = None
            if self.views is not None and view is not None:
                show = partial(self.views.of_file, view=view, index=index)
            image = read_sample(self.split, int(self.rows[index]), self.decoder, show)
            if isinstance(image, str):
                return image
            if batch is None:
                batch = torch.empty((len(wanted), *image.shape), dtype=torch.uint8)
            batch[place].numpy()[...] = image
        assert batch is not None, "a batch of no samples"
        return batch


def _as_it_is(batch: Any) -> Any:
    return batch
