"""Many runs by an executor: each stage once, the bits of single runs, failures that stay where they are, going on."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from inline_executor import Apart, Inline

from kdzoo.errors import DivergedError, ExecutorError, Interrupted, LostError
from kdzoo.plan.resolve import resolve
from kdzoo.recipe.bundled import find_recipe
from kdzoo.recipe.reading import load_recipe
from kdzoo.run import delivery, elsewhere
from kdzoo.run.replay import Replay
from kdzoo.run.running import run_plan
from kdzoo.run.stage_task import StageTask, train_stage
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.storage.unfinished import Claim, place_of
from kdzoo.study import driver
from kdzoo.study.driver import run_all
from kdzoo.study.wanted import Overview, RunOutcome, Unwatched, WantedRun
from kdzoo.terminal import Display
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.loading import load_zoo

SMALL = ["train.epochs=2", "data.train_limit=192", "trackers=[]", "threads=1", "device=cpu"]


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing every network takes longer than everything else of these runs."""
    monkeypatch.setattr(delivery, "measure_latency", lambda calls: {label: {"p50": 1.0, "p95": 2.0} for label in calls})


def runs(*algorithms: str, seeds: int = 2, changes: tuple[str, ...] = ()) -> list[WantedRun]:
    found = []
    for algorithm in algorithms:
        path = find_recipe(Path(f"digits/{algorithm}"))
        found += [WantedRun(algorithm, load_recipe(path, [*SMALL, *changes, f"seed={seed}"])) for seed in range(seeds)]
    return found


class Heard(Unwatched):
    """What the driver said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.last = Overview((), 0, 0, 0, 0, 0)

    def note(self, text: str, tone: str = "") -> None:
        self.notes.append(text)

    def overview(self, overview: Overview) -> None:
        self.last = overview


def drive(out: Path, executor: Inline, *algorithms: str, **given: object) -> list[RunOutcome]:
    wanted = runs(*algorithms, **{key: given.pop(key) for key in ("seeds", "changes") if key in given})  # type: ignore[arg-type]
    return run_all(wanted, executor, out, load_zoo(), **given)  # type: ignore[arg-type]


def lasting(folder: Path) -> dict[str, str]:
    names = ("student.safetensors", "metrics.jsonl", "recipe.yaml")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the second algorithm leaves for the second seed, run alone."""
    out = tmp_path_factory.mktemp("single")
    zoo, wanted = load_zoo(), runs("dkd")[1]
    folder, _, _ = run_plan(
        resolve(wanted.loaded, zoo), zoo, out, Ranks(), Display(silent=True), lambda: 0, new=False, resume=False
    )
    return lasting(folder)


# --- what is trained ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inline, list[RunOutcome], Heard]:
    out, executor, heard = tmp_path_factory.mktemp("done"), Inline(), Heard()
    return out, executor, drive(out, executor, "kd", "dkd", watch=heard), heard


def test_what_runs_share_is_trained_once(done: tuple[Path, Inline, list[RunOutcome], Heard]) -> None:
    _, executor, outcomes, heard = done
    stages = Counter(name.rpartition(" ")[2] for name in executor.names)
    assert stages == {"teacher": 2, "control": 2, "student": 4, "evaluation": 4}
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert heard.last == Overview([], 8, 8, 4, 4, 0)
    assert "digits-kd seed 0: teacher: trained" in " ".join(heard.notes)


def test_a_run_of_a_study_has_the_bits_of_a_single_one(
    done: tuple[Path, Inline, list[RunOutcome], Heard], single: dict[str, str]
) -> None:
    folder = done[2][3].folder
    assert folder is not None
    assert lasting(folder) == single
    assert RunFolder.view(folder).verify() > 5


def test_a_finished_run_is_not_made_again(done: tuple[Path, Inline, list[RunOutcome], Heard]) -> None:
    out, _, before, _ = done
    executor = Inline()
    again = drive(out, executor, "kd", "dkd", "dist")
    assert [name for name in executor.names if "dist" not in name] == []
    assert Counter(name.rpartition(" ")[2] for name in executor.names) == {"student": 2, "evaluation": 2}
    assert [outcome.finished_before for outcome in again] == [True] * 4 + [False] * 2
    for old, new in zip(before, again, strict=False):
        assert (old.folder, old.results, old.training_pmacs) == (new.folder, new.results, new.training_pmacs)


def test_the_compute_counts_the_teachers_training_and_forward_passes(
    done: tuple[Path, Inline, list[RunOutcome], Heard],
) -> None:
    outcome = done[2][0]
    assert outcome.results is not None
    assert outcome.training_pmacs is not None
    samples = 2 * 3 * 64  # epochs, steps, batch
    student, teacher = (1e9 * outcome.results[name]["macs_g"] for name in ("student", "teacher"))
    wanted = {"student": samples * (3 * student + teacher), "teacher": samples * 3 * teacher, "search": 0.0}
    wanted["total"] = sum(wanted.values())
    assert {name: value * 1e15 for name, value in outcome.training_pmacs.items()} == pytest.approx(wanted, rel=1e-3)


def test_stages_alone_leave_no_run_folders(tmp_path: Path) -> None:
    executor = Inline()
    (outcome,) = drive(tmp_path, executor, "kd", seeds=1, finish=False)
    assert outcome.status == "finished"
    assert outcome.student is not None
    assert outcome.student.metrics["top1_percent"] > 0
    assert [path.name for path in tmp_path.iterdir()] == [".store"]


