"""What an algorithm shows of a finished run: the run it is handed, and the report_items as results.json holds them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_algorithms import Couple, Match
from torch import Tensor, nn

from kdzoo.api import Algorithm, HeatMap, Images, Outputs, Point, ReportItem, Scatter, Shapes, Table
from kdzoo.errors import ContractError
from kdzoo.report.page import sections
from kdzoo.report.results import parse_results
from kdzoo.run import report_item_json
from kdzoo.run.finished_run import Ensemble
from kdzoo.run.report_item_json import as_json
from kdzoo.testing.tiny import tiny_folder, tiny_recipe, tiny_runner
from kdzoo.zoo.loading import load_zoo


class Mean(nn.Module):
    """The mean answer of some networks."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([network(inputs).logits for network in self.networks]).mean(0)


def early_exits(run: Any) -> list[dict[str, Any]]:
    """What the student's sections answer, beside the levels of the whole network."""
    inputs = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    names = ("layer1", "layer3")
    whole = run.network(run.student, levels=names)(inputs)
    sections = [run.section(run.student, name) for name in names]
    return [
        {
            "alike": torch.equal(section(inputs), features),
            "logits": torch.equal(whole.logits, run.network(run.student)(inputs).logits),
            "parameters": sum(parameter.numel() for parameter in section.parameters()),
        }
        for section, features in zip(sections, whole.features, strict=True)
    ]


