"""A plan from its first teacher to results.json: what is trained, replayed, logged, imported and refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_algorithms import PAPER, Alone, Couple, Match, same_bits

from kdzoo.api import Algorithm, Needs, Stage, Update
from kdzoo.api.export import Exporter, ExportError, TrackedRun, Tracker, Usage
from kdzoo.contract.stage import StageResult
from kdzoo.errors import ContractError, DivergedError, Interrupted, KdzooError, ModelError, NeedsError, ResumeError
from kdzoo.evaluation import verification
from kdzoo.evaluation.measuring import predict
from kdzoo.plan.resolve import ResolvedTracker
from kdzoo.recipe.reading import recipe_hash
from kdzoo.run import delivery, provenance, stage_runner
from kdzoo.run.control import GO_ON
from kdzoo.run.delivered import delivered_spec
from kdzoo.run.exporting import check_rejected
from kdzoo.run.provenance import commit_of_source
from kdzoo.run.rehearsal import Rehearsal
from kdzoo.run.runner import Runner
from kdzoo.run.tracking import Trackers
from kdzoo.storage.atomic import save_ready
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.sealed import read_tensors
from kdzoo.testing.tiny import TEACHER, TINY, tiny_folder, tiny_recipe, tiny_runner
from kdzoo.training.engine import Engine
from kdzoo.zoo.loading import load_zoo

Student = dict[str, torch.Tensor]


class Screen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, state: str) -> None:
        self.stages.append((name, state))

    def progress(self, progress: Any) -> None: ...


@dataclasses.dataclass
class Ran:
    """A finished or interrupted run."""

    runner: Runner
    folder: Path
    screen: Screen
    results: dict[str, Any]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def student(self) -> Student:
        return read_tensors(self.folder / "student.safetensors", self.json("student.json")["sha256"])

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text())


class Place:
    """A folder of runs with a store of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.screen = Screen()

    def runner(self, cls: type[Algorithm] = Match, folder: RunFolder | None = None, **changes: Any) -> Runner:
        return tiny_runner(cls, load_zoo("none"), self.root, changes, folder=folder)

    def run(
        self,
        cls: type[Algorithm] = Match,
        prepare: Callable[[Runner], Any] = lambda runner: None,
        resume: bool = False,
        **changes: Any,
    ) -> Ran:
        """Run in a folder of its own, or resume the latest; ``prepare`` may change the runner before it starts."""
        with tiny_folder(self.root / "out", tiny_recipe(cls, changes), resume=resume) as folder:
            runner = self.runner(cls, folder, **changes)
            self.screen = runner.control.display = Screen()
            prepare(runner)
            with runner.log.until_the_end():
                results = runner.run()
                runner.log.finish(results)
            return Ran(runner, folder.root, self.screen, results)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Runs that may share a store, so that their teacher is trained once."""
    return Place(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that are really trained."""
    trained: list[str] = []

    class Counted(Engine):
        def run(self, *arguments: Any) -> bool:
            trained.append(self.job.name)
            return super().run(*arguments)

    monkeypatch.setattr(stage_runner, "Engine", Counted)
    return trained


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing every network takes longer than everything else of these runs."""
    monkeypatch.setattr(delivery, "measure_latency", lambda calls: {label: {"p50": 1.0, "p95": 2.0} for label in calls})


def refusal(error: type[KdzooError], act: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


def planned(name: str, plan: Callable[[Any], Iterator[Any]], **attributes: Any) -> type[Algorithm]:
    """An algorithm whose stages are those of ``plan``."""
    return type(
        "Planned", (Match,), {"name": name, "stages": classmethod(lambda cls, given: plan(given)), **attributes}
    )


# --- stages ---------------------------------------------------------------------------------------


def test_a_run_trains_teacher_control_and_student_in_turn(shared: Place, engines: list[str]) -> None:
    ran = shared.run(control=True, seed=11)
    assert engines == ["teacher", "control", "student"]
    assert [name for name, state in ran.screen.stages] == ["teacher", "control", "student"]
    assert [stage["name"] for stage in ran.results["stages"]] == ["teacher", "control", "student"]
    assert {label: ran.results[label]["label"] for label in ("teacher", "control", "student")} == {
        label: label for label in ("teacher", "control", "student")
    }
    assert ran.results["paired"] is not None
    assert ran.results["test_evaluations"] == 1
    assert ran.json("results.json") == json.loads(json.dumps(ran.results))


def test_control_false_trains_no_control(shared: Place, engines: list[str]) -> None:
    ran = shared.run(control=False)
    assert (ran.results["control"], ran.results["paired"]) == (None, None)
    assert "control" not in engines
    assert "control" not in {stage["name"] for stage in ran.results["stages"]}


def test_a_second_run_takes_every_stage_from_the_store(place: Place, engines: list[str]) -> None:
    first = place.run(control=True)
    assert len(engines) == 3
    second = place.run(control=True)
    assert len(engines) == 3
    assert {state for _, state in second.screen.stages} == {"taken from the store"}
    assert same_bits(first.student, second.student)
    assert first.log == second.log
    changed = place.run(control=True, seed=1)
    assert len(engines) == 6
    assert not same_bits(first.student, changed.student)


def in_parallel(plan: Any) -> Iterator[Any]:
    stages = [Stage(f"part_{i}", plan.student, plan.own, plan.teachers, salt=f"part_{i}") for i in range(2)]
    results = yield stages
    assert [result.name for result in results] == ["part_0", "part_1"]
    chosen = max(results, key=lambda result: result.name)
    return (yield Stage("student", plan.student, plan.own, (chosen,), start=chosen))


def test_a_list_of_stages_is_answered_by_a_list_of_results(shared: Place, engines: list[str]) -> None:
    ran = shared.run(planned("parallel", in_parallel))
    assert engines[-3:] == ["part_0", "part_1", "student"]
    assert [stage["name"] for stage in ran.results["stages"]] == ["teacher", "part_0", "part_1", "student"]


def test_a_finished_stage_is_not_trained_again_where_a_later_one_is_new(place: Place, engines: list[str]) -> None:
    def chain(last: str) -> Callable[[Any], Iterator[Any]]:
        def plan(given: Any) -> Iterator[Any]:
            first = yield Stage("first", given.student, given.own, given.teachers, salt="first")
            return (yield Stage("student", given.student, given.own, (first,), salt=last))

        return plan

    place.run(planned("chain", chain("a")))
    assert engines == ["teacher", "first", "student"]
    place.run(planned("chain", chain("b")))
    assert engines == ["teacher", "first", "student", "student"]


def test_the_last_result_is_delivered_where_stages_return_none(shared: Place) -> None:
    def forgetful(given: Any) -> Iterator[Any]:
        yield Stage("student", given.student, given.own, given.teachers)

    assert shared.run(planned("forgetful", forgetful)).results["student"]["label"] == "student"


def test_the_last_of_a_list_is_delivered_where_stages_return_none(shared: Place) -> None:
    def forgetful(given: Any) -> Iterator[Any]:
        yield [Stage(name, given.student, given.own, given.teachers, salt=name) for name in ("one", "two")]

    ran = shared.run(planned("forgetful_list", forgetful))
    assert same_bits(ran.student, read_tensors(ran.runner.stages[-1].result.weights["student"]))
    assert ran.runner.stages[-1].result.name == "two"


def test_stages_without_a_result_are_refused(shared: Place) -> None:
    def nothing(given: Any) -> Iterator[Any]:
        return
        yield

    assert refusal(ContractError, lambda: shared.run(planned("nothing", nothing))) == (
        "algorithm 'nothing': stages() ended without a result"
    )


def test_a_plan_tells_models_options_and_results(shared: Place) -> None:
    seen: list[Any] = []

    def looking(given: Any) -> Iterator[Any]:
        seen.append(given)
        first = yield Stage("assistant", given.assistants[0], given.own, given.teachers)
        return (yield Stage("student", given.student, given.own, (first,)))

    ran = shared.run(planned("looking", looking, needs=Needs(teachers=1, assistants=1)))
    (plan,) = seen
    assert [teacher.name for teacher in plan.teachers] == ["teacher"]
    assert (len(plan.assistants), len(plan.peers), plan.delegate) == (1, 0, None)
    assert (plan.own.name, plan.options) == ("looking", Match.Options())
    assert [stage["name"] for stage in ran.results["stages"]] == ["teacher", "assistant", "student"]


def test_a_salt_gives_another_start_and_a_start_another_end(shared: Place) -> None:
    run = shared.runner(Alone)
    plain, salted = (run.train(Stage("a", run.plan.student, salt=salt)) for salt in ("", "salt"))
    further = run.train(Stage("b", run.plan.student, start=plain))
    ends = [read_tensors(result.weights["student"])["fc.weight"] for result in (plain, salted, further)]
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert len({result.key for result in (plain, salted, further)}) == 3


def test_a_stage_s_name_alone_makes_no_new_result(shared: Place, engines: list[str]) -> None:
    run = shared.runner(Alone)
    first = run.train(Stage("one", run.plan.student, salt="name"))
    second = run.train(Stage("two", run.plan.student, salt="name"))
    assert (first.key, engines) == (second.key, ["one"])
    assert (first.name, second.name) == ("one", "two")


def test_a_stage_of_some_samples_never_sees_the_others(shared: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shared.runner(Alone)
    seen: list[int] = []
    context = Engine.context

    def watched(self: Engine, batch: Any, *rest: Any) -> Any:
        seen.extend(batch.index.tolist())
        return context(self, batch, *rest)

    monkeypatch.setattr(Engine, "context", watched)
    targets = run.data.part("train").targets
    chosen = tuple(int(row) for row in np.flatnonzero(targets < 2))
    some = run.train(Stage("some", run.plan.student, samples=chosen, classes=(0, 1)))
    assert set(seen) <= set(chosen)
    assert len(set(seen)) > len(chosen) // 2
    seen.clear()
    run.train(Stage("all", run.plan.student, salt="watched"))
    assert not set(seen) <= set(chosen)
    network = run.build.trained_network(some)
    logits, labels = predict(network, run.loader.eval_batches("validation", 32))
    known = labels < 2
    top1 = 100 * float((logits[known][:, :2].argmax(1) == labels[known]).mean())
    assert some.metrics["top1_percent"] == pytest.approx(top1)


def test_few_labels_are_for_students_all_for_teachers_and_who_reads_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {}
    context = Engine.context

    def watched(self: Engine, batch: Any, *rest: Any) -> Any:
        seen.setdefault(self.job.name, set()).update(batch.index.tolist())
        return context(self, batch, *rest)

    def pairs(given: Any) -> Iterator[Any]:
        first = yield Stage("pairs", given.student, given.own, given.teachers)
        return (yield Stage("student", given.student, start=first))

    def step(self: Any, ctx: Any) -> Iterator[Any]:
        yield Update("student", self.losses(ctx))

    monkeypatch.setattr(Engine, "context", watched)
    cls = planned("pairs", pairs, needs=Needs(data="unlabelled"), step=step)
    ran = place.run(cls, control=True, data={"labelled": 16, "batch_size": 8})
    few = set(ran.runner.data.labelled)
    assert len(few) == 16
    assert seen["control"] == seen["student"] == few
    assert min(len(seen["teacher"] - few), len(seen["pairs"] - few)) > 10


def test_all_samples_by_name_are_all_samples(shared: Place) -> None:
    run = shared.runner(Alone)
    everyone = tuple(range(run.data.num_train))
    one, two = (run.train(Stage("x", run.plan.student, samples=samples)) for samples in (None, everyone))
    ends = [read_tensors(result.weights["student"]) for result in (one, two)]
    assert same_bits(*ends)
    assert one.key != two.key


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (
            {"samples": (0, 0, 1)},
            "a stage's samples must be different rows of the 48 training samples, got 3 of 2 different, from 0 to 1",
        ),
        ({"samples": ()}, "a stage's samples must be different rows of the 48 training samples, got 0 of 0 different"),
        (
            {"samples": (5, 48)},
            "a stage's samples must be different rows of the 48 training samples, got 2 of 2 different, from 5 to 48",
        ),
        ({"classes": (0, 9)}, "a stage's classes must be different ones of 0..3, got [0, 9]"),
        ({"classes": (1, 1)}, "a stage's classes must be different ones of 0..3, got [1, 1]"),
        ({"classes": ()}, "a stage's classes must be different ones of 0..3, got []"),
        ({"classes": (2, 3)}, "a stage that knows the classes [2, 3] has samples of [0, 1]"),
        (
            {"classes": (0, 1, 2, 3), "earlier": (2, 7)},
            "a stage's earlier classes must be some of its classes [0, 1, 2, 3], got [2, 7]",
        ),
        (
            {"earlier": (0, 1, 2, 3)},
            "a stage's earlier classes must be some of its classes [0, 1, 2, 3], got [0, 1, 2, 3]",
        ),
        (
            {"earlier": (1,)},
            "algorithm 'Plain': asked for the task loss, which leaves out the classes of earlier stages, in a stage "
            "that has samples of them",
        ),
    ],
)
def test_samples_and_classes_that_are_not_there_are_refused(stage: Any, problem: str, shared: Place) -> None:
    run = shared.runner(Alone)
    assert refusal(ContractError, lambda: run.train(Stage("x", run.plan.student, **stage))) == problem


def test_a_plan_tells_labels_costs_and_outputs_of_training_samples(shared: Place) -> None:
    run = shared.runner(Alone)
    plan = run.stage_plan(())
    assert plan.targets == tuple(run.data.part("train").targets.tolist())
    assert (plan.num_classes, plan.seed, plan.folder) == (len(run.data.classes), 0, None)
    assert plan.train["epochs"] == run.recipe.train.epochs
    assert plan.train["optimizer"]["lr"] == run.recipe.train.optimizer.lr
    network = run.build.network(run.plan.student)
    assert plan.costs(run.plan.student).macs_g == network.macs / 1e9
    assert plan.costs(run.plan.student).params_m == sum(p.numel() for p in network.model.parameters()) / 1e6
    result = run.train(Stage("x", run.plan.student))
    outputs = plan.outputs(result, (3, 1))
    trained = run.build.trained_network(result).eval()
    images = next(iter(run.loader.eval_batches("train", 8))).inputs
    with torch.no_grad():
        expected = trained(images, pre_logits=True)
    torch.testing.assert_close(outputs.logits, expected.logits[[3, 1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.pre_logits, expected.pre_logits[[3, 1]], rtol=1e-4, atol=1e-5)


def test_a_plan_without_data_or_labels_tells_none(shared: Place) -> None:
    blind = type("Blind", (Alone,), {"name": "blind", "needs": Needs(teachers=0, data="none")})
    plan = shared.runner(blind).stage_plan(())
    assert plan.targets == ()
    result = shared.runner(Alone).train(Stage("x", shared.runner(Alone).plan.student))
    assert refusal(ContractError, lambda: plan.outputs(result, (0,))) == (
        "algorithm 'blind': asked for outputs of training samples, but declared to read no data"
    )
    unlabelled = type("Unlabelled", (Alone,), {"name": "unlabelled", "needs": Needs(teachers=0, data="unlabelled")})
    assert set(shared.runner(unlabelled).stage_plan(()).targets) == {-1}


# --- results --------------------------------------------------------------------------------------


class Crowd(Match):
    name, needs = "crowd", Needs(teachers=(2, None), features=True)

    def losses(self, ctx: Any) -> dict[str, torch.Tensor]:
        mean = torch.stack([teacher.logits for teacher in ctx.teachers]).mean(0)
        return {"match": (ctx.student.logits - mean).square().mean()}


#: Two teachers that have hardly learnt and disagree.
HARDLY = {"optimizer": {"lr": 1e-5}}
TWO = {
    "models": {
        "teachers": [
            {"name": TINY, "args": TEACHER, "train": HARDLY},
            {"name": TINY, "args": {**TEACHER, "stem_width": 12}, "train": HARDLY},
        ]
    }
}


@pytest.fixture(scope="module")
def crowd(shared: Place) -> Ran:
    return shared.run(Crowd, **TWO)


def test_several_teachers_are_all_measured(crowd: Ran) -> None:
    results = crowd.results
    assert [entry["label"] for entry in results["teachers"]] == ["teacher 0", "teacher 1"]
    assert results["teacher"] == results["teachers"][0]
    assert [stage["name"] for stage in results["stages"]] == ["teacher_0", "teacher_1", "student"]


def test_agreement_is_with_the_mean_of_the_teachers(crowd: Ran) -> None:
    run = crowd.runner
    logits = []
    for trained in run.stages:
        network = run.build.trained_network(trained.result)
        logits.append(predict(network, run.loader.eval_batches("test", 32))[0])
    reference = np.mean(logits[:2], axis=0)
    assert (reference.argmax(1) != logits[0].argmax(1)).any()
    agreement = 100 * float((reference.argmax(1) == logits[2].argmax(1)).mean())
    assert crowd.results["student"]["agreement_percent"] == pytest.approx(agreement)


def test_pairing_is_told_for_each_stage_that_pairs(crowd: Ran) -> None:
    (lines,) = crowd.results["pairing"].values()
    assert list(crowd.results["pairing"]) == ["student"]
    assert lines[0] == "stride 2: act1 (16, 8, 8) <- act1 (16, 8, 8) <- act1 (24, 8, 8)"


def test_a_single_teacher_has_no_list(shared: Place) -> None:
    results = shared.run().results
    assert (results["teachers"], results["teacher"]["label"], results["pairing"]) == ([], "teacher", {})


def test_peers_are_delivered_and_measured(shared: Place) -> None:
    ran = shared.run(Couple)
    assert [entry["label"] for entry in ran.results["peers"]] == ["peer 0"]
    assert ran.results["teacher"] is None
    assert ran.results["student"]["agreement_percent"] is None
    result = ran.runner.stages[-1].result
    assert sorted(result.weights) == ["peer_0", "student"]
    assert not same_bits(*(read_tensors(path) for path in result.weights.values()))


def test_the_student_on_disk_says_how_to_build_it(shared: Place) -> None:
    import timm

    ran = shared.run()
    told = ran.json("student.json")
    model = timm.create_model(told["model"], **told["args"])
    model.load_state_dict(ran.student, strict=True)
    assert (told["classes"], told["channels"], told["size"]) == ([f"stripe {k}" for k in range(4)], 3, [16, 16])
    assert told["imports"] is None


def test_a_student_that_the_algorithm_chose_is_told_measured_and_exported_again(shared: Place) -> None:
    def plan(given: Any) -> Iterator[Any]:
        return (yield Stage("wide", dataclasses.replace(given.student, args=TEACHER), given.own, given.teachers))

    ran = shared.run(planned("wide", plan, chooses_student=True))
    told = ran.json("student.json")
    assert {key: told["args"][key] for key in TEACHER} == TEACHER
    assert ran.results["student"]["params_m"] == ran.results["teacher"]["params_m"]
    assert ran.results["same_network"] is True  # there is no control to differ from
    spec = delivered_spec(told)
    assert (spec.name, dict(spec.args)) == ("test_resnet", {"in_chans": 3, **TEACHER})
    assert (spec.mean, spec.std, spec.size) == ((0.5,) * 3, (0.25,) * 3, 16)
    again = ran.runner.build.network(spec)
    again.model.load_state_dict(ran.student, strict=True)
    with tiny_folder(shared.root / "again") as folder:
        for name in ("student.safetensors", "student.json"):
            shutil.copy(ran.folder / name, folder.path(name))
        runner = shared.runner(planned("wide", plan), folder)
        assert runner.export_again() == []  # no format is asked for, but the network was rebuilt and answered


class Written(Exporter):
    """Writes the weights, and answers with the class of each sample, or another one."""

    name, suffix, tolerance_logits = "written", ".txt", None
    quantizes, shift = True, 0

    def export(self, model: Any, example: Any, path: Path, metadata: Any, calibration: Any) -> None:
        if self.shift > 1:
            raise ExportError("written: cannot be exported")
        path.write_text("weights")

    def load(self, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda inputs: np.zeros((len(inputs), 4), dtype=np.float32)

    def usage(self, file: str, kind: str) -> Usage:
        return Usage("With nothing", f"open({file!r})  # {kind}")


class Wrong(Written):
    shift = 1

    @property
    def label(self) -> str:
        return "wrong"


class Broken(Written):
    shift = 2

    @property
    def label(self) -> str:
        return "broken"


def exporting(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run export in three formats, of which the second answers wrongly and the third writes nothing."""
    exporters = [cls(cls.Options()) for cls in (Written, Wrong, Broken)]
    run.build.plan = dataclasses.replace(run.plan, exporters=exporters)

    def check(exporter: Any, path: Path, plain: Any, inputs: Any, targets: Any, logits: Any, *rest: Any) -> Any:
        return (["wrong by 3 points"], None) if exporter.shift else ([], logits)

    monkeypatch.setattr(verification, "check", check)