def test_without_shared_files_results_travel_and_are_the_same_bits(tmp_path: Path, single: dict[str, str]) -> None:
    executor = Apart()
    outcome = drive(tmp_path, executor, "dkd")[1]
    assert outcome.folder is not None
    assert outcome.folder.is_relative_to(tmp_path)
    assert lasting(outcome.folder) == single
    assert RunFolder.view(outcome.folder).verify() > 5
    assert executor.sent > 0


# --- failures -------------------------------------------------------------------------------------


def test_a_failing_arm_leaves_the_others(tmp_path: Path) -> None:
    def before(name: str) -> None:
        if name == "digits-dkd seed 0: student":
            raise DivergedError("loss term 'dkd' is nan")

    executor, heard = Inline(before), Heard()
    good, bad = drive(tmp_path, executor, "kd", "dkd", seeds=1, watch=heard)
    assert (good.status, bad.status) == ("finished", "failed")
    assert str(bad.error) == "loss term 'dkd' is nan"
    assert "DivergedError" in bad.log
    assert executor.names.count("digits-dkd seed 0: student") == 1
    assert heard.last.failed == 1
    assert heard.notes[-1] != heard.notes[0]
    assert "digits-dkd seed 0: failed: loss term 'dkd' is nan" in heard.notes


def test_a_lost_task_is_tried_again_twice(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    def before(name: str) -> None:
        tries[name] += 1
        if name.endswith("control") and tries[name] < 3:
            raise LostError("the worker is gone")
        if name.endswith("seed 1: teacher"):
            raise RuntimeError("a worker process failed:\nTraceback ...\nZeroDivisionError: a bug")

    first, second = drive(tmp_path, Inline(before), "kd", changes=("control=true",))
    assert first.status == "finished"
    assert tries["digits-kd seed 0: control"] == 3
    assert second.status == "failed"
    assert tries["digits-kd seed 1: teacher"] == 3
    assert "ZeroDivisionError" in str(second.error)


def test_an_arm_that_cannot_be_built_is_refused_before_any_training(tmp_path: Path) -> None:
    executor = Inline()
    wrong = drive(tmp_path, executor, "kd", changes=("models.student.args.no_such_argument=1",))
    assert [outcome.status for outcome in wrong] == ["failed", "failed"]
    assert executor.names == []
    assert "no_such_argument" in str(wrong[1].error)


def test_a_worker_of_other_versions_or_hardware_refuses(tmp_path: Path) -> None:
    tasks: list[StageTask] = []

    class Keeping(Inline):
        def submit(self, name, function, arguments, resources):  # type: ignore[no-untyped-def]
            if isinstance(arguments[0], StageTask):
                tasks.append(arguments[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path, Keeping(), "kd", seeds=1)
    (task,) = tasks
    worker = type("W", (), {"stop": lambda self: 0, "tell": lambda self, said: None})()
    other = replace(task.origin, versions={**task.origin.versions, "torch": "1.0", "plugin extra": "3"})
    with pytest.raises(ExecutorError) as caught:
        train_stage(worker, replace(task, origin=other))
    assert "instead of 1.0" in str(caught.value)
    assert "plugin extra missing instead of 3" in str(caught.value)
    elsewhere = replace(task, key="0" * 64, environment={**task.environment, "cpu": "another"})
    with pytest.raises(ExecutorError, match=r"would not train the same bits, because it differs in cpu .* instead of"):
        train_stage(worker, elsewhere)


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Inline, Apart])
def test_a_stopped_study_goes_on_in_the_middle_of_a_stage(
    tmp_path: Path, single: dict[str, str], kind: type[Inline]
) -> None:
    elsewhere._kept.clear()  # a worker keeps what arrived for an earlier test
    executor = kind(stops=1)
    asked: list[int] = []

    def stop() -> int:
        asked.append(1)
        return 15 if len(executor.names) > 1 else 0

    with pytest.raises(Interrupted) as caught:
        drive(tmp_path, executor, "dkd", stop=stop)
    assert str(caught.value) == "stopped with 0 of 2 runs done; state saved, the same command goes on from there"
    assert caught.value.exit_code == 143
    unfinished = list((tmp_path / ".store" / "unfinished").glob("*/checkpoints/[0-9]*"))
    assert unfinished, "nothing was saved in the middle of a stage"
    executor = kind()
    outcome = drive(tmp_path, executor, "dkd")[1]
    assert outcome.folder is not None
    assert lasting(outcome.folder) == single
    assert not list((tmp_path / ".store" / "unfinished").iterdir())


def test_a_stage_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "ELSEWHERE_S", 0.01)
    (wanted,) = runs("kd", seeds=1)
    replay = Replay(resolve(wanted.loaded, load_zoo()), load_zoo(), Store(tmp_path / ".store"))
    key = next(key for key, stage in replay.missing().items() if stage.name == "teacher")
    claims = [Claim(tmp_path / ".store", key)]
    executor, looks = Inline(), []

    class Waiting(Heard):
        def overview(self, overview: Overview) -> None:
            looks.append(overview)
            if claims and len(executor.names) == 1 and len(looks) > 20:
                claims.pop().release()

    heard = Waiting()
    (outcome,) = run_all([wanted], executor, tmp_path, load_zoo(), watch=heard)
    assert outcome.status == "finished"
    assert executor.names[0].endswith("control")
    assert any("waits for another process that trains it" in note for note in heard.notes)
    assert not place_of(tmp_path / ".store", key).exists()
