"""CLINC150: what people ask an assistant, in 150 intents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from kdzoo.api.data import DataError, DataSource, DataSplits
from kdzoo_text.tokenizing import TextOptions, below, has_surrogates, splits_of


class Clinc150(DataSource):
    """The publisher's ``data_full.json`` in its official splits. Out-of-scope queries, which have no intent, are left
    out: of the file's lists only train, val and test are read."""

    name = "clinc150"
    description = "15,000 + 3,000 + 4,500 English queries, 150 intents; out-of-scope queries left out"

    class Options(TextOptions):
        file: str = Field("clinc150/data_full.json", description="The publisher's json, below the data root.")

    def load(self, root: Path) -> DataSplits:
        """Return the splits; the test queries are encoded when they are asked for. Raises DataError."""
        options: Any = self.options
        title = f"data set '{self.name}'"
        path = below(root, options.file, title)
        if not path.is_file():
            raise DataError(
                f"{title}: no file '{options.file}' below '{root}'. Set data.root or $KDZOO_DATA to the folder that "
                "holds it; it is data/data_full.json of https://github.com/clinc/oos-eval"
            )
        lists = read(path)
        return splits_of(
            title,
            options,
            lists["train"],
            lists["val"],
            lambda: read(path)["test"],
            source="S. Larson et al. (2019), https://github.com/clinc/oos-eval",
            licence="CC BY 3.0",
        )


def read(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Read the lists train, val and test of [text, intent]; DataError says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    lists: dict[str, list[tuple[str, str]]] = {}
    for name in ("train", "val", "test"):
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path}: has no list '{name}'; data_full.json of CLINC150 would be right")
        wrong = next((i for i, row in enumerate(rows) if not _is_pair(row)), None)
        if wrong is not None:
            raise DataError(f"{path}: {name}[{wrong}] is no [text, intent]")
        broken = next((i for i, row in enumerate(rows) if any(map(has_surrogates, row))), None)
        if broken is not None:
            raise DataError(f"{path}: {name}[{broken}] holds half of a surrogate pair, which is no character")
        lists[name] = [(text, intent) for text, intent in rows]
    return lists


def _is_pair(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) and part.strip() for part in row)