def test_a_rejected_file_costs_that_file_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = place.run(prepare=lambda run: exporting(run, monkeypatch))
    good, wrong, broken = ran.results["exports"]
    about = {"model": "test_resnet", "network": "student", "index": 0, "format": "written", "of": "student"}
    assert {key: good[key] for key in about} == {key: wrong[key] for key in about} == about
    assert [entry["label"] for entry in (good, wrong, broken)] == ["written", "written wrong", "written broken"]
    assert [entry["quantize"] for entry in (good, wrong, broken)] == [None, "wrong", "broken"]
    assert (good["file"], good["rejected"]) == ("student.txt", [])
    assert good["usage"] == {"title": "With nothing", "code": "open('export/student.txt')  # image"}
    assert (wrong["file"], wrong["rejected"]) == ("student.wrong.txt.rejected", ["wrong by 3 points"])
    assert (broken["file"], broken["rejected"]) == (None, ["written: cannot be exported"])
    for entry in (wrong, broken):
        assert (entry["top1_percent"], entry["latency_ms"], entry["usage"]) == (None, None, None)
    assert sorted(path.name for path in (ran.folder / "export").iterdir()) == [
        "student.txt",
        "student.wrong.txt.rejected",
    ]
    assert good["latency_ms"] is not None
    assert ran.json("results.json") == json.loads(json.dumps(ran.results))
    assert set(ran.results["usage"]) == {"kind", "inputs", "title", "code"}
    assert ran.student
    assert ("export written wrong", "rejected: wrong by 3 points") in ran.screen.stages
    with pytest.raises(ExportError):
        check_rejected(ran.results["exports"])


