"""Plan to objects: networks, teachers, and the job of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.classification import validation_metrics
from kdzoo.contract.declared import Shapes
from kdzoo.contract.stage import ModelSpec, Stage, StageResult
from kdzoo.contract.step import Batch
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.inputs import Inputs
from kdzoo.data.loader import Loader
from kdzoo.errors import ContractError, UnknownName, nearest
from kdzoo.evaluation.measuring import predict
from kdzoo.models.building import build_network, data_preprocessing
from kdzoo.models.levels import Pairing, pair_levels, shapes_of
from kdzoo.models.network import Network
from kdzoo.models.weights import start_from
from kdzoo.plan.resolve import Plan, ResolvedAlgorithm
from kdzoo.recipe.problems import explain
from kdzoo.recipe.sections import Recipe
from kdzoo.recipe.train_sections import TrainRecipe
from kdzoo.run.launching import check_processes
from kdzoo.run.needs import (
    check_labels,
    check_labels_of,
    check_needs,
    check_quantizer,
    check_room,
    stage_classes,
    task_classes,
)
from kdzoo.run.teachers import Taught, Teachers
from kdzoo.storage.sealed import read_tensors
from kdzoo.storage.store import Store
from kdzoo.training.device import Precision, choose_precision, pick_device, set_threads, takes_pinned_memory
from kdzoo.training.environment import environment_of_all
from kdzoo.training.job import Job, Plain
from kdzoo.training.parallel import Ranks
from kdzoo.types import derive_seed

#: Steps of an epoch for an algorithm that is handed no data, unless train.steps_per_epoch says otherwise.
DATA_FREE_STEPS = 100


class Builder:
    """Builds what a plan's stages train with, on one device and one data set."""

    def __init__(self, plan: Plan, store: Store, ranks: Ranks) -> None:
        self.plan, self.store, self.ranks = plan, store, ranks
        self.recipe: Recipe = plan.recipe
        check_processes(self.recipe, ranks.world)
        self.device = pick_device(self.recipe.device)
        set_threads(self.recipe.threads)
        self.environment = environment_of_all(self.device, ranks)
        self.data: DataSet = open_data(
            plan.source, self.recipe.data, self.recipe.seed, partial(data_preprocessing, plan.student)
        )
        check_labels(plan, self.data)
        self.loader = Loader(
            self.data,
            self.device,
            self.recipe.data.batch_size,
            self.recipe.data.augmentation,
            self.recipe.seed,
            self.recipe.data.workers,
            self.recipe.data.timeout_s,
            self._channels_last(),
            takes_pinned_memory(self.device),
        )
        parts = self.recipe, self.data, self.loader, store, self.device, self.environment
        self.teachers = Teachers(*parts, self.data_identity)

    def train_section(self, stage: Stage) -> TrainRecipe:
        """The recipe's train section with the model's and the stage's overrides."""
        return self.recipe.train.merged(stage.model.train).merged(stage.train)

    def network(self, spec: ModelSpec, salt: str = "", load: bool = True) -> Network:
        """Build a network; ``load=False`` leaves out its ready weights, for a caller that has others."""
        return build_network(
            spec,
            inputs=self.data.inputs,
            num_classes=len(self.data.classes),
            seed=derive_seed(self.recipe.seed, "init", salt),
            load=load,
        )

    def _channels_last(self) -> bool:
        """Whether batches are laid out channels last: when the student runs so, they need not be turned."""
        return self.precision(self.network(self.plan.student, load=False)).channels_last

    def precision(self, network: Network) -> Precision:
        return choose_precision(self.recipe.precision, self.recipe.train.channels_last, network, self.device)

    def taught(self, spec: ModelSpec) -> Taught:
        """A teacher's network, or the answers in its place, before it is trained or its weights are stored."""
        return self.network(spec) if spec.answers is None else self.teachers.answers(spec)

    def _trained(self, teacher: StageResult) -> Taught:
        return self.trained_network(teacher) if teacher.model.answers is None else self.teachers.answers(teacher.model)

    def _precision_of(self, taught: Taught) -> Precision | None:
        return self.precision(taught) if isinstance(taught, Network) else None

    def trained_network(self, result: StageResult, which: str = "student", spec: ModelSpec | None = None) -> Network:
        """The stored network of a stage, its weights checked against the store's manifest."""
        if result.model.answers is not None:
            raise ContractError(
                f"algorithm '{self.plan.algorithm.cls.name}': asked for the network of '{result.name}', which is known "
                "by its stored answers only; one that needs it declares needs.of_teacher = 'network'"
            )
        network = self.network(spec or result.model, load=False)
        network.model.load_state_dict(read_tensors(result.weights[which]), strict=True)
        return network

    def quantized_network(self, result: StageResult) -> Network:
        """The stored student of a stage in the quantizer that it was trained in."""
        network = self.quantized(self.network(result.model, load=False), result.model)
        network.model.load_state_dict(read_tensors(result.weights["student_quantized"]), strict=True)
        return network

    def quantized(self, network: Network, spec: ModelSpec) -> Network:
        """A network in its model's quantizer; as it is where there is none."""
        if spec.quantizer is None:
            return network
        known = self.plan.quantizers
        if spec.quantizer not in known:
            raise UnknownName(
                f"model '{spec.name}': unknown quantizer '{spec.quantizer}'{nearest(spec.quantizer, list(known))} "
                f"known: {', '.join(sorted(known)) or 'none'}"
            )
        cls = known[spec.quantizer]
        try:
            options = cls.Options.model_validate(dict(spec.quantizer_options))
        except ValidationError as error:
            problems = explain(error, cls.Options, spec.quantizer_options)
            listed = "; ".join(f"{path}: {words}" for path, words in problems)
            raise ContractError(f"model '{spec.name}': options of quantizer '{spec.quantizer}': {listed}") from error
        return network.quantized(cls(options))

    def job(
        self,
        stage: Stage,
        chosen: ResolvedAlgorithm | None,
        train: TrainRecipe,
        taught: Sequence[Taught] | None = None,
    ) -> tuple[Job, Pairing | None]:
        """Everything one stage trains with, built and checked against what its algorithm declares.

        ``taught`` are the teachers' networks where there are no stored ones yet, for a dry run.
        """
        cls: type[Algorithm] = chosen.cls if chosen else Plain
        check_needs(cls, train, self.recipe, self.data, self.ranks.world)
        check_quantizer(cls, stage.model.quantizer, train, self.ranks.world)
        needs, handed = cls.needs, cls.needs.data != "none"
        student = self._student(stage, cls, taught)
        if handed:
            check_room(student, self.share // train.accumulate)
        peers = [self.network(spec, f"{stage.salt}peer_{i}") for i, spec in enumerate(stage.peers)]
        taught = [self._trained(teacher) for teacher in stage.teachers] if taught is None else taught
        pairing = pair_levels(student, [*taught, *peers]) if needs.features else None
        levels = pairing.indices if pairing else [()] * (1 + len(taught) + len(peers))
        image = (self.data.channels, self.data.size[0], self.data.size[1])
        shapes = shapes_of(student, taught, peers, pairing, self.data.num_train if handed else 0, image)
        shapes = replace(shapes, classes=stage_classes(stage, self.data), earlier=stage.earlier)
        algorithm = self.algorithm(cls, chosen, shapes, stage.salt)
        precision = self.precision(student)
        if stage.model.quantizer is not None:  # half precision would round what the quantizer is to round
            student, precision = self.quantized(student, stage.model), Precision(self.device, None, False)
        if train.shard and self.ranks.world > 1:
            precision = replace(precision, channels_last=False)  # torch shards parameters in their plain layout only
        teachers = [
            self.teachers.make(each, self._precision_of(each), levels[1 + i], cls, self.share // train.accumulate)
            for i, each in enumerate(taught)
        ]
        loader = self._loader(stage, cls) if handed else None
        job = Job(
            name=stage.name,
            algorithm=algorithm,
            loss_weights=chosen.loss_weights if chosen else Plain.default_weights,
            student=student,
            precision=precision,
            train=train,
            seed=derive_seed(self.recipe.seed, "stage", stage.salt),
            batch_size=self.share,
            steps_per_epoch=steps_per_epoch(loader, train.steps_per_epoch),
            loader=loader,
            teachers=teachers,
            peers=peers,
            student_levels=tuple(levels[0]),
            peer_levels=[tuple(level) for level in levels[1 + len(taught) :]],
            views=self.recipe.cache.views if self.recipe.cache else None,
            validate=self.validator(precision, stage.classes),
            task_classes=task_classes(stage, shapes.classes, self.data),
            ranks=self.ranks,
        )
        return job, pairing

    def algorithm(self, cls: type[Algorithm], chosen: ResolvedAlgorithm | None, shapes: Shapes, salt: str) -> Algorithm:
        """The algorithm's object, its own parameters drawn from the stage's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.recipe.seed, "algorithm", salt))
            return cls(chosen.options if chosen else cls.Options(), shapes)

    def _student(self, stage: Stage, cls: type[Algorithm], taught: Sequence[Taught] | None) -> Network:
        """The student with the weights that it starts from."""
        student = self.network(stage.model, stage.salt)
        if stage.start is not None and stage.model.weights == "teacher":
            start_from(student, self.trained_network(stage.start))
        elif stage.start is not None:
            cls.load_start(student.model, read_tensors(stage.start.weights["student"]))
        elif stage.model.weights == "teacher" and taught:  # a dry run, which has no stored teacher to start from
            assert isinstance(taught[0], Network), "refused in the recipe"
            start_from(student, taught[0])
        return student

    @property
    def share(self) -> int:
        """Samples of a batch that this process trains on."""
        return self.recipe.data.batch_size // self.ranks.world

    def _loader(self, stage: Stage, cls: type[Algorithm]) -> Loader:
        """What feeds a stage. The few samples that have a label recur, so that its epoch is as long as one over all."""
        known = self.data.labels if stage.teaches else self.data.labelled
        every = cls.needs.data == "labelled"
        if every and known is not None:
            check_labels_of(stage, known)
        if stage.samples is not None:
            loader = self.loader.only(stage.samples)
            return loader if every else loader.with_labels(known)
        if every and known is not None:
            return self.loader.only(known, None if stage.teaches else self.data.num_train)
        return self.loader.with_labels(known)

    def validator(
        self, precision: Precision, classes: Sequence[int] | None = None
    ) -> Callable[[Network], dict[str, float]] | None:
        """What judges a network on the validation split, or on some classes of it; None where there is no sample."""
        if not self.data.split_sizes.get("validation"):
            return None
        known = np.arange(len(self.data.classes)) if classes is None else np.unique(classes)
        rows = np.flatnonzero(np.isin(self.data.part("validation").targets, known))
        if not len(rows):
            return None

        def validate(network: Network) -> dict[str, float]:
            precision.place(network)
            batches = self.loader.eval_batches("validation", self.recipe.data.eval_batch_size, rows, network.inputs)
            logits, targets = predict(network, batches, precision.autocast)
            return validation_metrics(logits, targets, known)

        return validate

    def test_batches(self, inputs: Inputs | None = None, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """The test split, or some rows of it, as a network with ``inputs`` takes it; None: as the data set has it."""
        return self.loader.eval_batches("test", self.recipe.data.eval_batch_size, rows, inputs)

    def data_identity(self) -> dict[str, Any]:
        data = self.recipe.data
        return {
            "fingerprint": self.data.fingerprint,
            "batch_size": data.batch_size,
            "augment": data.augment
            if isinstance(data.augmentation, str)
            else data.augmentation.model_dump(mode="json"),
            "validation": data.validation,
            "train_limit": data.train_limit,
        }


def steps_per_epoch(loader: Loader | None, asked: int | None) -> int:
    """Optimizer steps of an epoch: at most ``asked`` of the loader's, or ``asked`` where no data is handed over."""
    if loader is None:
        return asked or DATA_FREE_STEPS
    return loader.steps_per_epoch if asked is None else min(loader.steps_per_epoch, asked)
