"""The conformance suite: what every algorithm keeps, third-party ones included.

Each check is a sentence and a function of a ``Harness``. An algorithm states an exception itself, with the reason, in
``skip_checks``; there is no ignore list here.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from kdzoo.contract import shared_losses
from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.classification import NO_LABEL, quality
from kdzoo.contract.stage import Stage
from kdzoo.contract.step import Clock, Outputs
from kdzoo.errors import KdzooError, NeedsError
from kdzoo.models.weights import delivered_weights, weights_sha256
from kdzoo.plan.resolve import unmet_needs
from kdzoo.run.delivered import delivered_spec
from kdzoo.storage.checkpoints import Checkpoints
from kdzoo.storage.sealed import read_tensors
from kdzoo.testing.card import docstring_parts, rung
from kdzoo.testing.harness import (
    TASK,
    CheckFailed,
    Harness,
    Outcome,
    Vacuous,
    assert_finite,
    assert_same,
    calls_of,
    ensure,
    harness_of,
    reached_by_distillation,
    run_steps,
    updates_of,
)
from kdzoo.testing.tiny import STUDENT, TEACHER, least, tiny_recipe
from kdzoo.training.engine import Engine, Progress
from kdzoo.zoo.loading import load_zoo
from kdzoo.zoo.offered import Zoo

# --- declared -------------------------------------------------------------------------------


def options_are_documented(harness: Harness) -> None:
    """Every option has a description and a default."""
    for name, field in harness.cls.Options.model_fields.items():
        ensure(bool(field.description), f"option '{name}' has no description")
        ensure(not field.is_required(), f"option '{name}' has no default")


def refuses_unknown_options(harness: Harness) -> None:
    """An option that does not exist is an error."""
    try:
        harness.cls.Options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise CheckFailed("Options accepts the unknown key 'no_such_option'")


def card_is_complete(harness: Harness) -> None:
    """The docstring has the labels that make the card."""
    parts = docstring_parts(harness.cls)
    for label in ("Reads", "Loss terms", "Trains", "Source", "Differs from the paper", "Defaults from"):
        ensure(bool(parts.get(label)), f"the docstring has no '{label}:'")
    ensure(bool(harness.cls.paper.title and harness.cls.paper.url), "the paper has no title or no address")


# --- terms ----------------------------------------------------------------------------------


def terms_match_weights(harness: Harness) -> None:
    """The terms of a step are exactly those that default_weights names."""
    engine = harness.engine()
    seen = {name for _, loss in updates_of(engine, harness.context(engine)) for name in loss}
    ensure(
        seen == set(harness.cls.default_weights),
        f"terms {sorted(seen)}, default_weights {sorted(harness.cls.default_weights)}",
    )


def terms_are_finite_scalars(harness: Harness) -> None:
    """Every term is a finite scalar in float32."""
    engine = harness.engine()
    for _, loss in updates_of(engine, harness.context(engine)):
        assert_finite(loss)


def losses_are_offered(harness: Harness) -> None:
    """The distillation terms come from pure functions that the class offers under kdzoo.losses."""
    if not harness.trains or not harness.terms:
        raise Vacuous("it has no loss of its own")
    functions = harness.cls.loss_functions
    ensure(
        bool(functions),
        f"loss_functions is empty, and there are the terms {', '.join(harness.terms)}; name the functions that they "
        "come from, or say in skip_checks why none can be used without the algorithm",
    )
    for function in functions:
        ensure("Shapes:" in (function.__doc__ or ""), f"{function.__name__}: its docstring has no 'Shapes:'")
        taken = [
            f"{offer.distribution} {offer.version}"
            for offer in harness.zoo.algorithms.values()
            if any(
                other.__name__ == function.__name__ and other is not function for other in offer.thing.loss_functions
            )
        ]
        if getattr(shared_losses, function.__name__, function) is not function:
            taken.append("kdzoo.api")
        ensure(not taken, f"{function.__name__}: {', '.join(taken)} offers another function of this name")
    engine = harness.engine()
    called = calls_of(lambda: list(updates_of(engine, harness.context(engine))))
    names = ", ".join(function.__name__ for function in functions)
    ensure(
        any(function.__code__ in called for function in functions), f"a step calls nothing of loss_functions: {names}"
    )


def perfect_student_scores_zero(harness: Harness) -> None:
    """A student that answers exactly as its teachers scores zero on every distillation term."""
    if harness.cls.needs.teachers == 0 and harness.cls.needs.peers == 0:
        raise Vacuous("it has neither teacher nor peer to be equal to")
    args = {"name": "test_resnet", "args": STUDENT}
    engine = harness.engine(models={"student": args, "teachers": [args] * least(harness.cls.needs.teachers)})
    ctx = harness.context(engine)
    if ctx.student is None:
        raise Vacuous("it is handed no batch to be equal on")
    perfect = ctx.teachers[0] if ctx.teachers else ctx.student
    same = Outputs(
        perfect.logits.detach().requires_grad_(),
        tuple(feature.detach().requires_grad_() for feature in perfect.features),
        None if perfect.pre_logits is None else perfect.pre_logits.detach().requires_grad_(),
    )
    ctx = replace(ctx, student=same, teachers=(perfect,) * len(ctx.teachers), peers=(same,) * len(ctx.peers))
    for _, loss in updates_of(engine, ctx):
        for name, term in loss.items():
            if name != TASK:
                ensure(
                    abs(term.item()) < 1e-4, f"term '{name}' is {term.item():.3g} for a student equal to its teacher"
                )


def losses_is_pure(harness: Harness) -> None:
    """Calling losses twice gives the same numbers and changes no state."""
    if rung(harness.cls) != "losses":
        raise Vacuous("it has no losses() of its own")
    engine = harness.engine()
    ctx, algorithm = harness.context(engine), engine.job.algorithm
    before = {key: value.clone() for key, value in algorithm.state_dict().items()}
    algorithm.train()
    first, second = algorithm.losses(ctx), algorithm.losses(ctx)
    for name in first:
        ensure(
            torch.equal(first[name], second[name]),
            f"term '{name}' was {first[name].item()}, then {second[name].item()}",
        )
    normalised = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's own statistics move in forward
    for key, value in algorithm.state_dict().items():
        if key.split(".")[-1] not in normalised:
            ensure(torch.equal(before[key], value), f"losses() changed '{key}'; state changes belong in update()")


def extreme_logits(harness: Harness) -> None:
    """Logits of +-200 and 10,000 give finite terms and finite gradients, in float32 and from networks in bf16."""
    engine = harness.engine()
    ctx = harness.context(engine)
    if ctx.student is None:
        raise Vacuous("it is handed no logits")
    signs = torch.randn(ctx.student.logits.shape, generator=torch.Generator().manual_seed(0)).sign()
    for kind, size in product((torch.float32, torch.bfloat16), (200.0, 1e4)):
        extreme = (signs * size).to(kind)
        logits = extreme.clone().requires_grad_()  # what a network gives; a loss is handed it in float32
        wild = replace(ctx.student, logits=logits.float())
        taught = tuple(replace(teacher, logits=-extreme.float()) for teacher in ctx.teachers)
        peers = tuple(replace(peer, logits=(-extreme.float()).requires_grad_()) for peer in ctx.peers)
        for _, loss in updates_of(engine, replace(ctx, student=wild, teachers=taught, peers=peers)):
            assert_finite(loss)
            terms = [term for name, term in loss.items() if name != TASK and term.requires_grad]
            if terms:
                gradient = torch.autograd.grad(torch.stack(terms).sum(), logits, retain_graph=True, allow_unused=True)[
                    0
                ]
                ensure(
                    gradient is None or bool(gradient.isfinite().all()),
                    f"the gradient is not finite for logits of {size:g} in {kind}",
                )


def labels_are_read_by_the_task_loss_alone(harness: Harness) -> None:
    """An algorithm that takes samples without a label reads no target: where there is none, the task loss knows it."""
    if harness.cls.needs.data != "any":
        raise Vacuous(f"it declares data: {harness.cls.needs.data}")
    engine = harness.engine(data={"labelled": 16})
    ctx = harness.context(engine)
    hidden = ctx.batch.targets == NO_LABEL
    ensure(bool(hidden.any()) and not bool(hidden.all()), "the batch of this check has labels for all or for none")
    shown = replace(ctx, batch=replace(ctx.batch, targets=torch.zeros_like(ctx.batch.targets)))
    for (_, first), (_, second) in zip(updates_of(engine, ctx), updates_of(engine, shown), strict=True):
        assert_finite(first)
        for name, term in first.items():
            ensure(
                torch.equal(term, second[name]),
                f"term '{name}' is {term.item():g}, and {second[name].item():g} for other targets; data: labelled "
                "would be right",
            )


# --- who is trained ------------------------------------------------------------------------------


def teacher_is_untouched(harness: Harness) -> None:
    """Training leaves every weight and buffer of the teacher as it was, and in eval mode."""
    engine = harness.engine()
    if not engine.job.teachers:
        raise Vacuous("it has no teacher")
    networks = engine.job.teacher_networks.values()
    before = [weights_sha256(network.model) for network in networks]
    run_steps(engine, 3)
    for network, sha256 in zip(networks, before, strict=True):
        ensure(weights_sha256(network.model) == sha256, "the teacher's weights or buffers changed")
        ensure(not any(p.grad is not None for p in network.parameters()), "the teacher received a gradient")
        ensure(not any(m.training for m in network.modules()), "the teacher was left in training mode")


def student_gets_gradient_from_distillation_alone(harness: Harness) -> None:
    """Without the task term the student still gets a gradient: in the middle of a long training.

    At the first step a ramp is 0, so that a gradient there is not asked for; one that never rises is found here.
    """
    engine = harness.engine()
    steps = engine.job.steps_per_epoch
    middle = Clock(LONG // 2, LONG, LONG // 2 * steps, steps)
    ensure(
        reached_by_distillation(engine, harness.context(engine, clock=middle)),
        f"no distillation term reaches any weight of the student in epoch {middle.epoch} of {LONG}",
    )


#: Epochs of a training that is long enough for every warm-up to have ended in its middle.
LONG = 200


def own_parameters_all_train(harness: Harness) -> None:
    """The algorithm's parameters are registered in its constructor, and a gradient reaches each of its modules."""
    engine = harness.engine()
    algorithm = engine.job.algorithm
    own = dict(algorithm.named_parameters())
    moved: set[str] = set()

    def note(progress: Progress) -> None:  # weight decay moves a parameter too, so it is the gradient that counts
        moved.update(part_of(name) for name, value in own.items() if value.grad is not None and value.grad.any())

    engine.on_progress = note
    run_steps(engine, 4)
    late = [name for name, _ in algorithm.named_parameters() if name not in own]
    ensure(not late, f"made during training, so in no optimizer: {', '.join(late)}")
    of_torch = vars(nn.Module()).keys()
    unregistered = [name for name, value in vars(algorithm).items() if name not in of_torch and holds_modules(value)]
    ensure(not unregistered, f"holds modules in a plain list or dict, so in no optimizer: {', '.join(unregistered)}")
    if not own:
        raise Vacuous("it has no parameters of its own")
    unreached = [name for name, value in own.items() if value.requires_grad and value.grad is None]
    ensure(not unreached, f"reached by no gradient: {', '.join(unreached)}")
    still = {part_of(name) for name, value in own.items() if value.requires_grad} - moved
    ensure(not still, f"its gradient is always zero: {', '.join(sorted(still))}")


