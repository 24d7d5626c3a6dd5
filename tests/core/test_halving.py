"""Choosing a student under a budget: halving, what is stored of it, and the delivered file measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from kdzoo.contract.extension_points import Exporter, OfferOptions
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.errors import BudgetError, DivergedError, KdzooError
from kdzoo.evaluation.steadiness import Timing
from kdzoo.models.building import build_network
from kdzoo.recipe.budget_section import BudgetRecipe
from kdzoo.storage.store import Store
from kdzoo.study import candidates as candidates_module
from kdzoo.study.candidates import Candidate, Target
from kdzoo.study.choosing import AGAIN, choose, held, measure_again
from kdzoo.study.halving import front, halve, planned
from kdzoo.testing.tiny import STUDENT, TINY

INPUTS = Pixels(channels=3, size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
QUIET, SLOW, NOISY = Timing(1.0, 1.5, 2.0, 0.05), Timing(6.0, 8.0, 2.0, 0.05), Timing(1.0, 5.0, 2.0, 3.0)
Scores = Mapping[str, float | KdzooError]


class Trainer:
    """Gives scores that grow with the epochs, and remembers what it was asked to train."""

    def __init__(self, **talents: float | KdzooError) -> None:
        self.talents, self.asked = talents, list[tuple[tuple[str, ...], int]]()

    def __call__(self, labels: Sequence[str], epochs: int) -> Scores:
        self.asked.append((tuple(labels), epochs))
        found = {label: self.talents[label] for label in labels}
        return {label: talent + epochs if isinstance(talent, float) else talent for label, talent in found.items()}


def test_the_better_half_goes_on_and_trains_twice_as_long():
    train = Trainer(a=10.0, b=30.0, c=20.0, d=40.0, e=5.0)
    rounds = halve(dict.fromkeys("abcde", 1.0), train, epochs=2, most_epochs=100)
    assert train.asked == [(("a", "b", "c", "d", "e"), 2), (("d", "b", "c"), 4), (("d", "b"), 8)]
    assert [each.kept for each in rounds] == [("d", "b", "c"), ("d", "b"), ("d",)]
    assert planned(5, 2, 100) == [(5, 2), (3, 4), (2, 8)]
    again = Trainer(**train.talents)
    assert halve(dict.fromkeys("abcde", 1.0), again, epochs=2, most_epochs=100) == rounds
    assert again.asked == train.asked


def test_of_equals_the_cheaper_one_stays_and_no_round_is_longer_than_the_training():
    train = Trainer(a=10.0, b=10.0, c=10.0)
    rounds = halve({"a": 3.0, "b": 1.0, "c": 2.0}, train, epochs=4, most_epochs=6, keep=0.9)
    assert [each.kept for each in rounds] == [("b", "c"), ("b",)]
    assert [epochs for _, epochs in train.asked] == [4, 6]
    assert halve({"a": 3.0}, train, epochs=4, most_epochs=6) == []


def test_a_candidate_that_cannot_be_trained_goes_and_the_others_go_on():
    train = Trainer(a=10.0, b=DivergedError("stage 'student': not finite"), c=5.0)
    (first, *_) = halve(dict.fromkeys("abc", 1.0), train, epochs=1, most_epochs=9)
    assert (first.kept, dict(first.failed)) == (("a", "c"), {"b": "stage 'student': not finite"})
    broken = Trainer(a=KdzooError("no"), b=KdzooError("neither"))
    with pytest.raises(BudgetError) as raised:
        halve(dict.fromkeys("ab", 1.0), broken, epochs=1, most_epochs=9)
    assert str(raised.value) == "budget: none of 2 candidates could be trained; a: no"


def test_the_front_holds_what_nothing_beats_in_accuracy_size_and_time():
    points = {"small": (60.0, 10, 1.0), "large": (80.0, 50, 5.0), "worse": (59.0, 10, 1.0), "fast": (70.0, 60, 0.5)}
    assert front(points) == ["small", "large", "fast"]
    assert front({"a": (1.0, 1), "b": (1.0, 1)}) == ["a", "b"]


# --- the whole choice -------------------------------------------------------------------------------


class Weights(Exporter):
    """Writes the weights alone."""

    name = "weights"
    suffix = ".safetensors"

    class Options(OfferOptions):
        pass

    def export(self, model: Any, example: Any, path: Path, metadata: Any, calibration: Any) -> None:
        save_file(model.state_dict(), path)

    def load(self, path: Path, threads: int) -> Callable[[Any], Any]:
        return lambda inputs: inputs


def candidate(width: int) -> Candidate:
    return Candidate(f"w{width}", ModelSpec(TINY, args={**STUDENT, "channels": [8, 8, 8, width]}))


TARGET = Target(INPUTS, ("a", "b", "c", "d"), Weights(Weights.Options()))
CANDIDATES = [candidate(width) for width in (16, 24, 32, 40)]


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Timing]:
    """Times that candidates have, one after the other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given: list[Timing] = []
    monkeypatch.setattr(candidates_module, "timed", lambda call: given.pop(0))
    return given