def test_a_format_that_does_not_take_such_data_is_refused_before_training(place: Place) -> None:
    class ForText(Written):
        takes = ("text", "measurements")

    def prepare(run: Runner) -> None:
        run.build.plan = dataclasses.replace(run.plan, exporters=[ForText(ForText.Options())])
        run.rehearse()

    with pytest.raises(NeedsError) as caught:
        place.run(prepare=prepare)
    assert str(caught.value) == "export format 'written': takes text and measurements; the data set has image"


def test_every_network_says_what_it_is(crowd: Ran) -> None:
    results = crowd.results
    entries = [*results["teachers"], results["student"]]
    assert [(entry["network"], entry["index"]) for entry in entries] == [("teacher", 0), ("teacher", 1), ("student", 0)]
    assert all(entry[key] is None for entry in entries for key in ("format", "quantize", "of"))


def test_it_is_told_whether_control_and_student_are_the_same_network(shared: Place) -> None:
    def plan(given: Any) -> Iterator[Any]:
        return (yield Stage("wide", dataclasses.replace(given.student, args=TEACHER), given.own, given.teachers))

    def larger(given: Any) -> Iterator[Any]:
        return (yield Stage("large", dataclasses.replace(given.student, size=24), given.own, given.teachers))

    told = [shared.run(cls, control=True).results["same_network"] for cls in (Match, planned("wide", plan))]
    assert told == [True, False]
    assert shared.run(planned("larger", larger), control=True).results["same_network"] is False


