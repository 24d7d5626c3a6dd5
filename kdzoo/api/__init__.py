"""What the author of an algorithm may use.

The other readers have modules of their own: ``kdzoo.api.models``, ``kdzoo.api.data``, ``kdzoo.api.export`` and
``kdzoo.api.execution``. A plugin imports these five and nothing deeper.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm, AlgorithmName, AlgorithmOptions, Stages, Temperature
    from kdzoo.contract.classification import agreement_percent, top1_percent
    from kdzoo.contract.declared import Level, ModelShapes, Needs, OwnNetwork, Paper, Shapes
    from kdzoo.contract.hookspecs import hookimpl
    from kdzoo.contract.report_items import FinishedRun, HeatMap, Images, Point, ReportItem, Scatter, Table
    from kdzoo.contract.shared_losses import mean_prediction, sample_distances, soft_target_loss
    from kdzoo.contract.stage import AlgorithmChoice, Costs, ModelSpec, Stage, StagePlan, StageResult
    from kdzoo.contract.step import Outputs, StepContext, Update
    from kdzoo.errors import KdzooError, NeedsError

#: Where each name is defined. It is imported when it is first asked for, as an export format needs no torch.
_HOMES = {
    "kdzoo.contract.algorithm": "Algorithm AlgorithmName AlgorithmOptions Stages Temperature",
    "kdzoo.contract.classification": "agreement_percent top1_percent",
    "kdzoo.contract.declared": "Level ModelShapes Needs OwnNetwork Paper Shapes",
    "kdzoo.contract.hookspecs": "hookimpl",
    "kdzoo.contract.report_items": "FinishedRun HeatMap Images Point ReportItem Scatter Table",
    "kdzoo.contract.stage": "AlgorithmChoice Costs ModelSpec Stage StagePlan StageResult",
    "kdzoo.contract.step": "Outputs StepContext Update",
    "kdzoo.errors": "KdzooError NeedsError",
    "kdzoo.contract.shared_losses": "mean_prediction sample_distances soft_target_loss",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Algorithm",
    "AlgorithmChoice",
    "AlgorithmName",
    "AlgorithmOptions",
    "Costs",
    "FinishedRun",
    "HeatMap",
    "Images",
    "KdzooError",
    "Level",
    "ModelShapes",
    "ModelSpec",
    "Needs",
    "NeedsError",
    "Outputs",
    "OwnNetwork",
    "Paper",
    "Point",
    "ReportItem",
    "Scatter",
    "Shapes",
    "Stage",
    "StagePlan",
    "StageResult",
    "Stages",
    "StepContext",
    "Table",
    "Temperature",
    "Update",
    "agreement_percent",
    "hookimpl",
    "mean_prediction",
    "sample_distances",
    "soft_target_loss",
    "top1_percent",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kdzoo.api' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
