"""What a stage's algorithm needs of data, batch and classes, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.classification import NO_LABEL
from kdzoo.contract.extension_points import Exporter
from kdzoo.contract.stage import Stage
from kdzoo.data.data_set import DataSet
from kdzoo.data.inputs import Pixels
from kdzoo.errors import ContractError, DistributedError, NeedsError
from kdzoo.models.building import memory_bytes
from kdzoo.models.network import Network
from kdzoo.plan.resolve import Plan
from kdzoo.recipe.sections import Recipe
from kdzoo.recipe.train_sections import TrainRecipe
from kdzoo.training.job import Plain

#: A training step takes at least the room of its inputs as many times.
STEP_COPIES = 4


def check_needs(cls: type[Algorithm], train: TrainRecipe, recipe: Recipe, data: DataSet, processes: int) -> None:
    """Raise NeedsError where data, batch or training section are not what the algorithm needs."""
    needs, share = cls.needs, recipe.data.batch_size // processes
    part = share // train.accumulate
    if part < needs.min_batch and needs.data != "none":
        raise NeedsError(
            f"algorithm '{cls.name}': needs at least {needs.min_batch} samples at a time, got {part} "
            f"(data.batch_size {recipe.data.batch_size}, {processes} processes, train.accumulate {train.accumulate})"
        )
    if train.shard and recipe.precision == "fp16":
        raise NeedsError("train.shard: gradients of fp16 are scaled as whole ones; choose precision: bf16 or fp32")
    if share % train.accumulate:
        raise NeedsError(f"train.accumulate: {share} samples cannot be split into {train.accumulate} parts of one size")
    if train.select == "best" and not data.split_sizes.get("validation"):
        raise NeedsError("train.select: 'best' is chosen on the validation split, and data.validation leaves none")
    if recipe.data.mixes and (needs.sample_index or (needs.data == "labelled" and cls is not Plain)):
        reads = "keeps values of each sample" if needs.sample_index else "reads the label of each image itself"
        raise NeedsError(
            f"algorithm '{cls.name}': {reads}, and Mixup and CutMix of data.augment make one image out of two samples; "
            "mixup: 0 and cutmix: 0 would be right"
        )
    kind = data.inputs.kind
    if kind != "image" and (needs.makes_images or needs.data == "none"):
        raise NeedsError(f"algorithm '{cls.name}': makes up its inputs, which are images; the data set has {kind}")
    if len(data.classes) < needs.min_classes:
        raise NeedsError(
            f"algorithm '{cls.name}': needs at least {needs.min_classes} classes, the data set has {len(data.classes)}"
        )


def check_room(network: Network, samples: int) -> None:
    """Raise NeedsError where the batch of a training step cannot fit into this machine's memory.

    A step holds at least its samples as they were read and as the network takes them, and a map of that size with its
    gradient.
    """
    if not isinstance(network.inputs, Pixels):
        return
    sample, memory = 4 * network.channels * network.size[0] * network.size[1], memory_bytes()
    if STEP_COPIES * samples * sample > memory:
        shape = " x ".join(map(str, (network.channels, *network.size)))
        raise NeedsError(
            f"model '{network.spec.name}': a training step holds {samples} inputs of {shape}, which take "
            f"{samples * sample / 2**30:.3g} GiB, and at least {STEP_COPIES} times that with their maps; this machine "
            f"has {memory / 2**30:.3g} GiB; lower the size or data.batch_size, or raise train.accumulate"
        )


def check_formats(exporters: Sequence[Exporter], kind: str) -> None:
    """Raise NeedsError where an export format cannot take samples of this kind."""
    for exporter in exporters:
        if kind not in exporter.takes:
            raise NeedsError(
                f"export format '{exporter.name}': takes {' and '.join(exporter.takes)}; the data set has {kind}"
            )


def check_labels(plan: Plan, data: DataSet) -> None:
    """Raise NeedsError where training samples have no label and the algorithm, the control or a teacher needs them."""
    if data.labels is None:
        return
    cls, samples = plan.algorithm.cls, data.num_train
    lack = f"{samples - len(data.labels):,} of {samples:,} training samples have none"
    for chosen in (plan.algorithm, *([plan.delegate] if plan.delegate else [])):
        if chosen.cls.needs.data == "labelled":
            raise NeedsError(
                f"algorithm '{chosen.cls.name}': reads the label of every sample, and {lack}; an algorithm that takes "
                "samples without labels, such as kd, would be right, or leave them out"
            )
    if data.labels:
        return
    if plan.recipe.control:
        raise NeedsError(
            "control: trains on labels alone, and no training sample has one; control: false would be right"
        )
    if not plan.teachers:
        raise NeedsError(f"algorithm '{cls.name}': no training sample has a label, and no teacher answers in its place")
    for spec in plan.teachers:
        if spec.weights == "train" or spec.finetune:
            raise NeedsError(
                f"teacher '{spec.name}': is trained on labels, and no training sample has one; ready weights would be "
                "right"
            )


def check_labels_of(stage: Stage, known: Sequence[int]) -> None:
    """Raise an error where a stage that reads every label would train on samples without one."""
    if not known:
        raise NeedsError(f"stage '{stage.name}': trains on labels alone, and no training sample has one")
    lack = set(stage.samples or ()) - set(known)
    if lack:
        raise ContractError(
            f"stage '{stage.name}': reads the label of every sample, and {len(lack)} of its {len(stage.samples or ())} "
            "samples have none"
        )


def check_quantizer(cls: type[Algorithm], quantizer: str | None, train: TrainRecipe, processes: int) -> None:
    """Raise an error where a student cannot be trained in a quantizer; ``quantizer`` None is training in floats."""
    if quantizer is None:
        return
    if processes > 1:
        raise DistributedError(
            f"algorithm '{cls.name}': trains the student in '{quantizer}', whose ranges and BatchNorm each of the "
            f"{processes} processes would learn from its own samples; run one process"
        )
    if train.ema_decay is not None:
        raise NeedsError(
            f"train.ema_decay: averages floats, and '{cls.name}' trains the student in '{quantizer}', whose ranges are "
            "no averages; null would be right"
        )


def stage_classes(stage: Stage, data: DataSet) -> tuple[int, ...]:
    """Return the classes of a stage; ContractError where there are none such, or it has samples of others."""
    everything = tuple(range(len(data.classes)))
    known = everything if stage.classes is None else stage.classes
    if not known or len(set(known)) < len(known) or not set(known) <= set(everything):
        raise ContractError(f"a stage's classes must be different ones of 0..{everything[-1]}, got {list(known)}")
    if not set(stage.earlier) < set(known):
        raise ContractError(
            f"a stage's earlier classes must be some of its classes {list(known)}, got {list(stage.earlier)}"
        )
    strange = sorted(_sampled(stage, data) - set(known)) if stage.classes is not None else []
    if strange:
        raise ContractError(f"a stage that knows the classes {list(known)} has samples of {strange}")
    return known


def task_classes(stage: Stage, known: Sequence[int], data: DataSet) -> tuple[int, ...] | None:
    """Return the classes among which the task loss compares: None for all, () where it cannot."""
    if stage.classes is None and not stage.earlier:
        return None
    if _sampled(stage, data) & set(stage.earlier):
        return ()
    return tuple(k for k in known if k not in stage.earlier)


def _sampled(stage: Stage, data: DataSet) -> set[int]:
    """The classes that a stage has samples of."""
    targets = data.part("train").targets
    return set((targets if stage.samples is None else targets[list(stage.samples)]).tolist()) - {NO_LABEL}