# --- before any training --------------------------------------------------------------------------


def rehearsed(place: Place, plan: Callable[[Any], Iterator[Any]]) -> Any:
    return place.runner(planned("rehearsed", plan)).rehearse()[0]


def test_the_first_stage_of_a_plan_is_what_is_rehearsed(shared: Place) -> None:
    def plan(given: Any) -> Iterator[Any]:
        wide = dataclasses.replace(given.student, args=TEACHER)
        alone = Stage("alone", given.student)
        return (yield [alone, Stage("first", wide, given.own, given.teachers, train={"epochs": 3})])[1]

    job = rehearsed(shared, plan)
    assert (job.name, job.train.epochs, len(job.teachers)) == ("first", 3, 1)
    assert dict(job.student.spec.args) == TEACHER


def later(given: Any) -> Iterator[Any]:
    first = yield Stage("first", given.student)
    return (yield Stage("second", given.student, given.own, (first,)))


def reading(given: Any) -> Iterator[Any]:
    given.outputs(given.teachers[0], [0])
    yield from later(given)


def judging(given: Any) -> Iterator[Any]:
    assert given.teachers[0].metrics["top1_percent"] > 0
    yield from later(given)


def asking(question: Callable[[Mapping[str, float]], Any]) -> Callable[[Any], Iterator[Any]]:
    """A plan that takes another branch where a teacher's metrics are empty."""

    def plan(given: Any) -> Iterator[Any]:
        question(given.teachers[0].metrics)
        yield from later(given)

    return plan


