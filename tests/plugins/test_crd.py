"""crd: values worked out by hand, how candidates are drawn, what the banks remember, and numbers at the edge."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kdzoo.api import ModelShapes, NeedsError, Outputs, Shapes, StepContext
from kdzoo.contract.step import Batch, Clock
from kdzoo.testing import tiny as testing
from kdzoo.zoo.loading import load_zoo
from kdzoo_relation.crd import CRD, crd_loss

SAMPLES, CLASSES = 40, 4
LABELS = torch.arange(SAMPLES) % CLASSES


def make(samples: int = SAMPLES, **options: float) -> CRD:
    torch.manual_seed(0)
    student, teacher = ModelShapes((), 6, CLASSES), ModelShapes((), 9, CLASSES)
    options = {"dim": 5, "negatives": 12, **options}
    return CRD(CRD.Options(**options), Shapes(student, (teacher,), (), CLASSES, samples, (3, 4, 4)))


def context(index: list[int], step: int = 0) -> StepContext:
    generator = torch.Generator().manual_seed(100 + step)
    rows, size = torch.tensor(index), len(index)
    return StepContext(
        batch=Batch(torch.zeros(size, 3, 4, 4), LABELS[rows], rows),
        student=Outputs(torch.zeros(size, CLASSES), (), torch.randn(size, 6, generator=generator).requires_grad_()),
        teachers=(Outputs(torch.zeros(size, CLASSES), (), torch.randn(size, 9, generator=generator)),),
        peers=(),
        clock=Clock(0, 10, step, 10),
        networks={},
        task_loss=lambda logits: F.cross_entropy(logits, LABELS[rows]),
        random=lambda name: torch.Generator().manual_seed(step),
        device=torch.device("cpu"),
        batch_size=size,
    )


def test_value_worked_out_by_hand() -> None:
    # P(self) = 1/2 and P(other) = 1/4 twice, noise 2/8: -(ln(2/3) + 2 ln(1/2)).
    scores = torch.tensor([[0.5, 0.25, 0.25]]).log()
    expected = -(math.log(2 / 3) + 2 * math.log(1 / 2))
    assert crd_loss(scores, torch.tensor(0.0), 8).item() == pytest.approx(expected, rel=1e-5)
    # The same with scores ten times as large and Z = 10.
    assert crd_loss(scores + math.log(10), torch.tensor(math.log(10)), 8).item() == pytest.approx(expected, rel=1e-5)


def test_it_falls_as_the_own_sample_is_found_and_others_are_rejected() -> None:
    base = crd_loss(torch.zeros(3, 5), torch.tensor(1.0), 20)
    better = torch.zeros(3, 5)
    better[:, 0] += 1
    assert crd_loss(better, torch.tensor(1.0), 20) < base
    assert crd_loss(-better.flip(1), torch.tensor(1.0), 20) < base


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_scores_stay_finite_and_exact_in_float32(size: float) -> None:
    scores = torch.tensor([[-size, size, 0.0]]).requires_grad_()
    loss = crd_loss(scores, torch.tensor(0.0), 2)  # noise 1
    loss.backward()
    assert loss.item() == pytest.approx(2 * size + math.log(2), rel=1e-6)
    torch.testing.assert_close(scores.grad, torch.tensor([[-1.0, 1.0, 0.5]]))


def test_candidates_are_the_sample_itself_and_others_of_other_classes_once_labels_are_known() -> None:
    crd, ctx = make(), context([7, 2, 38])
    crd.labels.copy_(LABELS)
    candidates = crd.candidates(replace(ctx, random=lambda name: torch.Generator().manual_seed(5)))
    assert candidates.shape == (3, 13)
    assert candidates[:, 0].tolist() == [7, 2, 38]
    assert (LABELS[candidates[:, 1:]] != ctx.batch.targets[:, None]).all()


def test_every_sample_of_another_class_is_drawn_equally_often() -> None:
    crd, ctx = make(samples=SAMPLES, negatives=39), context([7])
    crd.labels.copy_(LABELS)
    counts = torch.zeros(SAMPLES)
    for seed in range(200):
        drawn = crd.candidates(replace(ctx, random=lambda name, seed=seed: torch.Generator().manual_seed(seed)))[0, 1:]
        counts += torch.bincount(drawn, minlength=SAMPLES)
    assert (counts[LABELS[7] == LABELS] == 0).all()
    other = counts[LABELS[7] != LABELS]  # 7800 draws over 30 samples: 260 each, give or take 16
    assert other.min() > 180
    assert other.max() < 340


def test_unseen_samples_may_be_drawn_but_never_the_sample_itself() -> None:
    crd, ctx = make(negatives=39), context([7])
    drawn = torch.cat(
        [
            crd.candidates(replace(ctx, random=lambda name, seed=seed: torch.Generator().manual_seed(seed)))[0, 1:]
            for seed in range(50)
        ]
    )
    assert set(drawn.tolist()) == set(range(SAMPLES)) - {7}


def test_losses_are_pure_and_update_changes_what_it_says() -> None:
    crd, ctx = make(), context([3, 4, 5])
    before = {name: value.clone() for name, value in crd.state_dict().items()}
    first, second = crd.losses(ctx)["crd"], crd.losses(ctx)["crd"]
    assert torch.equal(first, second)
    for name, value in crd.state_dict().items():
        assert torch.equal(value, before[name]), name
    first.backward()
    crd.update(ctx)
    changed = {name for name, value in crd.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"student_bank", "teacher_bank", "labels", "log_normalisers", "normalised"}
    untouched = [i for i in range(SAMPLES) if i not in (3, 4, 5)]
    assert torch.equal(crd.student_bank[untouched], before["student_bank"][untouched])
    assert crd.labels[[3, 4, 5]].tolist() == LABELS[[3, 4, 5]].tolist()


def test_a_bank_row_moves_towards_the_new_embedding_and_has_length_one() -> None:
    crd, ctx = make(momentum=0.25), context([3, 4])
    old = crd.teacher_bank[[3, 4]].clone()
    with torch.no_grad():
        new = crd.teacher_embedding(ctx.teacher.pre_logits)
    crd.update(ctx)
    torch.testing.assert_close(crd.teacher_bank[[3, 4]], F.normalize(0.25 * old + 0.75 * new, dim=1))


def test_the_constants_make_the_first_scores_average_to_one_over_the_samples_and_then_stay() -> None:
    crd, ctx = make(), context([3, 4, 5])
    candidates = crd.candidates(ctx)
    scores = crd._scores(ctx.student.pre_logits, ctx.teacher.pre_logits, candidates)
    crd.update(ctx)
    for side, log_z in zip(scores, crd.log_normalisers, strict=True):
        assert (side - log_z).exp().mean().item() == pytest.approx(1 / SAMPLES, rel=1e-5)
    fixed = crd.log_normalisers.clone()
    crd.update(context([8, 9], step=1))
    assert torch.equal(crd.log_normalisers, fixed)


def test_state_is_all_in_buffers() -> None:
    crd = make()
    for step, index in enumerate([[0, 1, 2], [3, 4, 5]]):
        crd.update(context(index, step))
    other = make()
    other.load_state_dict(crd.state_dict())
    ctx = context([1, 9, 4], step=2)
    assert torch.equal(other.losses(ctx)["crd"], crd.losses(ctx)["crd"])


def test_gradient_reaches_the_student_and_both_layers_but_not_the_teacher() -> None:
    crd, ctx = make(), context([3, 4, 5])
    teacher = ctx.teacher.pre_logits.requires_grad_()
    crd.losses(ctx)["crd"].backward()
    assert ctx.student.pre_logits.grad.abs().max() > 0
    assert teacher.grad is None
    assert all(p.grad.abs().max() > 0 for p in crd.parameters())


def test_no_more_negatives_than_other_samples() -> None:
    assert make(negatives=16384).negatives == SAMPLES - 1
    assert CRD.Options().negatives == 16384


def test_one_class_only_stays_finite() -> None:
    crd, ctx = make(samples=3), context([0, 1, 2])
    ctx = replace(ctx, batch=replace(ctx.batch, targets=torch.zeros(3, dtype=torch.int64)))
    assert crd.losses(ctx)["crd"].isfinite()


def test_fewer_than_two_samples_are_refused() -> None:
    with pytest.raises(NeedsError) as error:
        make(samples=1)
    assert str(error.value) == "algorithm 'crd': needs at least 2 training samples to contrast, got 1"


def test_a_batch_of_two_trains(tmp_path: Path) -> None:
    results = testing.tiny_runner(CRD, load_zoo(), tmp_path, {"data": {"batch_size": 2}}).run()
    assert results["student"]["top1_percent"] >= 0
