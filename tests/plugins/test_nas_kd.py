"""What is proposed, what is trained, and that a search repeated over stored results is the same search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from kdzoo.api import AlgorithmChoice, Costs, KdzooError, ModelSpec, NeedsError, Point, Stage, StagePlan, StageResult
from kdzoo.errors import Interrupted
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.sealed import read_tensors
from kdzoo.testing.tiny import tiny_folder, tiny_runner
from kdzoo.zoo.loading import load_zoo
from kdzoo_nas.nas_kd import Axis, NasKD, brief, front
from kdzoo_nas.search import JOURNAL, Dimension, Search, Trial

KD = AlgorithmChoice("kd", {"temperature": 4.0}, {"task": 0.1, "kd": 0.9})
PICKED = ModelSpec("net", args={"depth": 2, "width": 4, "act": "relu"})
DEPTH, WIDTH = Axis(arg="depth", values=(1, 2, 3)), Axis(arg="width", values=(2, 4, 8, 16))
SPACE = (Dimension("depth", "depth", DEPTH.values), Dimension("width", "width", WIDTH.values))


def costs(spec: ModelSpec) -> Costs:
    """Parameters grow with depth times width squared, multiply-accumulates with the input size too."""
    args = spec.args
    return Costs(args["depth"] * args["width"] ** 2 / 1000, args["depth"] * args["width"] * (spec.size or 8) / 1000)


def cost(spec: ModelSpec, name: str) -> float:
    return float(getattr(costs(spec), name))


def score(spec: ModelSpec) -> float:
    """Wider is better, and depth 2 best."""
    return 50 + 2.0 * spec.args["width"] - 5 * abs(spec.args["depth"] - 2)


def searched(folder: Path | None = None, limit: float = 1e9, most: int = 2, **given: Any) -> tuple[Search, list[Trial]]:
    """A whole search, and its trials in order."""
    settings: dict[str, Any] = {"trials": 6, "random_trials": 3, "seed": 0, "folder": folder, **given}
    search = Search(PICKED, SPACE, {"params_m": limit}, cost, **settings)
    trials: list[Trial] = []
    while batch := search.ask(most):
        for trial in batch:
            search.tell(trial, score(trial.spec))
        trials += batch
    return search, trials


# --- the search -------------------------------------------------------------------------------------


def test_the_same_seed_asks_the_same_and_another_does_not() -> None:
    asked = [[trial.point for trial in searched(seed=seed)[1]] for seed in (3, 3, 4, 2**63 - 1)]
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]
    assert len(asked[3]) == 6


def test_no_candidate_is_trained_twice_and_a_space_ends() -> None:
    search, trials = searched(trials=100)
    assert len({trial.point for trial in trials}) == len(trials) == 12  # 3 depths times 4 widths
    assert search.ask(1) == []


def test_candidates_over_the_budget_are_never_trained_and_do_not_count() -> None:
    _, trials = searched(limit=0.05, trials=100)
    within = [depth * width**2 <= 50 for depth in DEPTH.values for width in WIDTH.values]
    assert len(trials) == sum(within) == 6
    assert all(costs(trial.spec).params_m <= 0.05 for trial in trials)
    assert searched(limit=0.001)[1] == []


def test_later_trials_follow_the_scores() -> None:
    wide = [(0, 1.0), (1, 2.0)]  # of two opposite tastes the second search ends elsewhere
    seen = []
    for sign, _ in wide:
        search = Search(PICKED, SPACE, {}, cost, trials=9, random_trials=3, seed=1)
        points = []
        while batch := search.ask(1):
            (trial,) = batch
            search.tell(trial, score(trial.spec) if sign else -score(trial.spec))
            points.append(trial.point)
        seen.append(points)
    assert seen[0][:3] == seen[1][:3]  # drawn at random
    assert seen[0] != seen[1]


def test_batches_have_the_size_asked_for_and_hold_no_more_than_is_left() -> None:
    search = Search(PICKED, SPACE, {}, cost, trials=5, random_trials=2, seed=0)
    sizes = []
    while batch := search.ask(2):
        sizes.append(len(batch))
        for trial in batch:
            search.tell(trial, score(trial.spec))
    assert sizes == [2, 2, 1]


def test_a_candidate_is_the_student_with_other_arguments() -> None:
    search = Search(
        PICKED, (*SPACE, Dimension("resolution", None, (6, 10))), {}, cost, trials=1, random_trials=1, seed=0
    )
    assert search.spec((0, 3, 1)) == ModelSpec("net", args={"depth": 1, "width": 16, "act": "relu"}, size=10)


def test_of_equals_the_smaller_is_best_and_then_the_earlier() -> None:
    search = Search(PICKED, SPACE, {}, cost, trials=9, random_trials=9, seed=0)
    for number, (point, reached) in enumerate([((1, 3), 90.0), ((1, 1), 90.0), ((1, 0), 80.0), ((1, 1), 90.0)]):
        search.scores[Trial(number, point, search.spec(point))] = reached
    assert (search.best().number, search.best().point) == (1, (1, 1))


def test_the_journal_is_optuna_s_own_and_says_what_became_of_each_trial(tmp_path: Path) -> None:
    _, trials = searched(tmp_path, limit=0.05, trials=100)
    storages = optuna.storages
    storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    kept = optuna.load_study(study_name="search", storage=storage).trials
    states = {state: [t for t in kept if t.state.name == state] for state in ("COMPLETE", "PRUNED", "FAIL")}
    assert [t.number for t in states["COMPLETE"]] == [trial.number for trial in trials]
    assert [t.value for t in states["COMPLETE"]] == [score(trial.spec) for trial in trials]
    assert len(states["PRUNED"]) == 6
    assert all(t.user_attrs["why"].endswith(", over 0.05") for t in states["PRUNED"])
    assert all(t.user_attrs["why"].startswith("repeats trial ") for t in states["FAIL"])
    assert len(kept) == sum(map(len, states.values()))


def test_a_killed_run_s_journal_and_lock_are_no_hindrance(tmp_path: Path) -> None:
    _, whole = searched(tmp_path)
    content = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(content[: len(content) // 2])  # torn inside a line
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)
    _, again = searched(tmp_path)
    assert [(t.number, t.point) for t in again] == [(t.number, t.point) for t in whole]
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == len(content.splitlines())
    assert [(t.number, t.point) for t in searched(None)[1]] == [(t.number, t.point) for t in whole]


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KdzooError) as caught:
        searched()
    assert str(caught.value) == (
        "algorithm 'nas_kd': optuna is not installed; pip install \"kdzoo[search]\" would be right"
    )


# --- the stages -------------------------------------------------------------------------------------


def plan(student: ModelSpec = PICKED, **options: Any) -> StagePlan:
    given = {"depth": DEPTH, "width": WIDTH, "trials": 4, "trial_epochs": 2, "side_by_side": 2, **options}
    teacher = StageResult("teacher", "key of teacher", ModelSpec("large"), {}, {"top1_percent": 99.0})
    own = AlgorithmChoice("nas_kd", {}, {})
    chosen = NasKD.Options(**given)
    return StagePlan(student, (teacher,), (), (), own, KD, chosen, seed=3, costs=costs, latency=lambda spec: 2.0)


def run(plan: StagePlan, metrics: bool = True) -> tuple[list[list[Stage]], StageResult]:
    generator = NasKD.stages(plan)
    asked: list[list[Stage]] = []
    answer: Any = None
    while True:
        try:
            stages = generator.send(answer)
        except StopIteration as end:
            return asked, end.value
        assert isinstance(stages, list)
        asked.append(stages)
        answer = [
            StageResult(s.name, f"key of {s.name}", s.model, {}, {"top1_percent": score(s.model)} if metrics else {})
            for s in stages
        ]


def refusal(plan: StagePlan, **given: Any) -> str:
    with pytest.raises(NeedsError) as caught:
        run(plan, **given)
    return str(caught.value)


def test_trials_come_side_by_side_and_then_the_found_student_beside_the_picked_one() -> None:
    asked, final = run(plan(max_params_m=1.0))
    assert [len(stages) for stages in asked] == [2, 2, 2]
    trials = [stage for stages in asked[:-1] for stage in stages]
    assert all(stage.name.startswith("trial_") and dict(stage.train) == {"epochs": 2} for stage in trials)
    assert all(
        (stage.algorithm, [t.name for t in stage.teachers]) == (KD, ["teacher"]) for stages in asked for stage in stages
    )
    picked, found = asked[-1]
    assert (picked.name, picked.model, dict(picked.train)) == ("hand_picked", PICKED, {})
    best = max(trials, key=lambda stage: score(stage.model))
    assert (found.name, found.model, dict(found.train)) == ("student", best.model, {})
    assert (final.name, final.model) == ("student", best.model)


def test_without_a_limit_the_hand_picked_student_s_parameters_are_the_budget() -> None:
    trials = [stage for stages in run(plan(trials=12))[0][:-1] for stage in stages]
    assert {(s.model.args["depth"], s.model.args["width"]) for s in trials} == {(1, 2), (2, 2), (3, 2), (1, 4), (2, 4)}


def test_each_kind_of_limit_holds() -> None:
    small = [
        s.model for stages in run(plan(max_macs_g=0.06401, resolution=(4, 8, 16), trials=60))[0][:-1] for s in stages
    ]
    assert small
    assert all(costs(spec).macs_g <= 0.06401 for spec in small)
    assert {spec.size for spec in small} == {4, 8, 16}
    assert run(plan(max_latency_ms=2.0))[1].name == "student"
    assert refusal(plan(max_latency_ms=1.0)) == (
        "algorithm 'nas_kd': the hand-picked student (models.student) is over the budget: latency_ms is 2, over 1; "
        "pick one within it, so that the two can be compared"
    )


def test_nothing_to_search_is_refused() -> None:
    assert refusal(plan(depth=None, width=None)) == (
        "algorithm 'nas_kd': nothing to search; give depth, width or resolution, e.g. options.width: "
        "{arg: width, values: [8, 16, 24]}"
    )


def test_a_space_wholly_over_the_budget_is_refused() -> None:
    assert refusal(plan(depth=None, width=Axis(arg="width", values=(8, 16)), max_params_m=0.04)) == (
        "algorithm 'nas_kd': none of the 2 candidates is within the budget of params_m 0.04; raise it, or add smaller "
        "values"
    )


def test_without_a_validation_split_there_is_nothing_to_score_by() -> None:
    assert refusal(plan(), metrics=False) == (
        "algorithm 'nas_kd': trials are scored on the validation split, and data.validation leaves none"
    )


@pytest.mark.parametrize(
    "wrong", [{"width": {"arg": "width", "values": [4]}}, {"width": {"arg": "", "values": [4, 8]}}]
)
def test_an_axis_has_a_name_and_a_choice(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="at least"):
        NasKD.Options.model_validate(wrong)


# --- what is shown ------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [Point(1, 50), Point(2, 60), Point(2, 55), Point(3, 60), Point(4, 70), Point(4, 70)]
    assert front(points) == [Point(1, 50), Point(2, 60), Point(4, 70), Point(4, 70)]
    assert front([]) == []


def test_values_are_told_in_few_letters() -> None:
    assert [brief(value) for value in (8, "relu", None, [[3], [6, 6]])] == ["8", "relu", "-", "3/6/6"]


# --- real runs ----------------------------------------------------------------------------------------


def ran(root: Path, stops: tuple[int, ...] = ()) -> tuple[dict[str, Any], RunFolder, list[str]]:
    """A tiny search in ``root``, stopped at each of ``stops`` optimizer steps of the whole run and begun again."""
    trained: list[str] = []
    for stop in (*stops, None):
        with tiny_folder(root / "out", resume=bool(trained)) as folder:
            options = {"width": {"arg": "stem_width", "values": [4, 6, 8]}, "trials": 3, "side_by_side": 2}
            runner = tiny_runner(NasKD, load_zoo(), root, {"control": True}, options, folder)
            steps = iter(range(10_000))
            runner.control.stop = lambda steps=steps, stop=stop: 15 if stop is not None and next(steps) >= stop else 0
            try:
                results = runner.run()
            except Interrupted:
                trained.append("stopped")
                continue
            trained += [stage["name"] for stage in results["stages"]]
            return results, folder, trained
    raise AssertionError("never ended")


def bits(folder: RunFolder) -> dict[str, bytes]:
    sha256 = folder.read_json("student.json")["sha256"]
    tensors = read_tensors(folder.path("student.safetensors"), sha256)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_search_stopped_again_and_again_is_the_search_that_was_not(tmp_path: Path) -> None:
    whole, folder, names = ran(tmp_path / "whole")
    broken, resumed, others = ran(tmp_path / "broken", stops=(7, 9, 11, 12, 14))
    assert others.count("stopped") >= 3, "too few stops landed"
    assert [name for name in others if name != "stopped"] == names
    assert [stage["key"] for stage in broken["stages"]] == [stage["key"] for stage in whole["stages"]]
    assert bits(resumed) == bits(folder)
    assert [e["points"] for e in broken["report_items"][:1]] == [e["points"] for e in whole["report_items"][:1]]
    lines = [(f.path("planning") / JOURNAL).read_text().count('"op_code":6') for f in (folder, resumed)]
    assert lines[0] == lines[1] > 3


def test_the_report_shows_the_found_student_beside_the_picked_one(tmp_path: Path) -> None:
    results, folder, _ = ran(tmp_path)
    scatter, table, trials = results["report_items"]
    groups = [point["group"] for point in scatter["points"]]
    assert groups.count("hand-picked, in full") == groups.count("found, in full") == 1
    assert [bool(point["label"]) for point in scatter["points"]] == [group != "trial" for group in groups]
    assert [row[1] for row in trials["rows"]] == [
        int(p["label"] or row[1]) for p, row in zip(scatter["points"], trials["rows"], strict=False)
    ]
    assert [row[-1] for row in trials["rows"]] == [p["y"] for p in scatter["points"]][:3]
    assert groups.count("front") + groups.count("trial") == 3
    assert table["columns"][:2] == ["student", "width"] or table["columns"][:2] == ("student", "width")
    assert [row[0] for row in table["rows"]] == ["found, distilled", "hand-picked, distilled", "hand-picked, alone"]
    assert [row[1] for row in table["rows"][1:]] == [8, 8]
    assert table["rows"][0][1] == folder.read_json("student.json")["args"]["stem_width"]
    assert table["rows"][0][-1] == results["student"]["top1_percent"]
    assert table["rows"][2][-1] == results["control"]["top1_percent"]
    (variant,) = results["variants"]
    assert (variant["label"], variant["top1_percent"]) == ("hand-picked, distilled", table["rows"][1][-1])
