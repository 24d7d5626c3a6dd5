"""How much arithmetic the training of a run's student took, its teachers' and a search's with it."""

from __future__ import annotations

from collections.abc import Mapping

from kdzoo.contract.stage import ModelSpec, Stage
from kdzoo.run.replay import Replay
from kdzoo.run.stage_runner import Trained

#: Forward passes that one training step of a network counts as: its own, and twice as much for the gradients.
PASSES = 3
PETA = 1e15


def training_pmacs(replay: Replay) -> dict[str, float]:
    """Return the multiply-accumulates of all training that leads to a run's student, in 10^15.

    ``student``: the stages that end in the student, with the forward passes of their teachers. ``teacher``: training
    the recipe's teachers; ready weights cost nothing. ``search``: other stages that the algorithm asked for, e.g.
    trials. The control is left out: it is there to compare with.

    A sample counts as three forward passes of each network that is trained (the student and its peers) and one of each
    teacher that answers it; an answer that was stored costs nothing. Networks of an algorithm's own and its generated
    samples are not counted, nor are validation and what a kill made necessary again.
    """
    assert replay.walked is not None, "the run's stages are all stored"
    macs = _Macs(replay)
    found = {"student": 0.0, "teacher": 0.0, "search": 0.0}
    wanted = _ancestors(replay, replay.walked.student.key)
    control = None if replay.walked.control is None else replay.walked.control.key
    seen: set[str] = set()
    for trained in replay.stages.trained:
        key = trained.result.key
        if trained.stage is None or key in seen or (key == control and key not in wanted):
            continue
        seen.add(key)
        kind = "teacher" if trained.stage.teaches else "student" if key in wanted else "search"
        found[kind] += macs.of_stage(trained, trained.stage) / PETA
    return found | {"total": sum(found.values())}


class _Macs:
    """Counts stages of one run; each network is built once."""

    def __init__(self, replay: Replay) -> None:
        self._build = replay.build
        self._known: dict[str, int] = {}

    def of_stage(self, trained: Trained, stage: Stage) -> float:
        samples = trained.facts.get("steps", 0) * self._build.recipe.data.batch_size
        total = PASSES * samples * sum(map(self._macs, (stage.model, *stage.peers)))
        if stage.algorithm is None:
            return total
        stored = trained.facts.get("teacher_outputs", [])
        for index, teacher in enumerate(stage.teachers):
            if teacher.model.answers is None:
                answered = _answered(stored[index]) if len(stored) == len(stage.teachers) else 0
                total += max(samples - answered, 0) * self._macs(teacher.model)
        return total

    def _macs(self, spec: ModelSpec) -> int:
        name = repr(spec)
        if name not in self._known:
            self._known[name] = self._build.network(spec, load=False).macs
        return self._known[name]


def _answered(hits: Mapping[str, int]) -> int:
    """Samples that needed no forward pass of the teacher."""
    return hits.get("samples", 0) - hits.get("verified", 0)


def _ancestors(replay: Replay, key: str) -> set[str]:
    """The keys of a result and of all results that it was trained from."""
    stages = {trained.result.key: trained.stage for trained in replay.stages.trained}
    found: set[str] = set()
    ahead = [key]
    while ahead:
        now = ahead.pop()
        if now not in found:
            found.add(now)
            stage = stages.get(now)
            parents = [] if stage is None else [*stage.teachers, *([stage.start] if stage.start else [])]
            ahead += [parent.key for parent in parents]
    return found