def beginning(given: Any) -> Iterator[Any]:
    return (yield Stage("begun", given.student, given.own, given.teachers, start=given.teachers[0]))


def nothing(given: Any) -> Iterator[Any]:
    yield from ()


def goes_on(given: Any) -> Iterator[Any]:
    first, _ = yield [Stage("first", given.student), Stage("other", given.student)]
    return (yield Stage("second", given.student, given.own, (first,), start=first))


@pytest.mark.parametrize("plan", [later, goes_on])
def test_stages_before_an_algorithms_own_are_taken_for_trained(
    plan: Callable[[Any], Iterator[Any]], shared: Place
) -> None:
    job = rehearsed(shared, plan)
    student = shared.runner().plan.student
    assert (job.name, job.student.spec) == ("second", student)
    assert [teacher.network.spec for teacher in job.teachers] == [student]


#: Every way to look at metrics: none may answer for a network that is not trained.
QUESTIONS: list[Callable[[Any], Any]] = [
    lambda metrics: "top1_percent" in metrics,
    lambda metrics: metrics.get("top1_percent", 0.0),
    lambda metrics: list(metrics),
    lambda metrics: list(metrics.items()),
    lambda metrics: {**metrics},
    lambda metrics: metrics | {"more": 1.0},
    lambda metrics: len(metrics),
    lambda metrics: not metrics,
    lambda metrics: metrics == {},
    lambda metrics: metrics != {},
]


@pytest.mark.parametrize("plan", [reading, judging, beginning, nothing, *map(asking, QUESTIONS)])
def test_a_plan_that_depends_on_training_is_rehearsed_as_one_stage(
    plan: Callable[[Any], Iterator[Any]], shared: Place
) -> None:
    job = rehearsed(shared, plan)
    assert (job.name, job.student.spec, len(job.teachers)) == ("student", shared.runner().plan.student, 1)


def test_what_a_plan_refuses_is_refused_before_training(shared: Place) -> None:
    def picky(given: Any) -> Iterator[Any]:
        raise NeedsError("not with this student")
        yield

    assert refusal(NeedsError, lambda: rehearsed(shared, picky)) == "not with this student"


