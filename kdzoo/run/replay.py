"""A run's stages over the store, without training any: which are missing now, until none is."""

from __future__ import annotations

from collections.abc import Mapping

from kdzoo.contract.stage import Stage, StageResult
from kdzoo.plan.resolve import Plan
from kdzoo.run.builder import Builder
from kdzoo.run.control import Control
from kdzoo.run.rehearsal import Rehearsal
from kdzoo.run.result_key import result_key, training_key
from kdzoo.run.stage_log import StageLog
from kdzoo.run.stage_runner import StageRunner
from kdzoo.run.tracking import Trackers
from kdzoo.run.walk import Walk, Walked
from kdzoo.storage.store import Store
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.offered import Zoo


class Replay:
    """Follows a plan through its stages as far as their results are stored. ``walked`` is set at the end."""

    def __init__(self, plan: Plan, zoo: Zoo, store: Store) -> None:
        self.plan, self.zoo, self.store = plan, zoo, store
        ranks = Ranks()
        self.build = Builder(plan, store, ranks)
        control = Control(ranks)
        log = StageLog(None, Trackers((), control.display.note))
        self.stages = StageRunner(self.build, zoo, None, control, log, [])
        self.walked: Walked | None = None
        self._way = Walk(self.stages, None, lambda text: None).whole()
        self._wanted: Stage | list[Stage] | None = None

    @property
    def gpus(self) -> int:
        """How many GPUs a stage of this run takes."""
        return int(self.build.device.type != "cpu")

    def result_keys(self) -> tuple[str, str]:
        """The result key and the training key of the run."""
        return result_key(self.build), training_key(self.build)

    def rehearse(self) -> None:
        """Build the student's stage with untrained networks, so that whatever it needs is refused before training."""
        self.build.data.check_form()
        Rehearsal(self.build, self.zoo).rehearse()

    def missing(self) -> Mapping[str, Stage]:
        """Go on as far as the store allows; return the stages to train now, by their keys; none: all are stored.

        Raises what the algorithm's plan raises.
        """
        answer: StageResult | None = None
        while self.walked is None:
            if self._wanted is None:
                try:
                    self._wanted = self._way.send(answer)
                except StopIteration as end:
                    self.walked = end.value
                    break
            wanted, answer = self._wanted, None
            if isinstance(wanted, Stage):
                stage = self.stages.started(wanted)
                key = self.stages.key(stage)
                answer = self.stages.stored(stage, key)
                if answer is None:
                    return {key: stage}
            else:
                keys = {self.stages.key(stage): stage for stage in map(self.stages.started, wanted)}
                absent = {key: stage for key, stage in keys.items() if self.store.find("stage", key) is None}
                if absent:
                    return absent
            self._wanted = None
        return {}
