"""What the author of an algorithm may use.

The other readers have modules of their own: ``kdzoo.api.models``, ``kdzoo.api.data`` and ``kdzoo.api.export``. A plugin
imports these four and nothing deeper.
"""

from kdzoo.contract.algorithm import Algorithm, AlgorithmName, AlgorithmOptions, Stages, Temperature
from kdzoo.contract.classification import agreement_percent, top1_percent
from kdzoo.contract.declared import Level, ModelShapes, Needs, OwnNetwork, Paper, Shapes
from kdzoo.contract.hookspecs import hookimpl
from kdzoo.contract.report_items import FinishedRun, HeatMap, Images, Point, ReportItem, Scatter, Table
from kdzoo.contract.stage import AlgorithmChoice, Costs, ModelSpec, Stage, StagePlan, StageResult
from kdzoo.contract.step import Outputs, StepContext, Update
from kdzoo.errors import KdzooError, NeedsError
from kdzoo.losses import mean_prediction, sample_distances, soft_target_loss

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
