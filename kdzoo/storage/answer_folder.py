"""A folder of a teacher's stored answers, which another machine reads without the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdzoo.errors import ModelError, NeedsError, shown
from kdzoo.storage.atomic import write_tensors, writing
from kdzoo.storage.mapped import MappedRows
from kdzoo.storage.owner import sweep
from kdzoo.storage.sealed import Files, differences, listed, read_manifest, record_file, write_sealed
from kdzoo.types import stable_hash

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
#: How many differences an error lists.
MOST_LISTED = 8

Facts = Mapping[str, Any]


class AnswerFolder:
    """``facts`` say what is answered and by whom, ``files`` are the recorded ones; both are in a sealed manifest.

    The manifest is written anew after each file, so that a folder whose writing was broken off is sound and goes on. A
    file counts once it is recorded: nothing depends on a lock.
    """

    def __init__(self, root: Path, facts: Facts, files: Files) -> None:
        self.root, self.facts, self.files = root, facts, files

    @classmethod
    def begin(cls, root: Path, facts: Facts) -> AnswerFolder:
        """Start a folder, or go on with one of the same ``identity``; raise NeedsError where it holds other answers."""
        if not (root / MANIFEST).exists():
            with writing(root):
                root.mkdir(parents=True, exist_ok=True)
            return cls(root, facts, {})
        found = cls.read(root)
        if other := different(found.facts["identity"], facts["identity"]):
            raise NeedsError(
                f"{root}: holds answers to another question{listed(other)}\nchoose another folder with --out, or "
                "delete this one"
            )
        sweep(root)
        return cls(root, {**found.facts, **facts, "views": max(found.facts["views"], facts["views"])}, found.files)

    @classmethod
    def read(cls, root: Path) -> AnswerFolder:
        """Read the manifest; raise ModelError where there is none, CorruptError where it is damaged."""
        if not (root / MANIFEST).is_file():
            raise ModelError(
                f"{root}: no folder of stored answers; `kdzoo teacher answer RECIPE --out {root}` writes one"
            )
        content = read_manifest(root / MANIFEST, facts=dict, answers=str)
        return cls(root, content["facts"], content["files"])

    @property
    def key(self) -> str:
        """Hash of everything in it."""
        return stable_hash([self.facts, self.files])

    def has(self, name: str) -> bool:
        """Whether a file is recorded, and is as it was recorded."""
        return name in self.files and not self.problems([name])

    def problems(self, names: Sequence[str]) -> list[str]:
        """One line for each of the files that is missing or not as it was recorded."""
        absent = [f"{self.root / name}: missing" for name in names if name not in self.files]
        return absent + differences(self.root, {name: self.files[name] for name in names if name in self.files})

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file and record it."""
        path = self.root / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_tensors(path, tensors, {})
        self.files[name] = record_file(path)
        self._seal()

    def finish(self, facts: Facts) -> None:
        """Record what is known only when all files are there."""
        self.facts = {**self.facts, **facts}
        self._seal()

    def _seal(self) -> None:
        write_sealed(self.root / MANIFEST, {"answers": "teacher", "facts": self.facts, "files": self.files})

    # --- its files ----------------------------------------------------------------------------

    def shards(self, view: int) -> list[str]:
        """Names of the files of a view, in the order of its samples."""
        return [f"view_{view:05d}/{shard:05d}.safetensors" for shard in range(self.facts["shards"])]

    def seen(self, view: int) -> str:
        """Name of the file that holds what the teacher saw of a view's first samples."""
        return f"view_{view:05d}/seen.safetensors"

    #: Name of the file that holds the classes that the teacher chose on the test split.
    test = "test.safetensors"

    def of_views(self, views: int) -> list[str]:
        """Names of all files of the first ``views`` views."""
        return [name for view in range(views) for name in (*self.shards(view), self.seen(view))]

    def rows(self, view: int) -> MappedRows:
        """The stored answers of a view; its files must have been compared with their hashes."""
        return MappedRows([self.root / name for name in self.shards(view)], self.facts["rows"])


def different(theirs: Facts, ours: Facts) -> list[str]:
    """One line for each name under which two questions differ."""
    lines = list(_different(theirs, ours))
    more = [f"and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return lines[:MOST_LISTED] + more


def _different(theirs: Facts, ours: Facts) -> Iterator[str]:
    for name in dict.fromkeys([*theirs, *ours]):
        one, other = theirs.get(name), ours.get(name)
        if one != other:
            yield f"{name}: {shown(one)} in the folder, {shown(other)} now"
