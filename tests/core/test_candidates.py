"""Candidates for a student: measured untrained, kept in a cache, held against a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdzoo.cli import suggest
from kdzoo.contract.extension_points import Exporter, Offer, OfferOptions
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.inputs import Pixels
from kdzoo.errors import BudgetError, KdzooError, NeedsError, UnknownName
from kdzoo.evaluation.steadiness import QUIET_SPREAD, Timing, alike, timed
from kdzoo.models.building import build_network
from kdzoo.models.matching import models_matching
from kdzoo.recipe.budget_section import MIB, BudgetRecipe
from kdzoo.storage.store import Store
from kdzoo.study import candidates
from kdzoo.study.budget import as_row, check_plain, check_possible, exporter_named, weighed
from kdzoo.study.candidates import Candidate, Measurement, Measuring, Target, made_up, move_apart
from kdzoo.testing.tiny import STUDENT, TEACHER, TINY
from kdzoo.zoo.loading import load_zoo

INPUTS = Pixels(channels=3, size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
NARROW, WIDE = Candidate("narrow", ModelSpec(TINY, args=STUDENT)), Candidate("wide", ModelSpec(TINY, args=TEACHER))
QUIET, NOISY = Timing(1.0, 1.5, 2.0, 0.05), Timing(1.0, 5.0, 2.0, 3.0)


class Weights(Exporter):
    """Writes the weights alone and answers zeros; takes no time. A network of 24 channels cannot be written."""

    name = "weights"
    suffix = ".safetensors"
    written: list[int]

    class Options(OfferOptions):
        pass

    def __init__(self, options: OfferOptions) -> None:
        super().__init__(options)
        self.written = []

    def export(self, model: Any, example: Any, path: Path, metadata: Any, calibration: Any) -> None:
        assert not model.training
        assert len(calibration) > 0
        self.written.append(len(example))
        if any(24 in tensor.shape for tensor in model.state_dict().values()):
            raise ValueError("no 24 channels\nand more of it")
        save_file(model.state_dict(), path)

    def load(self, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda inputs: np.zeros((len(inputs), 4), np.float32)


def measuring(exporter: Exporter, timings: list[Timing], **others: Any) -> Measuring:
    """Measure with times out of a list."""
    target = Target(INPUTS, ("a", "b", "c", "d"), exporter, threads=others.pop("threads", 1))
    return Measuring(target, time=lambda call: timings.pop(0), **others)


@pytest.fixture
def exporter() -> Weights:
    return Weights(Weights.Options())


def test_a_candidate_is_exported_and_timed_once_and_then_taken_from_the_cache(exporter: Weights, tmp_path: Path):
    first = measuring(exporter, [QUIET], cache=tmp_path).measure(NARROW)
    again = measuring(exporter, [], cache=tmp_path).measure(NARROW)
    assert exporter.written == [2]
    assert again == first
    assert first.timing == QUIET
    assert first.size_bytes is not None
    assert first.params_m is not None
    assert first.size_bytes > 4e6 * first.params_m > 0
    further = measuring(exporter, [NOISY], cache=tmp_path, threads=2).measure(NARROW)  # another way of timing
    assert further.timing == NOISY
    assert (further.size_bytes, len(exporter.written)) == (first.size_bytes, 2)


def test_a_time_of_a_busy_machine_is_kept_for_a_while_only(
    exporter: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert measuring(exporter, [NOISY], cache=tmp_path).measure(NARROW).timing == NOISY
    assert measuring(exporter, [QUIET], cache=tmp_path).measure(NARROW).timing == NOISY
    monkeypatch.setattr(candidates, "NOISY_LASTS_S", -1.0)
    assert measuring(exporter, [QUIET], cache=tmp_path).measure(NARROW).timing == QUIET
    assert measuring(exporter, [], cache=tmp_path).measure(NARROW).timing == QUIET  # a quiet one stays


def test_a_study_keeps_what_it_measured_whatever_the_machine_does_later(exporter: Weights, tmp_path: Path):
    store = Store(tmp_path)
    first = measuring(exporter, [NOISY], store=store).measure(NARROW)
    assert measuring(exporter, [QUIET], store=store).measure(NARROW) == first
    assert measuring(exporter, [QUIET], store=store, limits={"params_m": 9.0}).measure(NARROW).timing == QUIET


def test_a_candidate_over_the_budget_is_not_exported_or_not_timed(exporter: Weights):
    over = measuring(exporter, [], limits={"macs_g": 1e-9}).measure(NARROW)
    assert exporter.written == []
    assert (over.size_bytes, over.timing, over.problem) == (None, None, "")
    over = measuring(exporter, [], limits={"size_bytes": 100.0}).measure(NARROW)  # its weights alone take more
    assert exporter.written == []
    assert not weighed(NARROW, over, {"size_bytes": 100.0}).fits
    least = over.least_bytes
    assert least is not None
    over = measuring(exporter, [], limits={"size_bytes": least + 1}).measure(NARROW)
    assert exporter.written == [2]
    assert over.timing is None
    assert over.size_bytes is not None
    assert over.size_bytes > least + 1


def test_what_cannot_be_built_or_exported_is_a_row_with_its_reason(exporter: Weights, tmp_path: Path):
    measure = measuring(exporter, [], cache=tmp_path).measure
    rows = [
        as_row(weighed(each, measure(each), {}), {})
        for each in (WIDE, Candidate("odd", ModelSpec(TINY, args={"x": 1})))
    ]
    assert [row["fits"] for row in rows] == [False, False]
    assert rows[0]["why_not"] == "weights: does not run: ValueError: no 24 channels and more of it"
    assert "cannot be built" in rows[1]["why_not"]
    assert measuring(exporter, [], cache=tmp_path).measure(WIDE).problem  # found once, and kept
    assert exporter.written == [2]


def test_an_impossible_budget_names_the_nearest_candidate_and_by_how_much_it_misses():
    limits = {"size_bytes": 1.0 * MIB, "latency_ms": 1.0}
    small = Measurement(0.4, 0.1, 1.0, int(1.1 * MIB), NOISY)
    large = Measurement(4.0, 0.1, 14.0 * MIB)
    found = [weighed(WIDE, large, limits), weighed(NARROW, small, limits)]
    found.append(weighed(Candidate("odd", ModelSpec("odd")), Measurement(problem="no such operator\nmore"), limits))
    with pytest.raises(BudgetError) as raised:
        check_possible(found, limits)
    assert str(raised.value) == (
        "budget: none of 3 candidates is within size 1 MiB, latency (p95) 1 ms\n"
        "  the nearest is narrow: size 1.1 MiB, 10% over 1 MiB, latency (p95) 5 ms, 400% over 1 ms\n"
        "  the machine was busy while it was timed; on a quiet one it may be faster\n"
        "  odd: no such operator\n"
        "  raise the budget, or add smaller students"
    )
    assert found[0].why_not(limits) == "size at least 14 MiB, 1300% over 1 MiB"
    check_possible([*found, weighed(NARROW, small, {"size_bytes": 2.0 * MIB})], limits)


def test_a_busy_machine_is_noticed_by_the_reference():
    steps = iter(range(10**6))

    def steady() -> None:
        sum(range(20000))

    def disturbed() -> None:
        sum(range(20000 * (10 if next(steps) % 5 == 0 else 1)))

    noisy = timed(steady, tries=2, beside=disturbed, calls=40)
    assert not noisy.quiet
    assert noisy.spread > 2
    assert Timing(1.0, 1.0, 1.0, QUIET_SPREAD).quiet
    assert alike([QUIET, QUIET])
    assert not alike([QUIET, QUIET, Timing(1.0, 1.5, 3.0, 0.05)])  # quiet by itself, but on a slower machine


def test_an_untrained_file_weighs_what_a_trained_one_weighs(tmp_path: Path):
    """Fresh tensors that are equal would be written once, which in this file saves a fifth of it."""
    sizes = {}
    for how in ("apart", "trained"):
        network = build_network(NARROW.spec, inputs=INPUTS, num_classes=4, seed=0)
        if how == "apart":
            move_apart(network.model, 0)
        if how == "trained":
            draw = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for tensor in (*network.model.parameters(), *network.model.buffers()):
                    if tensor.is_floating_point():
                        tensor.add_(torch.rand(tensor.shape, generator=draw))
        network.model.eval().requires_grad_(False)
        path = tmp_path / f"{how}.onnx"
        example, calibration = network.inputs.model_example(2), made_up(network)
        exporter_named("onnx-int8", load_zoo()).export(network.model, example, path, {}, calibration)
        sizes[how] = path.stat().st_size
    assert abs(sizes["apart"] - sizes["trained"]) <= 16


def test_formats_are_named_with_their_quantisation():
    zoo = load_zoo()
    assert exporter_named("onnx-int8", zoo).label == "int8"
    assert exporter_named("onnx", zoo).label == ""
    for text, problem in (
        ("onnx-int9", "format 'onnx-int9': 'onnx' has no quantisation 'int9'; did you mean 'int8'? known: int8, "),
        ("onyx", "unknown export format 'onyx'; did you mean 'onnx'?"),
    ):
        with pytest.raises(UnknownName) as raised:
            exporter_named(text, zoo)
        assert problem in str(raised.value)
    with pytest.raises(NeedsError, match=r"one that quantizes after training would be right here, e\.g\. onnx-int8"):
        check_plain(exporter_named("onnx-int8-trained", zoo))


def test_patterns_match_models_of_timm_and_of_plugins():
    load_zoo()
    assert models_matching(["cifar_resnet2*", "lcnet_050", "lcnet_0[5]*"]) == (
        "cifar_resnet20",
        "cifar_resnet26",
        "lcnet_050",
    )
    with pytest.raises(UnknownName, match=r"unknown model 'lcnet_055'; did you mean 'lcnet_0.5'\?"):
        models_matching(["lcnet_055"])
    with pytest.raises(UnknownName, match="no model matches 'nothing_"):
        models_matching(["nothing_*"])


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "limits nothing; give at least one of size_mib, max_bytes, latency_ms, params_m, macs_g"),
        ({"size_mib": 1, "max_bytes": 5}, "size_mib and max_bytes exclude each other; give one of them"),
    ],
)
def test_a_budget_limits_something_and_each_thing_once(section: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        BudgetRecipe.model_validate(section)
    assert BudgetRecipe(size_mib=2.0, latency_ms=3.0).limits() == {"size_bytes": 2.0 * MIB, "latency_ms": 3.0}


def test_suggest_lists_what_fits_first_and_says_what_was_noisy(
    exporter: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(candidates, "timed", lambda call: NOISY)
    offer = Offer("weights", Weights, "test", "test", "0")
    zoo = load_zoo()
    monkeypatch.setattr("kdzoo.zoo.loading.load_zoo", lambda: with_exporter(zoo, offer))

    def ask(as_json: bool, max_mb: float) -> None:
        given = {"size": 32, "format": "weights", "threads": 1, "classes": 4, "max_ms": None}
        suggest.suggest(["cifar_resnet8", "cifar_resnet14", "resnet18"], max_mb=max_mb, as_json=as_json, **given)

    ask(True, 5.0)
    said = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in said["models"]] == ["cifar_resnet14", "cifar_resnet8", "resnet18"]
    assert [row["fits"] for row in said["models"]] == [True, True, False]
    assert said["quiet"] is False
    ask(False, 0.5)
    captured = capsys.readouterr()
    assert captured.err == "", "everything is known by now"
    assert "1 of 3 models within size 524,288 bytes. Most MACs first" in captured.out
    assert "cifar_resnet8" in captured.out.splitlines()[1]
    assert "~ 2 of 3 models were timed while the machine was busy" in captured.out
    with pytest.raises(KdzooError, match="the nearest is cifar_resnet8"):
        ask(False, 0.1)


def with_exporter(zoo: Any, offer: Offer) -> Any:
    from dataclasses import replace

    return replace(zoo, exporters={**zoo.exporters, offer.name: offer})