def test_a_run_is_rehearsed_once(shared: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsals: list[Any] = []
    whole = Rehearsal.rehearse
    monkeypatch.setattr(Rehearsal, "rehearse", lambda self: rehearsals.append(self) or whole(self))
    rounding = type("Rounding", (Match,), {"name": "rounding", "quantizer": "int8"})
    shared.run(rounding)
    assert len(rehearsals) == 1
    shared.run(rounding, prepare=lambda run: run.rehearse())
    assert len(rehearsals) == 2


def test_a_rehearsal_leaves_no_folder_and_no_open_generator(place: Place) -> None:
    closed: list[bool] = []

    def plan(given: Any) -> Iterator[Any]:
        assert given.folder is None
        try:
            yield Stage("first", given.student, given.own, given.teachers)
        finally:
            closed.append(True)

    rehearsed(place, plan)
    assert closed == [True]
    assert not (place.root / "out").exists()


def test_provenance_says_what_it_takes_to_repeat_the_run(shared: Place) -> None:
    ran = shared.run(seed=3)
    told = ran.json("provenance.json")
    assert (told["seed"], told["processes"], told["commit"]) == (3, 1, commit_of_source())
    assert told["environment"] == ran.runner.build.environment
    assert told["recipe_hash"] == recipe_hash(ran.runner.recipe)
    assert (told["data"]["name"], told["data"]["source"]) == ("stripes", "made by kdzoo.testing")
    assert told["data"]["splits"] == {"train": 48, "validation": 16}  # written before the test split was opened


def test_the_commit_is_marked_where_the_checkout_has_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "kdzoo" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr(provenance.version, "__file__", str(package))
    assert commit_of_source() is None  # installed, not checked out

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    git("add", "kdzoo")
    git("commit", "-m", "one", "--no-gpg-sign")
    assert re.fullmatch(r"[0-9a-f]{12}", commit_of_source() or "")
    package.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{12}\+changes", commit_of_source() or "")


# --- teachers -------------------------------------------------------------------------------------


def test_a_teacher_below_its_least_accuracy_stops_the_run(shared: Place, engines: list[str]) -> None:
    run = shared.runner()
    top1 = run.train(Stage("teacher", run.plan.teachers[0])).metrics["top1_percent"]
    engines.clear()
    assert refusal(ModelError, lambda: shared.run(min_teacher_top1_percent=99.5)) == (
        f"teacher 'test_resnet': {top1:.2f} % on the validation split, below min_teacher_top1_percent: 99.5; check its "
        "weights and its input normalisation (mean, std, size)"
    )
    assert engines == []  # not even the control
    assert shared.run(min_teacher_top1_percent=top1).results["student"]


def test_a_teacher_worse_than_the_control_is_warned_of(place: Place) -> None:
    hardly = {"models": {"teachers": [{"name": TINY, "args": TEACHER, "train": {"optimizer": {"lr": 1e-6}}}]}}
    ran = place.run(control=True, train={"epochs": 3}, **hardly)
    teacher, control = (trained.result.metrics["top1_percent"] for trained in ran.runner.stages[:2])
    assert teacher < control
    text = (
        f"teacher 'test_resnet': {teacher:.2f} % on the validation split, below the control's {control:.2f} %; it "
        "knows less than the student learns alone, so check its weights and its input normalisation (mean, std, size)"
    )
    assert ran.results["warnings"].count(text) == 1
    assert f"warning: {text}" in ran.screen.notes


def test_no_teacher_is_compared_without_a_control_or_with_an_upper_bound(shared: Place) -> None:
    def result(top1: float) -> StageResult:
        return StageResult("teacher", "key", shared.runner().plan.teachers[0], {}, {"top1_percent": top1})

    upper = type("Upper", (Match,), {"name": "upper", "upper_bound": "on everything"})
    for run, control in (
        (shared.runner(), None),
        (shared.runner(), result(50.0)),
        (shared.runner(upper), result(99.0)),
    ):
        run.walk.compare_with_control((result(50.0),), control)
        assert run.warnings == []


def with_weights(path: Path, **model: Any) -> dict[str, Any]:
    return {"models": {"teachers": [{"name": TINY, "args": TEACHER, "weights": str(path), **model}]}}


@pytest.fixture(scope="module")
def ready(shared: Place) -> Mapping[str, torch.Tensor]:
    """Weights of a teacher that was trained elsewhere."""
    run = shared.runner()
    return read_tensors(run.train(Stage("teacher", run.plan.teachers[0], salt="elsewhere")).weights["student"])


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_of_weights_is_imported_and_taught_from(
    kind: str, ready: Mapping[str, torch.Tensor], place: Place, engines: list[str]
) -> None:
    from safetensors.torch import save_file

    path = place.root / f"teacher.{kind}"
    save_file(dict(ready), path) if kind == "safetensors" else torch.save({"state_dict": dict(ready)}, path)
    ran = place.run(**with_weights(path))
    assert engines == ["student"]
    assert ran.screen.stages[0] == ("teacher", "weights loaded")
    teacher = ran.runner.stages[0]
    assert same_bits(read_tensors(teacher.result.weights["student"]), dict(ready))
    assert teacher.facts == {"imported": str(path)}
    assert ran.results["stages"][0]["imported"] == str(path)
    assert set(teacher.result.metrics) == {"top1_percent"}
    place.run(**with_weights(path))
    assert engines == ["student"]  # nothing is trained twice
    before = set((place.root / "store" / "stage").iterdir())
    torch.save({**ready, "fc.bias": ready["fc.bias"] + 1}, place.root / "other.pt")
    place.run(**with_weights(place.root / "other.pt"))
    assert engines == ["student", "student"]
    assert len(set((place.root / "store" / "stage").iterdir()) - before) == 2


def test_an_imported_teacher_keeps_its_own_normalisation(ready: Mapping[str, torch.Tensor], place: Place) -> None:
    path = place.root / "teacher.pt"
    torch.save(dict(ready), path)
    own = {"preprocessing": {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.2, 0.2]}}
    usual, other = (place.run(**with_weights(path, **settings)) for settings in ({}, own))
    assert usual.results["teacher"]["ece"] != other.results["teacher"]["ece"]
    first, second = (ran.runner.stages[0].result for ran in (usual, other))
    assert first.key != second.key
    assert other.runner.build.trained_network(second).mean == (0.3, 0.4, 0.5)


def test_weights_that_do_not_fit_are_refused(place: Place, ready: Mapping[str, torch.Tensor]) -> None:
    path = place.root / "teacher.pt"
    torch.save({key: value for key, value in ready.items() if key != "fc.bias"}, path)
    assert refusal(ModelError, lambda: place.run(**with_weights(path))) == (
        f"{path}: not weights of 'test_resnet' with 4 classes\n  missing: fc.bias"
    )


# --- the log --------------------------------------------------------------------------------------