def part_of(parameter: str) -> str:
    return parameter.split(".")[0]


def holds_modules(value: Any) -> bool:
    """Whether a plain list or dict holds modules or parameters, which torch does not see there."""
    content = list(value.values()) if isinstance(value, dict) else value
    return isinstance(content, list | tuple) and any(isinstance(part, nn.Module | nn.Parameter) for part in content)


# --- the same again ---------------------------------------------------------------------------


def same_seed_same_numbers(harness: Harness) -> None:
    """Two runs with one seed end in the same bits, whatever the global random state is."""
    torch.manual_seed(1)
    first = run_steps(harness.engine(), 3)
    torch.manual_seed(2)
    torch.rand(7)
    again = Engine(harness.prepare().job)  # networks and all, where other engines get copies
    assert_same(first, run_steps(again, 3), "two runs with one seed")


def state_round_trips(harness: Harness) -> None:
    """The algorithm's state_dict holds all of its state."""
    engine = harness.engine()
    run_steps(engine, 2)
    other = harness.engine()
    other.job.algorithm.load_state_dict(engine.job.algorithm.state_dict())
    assert_same(
        engine.job.algorithm.state_dict(), other.job.algorithm.state_dict(), "state before and after a round trip"
    )


def killed_run_resumes_bit_identically(harness: Harness) -> None:
    """A run stopped in the middle of an epoch and continued from disk ends in the same bits."""
    whole = harness.engine()
    expected = run_steps(whole, 4)
    stopped = harness.engine()
    run_steps(stopped, 3)
    tensors, state = stopped.state()
    with tempfile.TemporaryDirectory(dir=harness.root) as place:
        Checkpoints(Path(place)).save(tensors, state)
        loaded = Checkpoints(Path(place)).load()
    assert loaded is not None, "the checkpoint just written is not there"
    resumed = harness.engine()
    resumed.restore(*loaded)
    assert_same(expected, run_steps(resumed, 1), "a run and a resumed run")
    ensure(whole.log.rows == resumed.log.rows, "a run and a resumed run differ in their metrics")