def chosen(train: Trainer, place: Path, **limits: float) -> Any:
    budget = BudgetRecipe(trial_epochs=1, **limits)  # type: ignore[arg-type]
    return choose(budget, CANDIDATES, TARGET, train, 10, Store(place), lambda label, state: None)


def test_what_is_too_slow_or_too_large_is_never_trained_and_a_killed_choice_is_made_again(
    timings: list[Timing], tmp_path: Path
):
    timings += [QUIET, SLOW, QUIET]
    sizes = {each.label: measured_size(each, tmp_path / "sizes") for each in CANDIDATES}
    limits = {"latency_ms": 3.0, "max_bytes": sizes["w32"]}
    train = Trainer(w16=20.0, w32=30.0)  # no other may be asked for
    choice = chosen(train, tmp_path, **limits)
    assert train.asked == [(("w16", "w32"), 1)]
    assert choice.winner.label == "w32"
    record = choice.record()
    assert [(row["label"], row["outcome"]) for row in record["candidates"]] == [
        ("w16", "halved"), ("w24", "over the budget"), ("w32", "chosen"), ("w40", "over the budget")
    ]  # fmt: skip
    assert record["candidates"][0]["why"] == "round 1: 21.00 % on validation, the kept ones 31.00 % or more"
    assert record["candidates"][1]["why"] == "latency (p95) 8 ms, 167% over 3 ms"
    assert record["candidates"][0]["rounds"] == [{"epochs": 1, "top1_percent": 21.0}]
    assert record["candidate_front"] == {"epochs": 1, "labels": ["w16", "w32"]}
    assert record["budget"]["quiet"] is True
    timings += [SLOW, SLOW, SLOW, SLOW]  # what a busier machine would say now changes nothing
    assert chosen(Trainer(w16=20.0, w32=30.0), tmp_path, **limits).record() == record
    assert len(timings) == 4


def measured_size(each: Candidate, place: Path) -> int:
    place.mkdir(exist_ok=True)
    network = build_network(each.spec, inputs=INPUTS, num_classes=4, seed=0)
    save_file(network.model.state_dict(), place / each.label)
    return (place / each.label).stat().st_size


def test_a_busy_machine_is_said_where_time_is_limited(timings: list[Timing], tmp_path: Path):
    timings += [QUIET, NOISY, QUIET, QUIET]
    talents = {each.label: 1.0 for each in CANDIDATES}
    assert chosen(Trainer(**talents), tmp_path / "a", latency_ms=9.0).record()["budget"]["quiet"] is False
    timings += [QUIET, NOISY, QUIET, QUIET]
    assert chosen(Trainer(**talents), tmp_path / "b", params_m=9.0).record()["budget"]["quiet"] is True


def test_an_impossible_budget_trains_nothing(timings: list[Timing], tmp_path: Path):
    with pytest.raises(BudgetError, match=r"the nearest is w16: size at least .* over 1,000 bytes"):
        chosen(Trainer(), tmp_path, max_bytes=1000)


# --- the delivered file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timings", "verdict"),
    [
        ([QUIET] * 10, "inside"),
        ([QUIET] * 9 + [SLOW], "outside"),
        ([QUIET] * 9 + [NOISY], "undecided"),
    ],
)  # fmt: skip
def test_a_delivered_file_is_inside_if_each_of_ten_timings_is(timings: list[Timing], verdict: str):
    found = held(timings, 10, {"latency_ms": 3.0, "size_bytes": 10.0})
    assert (found["verdict"], found["timings"]) == (verdict, 10)
    assert found["inside"] == sum(each.p95_ms <= 3.0 for each in timings)
    assert held(timings, 11, {"latency_ms": 3.0, "size_bytes": 10.0})["verdict"] == "outside"
    assert held(timings, 10, {"size_bytes": 10.0})["verdict"] == "inside"


def test_a_delivered_file_is_timed_again_once_a_machine(tmp_path: Path):
    network = build_network(CANDIDATES[0].spec, inputs=INPUTS, num_classes=4, seed=0)
    path = tmp_path / "student.safetensors"
    save_file(network.model.state_dict(), path)
    calls: list[Any] = []

    def time(call: Callable[[], Any]) -> Timing:
        calls.append(call())
        return QUIET

    given = (BudgetRecipe(latency_ms=3.0), TARGET, network, path, Store(tmp_path / ".store"), lambda *_: None)
    first = measure_again(*given, time)
    assert (len(calls), calls[0].shape) == (AGAIN, (1, 3, 16, 16))
    assert (first["verdict"], first["size_bytes"]) == ("inside", path.stat().st_size)
    assert measure_again(*given, time) == first
    assert len(calls) == AGAIN