class Recorder(Tracker):
    """Remembers what it is told."""

    name = "recorder"
    told: ClassVar[list[Any]] = []
    tracks: ClassVar[TrackedRun]

    def start(self, folder: Path) -> None:
        Recorder.tracks = self.run
        self.told.append(("start", folder.is_dir()))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.told.append((stage, step, dict(values)))

    def finish(self, state: str, results: Mapping[str, Any]) -> None:
        self.told.append((state, bool(results)))

    def close(self) -> None:
        self.told.append(("close",))


def chosen(*classes: type[Tracker]) -> list[ResolvedTracker]:
    return [ResolvedTracker(cls, cls.Options()) for cls in classes]


def tracked(run: Runner) -> None:
    Recorder.told.clear()
    run.log.trackers = Trackers(chosen(Recorder), run._warn)


EPOCHS = {"train": {"epochs": 2}}


def test_rows_are_logged_once_each_in_order_and_tracked_alike(place: Place) -> None:
    ran = place.run(prepare=tracked, control=True, **EPOCHS)
    assert [(row["stage"], row["epoch"], row["step"], row["split"]) for row in ran.log] == [
        (stage, epoch, 4 * (epoch + 1), split)
        for stage in ("teacher", "control", "student")
        for epoch in (0, 1)
        for split in ("train", "validation")
    ]
    assert set(ran.log[-2]) == {"stage", "epoch", "step", "split", "task", "match", "grad_norm", "lr"}
    assert set(ran.log[-1]) == {"stage", "epoch", "step", "split", "top1_percent"}
    start, *rows, close, end = Recorder.told
    assert (start, close, end) == (("start", True), ("close",), ("finished", True))
    assert [(stage, step) for stage, step, _ in rows] == [(row["stage"], row["step"]) for row in ran.log]
    assert rows[-1][2] == {"validation/top1_percent": ran.log[-1]["top1_percent"]}
    assert rows[-2][2]["match"] == ran.log[-2]["match"]
    again = place.run(prepare=tracked, control=True, **EPOCHS)  # from the store: the same rows
    assert again.log == ran.log
    assert Recorder.told[1:-2] == rows


def test_trackers_are_closed_where_a_run_fails(shared: Place) -> None:
    refusal(ModelError, lambda: shared.run(prepare=tracked, min_teacher_top1_percent=99.5))
    assert Recorder.told[-2:] == [("close",), ("failed", False)]


def test_trackers_learn_which_run_they_track_and_that_it_was_stopped(place: Place) -> None:
    def stopped(run: Runner) -> None:
        tracked(run)
        stopping("student", 2)(run)

    refusal(Interrupted, lambda: place.run(prepare=stopped, **EPOCHS))
    assert Recorder.told[-2:] == [("close",), ("stopped", False)]
    first = Recorder.tracks
    place.run(prepare=tracked, resume=True, **EPOCHS)
    second = Recorder.tracks
    assert (first.id, first.folder) == (second.id, second.folder)
    assert re.fullmatch("[0-9a-f]{32}", first.id)
    assert (first.resumed, second.resumed) == (False, True)
    assert (first.name, first.seed, first.recipe["train"]["epochs"]) == ("conformance", 0, 2)


class Failing(Recorder):
    """Fails at one of the things that a tracker does."""

    name = "failing"
    at: ClassVar[str] = ""
    error: ClassVar[BaseException] = OSError(28, "No space left on device")

    def __init__(self) -> None:
        self.check("made")

    def start(self, folder: Path) -> None:
        self.check("start")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.check("log")

    def finish(self, state: str, results: Mapping[str, Any]) -> None:
        self.check("finish")

    def close(self) -> None:
        self.check("close")

    def check(self, what: str) -> None:
        self.told.append((self.name, what))
        if what == self.at:
            raise self.error


def test_a_tracker_that_fails_is_dropped_with_one_warning_and_training_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = place.run(prepare=tracked, **EPOCHS)
    rows = list(Recorder.told)
    for at in ("made", "start", "log", "finish", "close"):
        monkeypatch.setattr(Failing, "at", at)

        def both(run: Runner) -> None:
            Recorder.told.clear()
            run.log.trackers = Trackers(chosen(Failing, Recorder), run._warn)

        ran = place.run(prepare=both, **EPOCHS)
        text = "tracker 'failing' failed and was dropped: OSError: [Errno 28] No space left on device"
        said = ran.results["warnings"] if at != "finish" else ran.runner.warnings
        assert [warning for warning in said if "tracker" in warning] == [text]
        assert [told for told in Recorder.told if told[0] != "failing"] == rows, "the other one hears everything"
        assert Recorder.told.count(("failing", at)) == 1
        assert ran.log == usual.log


def test_whatever_a_tracker_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, told in (
        (SystemExit(3), "SystemExit: 3"),
        (RuntimeError(), "RuntimeError: no reason given"),
        (ValueError("a\nb\x1b[2J" + "c" * 300), "ValueError: a b\\x1b[2J" + "c" * 190 + "..."),
    ):
        monkeypatch.setattr(Failing, "error", error)
        monkeypatch.setattr(Failing, "at", "log")
        warnings: list[str] = []
        trackers = Trackers(chosen(Failing), warnings.append)
        for step in range(3):
            trackers.log("student", step, {})
        trackers.close()
        trackers.finish("finished", {})
        assert warnings == [f"tracker 'failing' failed and was dropped: {told}"]


# --- stopped, and resumed -------------------------------------------------------------------------


def stopping(stage: str, step: int, number: int = 15) -> Callable[[Runner], None]:
    """Make a runner stop by a signal in a stage after a step."""

    def prepare(run: Runner) -> None:
        reached = [False]

        def progress(told: Any) -> None:
            reached[0] = reached[0] or (told.stage == stage and told.step >= step and not told.end_of_epoch)

        run.control.display.progress = progress  # type: ignore[method-assign]
        run.control.stop = lambda: number if reached[0] else 0

    return prepare


