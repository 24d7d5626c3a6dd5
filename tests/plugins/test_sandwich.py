"""Values worked out by hand, networks inside networks, and what a cut leaves as it was."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdzoo.api import AlgorithmChoice, ModelSpec, NeedsError, Stage, StagePlan, StageResult
from kdzoo.contract.step import Clock
from kdzoo.storage.sealed import read_tensors
from kdzoo.testing.tiny import tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_nas.sandwich import Sandwich, sandwich_loss
from kdzoo_nas.slimmable import leading

STUDENT = ModelSpec("slimmable_cnn", args={"width": 4, "stages": 2})


def log(*probabilities: float) -> Tensor:
    """Logits of one sample whose softmax is exactly these probabilities."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def net(name: str, width: int = 8, **args: Any) -> Any:
    torch.manual_seed(width)
    return timm.create_model(name, width=width, num_classes=5, in_chans=1, **args)


def pixels(samples: int = 6, size: int = 8) -> Tensor:
    return torch.rand(samples, 1, size, size, generator=torch.Generator().manual_seed(0))


# --- the loss -------------------------------------------------------------------------------------


def test_one_narrow_network_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln (2/3)
    loss = sandwich_loss([log(0.25, 0.75)], log(0.5, 0.5))
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-12)


def test_widths_are_summed_and_samples_averaged() -> None:
    one = sandwich_loss([log(0.25, 0.75)], log(0.5, 0.5))
    both = sandwich_loss([log(0.25, 0.75), log(0.25, 0.75)], log(0.5, 0.5))
    assert both.item() == pytest.approx(2 * one.item(), rel=1e-12)
    twice = sandwich_loss([log(0.25, 0.75).repeat(2, 1)], log(0.5, 0.5).repeat(2, 1))
    assert twice.item() == pytest.approx(one.item(), rel=1e-12)


def test_the_gradient_is_that_of_the_cross_entropy_with_soft_targets_and_the_widest_gets_none() -> None:
    narrow, widest = log(0.25, 0.75).requires_grad_(), log(0.5, 0.5).requires_grad_()
    sandwich_loss([narrow], widest).backward()
    torch.testing.assert_close(narrow.grad, torch.tensor([[-0.25, 0.25]], dtype=torch.float64))
    assert widest.grad is None


