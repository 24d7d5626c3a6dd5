"""A folder's content that arrives from another machine, into a folder that this process owns."""

from __future__ import annotations

import os
from pathlib import Path

from kdzoo.storage.atomic import sync_folder, writing
from kdzoo.storage.owner import discarded, sweep, temporary_in
from kdzoo.storage.parcel import unpack


def take_over(content: bytes, folder: Path) -> None:
    """Replace files below ``folder`` by those of ``pack``'s bytes, each wholly; others stay.

    Nothing is replaced before every file has arrived and was compared with its hash. Raises as ``unpack``.
    """
    arrived = temporary_in(folder.parent)
    with discarded(arrived):
        unpack(content, arrived)
        with writing(folder):
            for path in sorted(path for path in arrived.rglob("*") if path.is_file()):
                place = folder / path.relative_to(arrived)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
            sync_folder(folder)


def own_folder(parent: Path) -> Path:
    """Make a folder below ``parent`` that belongs to this process; those of dead processes are removed."""
    sweep(parent)
    folder = temporary_in(parent)
    with writing(folder):
        folder.mkdir(mode=0o700)
    return folder
