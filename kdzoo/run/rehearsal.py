"""A dry run: the first stage is built with untrained networks, so that errors come before training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.declared import bounds
from kdzoo.contract.stage import ModelSpec, Stage, StageResult
from kdzoo.contract.step import Outputs
from kdzoo.errors import NeedsError
from kdzoo.models.levels import Pairing
from kdzoo.models.network import Network
from kdzoo.models.weights import count_parameters
from kdzoo.plan.resolve import resolve_choice
from kdzoo.report.verdict import CAUSES, chance, shortfall
from kdzoo.run.builder import Builder
from kdzoo.run.needs import check_formats, check_labels_of
from kdzoo.run.stage_plan import Planning
from kdzoo.run.teachers import Taught
from kdzoo.training.engine import Engine
from kdzoo.training.job import Job
from kdzoo.training.stored_answers import StoredAnswers
from kdzoo.zoo.offered import Zoo


class NotTrained(Exception):
    """Raised where a plan asks for what only a trained network can answer."""


class Unknown(Mapping[str, Any]):
    """Metrics and weights of a network that is not trained: every access raises NotTrained, so that a plan never
    takes the branch that an empty mapping would lead to."""

    def __getitem__(self, key: str) -> NoReturn:
        raise NotTrained

    def __contains__(self, key: object) -> NoReturn:
        raise NotTrained

    def __iter__(self) -> Iterator[str]:
        raise NotTrained

    def __len__(self) -> NoReturn:
        raise NotTrained

    def __eq__(self, other: object) -> NoReturn:
        raise NotTrained

    def __or__(self, other: object) -> NoReturn:
        raise NotTrained

    __ror__ = __or__
    __hash__ = None  # type: ignore[assignment]


class Rehearsal:
    """Builds the student's stage with untrained networks, so that whatever it needs is refused before training."""

    def __init__(self, build: Builder, zoo: Zoo) -> None:
        self.build, self.plan, self.zoo = build, build.plan, zoo

    def rehearse(self, taught: Sequence[Taught] | None = None) -> tuple[Job, Pairing | None]:
        """Return the job of the first stage that the algorithm trains; ``taught`` are its teachers."""
        check_formats(self.plan.exporters, self.build.data.inputs.kind)
        taught = [self.build.taught(spec) for spec in self.plan.teachers] if taught is None else list(taught)
        unlabelled = self.build.data.labels == ()
        if unlabelled:
            self._check_without_labels([f"teacher {i}" for i in range(len(taught))])
        job, pairing = self._first_job(taught)
        if unlabelled and job.loader is not None and not Engine(job).taught_without_labels():
            raise NeedsError(
                f"{job.title}: none of its terms reads the student's logits, so nothing trains the classifier where no "
                "training sample has a label; kd would be right"
            )
        return job, pairing

    def _first_job(self, taught: Sequence[Taught]) -> tuple[Job, Pairing | None]:
        plan, build = self.plan, self.build
        chosen = plan.delegate or plan.algorithm
        known = {f"teacher {i}": network for i, network in enumerate(taught)}
        first = self._first_stage(chosen.cls, known)
        if first is not None:
            of_others = [known.get(teacher.key) or build.network(teacher.model) for teacher in first.teachers]
            resolved = None if first.algorithm is None else resolve_choice(first.algorithm, self.zoo)
            return build.job(first, resolved, build.train_section(first), of_others)
        stage = Stage("student", plan.student, chosen.choice, peers=plan.peers)
        least, most = bounds(chosen.cls.needs.teachers)
        wanted = least if least == most else max(least, len(taught))
        teachers: list[Taught] = (list(taught) or [build.network(plan.student, "teacher")])[:wanted]
        return build.job(stage, chosen, build.train_section(stage), teachers)

    def _first_stage(self, cls: type[Algorithm], known: Collection[str]) -> Stage | None:
        """The first stage that ``cls`` trains, where it follows from the recipe alone; None where it does not.

        ``known`` are keys of teachers. A stage that goes on with the weights of one before is rehearsed with fresh
        ones.
        """
        for stage, before in self._stages(known):
            start = stage.start
            goes_on = start is not None and start.key in before and in_floats(start) == in_floats(stage)
            if stage.algorithm is not None and stage.algorithm.name == cls.name:
                return replace(stage, start=None) if start is None or goes_on else None
        return None

    def _stages(self, known: Collection[str]) -> Iterator[tuple[Stage, set[str]]]:
        """The stages that follow from the recipe alone, with the keys of those before; none of them is trained."""
        teachers = tuple(untrained(key, key, spec) for key, spec in zip(known, self.plan.teachers, strict=True))
        plan = replace(Planning(self.build, None).stage_plan(teachers), outputs=not_trained)
        generator = self.plan.algorithm.cls.stages(plan)
        answer: Any = None
        before: set[str] = set()
        try:
            while True:
                wanted = generator.send(answer)
                stages = wanted if isinstance(wanted, list) else [wanted]
                for stage in stages:
                    yield stage, before
                keys = [f"stage {len(before) + i}" for i in range(len(stages))]
                before = before | set(keys)
                answers = [
                    untrained(stage.name, key, stage.model, stage.peers)
                    for key, stage in zip(keys, stages, strict=True)
                ]
                answer = answers if isinstance(wanted, list) else answers[0]
        except (NotTrained, StopIteration):
            return
        finally:
            generator.close()

    def _check_without_labels(self, known: Collection[str]) -> None:
        """Raise NeedsError where a stage reads every label, and no sample has one."""
        for stage, _ in self._stages(known):
            resolved = None if stage.algorithm is None else resolve_choice(stage.algorithm, self.zoo)
            if resolved is None or resolved.cls.needs.data == "labelled":
                check_labels_of(stage, ())

    def check(self) -> list[str]:
        """Build everything, judge ready teachers, run one dry forward, and say what a run would do."""
        plan, build = self.plan, self.build
        sizes = ", ".join(f"{name} {count}" for name, count in build.data.split_sizes.items())
        lines = [f"data      {build.recipe.data.name}: {len(build.data.classes)} classes, {sizes}"]
        if build.data.labelled is not None:
            lines.append(f"labels    {len(build.data.labelled)} of {build.data.num_train} training samples have one")
        checked = build.data.check_form()
        if build.data.preprocessing is not None:
            lines.append(f"files     {build.data.preprocessing.sentence()}")
        taught = [build.taught(spec) for spec in plan.teachers]
        named: list[tuple[str, Taught]] = [(f"teacher {i}", each) for i, each in enumerate(taught)]
        named.append(("student", build.network(plan.student)))
        for i, spec in enumerate(plan.assistants):
            named.append((f"assistant {i}", build.network(spec)))
        for i, spec in enumerate(plan.peers):
            named.append((f"peer {i}", build.network(spec)))
        for label, network in named:
            if isinstance(network, StoredAnswers):
                lines.append(f"{label:<9} {network.describe()}")
                continue
            precision = build.precision(network)
            parameters = count_parameters(network.model)
            lines.append(
                f"{label:<9} {network.spec.name}: {parameters:,} parameters, {network.macs:,} MACs, "
                f"{network.inputs.describe()}, {precision.name}{', channels last' if precision.channels_last else ''}"
            )
        for i, (spec, network) in enumerate(zip(plan.teachers, taught, strict=True)):
            if isinstance(network, Network):
                judged, warnings = self._judged(f"teacher {i}", spec, network)
                lines = [*warnings, *lines, *judged]
        job, pairing = self.rehearse(taught)
        lines += [f"paired    {line}" for line in (pairing.describe() if pairing else [])]
        lines.append(f"form      {checked}")
        lines.append(f"steps     {job.train.epochs} epochs of {job.steps_per_epoch} steps, on {build.device}")
        terms = Engine(job).dry_step()
        lines.append("forward   " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items()))
        return lines + [f"note      {note}" for note in build.data.notes]

    def _judged(self, name: str, spec: ModelSpec, network: Network) -> tuple[list[str], list[str]]:
        """What ready weights of a teacher reach on the validation split, and a warning where that is too little."""
        data, read = self.build.data, network.read_from
        if spec.weights == "train":
            return [], []
        lines = [f"weights   {name}: {read.sentence()}"] if read is not None else []
        validate = None if network.fresh_head else self.build.validator(self.build.precision(network))
        if validate is None:
            return lines, []
        targets = data.part("validation").targets
        samples, guess = len(targets), 100 * float(np.unique(targets, return_counts=True)[1].max()) / len(targets)
        top1 = validate(network)["top1_percent"]
        carved = data.part("validation").split is data.part("train").split
        known = ", held out of train, so it may have learnt them" if carved else ""
        of = f"{top1:.2f} % of {samples:,} validation {data.inputs.noun}s"
        lines.append(f"accuracy  {name}: {of}{known}; naming the most common class would reach {guess:.2f} %")
        short = ""
        if read is not None and read.top1_percent is not None:
            lines[-1] += f"; {read.stated_by} states {read.top1_percent:.2f} %"
            short = shortfall(top1, read.top1_percent, read.stated_by, samples)
        if not short and top1 <= guess + chance(guess, samples):
            short = "no better than naming the most common class"
        return lines, [f"warning   {name}: {of}, {short}. {CAUSES}"] if short else []


def untrained(name: str, key: str, model: ModelSpec, peers: tuple[ModelSpec, ...] = ()) -> StageResult:
    """A placeholder for a result, of which only the model is known."""
    return StageResult(name, key, model, Unknown(), Unknown(), peers)


def in_floats(of: Stage | StageResult) -> ModelSpec:
    """The plain model: a stage in another quantizer can go on from the weights of one in floats."""
    return replace(of.model, quantizer=None, quantizer_options={})


def not_trained(result: StageResult, samples: Sequence[int]) -> Outputs:
    raise NotTrained
