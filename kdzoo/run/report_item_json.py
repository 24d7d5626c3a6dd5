"""Report items as JSON for results.json; see ``Algorithm.report_items``."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kdzoo.contract.report_items import HeatMap, Images, ReportItem, Scatter, Table
from kdzoo.errors import ContractError

KINDS: Mapping[type, str] = {Table: "table", HeatMap: "heat_map", Scatter: "scatter", Images: "images"}


def as_json(item: ReportItem, title: str) -> dict[str, Any]:
    """Check an item of the algorithm that errors call ``title``, and return what results.json holds of it."""
    if type(item) not in KINDS:
        raise ContractError(f"{title}: report_items() gave {type(item).__name__}; known: {', '.join(KINDS.values())}")
    where = f"{title}: item '{item.title}'"
    kind = {"kind": KINDS[type(item)]}
    if isinstance(item, Images):
        return kind | {
            "title": item.title,
            "images": [_png(image, where) for image in item.images.detach().float().cpu()],
            "captions": list(item.captions),
            "note": item.note,
        }
    if isinstance(item, Table):
        _check_shape(where, item.rows, len(item.columns))
        numbers = [cell for row in item.rows for cell in row]
    elif isinstance(item, HeatMap):
        _check_shape(where, item.values, len(item.columns))
        if len(item.values) != len(item.rows):
            raise ContractError(f"{where}: {len(item.rows)} rows are named, there are {len(item.values)}")
        numbers = [cell for row in item.values for cell in row]
    else:
        numbers = [number for point in item.points for number in (point.x, point.y)]
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise ContractError(f"{where}: holds {number}; None says that there is no number")
    return kind | asdict(item)


def _check_shape(where: str, rows: Sequence[Sequence[Any]], columns: int) -> None:
    for row in rows:
        if len(row) != columns:
            raise ContractError(f"{where}: has {columns} columns, but a row of {len(row)}")


def _png(image: Tensor, where: str) -> str:
    """One picture (C, H, W) in [0, 1] as PNG in base64."""
    if image.dim() != 3:
        raise ContractError(f"{where}: a picture is {tuple(image.shape)}; (C, H, W) would be right")
    if image.shape[0] not in (1, 3):  # several modalities side by side, which no format of pictures knows
        image = image.mean(dim=0, keepdim=True)
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    written = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(written, format="PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()