# --- sizes and types ----------------------------------------------------------------------------


#: Options of the data that leave the deepest level a map of more than one pixel, which has something to normalise over.
LARGE = {"size": (40, 40)}


def batch_of_one(harness: Harness) -> None:
    """A batch of one sample works, or the algorithm declares its least batch and less is refused."""
    needs = harness.cls.needs
    engine = harness.engine(data={"options": LARGE})
    if needs.data == "none":
        raise Vacuous("it makes its own batches")
    if needs.min_batch > 1:
        try:
            harness.prepare(data={"batch_size": needs.min_batch - 1, "options": LARGE})
        except NeedsError:
            pass
        else:
            raise CheckFailed(f"a batch below the declared least of {needs.min_batch} was accepted")
    for network in (engine.job.student, *engine.job.peers):
        network.eval()  # BatchNorm of a network itself cannot train on one sample
    for _, loss in updates_of(engine, harness.context(engine, needs.min_batch)):
        assert_finite(loss)


def odd_sizes(harness: Harness) -> None:
    """Images that are neither square nor even work."""
    engine = harness.engine(data={"batch_size": 5, "options": {"size": (19, 23)}})
    for _, loss in updates_of(engine, harness.context(engine)):
        assert_finite(loss)


def two_classes(harness: Harness) -> None:
    """Two classes work, or the algorithm declares that it needs more and they are refused."""
    changes = {"data": {"options": {"classes": 2}}}
    if harness.cls.needs.min_classes <= 2:
        engine = harness.engine(**changes)
        for _, loss in updates_of(engine, harness.context(engine)):
            assert_finite(loss)
        return
    try:
        harness.prepare(**changes)
    except NeedsError:
        return
    raise CheckFailed(f"two classes were accepted although {harness.cls.needs.min_classes} are declared as the least")


