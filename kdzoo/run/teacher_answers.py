"""A teacher answers the training split of a recipe once, into folders that serve where the teacher is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdzoo.contract.stage import StageResult
from kdzoo.errors import KdzooError, NeedsError
from kdzoo.evaluation.measuring import network_entry
from kdzoo.models.network import Network
from kdzoo.plan.filled import filled
from kdzoo.plan.resolve import Plan
from kdzoo.plan.stored_answers import why_not_logits, why_not_without_network
from kdzoo.recipe.reading import dump_recipe, recipe_hash
from kdzoo.run.runner import Runner
from kdzoo.run.running import LiveDisplay
from kdzoo.run.stored_logits import StoredLogits
from kdzoo.storage.answer_folder import AnswerFolder
from kdzoo.storage.atomic import remove_folder
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.runs import ANSWERS
from kdzoo.storage.store import Store
from kdzoo.training.device import Precision
from kdzoo.training.kept_logits import KeptLogits
from kdzoo.training.stored_answers import seen
from kdzoo.zoo.offered import Zoo


def answer_recipe(
    plan: Plan, zoo: Zoo, out: Path, runs: Path, display: LiveDisplay, stop: Callable[[], int]
) -> list[Path]:
    """Let a recipe's teachers answer every view that its runs ask for; return the folders, one for each teacher.

    A teacher is trained first where its weights are not ready, or taken from the store in ``runs``. What a folder holds
    already is kept, and so are the checkpoints of a training, so that a command that was killed goes on. Raises
    NeedsError where no run could learn from the answers.
    """
    _check(plan)
    recipe = filled(plan.recipe, zoo)
    training = RunFolder.start(
        runs / f"{ANSWERS}{recipe_hash(recipe)[:12]}",
        name=recipe.name,
        seed=recipe.seed,
        recipe_text=dump_recipe(recipe),
        recipe_hash=recipe_hash(recipe),
        recipe_fields=recipe.model_dump(mode="json"),
        warn=display.note,
    )
    with training:
        try:
            store = Store(runs / ".store", training.uses)
            runner = Runner(replace(plan, trackers=()), zoo, training, store, None, display, stop)
            runner.data.check_form()
        except KdzooError:
            training.abandon()
            raise
        with display:
            places = _answer(runner, out)
        remove_folder(training.root.parent.parent)
    return places


def _answer(runner: Runner, out: Path) -> list[Path]:
    runner.log.begin(runner.recipe)
    try:
        teachers = runner.teachers()
    finally:
        runner.log.close()
    places = [out] if len(teachers) == 1 else [out / teacher.name for teacher in teachers]
    begun = [_Answering(runner, teacher, place) for teacher, place in zip(teachers, places, strict=True)]
    for each in begun:
        each.answer()
    for each in begun:
        each.measure()
    return places


def _check(plan: Plan) -> None:
    """Raise NeedsError where the recipe's algorithm could not learn from the answers."""
    cache = plan.recipe.cache
    if not plan.teachers:
        raise NeedsError("models.teacher: the recipe names no teacher that could answer")
    if any(spec.answers is not None for spec in plan.teachers):
        raise NeedsError("models.teacher.weights: names stored answers, so there is no teacher that could answer")
    if plan.recipe.data.mixes:
        raise NeedsError("data.augment: Mixup and CutMix show other images at each step, so no answer recurs")
    top_k = cache.keep.top_k if cache and cache.keep else None
    for chosen in filter(None, (plan.algorithm, plan.delegate)):
        problem = why_not_without_network(chosen.cls) or why_not_logits((plan.delegate or plan.algorithm).cls, top_k)
        if problem:
            raise NeedsError(f"algorithm.name: {problem}; choose an algorithm that reads logits, such as kd")


class _Answering:
    """One teacher and its folder."""

    def __init__(self, runner: Runner, result: StageResult, place: Path) -> None:
        self.runner, self.build, self.result = runner, runner.build, result
        recipe, data = self.build.recipe, self.build.data
        cache = recipe.cache
        self.views = recipe.views
        classes = len(data.classes)
        kept = KeptLogits.of_recipe(cache.keep, classes) if cache and cache.keep else KeptLogits.all_of(classes)
        self.network: Network = self.build.trained_network(result)
        part = self.build.share // self.build.recipe.train.accumulate
        precision = self.build.precision(self.network)
        self.teacher = self.build.teachers.cached(self.network, precision, (), False, kept, part)
        rows = self.teacher.samples_of_a_shard
        self.folder = AnswerFolder.begin(
            place,
            {
                "identity": self.build.teachers.question(result.model)
                | {
                    "weights of the teacher": self.teacher.sha256,
                    "cache.keep": kept.record(),
                    "samples of a file": rows,
                },
                "views": self.views,
                "shards": self.teacher.shards,
                "rows": rows,
                "kept": kept.record(),
                "teacher": {
                    "validation": dict(result.metrics),
                    "mean": self.network.mean,
                    "std": self.network.std,
                    "preprocessing": self.network.inputs.record(),
                },
                "precision": self.teacher.precision.name,
                "environment": self.build.environment,
            },
        )

    def answer(self) -> None:
        control, folder = self.runner.control, self.folder
        for view in range(self.views):
            control.check_stop(f"before view {view + 1} of {self.views}")
            control.display.stage(self.result.name, f"answering view {view + 1} of {self.views}")
            for shard, name in enumerate(folder.shards(view)):
                control.check_stop(f"in view {view + 1} of {self.views}")
                if not folder.has(name):
                    folder.add(name, self.teacher.answers(view, shard))
            if not folder.has(folder.seen(view)):
                folder.add(folder.seen(view), {"seen": seen(self.build.loader, view)})

    def measure(self) -> None:
        """Measure the teacher on the test split; nothing is chosen by what comes out."""
        build, network = self.build, self.network
        build.data.test_gate.open()
        Precision(build.device, None, False).place(network)
        logits, targets = StoredLogits(build).of(network)
        entry: dict[str, Any] = network_entry(
            label="teacher",
            model=self.result.model.name,
            logits=logits,
            targets=targets,
            teacher_logits=logits,
            network=network,
            size_bytes=self.result.weights["student"].stat().st_size,
        )
        chosen = torch.from_numpy(logits.argmax(axis=1)).to(torch.int32)
        self.folder.add(self.folder.test, {"chosen": chosen})
        told = {"entry": entry, "test_split": build.data.test_fingerprint}
        self.folder.finish({"teacher": self.folder.facts["teacher"] | told})
