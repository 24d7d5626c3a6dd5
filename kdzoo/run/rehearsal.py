"""A dry run: the first stage is built with untrained networks, so that errors come before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdzoo.contract.stage import ModelSpec, Stage, StageResult
from kdzoo.contract.step import Outputs


class NotTrained(Exception):
    """Raised where a plan is looked at before anything was trained, and asks for what only a trained network tells."""


class Untold(dict[str, Any]):
    """What would be known of a network once it is trained."""

    def __missing__(self, key: str) -> Any:
        raise NotTrained


def in_floats(of: Stage | StageResult) -> ModelSpec:
    """The plain model: a stage in another quantizer can go on from the weights of one in floats."""
    return replace(of.model, quantizer=None, quantizer_options={})


def not_trained(result: StageResult, samples: Sequence[int]) -> Outputs:
    raise NotTrained
