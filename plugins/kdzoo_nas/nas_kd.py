"""Search for a student under a budget, scored by distillation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from kdzoo.api import (
    Algorithm,
    AlgorithmName,
    AlgorithmOptions,
    FinishedRun,
    ModelSpec,
    Needs,
    NeedsError,
    Paper,
    Point,
    ReportItem,
    Scatter,
    Stage,
    StagePlan,
    StageResult,
    Stages,
    Table,
)
from kdzoo_nas.search import Dimension, Search

TRIAL, FOUND, PICKED = "trial_", "student", "hand_picked"
LIMITS = {"max_params_m": "params_m", "max_macs_g": "macs_g", "max_latency_ms": "latency_ms"}


class Axis(AlgorithmOptions):
    """An argument of the student's model and its allowed values."""

    arg: str = Field(min_length=1, description="Name of the model's argument, as under models.student.args.")
    values: tuple[Any, ...] = Field(
        min_length=2,
        description="Values to choose from, ordered so that neighbours are similar: numbers, words or lists.",
    )


class NasKD(Algorithm):
    """Searches for the student's architecture, scoring each candidate by a short distillation.

    Candidates differ from the recipe's student in ``depth``, ``width`` (arguments of its model) and ``resolution``.
    Those over the budget are never trained. Each of the others is distilled from the teacher for ``trial_epochs`` by
    the algorithm that ``via`` names; its accuracy on the validation split guides the next proposals (tree-structured
    Parzen estimator). The best one and the recipe's hand-picked student are then distilled with the full budget.
    Options and loss weights that are not its own go to ``via``.

    Reads: what the algorithm that ``via`` names reads.
    Loss terms: those of the algorithm that ``via`` names.
    Trains: nothing of its own; one stage per trial, one for the hand-picked student, one for the found one. State:
        none.
    Raises: NeedsError if there is nothing to search, no validation split, no candidate within the budget, or if the
        hand-picked student is over it; KdzooError without optuna.
    Source: Liu, Jia, Tan, Vemulapalli, Zhu, Green, Wang, "Search to Distill: Pearls are Everywhere but not the Eyes",
        CVPR 2020, https://arxiv.org/abs/1911.09074: architectures are scored by their accuracy under the teacher. The
        sampler is that of Bergstra, Bardenet, Bengio, Kegl, "Algorithms for Hyper-Parameter Optimization", NIPS 2011,
        as optuna has it.
    Differs from the paper: 1. optuna's sampler proposes candidates; the paper's is a network trained by reinforcement
        learning. 2. the budget is a limit; the paper weighs latency into the reward. 3. the space is a few arguments
        of one family of models. 4. any algorithm that needs exactly one teacher can judge the trials (``via``).
    Defaults from: our own choice.
    """

    name = "nas_kd"
    paper = Paper(
        title="Search to Distill: Pearls are Everywhere but not the Eyes",
        authors="Liu, Jia, Tan, Vemulapalli, Zhu, Green, Wang",
        year=2020,
        url="https://arxiv.org/abs/1911.09074",
    )
    needs = Needs(teachers=1, of_teacher="top_k")
    delegate = "via"
    chooses_student = True
    also_known_as = ("akd", "architecture_search", "distillation_aware_nas")
    tiny_recipe: ClassVar = {
        "algorithm": {"options": {"width": {"arg": "stem_width", "values": [4, 8]}, "trials": 2, "trial_epochs": 1}}
    }

    class Options(AlgorithmOptions):
        via: AlgorithmName = Field(
            "kd",
            description="Algorithm of every trial and of the final trainings; it must need exactly one teacher.",
        )
        depth: Axis | None = Field(None, description="The argument that is the student's depth; null: not searched.")
        width: Axis | None = Field(None, description="The argument that is the student's width; null: not searched.")
        resolution: tuple[int, ...] = Field((), description="Input sizes to choose from, pixels; empty: not searched.")
        max_params_m: float | None = Field(None, gt=0, description="Budget: parameters, millions; null: no limit.")
        max_macs_g: float | None = Field(
            None, gt=0, description="Budget: multiply-accumulates of one sample, billions; null: no limit."
        )
        max_latency_ms: float | None = Field(
            None, gt=0, description="Budget: median time of one sample on this machine, milliseconds; null: no limit."
        )
        trials: int = Field(16, ge=1, le=100_000, description="Largest number of candidates that are trained.")
        trial_epochs: int = Field(5, ge=1, le=100_000, description="Passes over the training split of each trial.")
        random_trials: int = Field(
            8,
            ge=1,
            le=100_000,
            description="Candidates drawn at random before the sampler learns; includes those over the budget.",
        )
        side_by_side: int = Field(
            1,
            ge=1,
            le=1024,
            description="Number of candidates proposed at a time; they can be trained at the same time.",
        )

    # --- the stages ---------------------------------------------------------------------------

    @classmethod
    def stages(cls, plan: StagePlan) -> Stages:
        options = plan.options
        search = Search(
            plan.student,
            space_of(options),
            budget_of(plan),
            lambda spec, name: cost_of(plan, spec, name),
            trials=options.trials,
            random_trials=options.random_trials,
            seed=plan.seed,
            folder=plan.folder,
        )
        over = search.over_budget(plan.student)
        if over:
            raise NeedsError(
                f"algorithm 'nas_kd': the hand-picked student (models.student) is over the budget: {over}; pick one "
                "within it, so that the two can be compared"
            )
        while batch := search.ask(options.side_by_side):
            short = {"epochs": options.trial_epochs}
            results = yield [
                Stage(f"{TRIAL}{trial.number}", trial.spec, plan.delegate, plan.teachers, train=short)
                for trial in batch
            ]
            for trial, result in zip(batch, results, strict=True):
                search.tell(trial, score_of(result))
        if not search.scores:
            budget = ", ".join(f"{name} {limit:g}" for name, limit in search.budget.items())
            raise NeedsError(
                f"algorithm 'nas_kd': none of the {len(search.seen)} candidates is within the budget of {budget}; "
                "raise it, or add smaller values"
            )
        found = search.best().spec
        _, student = yield [
            Stage(name, spec, plan.delegate, plan.teachers) for name, spec in ((PICKED, plan.student), (FOUND, found))
        ]
        return student

    # --- what is shown ------------------------------------------------------------------------

    @classmethod
    def report_items(cls, run: FinishedRun) -> Iterable[ReportItem]:
        options, space = run.options, space_of(run.options)
        by_macs = options.max_params_m is None and any((options.max_macs_g, options.max_latency_ms))

        def point(result: StageResult, group: str) -> Point:
            network: Any = run.network(result)
            cost = network.macs if by_macs else sum(parameter.numel() for parameter in network.model.parameters())
            return Point(cost / 1e6, score_of(result), " · ".join(map(brief, place_of(run, result, space))), group)

        trials = [result for result in run.stages if result.name.startswith(TRIAL)]
        points = [point(result, "trial") for result in trials]
        best = front(points)
        finals = {result.name: result for result in run.stages if result.name in (PICKED, FOUND)}
        names = [dimension.name for dimension in space]
        cost = "MACs, M" if by_macs else "parameters, M"
        yield Scatter(
            "What the search saw",
            cost,
            "validation accuracy, %",
            (
                *(replace(p, group="front") if p in best else replace(p, label="") for p in points),
                point(finals[PICKED], "hand-picked, in full"),
                point(finals[FOUND], "found, in full"),
            ),
            front="front",
            note=f"Labels are {' · '.join(names)}. Each trial was distilled for {options.trial_epochs} epochs; the "
            "line joins those that no other beats at lower or equal cost.",
        )
        (picked,) = run.measure({"hand-picked, distilled": run.network(finals[PICKED])})
        rows = [
            ("found, distilled", finals[FOUND], run.entries["student"]),
            ("hand-picked, distilled", finals[PICKED], picked),
        ]
        if run.control is not None:
            rows.append(("hand-picked, alone", run.control, run.entries["control"]))
        yield Table(
            "Found against hand-picked",
            ("student", *names, "parameters, M", "MACs, M", "latency, ms", "test, %"),
            tuple((label, *place_of(run, result, space), *numbers_of(entry)) for label, result, entry in rows),
            note="All had the recipe's full budget; the distilled ones were taught by one teacher and one algorithm.",
        )
        yield Table(
            "Trials",
            ("trial", *names, cost, "validation, %"),
            tuple(
                (result.name.removeprefix(TRIAL), *place_of(run, result, space), p.x, p.y)
                for result, p in zip(trials, points, strict=True)
            ),
        )


