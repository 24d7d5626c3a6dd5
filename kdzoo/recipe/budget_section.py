"""The budget of a student: what its file may weigh and how long it may take. Needs neither torch nor any plugin."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kdzoo.recipe.problems import misfits
from kdzoo.recipe.values import Line, Real, Section, Whole

#: Bytes of a MiB.
MIB = 2**20


class BudgetRecipe(Section):
    """Limits of the exported student, and how it is chosen among those within them."""

    size_mib: Annotated[Real, Field(gt=0, le=1e6)] | None = Field(
        None, description="Largest size of the exported file, MiB; null: no limit."
    )
    max_bytes: Annotated[Whole, Field(ge=1, le=10**12)] | None = Field(
        None, description="The same limit in bytes, instead of size_mib; null: no limit."
    )
    latency_ms: Annotated[Real, Field(gt=0, le=1e7)] | None = Field(
        None, description="Longest time of one sample on this machine, p95, milliseconds; null: no limit."
    )
    params_m: Annotated[Real, Field(gt=0, le=1e6)] | None = Field(
        None, description="Most parameters, millions; null: no limit."
    )
    macs_g: Annotated[Real, Field(gt=0, le=1e6)] | None = Field(
        None, description="Most multiply-accumulates of one sample, billions; null: no limit."
    )
    format: Line = Field(
        "onnx", description="Export format of the file, with its quantisation after a dash, e.g. onnx-int8."
    )
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(1, description="CPU threads that the file is timed with.")
    trial_epochs: Annotated[Whole, Field(ge=1, le=100_000)] = Field(
        2, description="Epochs of each candidate in the first round; every further round has twice as many."
    )
    keep: Annotated[Real, Field(gt=0, lt=1)] = Field(
        0.5, description="Share of the candidates that goes on to the next round, at least one."
    )

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetRecipe:
        if self.size_mib is not None and self.max_bytes is not None:
            raise misfits(("max_bytes", "size_mib and max_bytes exclude each other; give one of them"))
        if not self.limits():
            names = "size_mib, max_bytes, latency_ms, params_m, macs_g"
            raise misfits(("", f"limits nothing; give at least one of {names}"))
        return self

    def limits(self) -> dict[str, float]:
        """Return the limits by what they limit: size_bytes, latency_ms (p95), params_m, macs_g."""
        size = self.max_bytes if self.size_mib is None else self.size_mib * MIB
        found = {"params_m": self.params_m, "macs_g": self.macs_g, "size_bytes": size, "latency_ms": self.latency_ms}
        return {name: float(limit) for name, limit in found.items() if limit is not None}