def test_agreement_costs_nothing_and_large_logits_stay_finite() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert sandwich_loss([logits, logits], logits).item() == pytest.approx(0.0, abs=1e-6)
    narrow = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = sandwich_loss([narrow], torch.tensor([[-1e4, 1e4]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(narrow.grad).all()


# --- networks inside networks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slimmable_cnn", "slimmable_resnet"])
@pytest.mark.parametrize("training", [True, False])
def test_a_smaller_width_inside_answers_as_the_network_cut_out(name: str, training: bool) -> None:
    wide, alone = net(name, 8, depth=2).train(training), net(name, 5, depth=2).train(training)
    wide(pixels())  # statistics that are not those of the start
    alone.load_state_dict(leading(wide.state_dict(), {k: v.shape for k, v in alone.state_dict().items()}))
    with wide.at(5):
        inside = wide(pixels())
    assert torch.equal(inside, alone(pixels()))
    assert inside.shape == (6, 5)


def test_running_a_smaller_width_trains_its_part_and_leaves_the_statistics_alone() -> None:
    wide = net("slimmable_resnet", 6).train()
    before = {name: buffer.clone() for name, buffer in wide.named_buffers()}
    with wide.at(2):
        wide(pixels()).square().sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in wide.named_buffers())
    reached = wide.linear.weight.grad.abs().sum(0) > 0
    assert reached.tolist() == [True] * 8 + [False] * 16  # the last of three stages has 4 times the width
    assert all(parameter.grad is not None for parameter in wide.parameters())


def test_widths_nest_and_end_with_their_block_even_after_an_error() -> None:
    wide = net("slimmable_cnn", 4)
    whole = wide.eval()(pixels())
    with wide.at(4):
        assert torch.equal(wide(pixels()), whole)
    with pytest.raises(RuntimeError, match="stop"), wide.at(2), wide.at(3):
        raise RuntimeError("stop")
    assert torch.equal(wide(pixels()), whole)
    for width in (0, 5):
        with pytest.raises(ValueError, match=rf"^width: {width}; 1 to 4 are inside this network$"), wide.at(width):
            pass


def test_a_new_classifier_is_cut_like_the_old_one() -> None:
    wide = net("slimmable_cnn", 4)
    with wide.at(2):
        assert wide(pixels()).shape == (6, 5)
    wide.reset_classifier(7)
    with wide.at(2):
        assert wide(pixels()).shape == (6, 7)
    with pytest.raises(ValueError, match=r"^global_pool: 'max'; only avg is known here$"):
        wide.reset_classifier(7, "max")


def test_only_what_fits_is_a_leading_part() -> None:
    whole = {"a": torch.arange(6.0).view(2, 3)}
    assert leading(whole, {"a": torch.Size((1, 2))})["a"].tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match=r"^'a' of shape \(3, 3\) is no part of \(2, 3\)$"):
        leading(whole, {"a": torch.Size((3, 3))})
    with pytest.raises(ValueError, match=r"^'a' of shape \(2,\) is no part of \(2, 3\)$"):
        leading(whole, {"a": torch.Size((2,))})
    with pytest.raises(ValueError, match=r"^not the same network: only one of the two has a, b$"):
        leading(whole, {"b": torch.Size((1, 1))})


@pytest.mark.parametrize("name", ["slimmable_cnn", "slimmable_resnet"])
def test_timm_s_interface_is_whole(name: str) -> None:
    model = net(name, 4).eval()
    logits = model(pixels())
    final, levels = model.forward_intermediates(pixels())
    torch.testing.assert_close(model.forward_head(final), logits)
    assert torch.equal(model.forward_features(pixels()), final)
    embedding = model.forward_head(final, pre_logits=True)
    assert embedding.shape == (6, model.num_features) == (6, model.head_hidden_size) == (6, 16)
    torch.testing.assert_close(model.get_classifier()(embedding), logits)
    for level, info in zip(levels, model.feature_info, strict=True):
        assert level.shape == (6, info["num_chs"], 8 // info["reduction"], 8 // info["reduction"])
        assert isinstance(model.get_submodule(info["module"]), nn.Module)
    for indices, wanted in ((1, levels[-1:]), ([0, -1], [levels[0], levels[-1]]), ([1], levels[1:2])):
        for early in (False, True):
            got = model.forward_intermediates(pixels(), indices=indices, intermediates_only=True, stop_early=early)
            assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    with pytest.raises(ValueError, match=r"^output_fmt: 'NLC'; only NCHW can be had of a convnet$"):
        model.forward_intermediates(pixels(), output_fmt="NLC")
    with pytest.raises(ValueError, match=r"^gradient checkpointing is not offered: these networks are small$"):
        model.set_grad_checkpointing()
    with pytest.raises(ValueError, match=r"^depth: 0; at least 1 would be right$"):
        net(name, 4, depth=0)


def test_the_network_for_digits_is_as_large_as_the_plain_one() -> None:
    model = timm.create_model("slimmable_cnn", width=6, stages=2, in_chans=1, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 868  # as digits_cnn_tiny


# --- the stages -------------------------------------------------------------------------------------


def plan(student: ModelSpec = STUDENT, **options: Any) -> StagePlan:
    given = {"widths": [4, 6, 8], **options}
    own = AlgorithmChoice("sandwich", given, {"task": 0.5})
    chosen = Sandwich.Options(**{**given, "widths": tuple(given["widths"])})
    return StagePlan(student, (), (), (), own, None, chosen)


def run(plan: StagePlan) -> tuple[list[list[Stage]], StageResult]:
    generator = Sandwich.stages(plan)
    asked: list[list[Stage]] = []
    answer: Any = None
    while True:
        try:
            stages = generator.send(answer)
        except StopIteration as end:
            return asked, end.value
        assert isinstance(stages, list)
        asked.append(stages)
        answer = [StageResult(stage.name, f"key of {stage.name}", stage.model, {}, {}) for stage in stages]


def test_every_width_is_cut_out_of_one_supernet_and_the_student_s_is_delivered() -> None:
    (first, second), final = run(plan())
    assert [(stage.name, stage.model.args["width"]) for stage in first] == [
        ("alone_4", 4),
        ("alone_6", 6),
        ("alone_8", 8),
        ("supernet", 8),
    ]
    assert [stage.algorithm and stage.algorithm.name for stage in first] == [None, None, None, "sandwich"]
    assert [(stage.name, stage.model.args["width"]) for stage in second] == [
        ("width_4", 4),
        ("width_6", 6),
        ("width_8", 8),
    ]
    assert all(stage.start is not None and stage.start.name == "supernet" for stage in second)
    assert all(stage.algorithm is not None and stage.algorithm.options["phase"] == "cut" for stage in second)
    assert (final.name, final.model) == ("width_4", STUDENT)
    assert run(plan(dataclasses.replace(STUDENT, args={"width": 6})))[1].model.args["width"] == 6


def test_widths_need_not_be_trained_alone_and_repeat_no_work() -> None:
    first, second = run(plan(alone=False, widths=[8, 4, 8], calibration_epochs=3))[0]
    assert [stage.name for stage in first] == ["supernet"]
    assert [stage.name for stage in second] == ["width_4", "width_8"]
    assert dict(second[0].train) == {"epochs": 3, "ema_decay": None, "select": "last"}


def test_a_student_of_no_listed_width_is_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        run(plan(ModelSpec("slimmable_cnn", args={"width": 5})))
    assert str(caught.value) == (
        "algorithm 'sandwich': the student's width (models.student.args.width) is 5; one of algorithm.options.widths "
        "would be right: 4, 6, 8, of a network that can switch it, e.g. slimmable_cnn"
    )


def test_one_width_named_twice_is_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        run(plan(widths=[4, 4]))
    assert str(caught.value) == (
        "algorithm 'sandwich': algorithm.options.widths names 4 alone; two or more different widths would be right"
    )


def test_a_student_with_weights_of_its_own_is_refused() -> None:
    with pytest.raises(NeedsError) as caught:
        run(plan(dataclasses.replace(STUDENT, weights="student.safetensors")))
    assert str(caught.value) == (
        "algorithm 'sandwich': the student begins with the weights 'student.safetensors', which are of one width; "
        "models.student.weights: train would be right"
    )


# --- a step, and a cut ------------------------------------------------------------------------------


def runner(root: Path, **changes: Any) -> Any:
    return tiny_runner(Sandwich, load_zoo(), root, changes)


def engine_of_supernet(root: Path, **changes: Any) -> Any:
    from kdzoo.training.engine import Engine

    made = runner(root, **changes)
    return Engine(made.rehearse()[0])


def test_a_student_whose_width_cannot_be_switched_is_refused_before_training(tmp_path: Path) -> None:
    from kdzoo.training.engine import Engine

    made = runner(tmp_path)
    stage = Stage("supernet", ModelSpec("test_resnet"), made.plan.algorithm.choice)
    job, _ = made.build.job(stage, made.plan.algorithm, made.recipe.train)
    with pytest.raises(NeedsError) as caught:
        Engine(job).dry_step()
    assert str(caught.value) == (
        "algorithm 'sandwich': the student's width cannot be switched; a network with an argument 'width' and a method "
        "at(width) would be right, e.g. slimmable_cnn"
    )


def test_the_check_of_a_recipe_looks_at_the_supernet(tmp_path: Path) -> None:
    job, _ = runner(tmp_path).rehearse()
    assert (job.name, job.student.model.width) == ("supernet", 8)


def test_each_step_runs_the_narrowest_and_as_many_between_as_asked(tmp_path: Path) -> None:
    engine = engine_of_supernet(tmp_path)
    algorithm = engine.job.algorithm
    drawn = [algorithm.draw(torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(len(widths) == 3 and widths[0] == 4 for widths in drawn)
    assert {width for widths in drawn for width in widths[1:]} == {4, 5, 6, 7}
    assert drawn[7] == algorithm.draw(torch.Generator().manual_seed(7))


def test_all_processes_run_the_same_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, drawn = engine_of_supernet(tmp_path), []
    draw = Sandwich.draw
    monkeypatch.setattr(Sandwich, "draw", lambda self, generator: drawn.append(draw(self, generator)) or drawn[-1])
    batch = next(engine.job.loader.train_batches(0, 0))
    for rank in (0, 1):
        engine.job.ranks.rank = rank
        for step in range(20):
            next(engine.job.algorithm.step(engine.context(batch, Clock(0, 1, step, 20))))
    assert drawn[:20] == drawn[20:]
    assert len({tuple(widths) for widths in drawn}) > 5


def test_a_cut_keeps_the_weights_and_measures_statistics_over_all_batches(tmp_path: Path) -> None:
    made = runner(tmp_path)
    student = made.drive(())
    supernet, cut = (next(t.result for t in made.stages if t.result.name == name) for name in ("supernet", "width_4"))
    assert (student.key, student.model) == (cut.key, made.plan.student)
    whole, part = (read_tensors(result.weights["student"]) for result in (supernet, cut))
    for name, tensor in part.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, whole[name][tuple(map(slice, tensor.shape))]), name
    # The same by hand: mean over the batches of one epoch of what the first BatchNorm sees.
    network = made.build.network(cut.model)
    network.model.load_state_dict(part)
    batches = list(made.loader.train_batches(0, 0))[: made.recipe.train.steps_per_epoch]
    assert part["stage1.1.num_batches_tracked"] == len(batches) == 4
    with torch.no_grad():
        maps = [network.model.stage1[0](network.preprocess(batch.inputs)) for batch in batches]
    mean = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
    torch.testing.assert_close(part["stage1.1.running_mean"], mean, rtol=1e-5, atol=1e-6)
    variance = torch.stack([each.var((0, 2, 3)) for each in maps]).mean(0)
    torch.testing.assert_close(part["stage1.1.running_var"], variance, rtol=1e-5, atol=1e-6)


def test_a_cut_without_new_statistics_would_answer_worse(tmp_path: Path) -> None:
    """What the second half of the algorithm is for, on a supernet that has learnt something."""
    changes = {"train": {"epochs": 8, "steps_per_epoch": 12}, "data": {"options": {"samples": 128}}}
    made = runner(tmp_path, **changes)
    made.drive(())
    results = {t.result.name: t.result for t in made.stages}
    network = made.build.network(results["width_4"].model)
    shapes = {name: tensor.shape for name, tensor in network.model.state_dict().items()}
    network.model.load_state_dict(leading(read_tensors(results["supernet"].weights["student"]), shapes))
    validate = made.build.validator(made.build.precision(network))
    assert validate(network)["top1_percent"] < results["width_4"].metrics["top1_percent"]


def test_every_width_is_shown_beside_itself_alone(tmp_path: Path) -> None:
    made = runner(tmp_path, control=True)
    results = made.run()
    table, scatter = results["report_items"]
    assert [row[0] for row in table["rows"]] == [4, 8]
    assert [len(row) for row in table["rows"]] == [len(table["columns"])] * 2
    entries = {entry["label"]: entry for entry in results["variants"]}
    assert table["rows"][0][-2:] == (
        entries["cut, width 4"]["top1_percent"],
        entries["alone, width 4"]["top1_percent"],
    )
    assert entries["cut, width 4"]["top1_percent"] == results["student"]["top1_percent"]
    assert entries["alone, width 4"]["top1_percent"] == results["control"]["top1_percent"]
    assert entries["cut, width 4"]["size_mib"] == results["student"]["size_mib"], "one network has one size"
    assert {point["group"] for point in scatter["points"]} == {"cut", "alone"}
    names = {stage["name"]: stage["key"] for stage in results["stages"]}
    assert names["alone_4"] == names["control"]  # trained once


def test_without_networks_alone_the_table_has_gaps(tmp_path: Path) -> None:
    made = tiny_runner(Sandwich, load_zoo(), tmp_path, {}, options={"widths": [4, 8], "alone": False})
    table, scatter = made.run()["report_items"]
    assert [row[-1] for row in table["rows"]] == [None, None]
    assert {point["group"] for point in scatter["points"]} == {"cut"}
