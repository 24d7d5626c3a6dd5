"""Drives a plan: stages through the engine and the store, then evaluation, export and the run folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kdzoo.contract.stage import Stage, StagePlan, StageResult
from kdzoo.models.levels import Pairing
from kdzoo.plan.filled import filled
from kdzoo.plan.resolve import Plan
from kdzoo.recipe.reading import recipe_hash
from kdzoo.run.builder import Builder
from kdzoo.run.control import Control, Display
from kdzoo.run.delivered import STUDENT, Measured, delivered_spec
from kdzoo.run.delivery import Delivery
from kdzoo.run.exporting import Exporting
from kdzoo.run.finished_run import DeliveredRun
from kdzoo.run.needs import check_formats
from kdzoo.run.provenance import provenance
from kdzoo.run.rehearsal import Rehearsal
from kdzoo.run.report_item_json import as_json
from kdzoo.run.side_by_side import SideBySide
from kdzoo.run.stage_log import StageLog
from kdzoo.run.stage_runner import StageRunner
from kdzoo.run.stored_logits import StoredLogits
from kdzoo.run.tracking import Trackers
from kdzoo.run.walk import Walk, Walked, Way
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.sealed import read_tensors
from kdzoo.storage.store import Store
from kdzoo.training.job import Job, has_report_items
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.offered import Zoo

T = TypeVar("T")


class Runner:
    """Runs one plan in one run folder. ``stop`` is polled at step boundaries and returns a signal number or 0."""

    def __init__(
        self,
        plan: Plan,
        zoo: Zoo,
        folder: RunFolder | None,
        store: Store,
        ranks: Ranks | None = None,
        display: Display | None = None,
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self.plan, self.zoo, self.folder, self.store = plan, zoo, folder, store
        self.recipe = plan.recipe
        self.ranks = ranks or Ranks()
        self.control = Control(self.ranks, display, stop)
        self.build = Builder(plan, store, self.ranks)
        self.data, self.loader = self.build.data, self.build.loader
        self.warnings: list[str] = []
        logged = folder if self.ranks.first else None
        self.log = StageLog(logged, Trackers(plan.trackers if logged is not None else (), self._warn))
        self.stage_runner = StageRunner(self.build, zoo, folder, self.control, self.log, self.warnings)
        self.stages = self.stage_runner.trained
        self.walk = Walk(self.stage_runner, folder, self._warn)
        self.side_by_side = SideBySide(self.stage_runner)
        self._rehearsed = False

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.control.display.note(f"warning: {text}")

    # --- the whole run ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train, evaluate, export and write; return what results.json holds."""
        begin = time.monotonic()
        self.ranks.agree("the recipe", recipe_hash(self.recipe))
        self.data.check_form()  # what cannot be read, or tested on, is found now and not after all training
        doubtful = self.plan.algorithm.cls.quantizer is not None or self.data.labels == ()
        if doubtful and not self._rehearsed:
            self.rehearse()  # what a quantizer's library or data without labels do not allow is refused before training
        if self.folder is not None and self.ranks.first:
            shutil.rmtree(self.folder.path("export"), ignore_errors=True)  # of a run that was killed while exporting
            self.folder.write_json("provenance.json", provenance(self.build))
        self.log.begin(filled(self.recipe, self.zoo))
        try:
            walked = self._follow(self.walk.whole())
            teachers, control, student = walked.teachers, walked.control, walked.student
            self.control.check_stop("before the evaluation")
            delivery = Delivery(self.build, self.folder, self.control.announce)
            results = delivery.measure(teachers, control, student)
            results |= self._report_items(delivery, walked)
        finally:
            self.log.close()
            self.side_by_side.close()
        results |= {
            "pairing": self.stage_runner.pairings,
            "stages": [{"name": t.result.name, "key": t.result.key[:12], **t.facts} for t in self.stages],
            "warnings": [
                *results.get("warnings", []),
                *self.warnings,
                *self.data.notes,
                *(self.folder.warnings if self.folder else []),
            ],
            "seconds": time.monotonic() - begin,
        }
        if self.folder is not None and self.ranks.first:
            self.folder.write_json("results.json", results)
        self.ranks.barrier()
        return results

    def train(self, stage: Stage) -> StageResult:
        """Run one stage, or take its result from the store."""
        return self.stage_runner.train(stage)

    def teachers(self) -> tuple[StageResult, ...]:
        """Train the teachers, or take their weights, or what is in their place, as the recipe says."""
        return self._follow(self.walk.teachers())

    def drive(self, teachers: tuple[StageResult, ...]) -> StageResult:
        """Replay the algorithm's stages; finished ones come from the store."""
        return self._follow(self.walk.student(teachers))

    def stage_plan(self, teachers: tuple[StageResult, ...]) -> StagePlan:
        """What the algorithm's ``stages`` may read and ask."""
        return self.walk.stage_plan(teachers)

    def _follow(self, way: Way[T]) -> T:
        """Train what a walk asks for, and return what it ends with."""
        answer: StageResult | None = None
        while True:
            try:
                wanted = way.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(wanted, Stage):
                answer = self.train(wanted)
            else:
                self.side_by_side.train(wanted)
                answer = None

    def _report_items(
        self,
        delivery: Delivery,
        walked: Walked,
    ) -> dict[str, Any]:
        """What the algorithm shows in addition to the measurements of what is delivered."""
        cls = self.plan.algorithm.cls
        if not self.ranks.first or not has_report_items(cls):
            return {"report_items": [], "variants": []}
        if delivery.entries["student"]["top1_percent"] is None:
            self._warn("no test sample has a label, so what else the algorithm measures on them is left out")
            return {"report_items": [], "variants": []}
        self.control.announce("report_items", "what else the algorithm shows")
        run = DeliveredRun(
            self.build,
            plan=self.stage_plan(walked.teachers),
            teachers=walked.teachers,
            control=walked.control,
            student=walked.student,
            stages=walked.stages,
            entries=delivery.entries,
            reference=delivery.reference,
            rows={trained.result.key: trained.rows for trained in self.stages},
            rebuild=self.stage_runner.rebuild,
        )
        shown = [as_json(item, f"algorithm '{cls.name}'") for item in cls.report_items(run)]
        return {"report_items": shown, "variants": run.variants}

    # --- without training ---------------------------------------------------------------------

    def rehearse(self) -> tuple[Job, Pairing | None]:
        """Build the student's stage with untrained networks, so that whatever it needs is refused before training."""
        job = Rehearsal(self.build, self.zoo).rehearse()
        self._rehearsed = True
        return job

    def check(self) -> list[str]:
        """Build everything, run one dry forward, and say what a run would do."""
        return Rehearsal(self.build, self.zoo).check()

    def export_again(self) -> list[dict[str, Any]]:
        """Export the delivered student of a finished run folder, verified on the whole test split."""
        assert self.folder is not None
        check_formats(self.build.plan.exporters, self.data.inputs.kind)
        student = self.folder.read_json("student.json")
        network = self.build.network(delivered_spec(student), load=False)
        path = self.folder.path("student.safetensors")
        network.model.load_state_dict(read_tensors(path, student["sha256"]), strict=True)
        self.data.test_gate.open()
        network.to(self.build.device)
        logits, targets = StoredLogits(self.build).of(network)
        exporting = Exporting(self.build, self.folder, self.control.display.stage)
        return [file.entry for file in exporting.of_student(Measured(STUDENT, network, logits), targets, None)]
