"""Each conformance check fails on an algorithm with the bug that it is there for, and passes on one without."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Algorithm, AlgorithmOptions, Needs, Paper, Shapes, StepContext, Update
from kdzoo.contract.stage import Stage
from kdzoo.testing import checks
from kdzoo.testing.tiny import TEACHER, tiny_recipe
from kdzoo.zoo.loading import load_zoo


def sound_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the divergence of the student's probabilities from the teacher's, in nats.

    Shapes: (N, K), (N, K) -> scalar.
    """
    student, teacher = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Sound(Algorithm):
    """Makes the student's probabilities and a projection of its maps match the teacher's.

    Reads: logits and features of both.
    Loss terms: ``match``: nats, 0 when student equals teacher; mean over samples. ``map``: squared; mean over all.
    Trains: a projector.   State: the mean loss.
    Source: nobody, "A test", 2020.
    Differs from the paper: nothing known.
    Defaults from: nowhere.
    """

    name = "sound"
    paper = Paper("A paper", "An author", 2020, "https://example.org")
    needs = Needs(features=True, data="any")
    loss_functions = (sound_loss,)
    default_weights: ClassVar = {"task": 1.0, "match": 1.0, "map": 0.1}
    skip_checks: ClassVar = {}
    seen: Tensor

    class Options(AlgorithmOptions):
        temperature: float = Field(2.0, gt=0, description="Softens both.")

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        student, teacher = shapes.student.levels[-1], shapes.teacher.levels[-1]
        self.projector = nn.Conv2d(student.channels, teacher.channels, 1, bias=False)
        if student.channels == teacher.channels:
            nn.init.dirac_(self.projector.weight)  # at equal maps there is nothing to project
        self.register_buffer("seen", torch.zeros(()))

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"match": self.match(ctx), "map": self.map(ctx)}

    def match(self, ctx: StepContext) -> Tensor:
        return sound_loss(*(o.logits / self.options.temperature for o in (ctx.student, ctx.teacher)))

    def map(self, ctx: StepContext) -> Tensor:
        mine, others = self.projector(ctx.student.features[-1]), ctx.teacher.features[-1]
        return F.mse_loss(mine, F.interpolate(others, mine.shape[2:]))

    def update(self, ctx: StepContext) -> None:
        self.seen.lerp_(ctx.student.logits.square().mean(), 0.1)


# --- what is declared -----------------------------------------------------------------------------


class UndocumentedOption(Sound):
    class Options(AlgorithmOptions):
        temperature: float = 2.0


class RequiredOption(Sound):
    class Options(AlgorithmOptions):
        temperature: float = Field(gt=0, description="Softens both.")


class AnyOption(Sound):
    class Options(AlgorithmOptions):
        model_config = ConfigDict(extra="ignore")
        temperature: float = Field(2.0, gt=0, description="Softens both.")


class HalfACard(Sound):
    """Makes the student match.

    Reads: logits of both.
    Loss terms: ``match``.
    Trains: a projector.
    Source: nobody.
    Defaults from: nowhere.
    """


class PaperWithoutAnAddress(Sound):
    __doc__ = Sound.__doc__
    paper = Paper("A paper", "An author", 2020, "")


# --- what is offered ------------------------------------------------------------------------------


class Secretive(Sound):
    loss_functions = ()


def shapeless_loss(logits: Tensor) -> Tensor:
    """Return the square of logits."""
    return logits.square().mean()


def soft_target_loss(logits: Tensor) -> Tensor:
    """Return the square of logits.

    Shapes: (N, K) -> scalar.
    """
    return logits.square().mean()


class OffersTheShapeless(Sound):
    loss_functions = (sound_loss, shapeless_loss)


class OffersATakenName(Sound):
    loss_functions = (sound_loss, soft_target_loss)


def unused_loss(logits: Tensor) -> Tensor:
    """Return the square of logits.

    Shapes: (N, K) -> scalar.
    """
    return logits.square().mean()


