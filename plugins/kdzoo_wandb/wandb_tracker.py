"""Weights & Biases runs: metrics of every stage, and the run folder's files as an artifact."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdzoo.api.export import NeedsError, OfferOptions, RunState, Tracker, measured, sealed_files

if TYPE_CHECKING:
    from wandb import Run


class WandB(Tracker):
    """Logs to Weights & Biases, or offline below ``<folder>/trackers/wandb``, which ``wandb sync`` sends later.

    Each kdzoo run is one run there, also after it was killed and resumed: online, what is stored already is not logged
    twice; offline, all is written anew. When the run has finished, its files become an artifact of type ``model``.
    """

    name = "wandb"
    description = "Weights & Biases: metrics, and the run folder's files as an artifact; online or offline"

    class Options(OfferOptions):
        project: str | None = Field(None, description="Name of the project; null: WANDB_PROJECT, or kdzoo.")
        entity: str | None = Field(None, description="User or team; null: WANDB_ENTITY, or the account's own.")
        mode: Literal["online", "offline"] | None = Field(None, description="null: WANDB_MODE, or online.")
        upload: bool = Field(True, description="Whether the files of the finished run folder become an artifact.")

    options: Options

    @classmethod
    def check(cls, options: OfferOptions) -> None:
        assert isinstance(options, cls.Options)
        if find_spec("wandb") is None:
            raise NeedsError('needs the library wandb, which is not installed; pip install "kdzoo[wandb]"')
        if mode_of(options) == "online":
            import wandb

            if not wandb.api.api_key:
                raise NeedsError(
                    "wandb is not logged in; `wandb login`, WANDB_API_KEY or the option mode: offline would be right"
                )

    def start(self, folder: Path) -> None:
        import wandb

        place, mode = folder / "trackers", mode_of(self.options)
        if mode == "offline":
            shutil.rmtree(place / "wandb", ignore_errors=True)  # every row comes again
        place.mkdir(exist_ok=True)
        self.wandb: Run = wandb.init(
            project=self.options.project or os.environ.get("WANDB_PROJECT") or "kdzoo",
            entity=self.options.entity,
            id=self.run.id,
            name=f"{self.run.name}-{folder.name}",
            group=self.run.name,
            notes=str(self.run.recipe.get("description", "")) or None,
            config=dict(self.run.recipe),
            dir=str(place),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True),
        )
        self.rows, self.stored = 0, self.wandb.step  # rows come in the same order after a resume
        self.stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self.stages:  # each stage counts its own steps
            self.stages.add(stage)
            self.wandb.define_metric(f"{stage}/step")
            self.wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.rows += 1
        if self.rows > self.stored:
            self.wandb.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def close(self) -> None: ...

    def finish(self, state: RunState, results: Mapping[str, Any]) -> None:
        import wandb

        if state == "finished":
            self.wandb.summary.update(measured(results))
            if self.options.upload:
                artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", self.run.name), "model")
                for file in sealed_files(self.run.folder):
                    path = str(self.run.folder / file)
                    artifact.add_file(path, file.as_posix(), skip_cache=True, policy="immutable")
                self.wandb.log_artifact(artifact)
        self.wandb.finish(exit_code=0 if state == "finished" else 1)


def mode_of(options: WandB.Options) -> Literal["online", "offline", "disabled"]:
    """Return the mode that the options or WANDB_MODE name; what WANDB_MODE does not know is online."""
    known: dict[str | None, Literal["offline", "disabled"]] = {"offline": "offline", "disabled": "disabled"}
    return known.get(options.mode or os.environ.get("WANDB_MODE"), "online")