def bf16(harness: Harness) -> None:
    """Under bf16 autocast the terms are float32 and finite, and a step can be taken."""
    # large, as oneDNN's bf16 weight gradient is garbage for a 3x3 convolution of a 1x1 map (torch 2.15)
    changes = {"precision": "bf16", "data": {"options": LARGE}}
    engine = harness.engine(**changes)
    for _, loss in updates_of(engine, harness.context(engine)):
        assert_finite(loss)
    run_steps(harness.engine(**changes), 1)


# --- whole runs -----------------------------------------------------------------------------------


def student_on_disk_is_the_plain_model(harness: Harness) -> None:
    """What a run delivers has exactly the weights of the plain student: no wrapper, projector or teacher.

    Of the recipe's student, or of the network that student.json names where the algorithm chooses one.
    """
    run = harness.whole_run
    told = json.loads((run.folder / "student.json").read_text())
    delivered = read_tensors(run.folder / "student.safetensors", told["sha256"])
    spec = delivered_spec(told) if harness.cls.chooses_student else run.runner.plan.student
    plain = delivered_weights(run.runner.build.network(spec).model)
    ensure(delivered.keys() == plain.keys(), f"keys differ: {sorted(set(delivered) ^ set(plain))[:5]}")
    for key, value in plain.items():
        ensure(delivered[key].shape == value.shape, f"'{key}' has shape {tuple(delivered[key].shape)}")