class OffersWhatItDoesNotUse(Sound):
    loss_functions = (unused_loss,)


# --- terms ----------------------------------------------------------------------------------------


class TermWithoutAWeight(Sound):
    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {**super().losses(ctx), "extra": self.match(ctx)}


class WeightWithoutATerm(Sound):
    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {"match": self.match(ctx)}


class Unreduced(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        return (ctx.student.logits - ctx.teacher.logits).square().mean(dim=1)


class InFloat64(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx).double()


class NotFinite(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) / 0


class ProbabilitiesForLogarithms(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        student, teacher = (o.logits.softmax(dim=1) for o in (ctx.student, ctx.teacher))
        return F.kl_div(student, teacher, reduction="batchmean")


class HiddenRandomness(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) * (1 + 0.1 * torch.rand(()))


class StateInLosses(Sound):
    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        self.seen += 1
        return super().losses(ctx)


class LogOfSoftmax(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        student, teacher = (o.logits.softmax(dim=1) for o in (ctx.student, ctx.teacher))
        return (teacher * (teacher.log() - student.log())).sum(dim=1).mean()


class FiniteWithNanGradient(Sound):
    """Reverse divergence with a mask: the value is finite, its gradient is not."""

    def match(self, ctx: StepContext) -> Tensor:
        student, teacher = (o.logits.softmax(dim=1) for o in (ctx.student, ctx.teacher))
        safe = torch.where((student > 0) & (teacher > 0), student * (student.log() - teacher.log()), 0.0)
        return safe.sum(dim=1).mean()


class ReadsNoLabel(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        last = F.one_hot(ctx.batch.targets % 4, 4)[:, 3]  # -1 counts as the last class
        return super().match(ctx) * (1 + last.float().mean())


# --- who is trained -------------------------------------------------------------------------------


class TeacherMoves(Sound):
    def update(self, ctx: StepContext) -> None:
        ctx.modules["teacher"].fc.bias.data += 0.01


class TeacherTrains(Sound):
    def update(self, ctx: StepContext) -> None:
        ctx.modules["teacher"].train()


class CutOff(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        return super().match(dataclasses.replace(ctx, student=detached(ctx.student)))

    def map(self, ctx: StepContext) -> Tensor:
        return super().map(dataclasses.replace(ctx, student=detached(ctx.student)))


class WarmUpThatNeverEnds(Sound):
    """Divides whole epochs, which gives 0 to the end; only its very first step counts."""

    def ramp(self, ctx: StepContext) -> float:
        clock = ctx.clock
        return 1.0 if clock.step == 0 else float(clock.epoch // clock.epochs)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        return {name: self.ramp(ctx) * term for name, term in super().losses(ctx).items()}


class WarmUp(Sound):
    """Sound: nothing at the first step, everything from the fifth epoch on."""

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        ramp = min(1.0, ctx.clock.step / (5 * ctx.clock.steps_per_epoch))
        return {name: ramp * term for name, term in super().losses(ctx).items()}


def detached(outputs: Any) -> Any:
    return dataclasses.replace(
        outputs, logits=outputs.logits.detach(), features=tuple(f.detach() for f in outputs.features)
    )


class UnusedParameter(Sound):
    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.forgotten = nn.Linear(2, 2)


class ParameterWithoutAGradient(Sound):
    """Its gradient is always zero; weight decay moves it all the same."""

    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.multiplied = nn.Parameter(torch.ones(2, 2))

    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) + 0 * self.multiplied.sum()


class ParameterMadeLate(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(()))
        return super().match(ctx) * self.scale


class ModulesInAList(Sound):
    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.heads = [nn.Linear(shapes.num_classes, 2)]

    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) + 1e-3 * self.heads[0](ctx.student.logits).square().mean()


# --- the same again -------------------------------------------------------------------------------


class UnseededParameter(Sound):
    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        with torch.no_grad():
            self.projector.weight += torch.from_numpy(np.random.default_rng().normal(size=self.projector.weight.shape))


class GrowingBank(Sound):
    def update(self, ctx: StepContext) -> None:
        self.seen = torch.cat([self.seen.reshape(-1), ctx.student.logits.mean().reshape(1)])


class StateInAnAttribute(Sound):
    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) * (1 + getattr(self, "calls", 0))

    def update(self, ctx: StepContext) -> None:
        self.calls = getattr(self, "calls", 0) + 1


class BufferThatIsNotSaved(Sound):
    def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
        super().__init__(options, shapes)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) * (1 + self.count)

    def update(self, ctx: StepContext) -> None:
        self.count += 1


# --- sizes and types ------------------------------------------------------------------------------


class SpreadOfOne(Sound):
    """The unbiased variance over the batch, which one sample does not have."""

    def match(self, ctx: StepContext) -> Tensor:
        student, teacher = (spread(outputs.logits) for outputs in (ctx.student, ctx.teacher))
        return super().match(ctx) + 0.01 * (student - teacher).square().mean()


def spread(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=0)).square().sum(dim=0) / (len(logits) - 1)


class SquareMaps(Sound):
    def map(self, ctx: StepContext) -> Tensor:
        feature = ctx.student.features[0]
        side = int(feature[0, 0].numel() ** 0.5)
        return super().map(ctx) + 0 * feature.reshape(len(feature), -1, side, side).mean()


class NeedsAThirdClass(Sound):
    """Divides by the number of classes that are neither the first nor the second."""

    def match(self, ctx: StepContext) -> Tensor:
        return super().match(ctx) + 0.01 * (ctx.student.logits - ctx.teacher.logits)[:, 2:].square().mean()


class HalfPrecisionTerm(Sound):
    """Takes a map by a hook, as the network made it: in half precision under autocast."""

    def map(self, ctx: StepContext) -> Tensor:
        taken: list[Tensor] = []
        handle = ctx.modules["student"].layer4.register_forward_hook(lambda *args: taken.append(args[-1]))
        ctx.networks["student"](ctx.batch.inputs)
        handle.remove()
        return super().map(ctx).to(taken[0].dtype)


# --- whole runs -----------------------------------------------------------------------------------


class AnotherStudent(Sound):
    @classmethod
    def stages(cls, plan: Any) -> Any:
        wider = dataclasses.replace(plan.student, args=TEACHER)
        return (yield Stage("student", wider, plan.own, plan.teachers))


class WrappedStudent(Sound):
    def update(self, ctx: StepContext) -> None:
        ctx.modules["student"].register_buffer("helper", torch.zeros(1))


class TwoTeachersOfOne(Sound):
    """Declares one teacher and reads a second where there is none."""

    @classmethod
    def stages(cls, plan: Any) -> Any:
        return (yield Stage("student", plan.student, plan.own, plan.teachers[:2] if plan.teachers[1] else ()))


class NeverLearns(Sound):
    default_weights: ClassVar = {"task": 1.0, "match": 0.0, "map": 0.0}

    def step(self, ctx: StepContext) -> Iterator[Update]:
        yield Update("student", {"task": -ctx.task_loss(ctx.student.logits), **self.losses(ctx)})


#: Classes whose own docstring is the bug.
LABELLED = (HalfACard,)

NUMBER = r"-?[\d.]+(e-?\d+)?"

#: Check -> broken classes, each with what the check says of it (a pattern).
BROKEN: dict[Callable[..., None], dict[type[Algorithm], str]] = {
    checks.options_are_documented: {
        UndocumentedOption: "option 'temperature' has no description",
        RequiredOption: "option 'temperature' has no default",
    },
    checks.refuses_unknown_options: {AnyOption: "Options accepts the unknown key 'no_such_option'"},
    checks.losses_are_offered: {
        Secretive: "loss_functions is empty, and there are the terms match, map; name the functions that they come "
        "from, or say in skip_checks why none can be used without the algorithm",
        OffersTheShapeless: "shapeless_loss: its docstring has no 'Shapes:'",
        OffersATakenName: "soft_target_loss: kdzoo.api offers another function of this name",
        OffersWhatItDoesNotUse: "a step calls nothing of loss_functions: unused_loss",
    },
    checks.card_is_complete: {
        HalfACard: "the docstring has no 'Differs from the paper:'",
        PaperWithoutAnAddress: "the paper has no title or no address",
    },
    checks.terms_match_weights: {
        TermWithoutAWeight: r"terms \['extra', 'map', 'match', 'task'\], default_weights \['map', 'match', 'task'\]",
        WeightWithoutATerm: r"terms \['match', 'task'\], default_weights \['map', 'match', 'task'\]",
    },
    checks.terms_are_finite_scalars: {
        Unreduced: r"term 'match' has shape \(8,\), not \(\)",
        InFloat64: "term 'match' is torch.float64, not float32",
        NotFinite: "term 'match' is inf",
    },
    checks.perfect_student_scores_zero: {
        ProbabilitiesForLogarithms: f"term 'match' is {NUMBER} for a student equal to its teacher"
    },
    checks.losses_is_pure: {
        HiddenRandomness: f"term 'match' was {NUMBER}, then {NUMBER}",
        StateInLosses: r"losses\(\) changed 'seen'; state changes belong in update\(\)",
    },
    checks.extreme_logits: {
        LogOfSoftmax: "term 'match' is nan",
        FiniteWithNanGradient: "the gradient is not finite for logits of 200 in torch.float32",
    },
    checks.labels_are_read_by_the_task_loss_alone: {
        ReadsNoLabel: f"term 'match' is {NUMBER}, and {NUMBER} for other targets; data: labelled would be right",
    },
    checks.teacher_is_untouched: {
        TeacherMoves: "the teacher's weights or buffers changed",
        TeacherTrains: "the teacher was left in training mode",
    },
    checks.student_gets_gradient_from_distillation_alone: {
        CutOff: "no distillation term reaches any weight of the student in epoch 100 of 200",
        WarmUpThatNeverEnds: "no distillation term reaches any weight of the student in epoch 100 of 200",
    },
    checks.own_parameters_all_train: {
        UnusedParameter: "reached by no gradient: forgotten.weight, forgotten.bias",
        ParameterWithoutAGradient: "its gradient is always zero: multiplied",
        ParameterMadeLate: "made during training, so in no optimizer: scale",
        ModulesInAList: "holds modules in a plain list or dict, so in no optimizer: heads",
    },
    checks.same_seed_same_numbers: {UnseededParameter: "two runs with one seed differ in 'conv1.0.weight'"},
    checks.state_round_trips: {GrowingBank: r"RuntimeError: Error\(s\) in loading state_dict for GrowingBank.*"},
    checks.killed_run_resumes_bit_identically: {
        StateInAnAttribute: "a run and a resumed run differ in 'conv1.0.weight'",
        BufferThatIsNotSaved: "a run and a resumed run differ in 'conv1.0.weight'",
    },
    checks.batch_of_one: {SpreadOfOne: "term 'match' is nan"},
    checks.odd_sizes: {SquareMaps: rf"RuntimeError: shape .* is invalid .* \({re.escape(__file__)}, line \d+\)"},
    checks.two_classes: {NeedsAThirdClass: "term 'match' is nan"},
    checks.bf16: {HalfPrecisionTerm: "term 'map' is torch.bfloat16, not float32"},
    checks.student_on_disk_is_the_plain_model: {
        AnotherStudent: r"'conv1.2.weight' has shape \(.*\)|'layer.*",
        WrappedStudent: r"RuntimeError: .*Unexpected key\(s\) in state_dict: \"helper\".*",
    },
    checks.runs_on_declared_needs: {TwoTeachersOfOne: r"IndexError: tuple index out of range \(.*\)"},
    checks.beats_its_own_start: {NeverLearns: f"validation accuracy {NUMBER} % before training, {NUMBER} % after"},
}

CASES = [(check, cls, text) for check, broken in BROKEN.items() for cls, text in broken.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broken")


def outcome(check: Callable[..., None], cls: type[Algorithm], root: Path) -> checks.Outcome:
    return checks.run_check(check, cls, load_zoo("none"), root)


def test_every_check_has_an_algorithm_that_it_must_fail() -> None:
    assert BROKEN.keys() == set(checks.ALL)


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_the_sound_one_passes(check: Callable[..., None], root: Path) -> None:
    assert outcome(check, Sound, root) == checks.Outcome(check.__name__, "passed")


def test_an_algorithm_that_chooses_its_student_may_deliver_another(root: Path) -> None:
    chosen = type("Chosen", (AnotherStudent,), {"name": "chosen", "chooses_student": True, "__doc__": Sound.__doc__})
    told = outcome(checks.student_on_disk_is_the_plain_model, chosen, root)
    assert told == checks.Outcome("student_on_disk_is_the_plain_model", "passed")
    wrapped = type("Both", (WrappedStudent,), {"name": "both", "chooses_student": True, "__doc__": Sound.__doc__})
    assert outcome(checks.student_on_disk_is_the_plain_model, wrapped, root).status == "failed"


def named(cls: type[Algorithm]) -> type[Algorithm]:
    """A broken class under a name of its own, so that no stored stage of another is taken for one of its own."""
    attributes = {"name": cls.__name__.lower(), "__doc__": cls.__doc__ if cls in LABELLED else Sound.__doc__}
    return type(cls.__name__, (cls,), {**attributes, "__module__": cls.__module__})


@pytest.mark.parametrize(("check", "cls", "text"), CASES, ids=[f"{c.__name__}-{b.__name__}" for c, b, _ in CASES])
def test_the_broken_one_fails(check: Callable[..., None], cls: type[Algorithm], text: str, root: Path) -> None:
    told = outcome(check, named(cls), root)
    assert (told.name, told.status) == (check.__name__, "failed"), told
    assert re.fullmatch(text, told.text, re.DOTALL), told.text


#: Bugs that crash or stop most runs, so that many a check fails; each other fails the check that it is there for alone,
#: and those named here.
LOUD = (RequiredOption, TermWithoutAWeight, Unreduced, InFloat64, NotFinite, TwoTeachersOfOne)
ALSO: dict[type[Algorithm], set[str]] = {
    WeightWithoutATerm: {"own_parameters_all_train"},
    TeacherMoves: {"student_on_disk_is_the_plain_model", "runs_on_declared_needs", "beats_its_own_start"},
    ParameterMadeLate: {"losses_is_pure", "state_round_trips", "killed_run_resumes_bit_identically"},
    UnseededParameter: {"perfect_student_scores_zero", "killed_run_resumes_bit_identically"},
    GrowingBank: {"killed_run_resumes_bit_identically"},
    AnotherStudent: {"perfect_student_scores_zero"},
    WrappedStudent: {"killed_run_resumes_bit_identically", "runs_on_declared_needs"},
    NeverLearns: {"student_gets_gradient_from_distillation_alone", "own_parameters_all_train"},
}
QUIET = [(check.__name__, cls) for check, cls, _ in CASES if cls not in LOUD]


@pytest.mark.slow
@pytest.mark.parametrize(("check", "cls"), QUIET, ids=[cls.__name__ for _, cls in QUIET])
def test_a_quiet_bug_fails_no_other_check(check: str, cls: type[Algorithm], root: Path) -> None:
    failed = {one.__name__ for one in checks.ALL if outcome(one, named(cls), root).status == "failed"}
    assert failed == {check} | ALSO.get(cls, set())


def test_a_warm_up_that_ends_passes(root: Path) -> None:
    check = checks.student_gets_gradient_from_distillation_alone
    assert outcome(check, named(WarmUp), root).status == "passed"


# --- what the suite itself does -------------------------------------------------------------------


def test_an_exemption_is_reported_with_its_reason_and_must_name_a_check() -> None:
    exempt = type("Exempt", (Unreduced,), {"name": "exempt", "skip_checks": {"terms_are_finite_scalars": "as it is"}})
    told = checks.run_check(checks.terms_are_finite_scalars, exempt, load_zoo("none"))
    assert told == checks.Outcome("terms_are_finite_scalars", "skipped", "as it is")
    misnamed = type("Misnamed", (Sound,), {"name": "misnamed", "skip_checks": {"no_such_check": "as it is"}})
    first = next(checks.run_checks(misnamed, load_zoo("none")))
    known = ", ".join(sorted(check.__name__ for check in checks.ALL))
    assert first == checks.Outcome("no_such_check", "failed", f"skip_checks names no check; known: {known}")


def test_a_check_that_says_nothing_is_vacuous_with_the_reason(root: Path) -> None:
    class Planner(Sound):
        name, losses, needs = "planner", Algorithm.losses, Needs(teachers=0)

        @classmethod
        def stages(cls, plan: Any) -> Any:
            return (yield Stage("student", plan.student))

    assert outcome(checks.bf16, Planner, root) == checks.Outcome(
        "bf16", "vacuous", "it only plans stages, each trained by an algorithm with checks of its own"
    )
    alone = type(
        "Stateless",
        (Sound,),
        {
            "name": "stateless",
            "__init__": Algorithm.__init__,
            "map": lambda s, c: s.match(c),
            "update": Algorithm.update,
        },
    )
    assert outcome(checks.own_parameters_all_train, alone, root).text == "it has no parameters of its own"


def test_an_algorithm_that_never_runs_its_own_step_is_told_so(root: Path) -> None:
    class Shirker(Sound):
        name = "shirker"

        @classmethod
        def stages(cls, plan: Any) -> Any:
            return (yield Stage("student", plan.student))

    told = outcome(checks.bf16, Shirker, root)
    assert (told.status, told.text) == ("failed", "stages() never runs the algorithm's own step")


def test_the_step_that_is_checked_is_one_with_a_teacher(root: Path) -> None:
    class Sequel(Sound):
        name, needs = "sequel", Needs(teachers=0, features=True)

        def __init__(self, options: AlgorithmOptions, shapes: Shapes) -> None:
            Algorithm.__init__(self, options, shapes)

        def losses(self, ctx: StepContext) -> dict[str, Tensor]:
            nothing = ctx.student.logits.sum() * 0
            return {"match": self.match(ctx) if ctx.teachers else nothing, "map": nothing}

        def update(self, ctx: StepContext) -> None:
            pass

        @classmethod
        def stages(cls, plan: Any) -> Any:
            first = yield Stage("first", plan.student, plan.own)
            return (yield Stage("second", plan.student, plan.own, (first,), start=first))

    assert outcome(checks.student_gets_gradient_from_distillation_alone, Sequel, root).status == "passed"
    assert outcome(checks.teacher_is_untouched, Sequel, root).status == "passed"


def test_a_declared_least_number_of_classes_or_samples_is_held(root: Path) -> None:
    class Picky(NeedsAThirdClass, SpreadOfOne):
        name, needs = "picky", Needs(features=True, min_classes=3, min_batch=2)

        def match(self, ctx: StepContext) -> Tensor:
            return NeedsAThirdClass.match(self, ctx)

    for check in (checks.two_classes, checks.batch_of_one):
        assert outcome(check, Picky, root).status == "passed"


def test_the_bench_meets_exactly_the_declared_needs() -> None:
    needy = type("Needy", (Sound,), {"name": "needy", "needs": Needs(teachers=(2, None), peers=1, assistants=(0, 3))})
    models = tiny_recipe(needy).models
    assert [len(group) for group in (models.all_teachers, models.peers, models.assistants)] == [2, 1, 0]
