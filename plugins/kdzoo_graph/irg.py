"""Instance relationship graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, NeedsError, Paper, Shapes, StepContext, sample_distances


def irg_vertex_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the squared difference of the logits, averaged over samples and classes.

    Only ``student_logits`` receive a gradient.

    Shapes: (N, K), (N, K) -> scalar.
    """
    return F.mse_loss(student_logits, teacher_logits.detach())


def irg_edge_loss(student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor]) -> Tensor:
    """Return the squared difference of all squared distances between samples, in units of the largest in its layer.

    Mean over N * N pairs and over layers. Only ``student_layers`` receive a gradient.

    Shapes: for each layer (N, ...), (N, ...), of any sizes -> scalar, at most 1.
    """
    pairs = zip(student_layers, teacher_layers, strict=True)
    return torch.stack([F.mse_loss(_edges(student), _edges(teacher.detach())) for student, teacher in pairs]).mean()


def irg_transformation_loss(student_maps: tuple[Tensor, Tensor], teacher_maps: tuple[Tensor, Tensor]) -> Tensor:
    """Return the squared difference of how far each sample moves from one layer to the next.

    A move is the squared distance of a sample's two maps, brought to their common smallest size by averaging, in units
    of the largest move of the batch. Mean over samples. Only ``student_maps`` receive a gradient.

    Shapes: for each network two maps (N, C, H, W) -> scalar, at most 1.
    """
    first, second = teacher_maps
    return F.mse_loss(_moves(*student_maps), _moves(first.detach(), second.detach()))


def _edges(layer: Tensor) -> Tensor:
    """All squared distances over the largest: (N, ...) -> (N, N)."""
    distances = sample_distances(layer).square()
    return distances / distances.max().clamp_min(1e-12)


def _moves(first: Tensor, second: Tensor) -> Tensor:
    """The squared distances of samples between two layers over the largest: two (N, C, H, W) -> (N,)."""
    channels, height, width = (min(sizes) for sizes in zip(first.shape[1:], second.shape[1:], strict=True))
    size = (channels, height, width)
    # Pooling goes over the channels too, which the next layer usually has more of.
    moved = F.adaptive_avg_pool3d(first, size) - F.adaptive_avg_pool3d(second, size)
    distances = moved.square().sum(dim=(1, 2, 3))
    return distances / distances.max().clamp_min(1e-12)


class IRG(Algorithm):
    """Makes the graph of a batch (samples, their distances, their moves between layers) match the teacher's.

    A network's knowledge of a batch is a graph at each layer: its vertices are the samples' features, its edges the
    squared distances between samples, in units of the largest. Between two layers each sample moves by a squared
    distance: this transforms the graph. Vertices are matched at the logits only, where the two networks must agree
    anyway; edges at the two deepest levels and the embedding; the transformation between these two levels.

    Reads: logits of student and teacher, each (N, K); features of both at the two deepest paired levels, (N, C, H, W);
        pre_logits of both, (N, D_student) and (N, D_teacher).
    Loss terms: ``vertex``: squared logit units, at least 0; mean over samples and classes.
        ``edge``: dimensionless, from 0 to 1; mean over N * N pairs and three layers.
        ``transformation``: dimensionless, from 0 to 1; mean over samples.
        All are 0 when student equals teacher.
    Trains: nothing of its own.   State: none.
    Raises: NeedsError if fewer than two levels can be paired; NeedsError (by the core) for batches of fewer than three
        samples: the distance of a pair alone is always the largest.
    Source: Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship Graph", CVPR 2019,
        https://doi.org/10.1109/CVPR.2019.00726, section 3, as in the public PyTorch code of Knowledge-Distillation-Zoo;
        the authors' code is for Caffe.
    Differs from the paper: 1. two levels and the embedding, one to one, as in that code; the paper models the whole
        network. 2. maps of different width or size are averaged to the smaller of both for the transformation, also in
        ratios other than two; the authors' networks pool both maps to vectors first. 3. all three are means, not sums.
    Defaults from: Knowledge-Distillation-Zoo (task 1, vertex 0.1, edge 5, transformation 5).
    """

    name = "irg"
    paper = Paper(
        title="Knowledge Distillation via Instance Relationship Graph",
        authors="Liu, Cao, Li, Yuan, Hu, Li, Duan",
        year=2019,
        url="https://doi.org/10.1109/CVPR.2019.00726",
        equation="section 3",
    )
    needs = Needs(features=True, pre_logits=True, min_batch=3, data="any")
    loss_functions = (irg_vertex_loss, irg_edge_loss, irg_transformation_loss)
    default_weights: ClassVar = {"task": 1.0, "vertex": 0.1, "edge": 5.0, "transformation": 5.0}
    also_known_as = ("instance_relationship_graph",)

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        paired = len(shapes.teacher.levels)
        if paired < 2:
            raise NeedsError(f"algorithm 'irg': needs two paired levels to see how samples move, got {paired}")

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        student, teacher = ctx.student, ctx.teacher
        moves = [(own.features[-2], own.features[-1]) for own in (student, teacher)]
        layers = [(*own.features[-2:], own.pre_logits) for own in (student, teacher)]
        return {
            "vertex": irg_vertex_loss(student.logits, teacher.logits),
            "edge": irg_edge_loss(*layers),
            "transformation": irg_transformation_loss(*moves),
        }
