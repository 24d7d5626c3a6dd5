"""Tiny, real pieces to test an algorithm with: seconds on one core, no download."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.declared import Count, bounds
from kdzoo.contract.extension_points import ArraySplit, DataSource, DataSplits, OfferOptions
from kdzoo.contract.stage import AlgorithmChoice, ModelSpec, StagePlan
from kdzoo.plan.resolve import Plan, resolve_algorithm, spec_of, teacher_spec
from kdzoo.recipe.reading import recipe_hash
from kdzoo.recipe.sections import Recipe
from kdzoo.run.runner import Runner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.zoo.offered import Zoo

#: A small timm ResNet with live residual branches (timm starts them at zero).
TINY = "test_resnet"
STUDENT = {"channels": [8, 8, 8, 16], "stem_width": 8, "zero_init_last": False}
TEACHER = {"channels": [8, 16, 16, 24], "stem_width": 8, "zero_init_last": False}


class Stripes(DataSource):
    """Striped images whose direction and frequency tell the class, with noise: easy, not trivial."""

    name = "stripes"
    description = "synthetic stripes for tests"

    class Options(OfferOptions):
        classes: int = 4
        samples: int = 64
        size: tuple[int, int] = (16, 16)
        seed: int = 0

    def load(self, root: Path) -> DataSplits:
        options: Any = self.options
        train, test = self._split("train", options.samples), self._split("test", options.samples // 2)
        names = tuple(f"stripe {k}" for k in range(options.classes))
        return DataSplits(
            train,
            lambda: test,
            names,
            3,
            options.size,
            (0.5, 0.5, 0.5),
            (0.25, 0.25, 0.25),
            source="made by kdzoo.testing",
        )

    def _split(self, which: str, samples: int) -> ArraySplit:
        options: Any = self.options
        rng = np.random.default_rng([options.seed, which == "test"])
        targets = np.arange(samples) % options.classes
        height, width = options.size
        rows, columns = np.mgrid[:height, :width]
        angle = np.pi * targets / options.classes
        waves = np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
        images = (
            0.5
            + 0.35 * np.sin(waves + rng.uniform(0, 6.28, (samples, 1, 1)))
            + rng.normal(0, 0.08, (samples, height, width))
        )
        images = (np.clip(images, 0, 1) * 255).astype(np.uint8)
        return ArraySplit(np.repeat(images[..., None], 3, axis=3), targets.astype(np.int64))


def tiny_recipe(cls: type[Algorithm], changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe with exactly the models that an algorithm declares to need, and what its ``tiny_recipe`` asks for."""
    needs = cls.needs
    models: dict[str, Any] = {"student": {"name": TINY, "args": STUDENT}}
    for kind, wanted, args in (
        ("teachers", needs.teachers, TEACHER),
        ("assistants", needs.assistants, STUDENT),
        ("peers", needs.peers, STUDENT),
    ):
        models[kind] = [{"name": TINY, "args": args}] * least(wanted)
    base: dict[str, Any] = {
        "version": 1,
        "name": "conformance",
        "algorithm": {"name": cls.name},
        "models": models,
        "data": {"name": "stripes", "batch_size": 8, "eval_batch_size": 32, "validation": 16},
        "train": {"epochs": 1, "steps_per_epoch": 4, "optimizer": {"lr": 0.02}},
        "trackers": [],
        "device": "cpu",
        "precision": "fp32",
        "control": False,
    }
    models |= cls.tiny_recipe.get("models", {})  # whole models: another network takes other arguments
    rest = {key: value for key, value in cls.tiny_recipe.items() if key != "models"}
    return Recipe.model_validate(_merged(_merged(base, rest), changes or {}))


def bare_plan(student: ModelSpec, own: AlgorithmChoice, options: Any, **given: Any) -> StagePlan:
    """What ``Algorithm.stages`` is handed, of made-up models: to drive the generator by hand, without training."""
    unasked: dict[str, Any] = {"teachers": (), "assistants": (), "peers": (), "delegate": None, "folder": None}
    unasked |= {"num_classes": 4, "seed": 0, "targets": (0, 1, 2, 3)}
    for name in ("outputs", "costs"):
        unasked[name] = partial(_unasked, name)
    return StagePlan(student=student, own=own, options=options, **(unasked | given))


def _unasked(name: str, *_: Any) -> Any:
    raise AssertionError(f"the plan of a test was asked for {name}, which it was not given")


def least(wanted: Count) -> int:
    return bounds(wanted)[0]


def tiny_runner(
    cls: type[Algorithm],
    zoo: Zoo,
    root: Path,
    changes: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    folder: RunFolder | None = None,
) -> Runner:
    """A runner over a tiny plan of an algorithm, registered or not; its store lies below ``root``."""
    zoo = zoo.with_algorithm(cls)
    recipe = tiny_recipe(cls, changes)
    given = {**recipe.algorithm.options, **(options or {})}
    chosen, delegate = resolve_algorithm(cls.name, given, recipe.algorithm.loss_weights, zoo)
    plan = Plan(
        recipe=recipe,
        path=Path("conformance.yaml"),
        algorithm=chosen,
        delegate=delegate,
        student=spec_of(recipe.models.student),
        teachers=tuple(map(teacher_spec, recipe.models.all_teachers)),
        assistants=tuple(map(spec_of, recipe.models.assistants)),
        peers=tuple(map(spec_of, recipe.models.peers)),
        source=Stripes(Stripes.Options(**_stripes(changes))),
        exporters=(),
        trackers=(),
        provenance={},
        quantizers={name: offer.thing for name, offer in zoo.quantizers.items()},
    )
    return Runner(plan, zoo, folder, Store(root / "store"))


def tiny_folder(out: Path, recipe: Recipe | None = None, name: str = "run", resume: bool = False) -> RunFolder:
    """A new run folder below ``out``, of a recipe or of none, or the one to resume; close it like a file."""
    return RunFolder.start(
        out,
        name=name,
        seed=0 if recipe is None else recipe.seed,
        recipe_text="",
        recipe_hash="" if recipe is None else recipe_hash(recipe),
        recipe_fields={} if recipe is None else recipe.model_dump(mode="json"),
        new=not resume,
        resume=resume,
    )


def _stripes(changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict((changes or {}).get("data", {}).get("options", {}))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


__all__ = ["STUDENT", "TEACHER", "TINY", "Stripes", "bare_plan", "tiny_folder", "tiny_recipe", "tiny_runner"]
