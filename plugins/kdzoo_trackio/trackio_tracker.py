"""trackio runs: metrics of every stage in a local database, or in a Space on Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdzoo.api.export import NeedsError, OfferOptions, RunState, Tracker, flat, measured, suppress_output

if TYPE_CHECKING:
    from trackio import Run


class Trackio(Tracker):
    """Logs to trackio's database, see it with ``trackio show``; TRACKIO_DIR says where it is.

    Each kdzoo run is one run there. After it was killed and resumed, a local run is written anew.
    """

    name = "trackio"
    description = "trackio: metrics in a local database, or in a Space on Hugging Face"

    class Options(OfferOptions):
        project: str = Field("kdzoo", min_length=1, description="Name of the project.")
        space: str | None = Field(
            None, description="A Space on Hugging Face that shows the runs; null: TRACKIO_SPACE_ID, or none."
        )

    options: Options

    @classmethod
    def check(cls, options: OfferOptions) -> None:
        if find_spec("trackio") is None:
            raise NeedsError('needs the library trackio, which is not installed; pip install "kdzoo[trackio]"')

    def start(self, folder: Path) -> None:
        with suppress_output():
            import trackio

            project, name = self.options.project, f"{self.run.name}-{folder.name}-{self.run.id[:6]}"
            for before in trackio.Api().runs(project) if self.run.resumed else ():
                if before.name == name:
                    before.delete()
            self.trackio: Run = trackio.init(
                project=project,
                name=name,
                group=self.run.name,
                space_id=self.options.space,
                config=flat(self.run.recipe),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        with suppress_output():
            self.trackio.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None: ...

    def finish(self, state: RunState, results: Mapping[str, Any]) -> None:
        with suppress_output():
            if state == "finished":
                self.trackio.log(measured(results), step=0)
            import trackio

            trackio.finish()  # and not only the run, which would be finished again where the process ends