def space_of(options: Any) -> tuple[Dimension, ...]:
    """The dimensions that the options name; NeedsError if there is none."""
    axes = {"depth": options.depth, "width": options.width}
    found = [Dimension(name, axis.arg, axis.values) for name, axis in axes.items() if axis is not None]
    if options.resolution:
        found.append(Dimension("resolution", None, options.resolution))
    if not found:
        raise NeedsError(
            "algorithm 'nas_kd': nothing to search; give depth, width or resolution, e.g. options.width: "
            "{arg: width, values: [8, 16, 24]}"
        )
    return tuple(found)


def budget_of(plan: StagePlan) -> dict[str, float]:
    """The limits that the options name, or else the number of parameters of the hand-picked student."""
    named = {name: getattr(plan.options, limit) for limit, name in LIMITS.items()}
    given = {name: limit for name, limit in named.items() if limit is not None}
    return given or {"params_m": plan.costs(plan.student).params_m}


def cost_of(plan: StagePlan, spec: ModelSpec, name: str) -> float:
    """The cost of a model: params_m, macs_g or latency_ms."""
    return plan.latency(spec) if name == "latency_ms" else float(getattr(plan.costs(spec), name))


def score_of(result: StageResult) -> float:
    """Accuracy on the validation split, percent."""
    if "top1_percent" not in result.metrics:
        raise NeedsError(
            "algorithm 'nas_kd': trials are scored on the validation split, and data.validation leaves none"
        )
    return result.metrics["top1_percent"]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats: no other is as good or better at lower or equal cost."""

    def beaten(p: Point) -> bool:
        return any(q.x <= p.x and q.y >= p.y and (q.x, q.y) != (p.x, p.y) for q in points)

    return [p for p in points if not beaten(p)]


def place_of(run: FinishedRun, result: StageResult, space: Sequence[Dimension]) -> list[str | int | float | None]:
    """The value of a trained network in each dimension; None for an argument left at its default."""
    network: Any = run.network(result)
    values = [network.size[0] if d.arg is None else result.model.args.get(d.arg) for d in space]
    return [value if isinstance(value, str | int | float | None) else brief(value) for value in values]


def brief(value: Any) -> str:
    """A value in few letters: the parts of a list are joined by strokes."""
    return "/".join(map(brief, value)) if isinstance(value, list | tuple) else "-" if value is None else str(value)


def numbers_of(entry: Mapping[str, Any]) -> tuple[float, ...]:
    """Costs and accuracy of a measured network, for the table."""
    return entry["params_m"], entry["macs_g"] * 1e3, entry["latency_ms"]["p50"], entry["top1_percent"]