class Showing(Match):
    """Has a module of its own, and shows one item of each kind."""

    name = "showing"
    default_weights: ClassVar = {"task": 1.0, "match": 0.5}
    seen: ClassVar[dict[str, Any]] = {}

    def __init__(self, options: Any, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.scale = nn.Parameter(torch.ones(shapes.num_classes))

    def losses(self, ctx: Any) -> dict[str, Tensor]:
        return {"match": (self.scale * ctx.student.logits - ctx.teacher.logits).square().mean()}

    @classmethod
    def report_items(cls, run: Any) -> Iterator[ReportItem]:
        student, teacher = run.network(run.student), run.network(run.teachers[0])
        both = Mean(student, teacher)
        cls.seen = {
            "scale": run.algorithm(run.student).scale.detach().clone(),
            "stages": [result.name for result in run.stages],
            "entries": dict(run.entries),
            "logits": run.predict(student)[0],
            "targets": run.predict(student)[1],
            "mean": run.predict(both)[0],
            "teacher": run.predict(teacher)[0],
            "variants": run.measure({"mean": both}),
            "log": run.log(run.student),
            "random": [torch.rand(3, generator=run.random(name)) for name in ("a", "a", "b")],
            "classes": run.classes,
            "early": early_exits(run),
            "plan": run.plan,
        }
        with pytest.raises(ContractError) as caught:
            run.algorithm(run.teachers[0])
        cls.seen["refusal"] = str(caught.value)
        yield Table("words", ("what", "value"), (("one", 1), ("none", None)), "a note")
        yield HeatMap("map", ("row",), ("a", "b"), ((1.0, None),), "%")
        yield Scatter("plot", "x", "y", (Point(1.0, 2.0, "p", "g"),), front="g")
        yield Scatter("plain plot", "x", "y", (Point(1, 2, 3),))  # type: ignore[arg-type]  # shown all the same
        yield Images("pictures", torch.linspace(0, 1, 32).view(2, 1, 4, 4), ("dark", "light"))


def run(cls: type[Algorithm], root: Path, **changes: Any) -> dict[str, Any]:
    with tiny_folder(root / "out", tiny_recipe(cls, changes)) as folder:
        tiny_runner(cls, load_zoo("none"), root, changes, folder=folder).run()
        return json.loads(folder.path("results.json").read_text())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(Showing, tmp_path_factory.mktemp("report_items"))


def test_an_algorithm_sees_what_was_trained_and_measured(shown: dict[str, Any]) -> None:
    seen = Showing.seen
    assert not torch.equal(seen["scale"], torch.ones_like(seen["scale"]))  # as trained, not as built
    assert seen["stages"] == ["student"]
    assert seen["entries"]["student"]["top1_percent"] == shown["student"]["top1_percent"]
    assert {"teacher", "student"} <= seen["entries"].keys()
    top1 = 100 * float((seen["logits"].argmax(1) == seen["targets"]).mean())
    assert top1 == pytest.approx(shown["student"]["top1_percent"])
    np.testing.assert_allclose(seen["mean"], (seen["logits"] + seen["teacher"]) / 2, rtol=1e-4, atol=1e-5)
    assert seen["log"][-1]["split"] == "validation"
    assert {row["stage"] for row in seen["log"]} == {"student"}
    same, again, other = seen["random"]
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert len(seen["plan"].targets) == shown["data"]["train"]
    assert seen["plan"].teachers[0].name == "teacher"
    assert len(seen["classes"]) == seen["logits"].shape[1]


def test_further_ways_to_answer_are_measured_like_models(shown: dict[str, Any]) -> None:
    (variant,) = shown["variants"]
    assert variant["label"] == "mean"
    assert variant["params_m"] == pytest.approx(shown["student"]["params_m"] + shown["teacher"]["params_m"])
    assert variant["macs_g"] == pytest.approx(shown["student"]["macs_g"] + shown["teacher"]["macs_g"])
    assert variant["latency_ms"]["p50"] > 0
    assert variant["latency_ratio"] > 0
    top1 = 100 * float((Showing.seen["mean"].argmax(1) == Showing.seen["targets"]).mean())
    assert variant["top1_percent"] == pytest.approx(top1)
    assert Showing.seen["variants"] == shown["variants"]


def test_a_stage_without_an_algorithm_has_no_state_to_show(shown: dict[str, Any]) -> None:
    assert Showing.seen["refusal"] == ("stage 'teacher': holds no state of an algorithm; it was trained without one")


class Sure(nn.Module):
    """Answers every sample with the same probabilities."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log() + 3.0

    def forward(self, inputs: Tensor) -> Any:
        logits = self.logits.expand(len(inputs), -1)
        return Outputs(logits) if len(inputs) == 1 else logits


@pytest.mark.parametrize("samples", [1, 2])  # the one is answered as outputs, the other as logits
def test_an_ensemble_averages_probabilities(samples: int) -> None:
    mean = Ensemble([Sure(0.5, 0.5), Sure(0.9, 0.1)])(torch.zeros(samples, 3, 4, 4))
    torch.testing.assert_close(mean.exp(), torch.tensor([[0.7, 0.3]]).expand(samples, -1))


def test_an_ensemble_of_extreme_answers_stays_finite() -> None:
    class Wild(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.tensor([[1e4, -1e4]])

    assert Ensemble([Wild(), Wild()])(torch.zeros(1, 1)).isfinite().all()


def test_a_network_can_be_cut_off_after_a_level(shown: dict[str, Any]) -> None:
    early = Showing.seen["early"]
    assert all(one["alike"] and one["logits"] for one in early)
    first, second = (one["parameters"] for one in early)
    assert 0 < first < second < 1e6 * shown["student"]["params_m"]


def test_report_items_are_kept_as_json(shown: dict[str, Any]) -> None:
    table, heat, scatter, plain, images = shown["report_items"]
    assert (plain["front"], plain["points"][0]["group"]) == (None, "")
    assert table == {
        "kind": "table",
        "title": "words",
        "columns": ["what", "value"],
        "rows": [["one", 1], ["none", None]],
        "note": "a note",
    }
    assert (heat["kind"], heat["values"], heat["unit"]) == ("heat_map", [[1.0, None]], "%")
    assert (scatter["kind"], scatter["front"]) == ("scatter", "g")
    assert scatter["points"] == [{"x": 1.0, "y": 2.0, "label": "p", "group": "g"}]
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in images["images"])
    assert first.shape == second.shape == (4, 4)
    assert (int(first[0, 0]), int(second[-1, -1])) == (0, 255)
    assert images["captions"] == ["dark", "light"]


def test_a_picture_of_two_channels_is_shown_as_their_mean() -> None:
    image = torch.stack([torch.zeros(3, 4), torch.full((3, 4), 0.4)])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(report_item_json._png(image, "here")))))
    assert (shown.shape, int(shown.min()), int(shown.max())) == ((3, 4), 51, 51)


def test_who_shows_nothing_keeps_nothing(tmp_path: Path) -> None:
    results = run(Couple, tmp_path)
    assert (results["report_items"], results["variants"]) == ([], [])
    assert not list((tmp_path / "store").rglob("algorithm.safetensors"))


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (Table("t", ("a", "b"), (("x",),)), "algorithm 'a': item 't': has 2 columns, but a row of 1"),
        (
            Table("t", ("a",), ((float("nan"),),)),
            "algorithm 'a': item 't': holds nan; None says that there is no number",
        ),
        (HeatMap("h", ("a", "b"), ("c",), ((1.0,),)), "algorithm 'a': item 'h': 2 rows are named, there are 1"),
        (HeatMap("h", ("a",), ("c",), ((1.0, 2.0),)), "algorithm 'a': item 'h': has 1 columns, but a row of 2"),
        (
            Scatter("s", "x", "y", (Point(0.0, float("inf")),)),
            "algorithm 'a': item 's': holds inf; None says that there is no number",
        ),
        (
            Images("i", torch.zeros(1, 4, 4)),
            "algorithm 'a': item 'i': a picture is (4, 4); (C, H, W) would be right",
        ),
        ("words", "algorithm 'a': report_items() gave str; known: table, heat_map, scatter, images"),
    ],
)
def test_what_no_report_can_show_is_refused(item: Any, problem: str) -> None:
    with pytest.raises(ContractError) as caught:
        as_json(item, "algorithm 'a'")
    assert str(caught.value) == problem


def test_a_run_without_a_folder_shows_all_the_same(tmp_path: Path) -> None:
    results: Mapping[str, Any] = tiny_runner(Showing, load_zoo("none"), tmp_path, {}).run()
    kinds = ["table", "heat_map", "scatter", "scatter", "images"]
    assert [item["kind"] for item in results["report_items"]] == kinds


def test_the_report_reads_what_a_run_writes(shown: dict[str, Any]) -> None:
    results = parse_results(shown)
    assert [item.kind for item in results.report_items] == ["table", "heat_map", "scatter", "scatter", "images"]
    assert results.stages[-1].logged_of == {"task": "student", "match": "student"}
    (variant,) = results.variants
    assert variant.latency_ratio == shown["variants"][0]["latency_ratio"]
    drawn = [section.chart for section in sections(results.report_items) if section.chart]
    assert [chart.title for chart in drawn] == ["map", "plot", "plain plot"]
