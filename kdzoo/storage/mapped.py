"""Tensors on disk that are read row by row, without loading their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class MappedRows:
    """Rows of tensors that lie in safetensors files one after another, each mapped into memory.

    The system reads the pages that are asked for and may drop them again, so that the memory of the process does not
    grow with the files. They must have been compared with their sha256 before, and must not change.
    """

    def __init__(self, paths: Sequence[Path], rows: int) -> None:
        """``rows`` is the number of rows in every file but the last, which may have fewer."""
        from safetensors import safe_open

        self._rows = rows
        self._files: list[Mapping[str, np.ndarray]] = []
        for path in paths:
            with safe_open(path, framework="pt") as file:
                self._files.append({name: file.get_tensor(name).numpy() for name in file.keys()})  # noqa: SIM118

    def take(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """Return copies of some rows of every tensor, on the CPU: (N,) -> (N, ...) by name."""
        import torch

        number, row = np.divmod(index, self._rows)
        first = self._files[0]
        taken = {name: np.empty((len(index), *array.shape[1:]), array.dtype) for name, array in first.items()}
        for each in np.unique(number):
            mine = number == each
            for name, array in self._files[each].items():
                taken[name][mine] = array[row[mine]]
        return {name: torch.from_numpy(array) for name, array in taken.items()}
