"""Text in the core: rows of ids, networks that read them, where they start, what is delivered of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_algorithms import Match
from tiny_text import PAD, TOKENS, Sentences

from kdzoo.api import Algorithm, Needs
from kdzoo.api.data import DataSplits, TokenSplit
from kdzoo.contract.stage import ModelSpec, Stage
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.digests import digests
from kdzoo.data.inputs import TIMED_TEXTS, Inputs, Pixels
from kdzoo.data.loader import POOLED_BATCHES, Loader, bucketed
from kdzoo.errors import DataError, KdzooError, ModelError, NeedsError
from kdzoo.models.building import build_network
from kdzoo.models.folding import fold_batchnorm
from kdzoo.models.network import Network
from kdzoo.models.weights import start_from
from kdzoo.plan.resolve import resolve_algorithm
from kdzoo.recipe.problems import explain
from kdzoo.recipe.sections import DataRecipe, Recipe
from kdzoo.report import model_card
from kdzoo.report.reading import read_run
from kdzoo.run import delivery
from kdzoo.run.builder import Builder
from kdzoo.run.delivered import delivered_spec
from kdzoo.run.runner import Runner
from kdzoo.run.stage_key import stage_key
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.sealed import read_tensors
from kdzoo.testing.tiny import tiny_folder, tiny_recipe, tiny_runner
from kdzoo.training.device import choose_precision
from kdzoo.zoo.loading import load_zoo

CPU = torch.device("cpu")


def opened(changed: Callable[[DataSplits], DataSplits] = lambda splits: splits, **recipe: Any) -> DataSet:
    class Changed(Sentences):
        def load(self, root: Path) -> DataSplits:
            return changed(super().load(root))

    section = DataRecipe.model_validate({"name": "sentences", "validation": 12, **recipe})
    return open_data(Changed(Changed.Options()), section, 0)


def refusal(error: type[KdzooError], act: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


# --- data -----------------------------------------------------------------------------------------


def test_batches_are_as_wide_as_their_longest_row() -> None:
    loader = Loader(opened(), CPU, 8, seed=1)
    batches = [*loader.train_batches(0, 0), *loader.eval_batches("validation", 5)]
    assert len(batches) == 9 + 3
    for batch in batches:
        assert batch.inputs.dtype == torch.int64
        real = batch.inputs != PAD
        assert int(real.sum(1).max()) == batch.inputs.shape[1]
    assert {batch.inputs.shape[1] for batch in batches} > {9}


def test_an_epoch_shows_each_sample_once_whatever_its_length() -> None:
    data = opened()
    loader = Loader(data, CPU, 13, seed=1)
    for epoch in range(2):
        seen = torch.cat([batch.index for batch in loader.train_batches(epoch, 0)])
        assert len(seen) == len(set(seen.tolist())) == 78
    assert not np.array_equal(loader.order(0), loader.order(1))
    assert np.array_equal(loader.order(1), Loader(data, CPU, 13, seed=1).order(1))


def test_rows_of_one_length_share_a_batch() -> None:
    rng = np.random.default_rng(0)
    lengths, size = rng.integers(3, 30, 4096), 16
    order = rng.permutation(4096)
    rows = bucketed(order, lengths, size, seed=1)
    assert sorted(rows) == list(range(4096))
    spread = np.ptp(lengths[rows].reshape(-1, size), axis=1)
    assert np.ptp(lengths[order].reshape(-1, size), axis=1).mean() > 20 > 2 > spread.mean()
    means = lengths[rows].reshape(-1, size).mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # long and short batches take turns
    pool = POOLED_BATCHES * size
    assert set(order[:pool]) != set(rows[:pool])


def test_shares_of_a_batch_are_equally_wide() -> None:
    loader = Loader(opened(), CPU, 8, seed=1)
    for whole, *shares in zip(
        loader.train_batches(0, 0), *(loader.train_batches(0, 0, 0, rank, 2) for rank in range(2)), strict=True
    ):
        assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
        assert torch.equal(torch.cat([share.index for share in shares]), whole.index)


def test_canonical_batches_have_one_width() -> None:
    batches = list(Loader(opened(), CPU, 7, seed=1).canonical_batches(0))
    assert {tuple(batch.inputs.shape) for batch in batches} == {(7, 9)}
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(78))


def test_the_same_text_in_two_splits_is_told_whatever_their_widths() -> None:
    def with_twin(splits: DataSplits) -> DataSplits:
        train = splits.train
        assert isinstance(train, TokenSplit)
        short = int((train.ids != PAD).sum(1).argmin())
        return dataclasses.replace(splits, validation=TokenSplit(train.ids[[short], :5], train.targets[[short]]))

    assert opened(with_twin).notes == ["1 text of validation is also in train"]
    ids = np.array([[5, 6, 7]])
    assert digests(TokenSplit(ids, np.zeros(1))) == digests(TokenSplit(np.pad(ids, ((0, 0), (0, 2))), np.zeros(1)))


def test_a_network_is_told_which_ids_train_has() -> None:
    args = opened().inputs.model_args()["tokens"]
    assert (args["vocab_size"], args["pad"], args["unknown"]) == (12, 0, 1)
    assert args["seen"] == [0, *range(2, 12)]


def test_the_tokenizer_is_part_of_the_fingerprint() -> None:
    other = dataclasses.replace(TOKENS, files={"pieces.txt": b"other pieces"})
    assert opened().fingerprint != opened(lambda splits: dataclasses.replace(splits, tokens=other)).fingerprint


def of_train(ids: Any) -> Callable[[DataSplits], DataSplits]:
    return lambda splits: dataclasses.replace(splits, train=TokenSplit(np.array(ids), np.arange(len(ids)) % 3))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (of_train([[3.0, 4.0]] * 20), "split train: ids are float64 (20, 2); int (N, L) would be right"),
        (of_train([[3, 12]] * 20), "split train: ids lie in 3..12; 0..11 would be right"),
        (
            of_train([[3, 4], [3, 0], [0, 3]]),
            "split train: row 2 is empty or is filled up before its end with 0; tokens first, then only fill, would be "
            "right",
        ),
        (
            of_train([[3, 0, 3]] * 20),
            "split train: row 0 is empty or is filled up before its end with 0; tokens first, then only fill, would be "
            "right",
        ),
        (
            lambda splits: dataclasses.replace(splits, tokens=None),
            "split train: text has TokenSplits and DataSplits.tokens; images have neither",
        ),
    ],
)
def test_text_that_is_wrong(changed: Callable[[DataSplits], DataSplits], problem: str) -> None:
    assert refusal(DataError, lambda: opened(changed)) == f"data set 'sentences', {problem}"


def test_text_has_one_channel() -> None:
    problem = refusal(DataError, lambda: opened(lambda splits: dataclasses.replace(splits, size=(9, 9))))
    assert problem == "data set 'sentences': text with 1 channels of size (9, 9); 1 of (L, 1) would be right"


def test_text_is_not_augmented() -> None:
    problem = refusal(DataError, lambda: opened(augment="flip"))
    assert problem == "data set 'sentences': data.augment: 'flip' is for images; none is right for text"


# --- networks -------------------------------------------------------------------------------------


def network(name: str = "tiny_text", inputs: Inputs | None = None, **spec: Any) -> Network:
    return build_network(ModelSpec(name, **spec), inputs=inputs or opened().inputs, num_classes=3, seed=0)


def test_levels_are_maps_of_width_one() -> None:
    net = network()
    assert [(level.name, level.channels, level.height, level.width) for level in net.levels] == [
        (f"layer {i}", 8, 9, 1) for i in range(3)
    ]
    assert (net.pre_logits_width, net.macs) == (8, 3 * 9 * 8 * 8 + 8 * 3)
    ids = torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]])
    outputs = net(ids, levels=(2, 0), pre_logits=True)
    assert [tuple(feature.shape) for feature in outputs.features] == [(2, 8, 4, 1)] * 2
    assert outputs.features[0][0, :, 3].abs().max() == 0
    torch.testing.assert_close(outputs.logits, net.model(ids))


def test_example_text_has_no_fill() -> None:
    assert bool((network().example(50) != PAD).all())
    assert network(inputs=dataclasses.replace(opened().inputs, fill=5)).example(50).eq(5).sum() == 0


def test_nothing_is_folded_in_text() -> None:
    net = network().eval()
    ids = net.example(2)
    torch.testing.assert_close(fold_batchnorm(net)(ids).logits, net(ids).logits)


def test_images_and_text_are_told_apart() -> None:
    assert refusal(ModelError, lambda: network("test_resnet")) == (
        "model 'test_resnet': reads images, the data set has text; choose another model or data set"
    )
    assert refusal(ModelError, lambda: network(inputs=Pixels(1, (9, 1), (0.0,), (1.0,)))) == (
        "model 'tiny_text': reads text, the data set has images; choose another model or data set"
    )
    assert (
        refusal(ModelError, lambda: network(size=9))
        == "model 'tiny_text': reads text, which has no preprocessing.size; leave it out"
    )
    assert refusal(ModelError, lambda: network(args={"tokens": 1})) == (
        "model 'tiny_text': args may not hold 'tokens'; the data set says what its text is made of"
    )


def test_auto_takes_bf16_for_text_that_costs_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdzoo.training.device.cpu_has_bf16", lambda: True)
    small, large = network(), network(args={"width": 300})
    assert [choose_precision("auto", None, net, CPU).name for net in (small, large)] == ["fp32", "bf16"]
    assert not choose_precision("bf16", True, large, CPU).channels_last


# --- where they start -----------------------------------------------------------------------------


def test_a_network_of_the_same_tensors_takes_them_all() -> None:
    teacher, student = network(), network()
    torch.nn.init.normal_(teacher.model.head.weight)
    start_from(student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_a_network_takes_what_it_knows_to_take() -> None:
    teacher, student = network(), network("tiny_text_shallower")
    start_from(student, teacher)
    assert torch.equal(student.model.layers[0].weight, teacher.model.layers[1].weight)


def test_a_network_that_knows_no_rule_is_refused() -> None:
    assert refusal(ModelError, lambda: start_from(network(args={"layers": 1}), network())) == (
        "model 'tiny_text': weights: teacher, but 'tiny_text' has other tensors, and this model has no rule for which "
        "to take; choose the teacher's own architecture or other weights"
    )


class MatchText(Match):
    """Learns from a teacher of three layers; student and control start from one of them."""

    name = "match_text"
    tiny_recipe: ClassVar = {
        "models": {
            "teachers": [{"name": "tiny_text"}],
            "student": {"name": "tiny_text_shallower", "weights": "teacher"},
        },
        "data": {"name": "sentences", "validation": 12},
        "control": True,
    }


def planned(root: Path, folder: RunFolder | None = None, cls: type[Algorithm] = MatchText, **changes: Any) -> Runner:
    with patch("kdzoo.testing.tiny.Stripes", Sentences):
        return tiny_runner(cls, load_zoo("none"), root, changes, folder=folder)


def ran(root: Path, **changes: Any) -> tuple[Runner, Path, dict[str, Any]]:
    with tiny_folder(root / "out", tiny_recipe(MatchText, changes)) as folder:
        runner = planned(root, folder, **changes)
        return runner, folder.root, runner.run()


def test_student_and_control_start_from_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, torch.Tensor] = {}
    job_of = Builder.job

    def job(self: Builder, stage: Stage, *arguments: Any) -> Any:
        made = job_of(self, stage, *arguments)
        started[stage.name] = made[0].student.model.layers[0].weight.detach().clone()  # type: ignore[union-attr, index]
        return made

    monkeypatch.setattr(Builder, "job", job)
    runner, _, results = ran(tmp_path)
    teacher = read_tensors(runner.stages[0].result.weights["student"])
    assert list(started) == ["teacher", "control", "student"]
    assert torch.equal(started["control"], teacher["layers.1.weight"])
    assert torch.equal(started["student"], teacher["layers.1.weight"])
    assert [stage["name"] for stage in results["stages"]] == ["teacher", "control", "student"]


def test_another_teacher_is_another_start(tmp_path: Path) -> None:
    keys = []
    for lr in (0.02, 0.03):
        runner = planned(tmp_path)
        chosen, train = None, runner.recipe.train
        teacher = runner.train(Stage("teacher", runner.plan.teachers[0], train={"optimizer": {"lr": lr}}))
        keys.append(stage_key(runner.build, Stage("control", runner.plan.student, start=teacher), chosen, train))
    assert len(set(keys)) == 2


def test_a_check_starts_from_an_untrained_teacher(tmp_path: Path) -> None:
    lines = planned(tmp_path).check()
    assert lines[1].startswith("teacher 0 tiny_text: ")
    assert ", up to 9 tokens, fp32" in lines[1]
    assert lines[-1].startswith("forward   task ")


def test_a_teacher_is_fine_tuned_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    starts = network().model.state_dict()
    keys, names = [], []
    for value in (0.5, 0.6, 0.6):
        starts["head.bias"] = torch.full((3,), value)
        save_file(starts, file)
        models = {**MatchText.tiny_recipe["models"]}
        models["teachers"] = [{"name": "tiny_text", "weights": str(file), "finetune": True}]
        monkeypatch.setattr(MatchText, "tiny_recipe", {**MatchText.tiny_recipe, "models": models})
        runner = planned(tmp_path)
        (result,) = runner.teachers()
        keys.append(result.key)
        names.append(runner.stages[0].facts)
        assert not torch.equal(read_tensors(result.weights["student"])["head.bias"], starts["head.bias"])
    assert len(set(keys)) == 2, "the weights in the file are part of the key, its name alone is not enough"
    assert all("steps" in facts for facts in names)


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (
            {"teachers": [{"name": "x", "weights": "teacher"}]},
            "teachers.0.weights: only the student and assistants start from the teacher",
        ),
        (
            {"student": {"name": "x", "weights": "teacher"}},
            "student.weights: starts from the teacher, but the recipe names none",
        ),
        (
            {"student": {"name": "x", "finetune": True}},
            "student.finetune: is for teachers; any other model is trained anyway",
        ),
        (
            {"teachers": [{"name": "x", "finetune": True}]},
            "teachers.0.finetune: needs ready weights to start from, got weights: train",
        ),
        (
            {"student": {"name": "x", "weights_key": "state_dict"}},
            "student.weights_key: needs a file, got weights: train",
        ),
    ],
)
def test_starts_that_are_none(models: dict[str, Any], problem: str) -> None:
    recipe = tiny_recipe(MatchText).model_dump(mode="json")
    recipe["models"] = {"student": {"name": "x"}, **models}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(recipe)
    told = [": ".join([path, message]) for path, message in explain(caught.value, Recipe, recipe)]
    assert told == [f"models.{problem}"]


@pytest.mark.parametrize("needs", [Needs(data="none"), Needs(makes_images=True)])
def test_a_class_that_makes_up_its_inputs_is_refused(needs: Needs, tmp_path: Path) -> None:
    blind = type("Blind", (MatchText,), {"name": "blind", "needs": needs})
    runner = planned(tmp_path)
    chosen = resolve_algorithm("blind", {}, {}, load_zoo("none").with_algorithm(blind))[0]
    stage = Stage("student", runner.plan.teachers[0], chosen.choice)
    assert refusal(NeedsError, lambda: runner.build.job(stage, chosen, runner.recipe.train)) == (
        "algorithm 'blind': makes up its inputs, which are images; the data set has text"
    )


# --- what is delivered ----------------------------------------------------------------------------


def test_a_run_delivers_the_tokenizer_beside_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def clock(calls: Any, **rounds: int) -> Any:
        timed.append(rounds["repeats"])
        for call in calls.values():
            call()
        return {label: {"p50": 1.0, "p95": 2.0} for label in calls}

    monkeypatch.setattr(delivery, "measure_latency", clock)
    runner, folder, results = ran(tmp_path)
    assert (folder / "tokenizer" / "pieces.txt").read_bytes() == b"the pieces"
    told = json.loads((folder / "student.json").read_text())
    assert told["tokens"] == {"vocab_size": 12, "pad": 0, "unknown": 1, "files": ["tokenizer/pieces.txt"]}
    assert timed == [2 * TIMED_TEXTS]
    assert results["student"]["macs_g"] == (9 * 8 * 8 + 8 * 3) / 1e9
    again = runner.build.network(delivered_spec(told), load=False)
    again.model.load_state_dict(read_tensors(folder / "student.safetensors", told["sha256"]), strict=True)
    card = model_card.card(read_run_of(folder))
    assert "# run: tiny\\_text\\_shallower\n\nA text classifier, distilled by kdzoo" in card
    assert "in texts like those it was trained on" in card
    assert "Inputs: ids of tokens, int64 `(N, L)` of any length L, shorter rows filled up at their end with 0" in card


def read_run_of(folder: Path) -> Any:
    for name, content in (("recipe.yaml", "name: run\n"),):
        (folder / name).write_text(content)
    return read_run(folder)


def test_cached_answers_are_as_wide_as_the_batch(tmp_path: Path) -> None:
    class Features(MatchText):
        name, needs = "match_features", Needs(features=True)

        def losses(self, ctx: Any) -> Any:
            assert ctx.student.features[0].shape == ctx.teacher.features[0].shape
            return {"match": (ctx.student.features[0] - ctx.teacher.features[0]).square().mean()}

    finals = []
    for cache in ({}, {"cache": {"views": 1, "verify_fraction": 1.0}}):
        root = tmp_path / str(len(finals))
        runner = planned(root, None, Features, control=False, **cache)
        runner.run()
        finals.append(read_tensors(runner.stages[-1].result.weights["student"]))
        hits = runner.stages[-1].facts["teacher_outputs"]
        assert [hit["verified"] > 0 for hit in hits] == [True] * bool(cache)
    for key, value in finals[0].items():
        torch.testing.assert_close(finals[1][key], value, rtol=1e-5, atol=1e-6)