def runs_on_declared_needs(harness: Harness) -> None:
    """A run with exactly the declared models ends with results, and one teacher fewer is refused."""
    recipe = tiny_recipe(harness.cls)
    ensure(not unmet_needs(harness.cls, recipe), "the declared needs are refused")
    if least(harness.cls.needs.teachers) > 0:
        fewer = tiny_recipe(harness.cls, {"models": {"teachers": recipe.model_dump()["models"]["teachers"][:-1]}})
        ensure(bool(unmet_needs(harness.cls, fewer)), "a recipe with a teacher too few is accepted")
    ensure(quality(harness.whole_run.results["student"]) >= 0, "the run gave no result")


def beats_its_own_start(harness: Harness) -> None:
    """On a task that is easy the student ends better than it began."""
    changes = {
        "train": {"epochs": 4, "steps_per_epoch": 12, "optimizer": {"lr": 0.05}},
        "data": {"options": {"samples": 128}},
        "models": {"teachers": [{"name": "test_resnet", "args": TEACHER}] * least(harness.cls.needs.teachers)},
    }
    runner = harness.runner(**changes)
    teachers = tuple(runner.train(Stage(f"teacher_{i}", spec)) for i, spec in enumerate(runner.plan.teachers))
    start = runner.build.job(Stage("start", runner.plan.student), None, runner.recipe.train)[0]
    assert start.validate is not None
    before = quality(start.validate(start.student))
    after = quality(runner.drive(teachers).metrics)
    ensure(after > before, f"validation accuracy {before:.1f} % before training, {after:.1f} % after")


ALL: tuple[Callable[[Harness], None], ...] = (
    options_are_documented,
    refuses_unknown_options,
    card_is_complete,
    terms_match_weights,
    terms_are_finite_scalars,
    losses_are_offered,
    perfect_student_scores_zero,
    losses_is_pure,
    extreme_logits,
    labels_are_read_by_the_task_loss_alone,
    teacher_is_untouched,
    student_gets_gradient_from_distillation_alone,
    own_parameters_all_train,
    same_seed_same_numbers,
    state_round_trips,
    killed_run_resumes_bit_identically,
    batch_of_one,
    odd_sizes,
    two_classes,
    bf16,
    student_on_disk_is_the_plain_model,
    runs_on_declared_needs,
    beats_its_own_start,
)


def run_check(
    check: Callable[[Harness], None], cls: type[Algorithm], zoo: Zoo | None = None, root: Path | None = None
) -> Outcome:
    """Run one check over one algorithm. ``root`` keeps trained teachers, for other algorithms too."""
    name = check.__name__
    reason = cls.skip_checks.get(name)
    if reason is not None:
        return Outcome(name, "skipped", reason)
    try:
        check(harness_of(cls, zoo or load_zoo(), root))
    except Vacuous as reason_given:
        return Outcome(name, "vacuous", str(reason_given))
    except (CheckFailed, KdzooError) as error:
        return Outcome(name, "failed", str(error))
    except Exception as error:  # whatever an algorithm raises is its failure, and the other checks still run
        return Outcome(name, "failed", f"{type(error).__name__}: {error}{_place(error, cls)}")
    return Outcome(name, "passed")


def _place(error: Exception, cls: type[Algorithm]) -> str:
    """Where in the algorithm's own source an error came from."""
    own = inspect.getsourcefile(cls)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" ({own}, line {lines[-1]})" if lines else ""


def run_checks(cls: type[Algorithm], zoo: Zoo | None = None) -> Iterator[Outcome]:
    """Run the whole suite over one algorithm; also checks that every exemption names a check."""
    known = {check.__name__ for check in ALL}
    for name in cls.skip_checks:
        if name not in known:
            yield Outcome(name, "failed", f"skip_checks names no check; known: {', '.join(sorted(known))}")
    for check in ALL:
        yield run_check(check, cls, zoo)