@pytest.mark.parametrize(
    ("stage", "step"), [("teacher", 3), ("student", 2), ("student", 4), ("student", 7), ("student", 8)]
)
def test_a_stopped_run_resumes_to_the_same_bits(stage: str, step: int, tmp_path: Path, unbroken: Ran) -> None:
    place = Place(tmp_path)
    with pytest.raises(Interrupted) as caught:
        place.run(prepare=stopping(stage, step), **EPOCHS)
    assert str(caught.value) == f"stopped in stage '{stage}' at step {step}; {GO_ON}"
    assert caught.value.exit_code == 143
    ran = place.run(resume=True, **EPOCHS)
    assert ran.screen.notes == [f"stage '{stage}' resumed at step {step}"]
    assert same_bits(ran.student, unbroken.student)
    assert (ran.folder / "metrics.jsonl").read_bytes() == (unbroken.folder / "metrics.jsonl").read_bytes()
    assert not list((ran.folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Place(tmp_path_factory.mktemp("unbroken")).run(**EPOCHS)


def test_a_signal_between_stages_is_heeded_with_its_number(shared: Place) -> None:
    with pytest.raises(Interrupted) as caught:
        shared.run(prepare=lambda run: setattr(run.control, "stop", lambda: 2))
    assert (str(caught.value), caught.value.exit_code) == (f"stopped before stage 'teacher'; {GO_ON}", 130)


def interrupted(place: Place) -> None:
    with pytest.raises(Interrupted):
        place.run(prepare=stopping("student", 2), **EPOCHS)


def test_a_changed_environment_refuses_the_resume(place: Place) -> None:
    interrupted(place)
    changed = lambda run: run.build.environment.update(threads=99)  # noqa: E731
    assert refusal(ResumeError, lambda: place.run(prepare=changed, resume=True, **EPOCHS)) == (
        "stage 'student' was begun by other code, versions, threads or hardware than now, so it cannot be continued "
        "bit for bit; start a new run with --new"
    )
    assert place.run(resume=True, **EPOCHS).results["student"]  # as it was, it goes on


def test_another_number_of_processes_refuses_the_resume(place: Place) -> None:
    interrupted(place)
    with tiny_folder(place.root / "out", tiny_recipe(Match, EPOCHS), resume=True) as folder:
        run = place.runner(Match, folder, **EPOCHS)
        teacher = run.train(Stage("teacher", run.plan.teachers[0]))
        stage = Stage("student", run.plan.student, run.plan.algorithm.choice, (teacher,))
        job, _ = run.build.job(stage, run.plan.algorithm, run.build.train_section(stage))
        engine = Engine(job)
        run.ranks.world = 2
        assert refusal(ResumeError, lambda: run.stage_runner.restore(engine, "student", "any key")) == (
            "stage 'student' was begun by 1 processes and cannot be continued by 2; start 1, or a new run with --new"
        )


def test_what_diverged_is_written_down(shared: Place) -> None:
    class Exploding(Match):
        name, paper = "exploding", PAPER

        def losses(self, ctx: Any) -> dict[str, torch.Tensor]:
            return {"match": ctx.student.logits.sum() / (ctx.clock.step < 2)}

    with pytest.raises(DivergedError):
        shared.run(Exploding)
    folder = max((shared.root / "out" / "run").glob("[0-9]*"))
    told = json.loads((folder / "nan_dump.json").read_text())
    assert (told["stage"], told["step"], len(told["sample_indices"])) == ("student", 2, 8)


def test_a_changed_teacher_is_noticed_at_the_end_of_a_stage(shared: Place) -> None:
    class Vandal(Match):
        name = "vandal"

        def update(self, ctx: Any) -> None:
            ctx.modules["teacher"].fc.bias.data += 1

    text = refusal(KdzooError, lambda: shared.run(Vandal))
    assert text == "stage 'student': the teacher's weights or buffers changed during training"


# --- selection ------------------------------------------------------------------------------------


def test_a_stage_s_metrics_are_those_of_the_weights_it_delivers(shared: Place) -> None:
    """A teacher is judged, and a report written, by the epoch that was kept."""
    scores, ends = iter([50.0, 80.0, 60.0]), []

    def validate(network: Any) -> dict[str, float]:
        ends.append({key: value.clone() for key, value in network.model.state_dict().items()})
        return {"top1_percent": next(scores)}

    scripted = lambda run: setattr(run.build, "validator", lambda precision, classes: validate)  # noqa: E731
    ran = shared.run(Alone, prepare=scripted, train={"epochs": 3, "select": "best", "label_smoothing": 0.1})
    result: StageResult = ran.runner.stages[-1].result
    assert result.metrics == {"top1_percent": 80.0}
    assert ran.results["stages"][-1]["best_epoch"] == 1
    assert same_bits(ran.student, ends[1])


def test_delivered_weights_are_ready_to_save(shared: Place) -> None:
    weights = shared.run().student
    assert save_ready(weights).keys() == weights.keys()
    assert all(value.is_contiguous() for value in weights.values())


# --- without training -----------------------------------------------------------------------------


def test_check_says_what_a_run_would_do_and_trains_nothing(place: Place, engines: list[str]) -> None:
    lines = place.runner(Crowd, **TWO).check()
    assert lines[0] == "data      stripes: 4 classes, train 48, validation 16"
    assert lines[1].startswith("teacher 0 test_resnet: ")
    assert lines[1].endswith("input 16x16, mean 0.5/0.5/0.5, std 0.25/0.25/0.25, fp32")
    assert [line.split(" test_resnet")[0].strip() for line in lines[1:4]] == ["teacher 0", "teacher 1", "student"]
    assert "paired    stride 2: act1 (16, 8, 8) <- act1 (16, 8, 8) <- act1 (24, 8, 8)" in lines
    assert "steps     1 epochs of 4 steps, on cpu" in lines
    assert re.fullmatch(r"forward   task [\d.]+, match [\d.]+", lines[-1])
    assert engines == []
    assert not list((place.root / "store").glob("stage/*"))
