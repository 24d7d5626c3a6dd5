"""The key of a stage: everything that determines its bits, in one hash."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kdzoo.contract.stage import ModelSpec, Stage
from kdzoo.models.weights import weights_sha256
from kdzoo.plan.resolve import ResolvedAlgorithm
from kdzoo.recipe.train_sections import TrainRecipe
from kdzoo.run.builder import Builder
from kdzoo.run.keys import STAGE_FORMAT, core_hash, model_hash, source_hash
from kdzoo.types import stable_hash

#: Keys of train that decide nothing in a run of one process.
ALONE = {"batch_norm", "shard"}


def stage_key(build: Builder, stage: Stage, chosen: ResolvedAlgorithm | None, train: TrainRecipe) -> str:
    """Hash everything that determines a stage's bits; its name is not among them."""
    algorithm: dict[str, Any] | None = None
    if chosen is not None:
        algorithm = {
            "name": chosen.cls.name,
            "options": chosen.options.model_dump(mode="json"),
            "loss_weights": dict(chosen.loss_weights),
            "source": source_hash(chosen.cls),
        }
    ignored = {"preset", "checkpoint_seconds"} | (ALONE if build.ranks.world == 1 else set())
    return stable_hash(
        {
            "format": STAGE_FORMAT,
            "model": asdict(stage.model),
            "architectures": [model_hash(spec.name) for spec in (stage.model, *stage.peers)],
            "algorithm": algorithm,
            "teachers": [teacher.key for teacher in stage.teachers],
            "peers": [asdict(peer) for peer in stage.peers],
            "start": stage.start.key if stage.start else None,
            "quantizer": _quantizer_hash(build, stage.model),
            "samples": stable_hash(stage.samples) if stage.samples is not None else None,
            "labelled": None if stage.teaches else build.recipe.data.labelled,
            "teaches": stage.teaches,
            "classes": stage.classes,
            "earlier": stage.earlier,
            "initial": _initial(build, stage),
            "salt": stage.salt,
            "train": {k: v for k, v in train.model_dump(mode="json").items() if k not in ignored},
            "data": build.data_identity(),
            "views": build.recipe.cache.views if build.recipe.cache else None,
            "kept": _kept(build) if stage.teachers else None,
            "seed": build.recipe.seed,
            "precision": build.recipe.precision,
            "environment": build.environment,
            "processes": build.ranks.world,
            "code": core_hash(),
        }
    )


def _kept(build: Builder) -> dict[str, Any] | None:
    """What is left of the teachers' answers."""
    keep = build.recipe.cache.keep if build.recipe.cache else None
    return keep.model_dump() if keep else None


def _initial(build: Builder, stage: Stage) -> str | None:
    """Hash of the weights that a stage begins from, where more than the seed and the model's source decides them.

    What a model for text is made of, its configuration and the pieces of its table, lies outside of both.
    """
    if stage.model.answers is not None:
        return build.teachers.answers(stage.model).key
    ready = stage.model.weights not in ("train", "teacher")
    if not ready and not build.data.inputs.shapes_the_model:
        return None
    network = build.network(stage.model, stage.salt, load=ready)
    made_of = {key: value for key, value in network.create_args.items() if key != "tokens"}
    return stable_hash([weights_sha256(network.model), made_of])


def _quantizer_hash(build: Builder, spec: ModelSpec) -> str | None:
    found = build.plan.quantizers.get(spec.quantizer or "")
    return None if found is None else source_hash(found)
