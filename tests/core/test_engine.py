"""The training loop: who is trained when and by how much, what stops it, and what a resumed stage needs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_algorithms import (
    WITHOUT_BATCHNORM,
    Alone,
    Couple,
    Everything,
    Match,
    engine,
    same_bits,
    weights_of,
)
from torch import Tensor, nn

from kdzoo.api import Algorithm, Needs, OwnNetwork, Update
from kdzoo.contract.step import Clock
from kdzoo.errors import ContractError, CorruptError, DivergedError, KdzooError, NeedsError, OutOfMemory, RecipeError
from kdzoo.storage.atomic import save_ready
from kdzoo.testing.harness import run_steps
from kdzoo.training.engine import Engine
from kdzoo.training.job import Job


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def make(root: Path) -> Callable[..., Engine]:
    """Makes engines that share one store, so that their teacher is trained once."""
    return lambda cls=Match, **changes: engine(cls, root, **changes)


def to_the_end(engine: Engine) -> Engine:
    assert engine.run(lambda engine: None, lambda: False)
    return engine


def context(engine: Engine) -> Any:
    return engine.context(next(engine.job.loader.train_batches(0, 0)), Clock(0, 1, 0, 1))


def refusal(error: type[KdzooError], act: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


def broken(step: Callable[[Any, Any], Any], *bases: type, **attributes: Any) -> type[Algorithm]:
    """An algorithm whose step is ``step``."""
    return type("Broken", bases or (Match,), {"name": "broken", "step": step, **attributes})


# --- one batch, or its parts --------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Match, Couple, Everything])
def test_parts_of_a_batch_add_up_to_the_batch(cls: type[Algorithm], make: Callable[..., Engine]) -> None:
    model = {"name": "test_resnet", "args": WITHOUT_BATCHNORM}
    models: dict[str, Any] = {"student": model}
    if cls.needs.peers:
        models["peers"] = [model]
    if cls is Everything:  # its noise is drawn for each part anew, so take it away
        cls = type("Quiet", (Everything,), {"name": "quiet", "noise": 0.0})
    ends = {}
    for parts in (1, 4):
        trained = make(cls, models=models, train={"accumulate": parts, "ema_decay": 0.5})
        run_steps(trained, 3)
        ends[parts] = {
            f"{name}.{key}": value
            for name, module in {
                **trained.networks.modules,
                "own": trained.job.algorithm,
                "ema": trained.networks.ema,
            }.items()
            for key, value in module.state_dict().items()
        }
        assert trained.step == 3
    start = make(cls, models=models).job.student.model.state_dict()
    assert not torch.allclose(start["fc.weight"], ends[1]["student.fc.weight"], atol=1e-4)
    for key, value in ends[1].items():
        torch.testing.assert_close(ends[4][key], value, atol=2e-6, rtol=1e-4, msg=key)


def test_parts_are_logged_as_their_mean(make: Callable[..., Engine]) -> None:
    models = {"student": {"args": WITHOUT_BATCHNORM}}
    rows = [to_the_end(make(models=models, train={"accumulate": parts})).log.rows[0] for parts in (1, 2)]
    whole, parts = ({k: v for k, v in row.items() if isinstance(v, float)} for row in rows)
    assert whole == pytest.approx(parts, rel=1e-4)
    assert whole.keys() == {"task", "match", "grad_norm", "lr"}
    assert whole["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * 3 / 4)))  # of the epoch's last step


def test_each_part_draws_its_own_numbers(make: Callable[..., Engine]) -> None:
    drawn: list[float] = []

    def losses(self: Algorithm, ctx: Any) -> dict[str, Tensor]:
        drawn.append(torch.rand(1, generator=ctx.random("x")).item())
        assert ctx.batch_size == 4 == len(ctx.batch.index)
        return Match.losses(self, ctx)

    run_steps(make(type("Drawing", (Match,), {"name": "drawing", "losses": losses}), train={"accumulate": 2}), 2)
    assert len(set(drawn)) == 4


def test_processes_draw_numbers_of_their_own_unless_they_are_shared(make: Callable[..., Engine]) -> None:
    drawn = {}
    usual = make()
    for rank in (0, 1):
        usual.job.ranks.rank = rank
        ctx = context(usual)
        drawn[rank] = [torch.rand(1, generator=ctx.random("x", **how)).item() for how in ({}, {"shared": True})]
    assert drawn[0][0] == drawn[0][1] == drawn[1][1]
    assert drawn[0][0] != drawn[1][0]


def test_a_batch_is_split_into_parts_of_one_size(make: Callable[..., Engine]) -> None:
    assert refusal(NeedsError, lambda: make(train={"accumulate": 3})) == (
        "train.accumulate: 8 samples cannot be split into 3 parts of one size"
    )


def test_parts_must_yield_the_same_updates(make: Callable[..., Engine]) -> None:
    def uneven(self: Any, ctx: Any) -> Iterator[Update]:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 1:
            yield Update("student", {"task": ctx.task_loss(ctx.student.logits)})

    bad = make(broken(uneven), train={"accumulate": 2})
    assert refusal(ContractError, lambda: run_steps(bad, 1)) == (
        "algorithm 'broken': step() yielded 'nothing' for one part of a batch, 'student' for the first"
    )


# --- the moving average -------------------------------------------------------------------------


def test_ema_is_the_average_worked_out_by_hand_and_is_delivered(make: Callable[..., Engine], root: Path) -> None:
    averaged = make(train={"ema_decay": 0.8, "epochs": 2})
    seen: list[dict[str, Tensor]] = []
    averaged.on_progress = lambda progress: None if progress.end_of_epoch else seen.append(weights_of(averaged))
    validated = {}
    validate = averaged.job.validate
    averaged.job.validate = lambda network: validated.update(model=network.model) or validate(network)
    to_the_end(averaged)
    assert len(seen) == 8
    for key, value in averaged.result_weights()["student"].items():
        by_hand = seen[0][key].double()  # the average starts at the weights after the first step
        for weights in seen[1:]:
            by_hand = 0.8 * by_hand + 0.2 * weights[key]
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), by_hand, atol=1e-6, rtol=1e-5)
    assert not same_bits(averaged.result_weights()["student"], seen[-1])
    assert validated["model"] is averaged.networks.ema.module


# --- one step -----------------------------------------------------------------------------------

PLAIN_SGD = {"name": "momentum", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1}


class Noting(Match):
    """Notes a number a step, and warns of every epoch's mean above a limit."""

    name = "noting"
    said: Any = 2.5

    def losses(self, ctx: Any) -> dict[str, Tensor]:
        ctx.note("level", ctx.clock.step + self.said)
        ctx.note("gap", (ctx.student.logits - ctx.teacher.logits).mean())
        return super().losses(ctx)

    def warnings(self, means: dict[str, float]) -> Iterator[str]:
        if means["level"] > 6.0:
            yield f"level {means['level']:g} after match {means['match'] > 0}"


def test_a_note_is_logged_as_its_mean_and_changes_nothing(make: Callable[..., Engine]) -> None:
    noting, plain = (to_the_end(make(cls, train={"epochs": 2})) for cls in (Noting, Match))
    steps = noting.job.steps_per_epoch
    rows = [row for row in noting.log.rows if row["split"] == "train"]
    assert [row["level"] for row in rows] == pytest.approx([(steps - 1) / 2 + 2.5, (3 * steps - 1) / 2 + 2.5])
    assert all(math.isfinite(row["gap"]) for row in rows)
    assert same_bits(weights_of(noting), weights_of(plain))


def test_every_value_is_logged_under_the_network_that_it_trains(make: Callable[..., Engine]) -> None:
    assert to_the_end(make(Noting)).log.logged_of == {
        "task": "student",
        "match": "student",
        "level": "notes",
        "gap": "notes",
    }
    everything = make(Everything)
    shown: list[Any] = []
    everything.on_progress = shown.append
    to_the_end(everything)
    owners = {"critic": "critic", "peer_0.task": "peer_0"} | dict.fromkeys(
        ("task", "project", "bank", "fool"), "student"
    )
    assert everything.log.logged_of == owners
    weights = everything.job.loss_weights
    for progress in (shown[0], shown[-1]):  # of a step, of an epoch
        own = sum(weights[name] * progress.values[name] for name in ("task", "project", "bank", "fool"))
        assert progress.loss == pytest.approx(own)
    resumed = make(Everything)
    resumed.restore(*everything.state())
    assert resumed.log.logged_of == owners


def test_an_algorithm_warns_of_its_means(make: Callable[..., Engine]) -> None:
    noting = to_the_end(make(Noting, train={"epochs": 2}))
    means = [row["level"] for row in noting.log.rows if row["split"] == "train"]
    warned = [f"stage 'student': level {mean:g} after match True" for mean in means if mean > 6]
    assert warned
    assert [text for text in noting.log.warnings if "level" in text] == warned


def test_a_note_of_parts_is_their_mean(make: Callable[..., Engine]) -> None:
    parts = make(Noting, train={"accumulate": 2})
    run_steps(parts, 1)
    assert parts.log._sums["level"] == 2.5


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (math.nan, "algorithm 'odd': the note 'level' is nan"),
        (torch.ones(2), "algorithm 'odd': the note 'level' is not a scalar"),
    ],
)
def test_a_note_is_a_finite_scalar(said: Any, problem: str, make: Callable[..., Engine]) -> None:
    odd = type("Odd", (Noting,), {"name": "odd", "said": said})
    assert refusal(ContractError, lambda: run_steps(make(odd), 1)) == problem


def test_a_note_may_not_hide_a_term(make: Callable[..., Engine]) -> None:
    def losses(self: Any, ctx: Any) -> dict[str, Tensor]:
        ctx.note("match", 1.0)
        return Match.losses(self, ctx)

    hiding = type("Hiding", (Match,), {"name": "hiding", "losses": losses})
    assert refusal(ContractError, lambda: run_steps(make(hiding), 1)) == (
        "algorithm 'hiding': the note 'match' has the name of something logged"
    )


def moved(trained: Engine, before: dict[str, Tensor]) -> float:
    now = dict(trained.job.student.model.named_parameters())
    return math.sqrt(sum(float((now[key].detach() - before[key]).square().sum()) for key in now))


@pytest.mark.parametrize("share", [None, 100.0, 0.9, 0.05])
def test_the_gradient_is_clipped_by_its_norm(share: float | None, make: Callable[..., Engine]) -> None:
    norms: list[float] = []
    usual = make(train={"optimizer": PLAIN_SGD})
    usual.on_progress = lambda progress: norms.append(progress.values["grad_norm"])
    run_steps(usual, 1)
    limit = None if share is None else share * norms[0]
    trained = make(train={"optimizer": PLAIN_SGD, "grad_clip_norm": limit})
    trained.on_progress = usual.on_progress
    before = weights_of(trained)
    run_steps(trained, 1)
    assert norms[0] == norms[1]  # logged before it is clipped
    assert moved(trained, before) == pytest.approx(0.1 * min(norms[0], limit or math.inf), rel=1e-3)


def test_a_gradient_below_the_limit_is_left_alone(make: Callable[..., Engine]) -> None:
    ends = [run_steps(make(train={"grad_clip_norm": limit}), 2) for limit in (None, 1e6)]
    assert same_bits(*ends)


def test_label_smoothing_by_hand(make: Callable[..., Engine]) -> None:
    ctx = context(make(train={"label_smoothing": 0.3}))
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]] * 8)
    log_p = F.log_softmax(logits, dim=1)
    by_hand = -0.7 * log_p[range(8), ctx.batch.targets].mean() - 0.3 * log_p.mean()
    assert ctx.task_loss(logits).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_terms_are_weighed_by_the_core_and_logged_raw(make: Callable[..., Engine]) -> None:
    def trained(task: float, match: float, lr: float) -> Engine:
        weights = {"task": task, "match": match}
        cls = type("Weighed", (Match,), {"name": "weighed", "default_weights": weights})
        return to_the_end(make(cls, train={"optimizer": {**PLAIN_SGD, "lr": lr}}))

    one, same, other = trained(1, 0.5, 0.02), trained(2, 1, 0.01), trained(1, 1, 0.02)
    torch.testing.assert_close(weights_of(one)["fc.weight"], weights_of(same)["fc.weight"], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(weights_of(one)["fc.weight"], weights_of(other)["fc.weight"], atol=1e-4)
    assert one.log.rows[0]["match"] == pytest.approx(same.log.rows[0]["match"], rel=1e-3)


def test_updates_run_in_order_each_on_its_own_network(make: Callable[..., Engine]) -> None:
    changed: list[list[bool]] = []

    def step(self: Any, ctx: Any) -> Iterator[Update]:
        for name, outputs in (("peer_0", ctx.peers[0]), ("student", ctx.student)):
            before = {n: weights_of(trained, n) for n in ("peer_0", "student")}
            yield Update(name, {"task": ctx.task_loss(outputs.logits)})
            changed.append([not same_bits(before[n], weights_of(trained, n)) for n in ("peer_0", "student")])

    trained = make(broken(step, Couple))
    run_steps(trained, 1)
    assert changed == [[True, False], [False, True]]


def test_a_gradient_left_by_another_update_is_not_taken(make: Callable[..., Engine]) -> None:
    """The critic's update reaches the student too; the student's step must not see that gradient."""

    def step(self: Any, ctx: Any) -> Iterator[Update]:
        if self.leak:
            yield Update(
                "critic",
                {"critic": 1e3 * self.critic(ctx.networks["student"](ctx.batch.inputs).logits).square().mean()},
            )
        yield Update("student", {"task": ctx.task_loss(ctx.student.logits)})

    leaked, clean = (make(broken(step, Everything, leak=leak)) for leak in (True, False))
    run_steps(leaked, 1)
    run_steps(clean, 1)
    for one, other in zip(leaked.job.student.model.parameters(), clean.job.student.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_update_runs_after_the_steps_and_without_gradient(make: Callable[..., Engine]) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    before: dict[str, Tensor] = {}

    class Watching(Match):
        name = "watching"

        def losses(self, ctx: Any) -> dict[str, Tensor]:
            before.update(weights_of(trained))
            return super().losses(ctx)

        def update(self, ctx: Any) -> None:
            stepped = not torch.equal(before["fc.weight"], weights_of(trained)["fc.weight"])
            seen.append(
                (torch.is_grad_enabled(), stepped, ctx.networks["student"](ctx.batch.inputs).logits.requires_grad)
            )

    trained = make(Watching)
    run_steps(trained, 2)
    assert seen == [(False, True, False)] * 2


def test_networks_see_new_inputs_in_float32(make: Callable[..., Engine]) -> None:
    ctx = context(make(Everything))
    assert sorted(ctx.networks) == ["peer_0", "student", "teacher", "teacher_0"]
    assert sorted(ctx.modules) == ["peer_0", "student", "teacher", "teacher_0"]
    for name, network in ctx.networks.items():
        outputs = network(ctx.batch.inputs)
        assert (outputs.logits.dtype, outputs.logits.shape) == (torch.float32, (8, 4)), name
    torch.testing.assert_close(ctx.networks["teacher"](ctx.batch.inputs).logits, ctx.teacher.logits)


def test_steps_per_epoch_is_a_budget_that_never_exceeds_the_data(make: Callable[..., Engine]) -> None:
    assert [make(train={"steps_per_epoch": n}).job.steps_per_epoch for n in (3, None, 1000)] == [3, 6, 6]
    trained = to_the_end(make(train={"steps_per_epoch": 3, "epochs": 2}))
    assert trained.step == 6
    assert [row["step"] for row in trained.log.rows if row["split"] == "train"] == [3, 6]


# --- optimizers and schedules ---------------------------------------------------------------------


def test_an_algorithm_s_own_optimizer_is_named_as_such(make: Callable[..., Engine]) -> None:
    networks = lambda self: {"critic": OwnNetwork(self.critic, {"name": "adam", "speed": 1})}  # noqa: E731
    cls = type("Bad", (Everything,), {"name": "bad", "networks": networks})
    assert refusal(RecipeError, lambda: make(cls)) == (
        "algorithm 'bad': optimizer of network 'critic': 'adam' cannot be made with speed=1: Adam.__init__() got an "
        "unexpected keyword argument 'speed'"
    )


def test_the_schedule_goes_on_after_a_resume_and_holds_for_every_network(make: Callable[..., Engine]) -> None:
    train = {"epochs": 3, "optimizer": {"lr": 0.1}, "schedule": {"name": "cosine", "warmup_epochs": 1}}

    def recording(rates: list[list[float]]) -> Engine:
        trained = make(Everything, train=train)
        trained.on_progress = lambda progress: rates.append([o.lr for o in trained.networks.optimized.values()])
        return trained

    whole: list[list[float]] = []
    parts: list[list[float]] = []
    to_the_end(recording(whole))
    first = recording(parts)
    run_steps(first, 5)
    second = recording(parts)
    second.restore(*first.state())
    to_the_end(second)
    assert len(whole) == 15  # the end of an epoch is reported too
    assert whole == parts
    for student, peer, critic in whole[5:]:  # each from its own peak down the same curve
        assert (student, critic) == (peer, pytest.approx(student / 10))


def test_an_own_network_may_keep_its_rate_whatever_the_schedule(make: Callable[..., Engine]) -> None:
    networks = lambda self: {"critic": OwnNetwork(self.critic, {"name": "adam", "lr": 0.01}, scheduled=False)}  # noqa: E731
    cls = type("Steady", (Everything,), {"name": "steady", "networks": networks})
    schedules = [{"name": "cosine", "warmup_epochs": 1}, {"name": "multistep", "milestones": [1, 2]}]
    for schedule in schedules:
        trained = make(cls, train={"epochs": 3, "optimizer": {"lr": 0.1}, "schedule": schedule})
        rates: list[list[float]] = []
        optimized = trained.networks.optimized
        trained.on_progress = lambda progress: rates.append([optimized[n].lr for n in ("student", "critic")])  # noqa: B023
        to_the_end(trained)
        student, critic = zip(*rates, strict=True)
        assert len(set(student)) > 2
        assert set(critic) == {0.01}


def test_a_term_of_several_updates_in_a_step_is_logged_as_their_mean(make: Callable[..., Engine]) -> None:
    def step(self: Any, ctx: Any) -> Any:
        for size in (1.0, 2.0, 6.0):
            yield Update(
                "student", {"task": 0 * ctx.task_loss(ctx.networks["student"](ctx.batch.inputs).logits) + size}
            )
        yield Update("critic", {"critic": self.critic(ctx.teacher.logits).mean() * 0 + 5})
        yield Update("peer_0", {"task": 0 * ctx.task_loss(ctx.peers[0].logits) + 4})

    cls = type("Often", (Everything,), {"name": "often", "step": step})
    for accumulate in (1, 2):
        trained = to_the_end(make(cls, train={"epochs": 1, "steps_per_epoch": 2, "accumulate": accumulate}))
        row = next(row for row in trained.log.rows if row["split"] == "train")
        assert (row["task"], row["critic"], row["peer_0.task"]) == (3.0, 5.0, 4.0)


def test_a_ramp_by_the_clock_is_what_the_guide_says(make: Callable[..., Engine]) -> None:
    """``step`` goes on from epoch to epoch; one that began anew would make another ramp."""
    guide = Path(__file__).parents[2] / "docs" / "write-a-plugin.md"
    ramp = "min(1, ctx.clock.step / (2 * ctx.clock.steps_per_epoch))"
    assert ramp in guide.read_text()
    seen: list[float] = []

    def losses(self: Any, ctx: Any) -> dict[str, Tensor]:
        seen.append(eval(ramp, {"ctx": ctx, "min": min}))
        return Match.losses(self, ctx)

    cls = type("Ramp", (Match,), {"name": "ramp", "losses": losses})
    to_the_end(make(cls, train={"epochs": 3, "steps_per_epoch": 2}))
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1]


# --- what stops it ------------------------------------------------------------------------------


def infinite_at(step: int, value: Callable[[Tensor], Tensor]) -> type[Algorithm]:
    def losses(self: Any, ctx: Any) -> dict[str, Tensor]:
        term = Match.losses(self, ctx)["match"]
        return {"match": value(ctx.student.logits) if ctx.clock.step == step else term}

    return type("Infinite", (Match,), {"name": "infinite", "losses": losses})


HINT = (
    "no update was made. Lower train.optimizer.lr, set train.grad_clip_norm, or lower the weight of the term. The "
    "batch's sample indices are in nan_dump.json"
)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda logits: logits.sum() / 0 * 0, "loss term 'match' is nan"),
        (lambda logits: logits.sum().square() / 0, "loss term 'match' is inf"),
        (lambda logits: (logits.sum() * 0).sqrt(), "the gradient norm of 'student' is nan"),
    ],
)
def test_a_value_that_is_not_finite_stops_before_the_step(
    value: Callable[[Tensor], Tensor], what: str, parts: int, make: Callable[..., Engine]
) -> None:
    train = {"accumulate": parts}
    expected = run_steps(make(Match, train=train), 2)
    trained = make(infinite_at(2, value), train=train)
    with pytest.raises(DivergedError) as caught:
        to_the_end(trained)
    assert str(caught.value) == f"stage 'student', step 2: {what}; {HINT}"
    now = {
        key: value
        for key, value in weights_of(trained).items()
        if key in dict(trained.job.student.model.named_parameters())
    }
    assert all(torch.equal(value, expected[key]) for key, value in now.items())
    batch = list(trained.job.loader.train_batches(0, 0))[2].index.tolist()
    whole = "gradient" in what or parts == 1
    indices = batch if whole else batch[:4]  # a term is a part's own, the gradient that of the whole batch
    assert caught.value.dump == {
        "stage": "student",
        "step": 2,
        "what": what,
        "sample_indices": indices,
        "view": 0,
    }
    json.dumps(caught.value.dump)


def test_running_out_of_memory_says_what_to_lower(make: Callable[..., Engine]) -> None:
    def losses(self: Any, ctx: Any) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    trained = make(type("Large", (Match,), {"name": "large", "losses": losses}))
    assert refusal(OutOfMemory, lambda: run_steps(trained, 1)) == (
        "stage 'student': out of memory at batch size 8; lower data.batch_size, raise train.accumulate (same batch in "
        "smaller parts), or choose precision: bf16\n  tried to allocate 2 GiB"
    )


def test_stop_is_heeded_after_a_step_and_saves(make: Callable[..., Engine]) -> None:
    trained, saved = make(train={"epochs": 2}), []
    assert not trained.run(lambda engine: saved.append(engine.step), lambda: trained.step == 6)
    assert saved == [4, 6]  # at the end of an epoch, and where it stopped


def test_checkpoints_come_by_the_clock_too(make: Callable[..., Engine]) -> None:
    trained, saved = make(train={"checkpoint_seconds": 0}), []
    assert trained.run(lambda engine: saved.append(engine.step), lambda: False)
    assert saved == [1, 2, 3, 4]


# --- the contract ---------------------------------------------------------------------------------


def one(network: str = "student", **loss: Any) -> Callable[[Any, Any], Iterator[Any]]:
    def step(self: Any, ctx: Any) -> Iterator[Any]:
        yield Update(network, {name: value(ctx) if callable(value) else value for name, value in loss.items()})

    return step


def logits(ctx: Any) -> Tensor:
    return ctx.student.logits


def teacher_s(ctx: Any) -> Tensor:
    return ctx.teacher.logits.mean()


def anything(self: Any, ctx: Any) -> Iterator[Any]:
    yield {"task": ctx.student.logits.mean()}


def for_ever(self: Any, ctx: Any) -> Iterator[Update]:
    while True:
        yield Update("student", {"task": ctx.task_loss(ctx.student.logits) * 0})
        ctx.student.logits.requires_grad_()


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (one("pupil", task=logits), "step() yielded an update of 'pupil'; known: student"),
        (one(mimic=logits), "no weight for the loss term 'mimic'; known: task, match"),
        (one(task=logits), "the loss term 'task' is not a scalar tensor"),
        (one(task=1.5), "the loss term 'task' is not a scalar tensor"),
        (one(), "the update of 'student' has nothing to train on"),
        (one(match=teacher_s), "the update of 'student' has nothing to train on"),
    ],
)
def test_a_step_that_breaks_the_contract_is_refused(step: Any, text: str, make: Callable[..., Engine]) -> None:
    trained = make(broken(step))
    assert refusal(ContractError, lambda: run_steps(trained, 1)) == f"algorithm 'broken': {text}"
    assert refusal(ContractError, trained.dry_step) == f"algorithm 'broken': {text}"


def test_a_step_must_yield_updates(make: Callable[..., Engine]) -> None:
    assert refusal(ContractError, lambda: run_steps(make(broken(anything)), 1)).startswith(
        "algorithm 'broken': step() yielded an update of '{'task': tensor("
    )


def test_a_step_that_never_ends_is_refused(make: Callable[..., Engine]) -> None:
    class Endless(Alone):
        name = "endless"

        def step(self, ctx: Any) -> Iterator[Update]:
            logits = ctx.student.logits.detach()
            while True:
                yield Update("student", {"task": ctx.task_loss(logits + self.zero)})

        def __init__(self, options: Any, shapes: Any) -> None:
            super().__init__(options, shapes)
            self.zero = nn.Parameter(torch.zeros(()))

    assert refusal(ContractError, lambda: run_steps(make(Endless), 1)) == (
        "algorithm 'endless': step() yielded 1000 updates for one batch"
    )


def claims(**networks: Callable[[Any], nn.Module]) -> type[Algorithm]:
    def own(self: Any) -> dict[str, OwnNetwork]:
        return {name: OwnNetwork(module(self), {"name": "adam", "lr": 1e-3}) for name, module in networks.items()}

    return type("Claiming", (Everything,), {"name": "claiming", "networks": own})


def test_networks_are_not_named_like_those_of_the_core(make: Callable[..., Engine]) -> None:
    assert refusal(ContractError, lambda: make(claims(peer_0=lambda self: self.critic))) == (
        "algorithm 'claiming': networks() may not name 'peer_0', which the core trains"
    )


def test_no_parameter_is_trained_twice(make: Callable[..., Engine]) -> None:
    cls = claims(first=lambda self: self.critic, second=lambda self: self.critic[0])
    assert refusal(ContractError, lambda: make(cls)) == (
        "algorithm 'claiming': 'second' and 'first' train the same parameter"
    )


def test_no_optimizer_may_hold_the_teacher(make: Callable[..., Engine]) -> None:
    job = make(Match).job
    job.algorithm.stolen = job.teachers[0].network.model.fc.requires_grad_(True)
    assert refusal(ContractError, lambda: Engine(job)) == (
        "algorithm 'match': the optimizer of 'student' holds teacher weights"
    )


# --- warnings -------------------------------------------------------------------------------------


def with_term(name: str, term: Callable[[Any], Tensor]) -> type[Algorithm]:
    losses = lambda self, ctx: {"match": term(ctx)}  # noqa: E731
    return type("Odd", (Match,), {"name": name, "losses": losses})


def test_a_constant_term_is_warned_about(make: Callable[..., Engine]) -> None:
    flat = with_term("flat", lambda ctx: torch.tensor(0.25) + 0 * ctx.student.logits.sum())
    trained = to_the_end(make(flat, train={"epochs": 2}))
    assert trained.log.warnings == ["stage 'student': the loss term 'match' is constant (0.25): it trains nothing"]
    unweighted = type("Off", (flat,), {"name": "off", "default_weights": {"task": 1.0, "match": 0.0}})
    assert to_the_end(make(unweighted)).log.warnings == []


def test_a_large_term_is_not_warned_about_as_it_may_help(make: Callable[..., Engine]) -> None:
    loud = with_term("loud", lambda ctx: 400 * ctx.task_loss(ctx.student.logits).detach() + ctx.student.logits.mean())
    assert to_the_end(make(loud, train={"optimizer": {"lr": 1e-4}, "epochs": 2})).log.warnings == []


@pytest.mark.parametrize(("warmup", "warned"), [(1, False), (2, True)])
def test_a_warm_up_that_outlasts_the_stage_is_warned_about(
    warmup: int, warned: bool, make: Callable[..., Engine]
) -> None:
    expected = [
        "stage 'student': the learning rate warms up over 2 epochs (train.schedule.warmup_epochs), and the stage ends "
        "after 2, before it is reached"
    ]
    trained = make(Alone, train={"epochs": 2, "schedule": {"name": "cosine", "warmup_epochs": warmup}})
    assert trained.log.warnings == (expected if warned else [])


def test_a_balanced_algorithm_is_not_warned_about(make: Callable[..., Engine]) -> None:
    assert to_the_end(make(Everything)).log.warnings == []


# --- less data than usual --------------------------------------------------------------------------


def test_unlabelled_data_has_no_targets(make: Callable[..., Engine]) -> None:
    class Blind(Match):
        name, needs = "blind", Needs(data="unlabelled")

        def step(self, ctx: Any) -> Iterator[Update]:
            yield Update("student", self.losses(ctx))

    trained = make(Blind)
    ctx = context(trained)
    assert ctx.batch.targets.tolist() == [-1] * 8
    refused = "algorithm 'blind': asked for the task loss, but declared to read no labels"
    assert refusal(ContractError, lambda: ctx.task_loss(ctx.student.logits)) == refused
    before = weights_of(trained)
    assert not same_bits(before, run_steps(trained, 1))


class Dreaming(Match):
    name, needs, default_weights = "dreaming", Needs(data="none"), {"match": 1.0}

    def step(self, ctx: Any) -> Iterator[Update]:
        images = torch.rand(ctx.batch_size, 3, 16, 16, generator=ctx.random("images"))
        self.seen = [*getattr(self, "seen", []), images]
        teacher, student = ctx.networks["teacher"](images), ctx.networks["student"](images)
        yield Update("student", {"match": (student.logits - teacher.logits.detach()).square().mean()})


def test_an_algorithm_without_data_gets_none(make: Callable[..., Engine]) -> None:
    trained = make(Dreaming, train={"steps_per_epoch": None})
    assert (trained.job.loader, trained.job.steps_per_epoch) == (None, 100)
    assert trained.job.algorithm.shapes.num_samples == 0
    ctx = trained.context(None, Clock(0, 1, 0, 1))
    assert (ctx.batch, ctx.student, ctx.teachers, ctx.peers, ctx.batch_size) == (None, None, (), (), 8)
    assert refusal(ContractError, lambda: ctx.task_loss(torch.zeros(8, 4))) == (
        "algorithm 'dreaming': asked for the task loss, but declared to read no labels"
    )


def test_parts_without_data_are_smaller_and_differ(make: Callable[..., Engine]) -> None:
    trained = make(Dreaming, train={"accumulate": 2, "steps_per_epoch": 3})
    run_steps(trained, 2)
    seen = trained.job.algorithm.seen
    assert [len(images) for images in seen] == [4] * 4
    assert len({float(images.sum()) for images in seen}) == 4


def test_without_data_the_state_changes_once_a_step_whatever_the_parts(make: Callable[..., Engine]) -> None:
    steps: list[int] = []
    cls = type("Counting", (Dreaming,), {"name": "counting", "update": lambda self, ctx: steps.append(ctx.clock.step)})
    run_steps(make(cls, train={"accumulate": 2, "steps_per_epoch": 3}), 3)
    assert steps == [0, 1, 2]


# --- selection --------------------------------------------------------------------------------------


def scripted(trained: Engine, scores: list[float], ends: list[dict[str, Tensor]]) -> Engine:
    """Let validation say ``scores`` in turn; ``ends`` collects the weights at the end of each epoch."""

    def validate(network: Any) -> dict[str, float]:
        ends.append({key: value.clone() for key, value in network.model.state_dict().items()})
        return {"top1_percent": scores[trained.step // trained.job.steps_per_epoch - 1]}

    trained.job.validate = validate
    return trained


SCORES = [50.0, 80.0, 80.0, 60.0]


@pytest.mark.parametrize(("select", "epoch"), [("best", 1), ("last", 3)])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_selected_epoch_is_delivered(
    select: str, epoch: int, decay: float | None, make: Callable[..., Engine]
) -> None:
    ends: list[dict[str, Tensor]] = []
    train = {"epochs": 4, "select": select, "ema_decay": decay}
    trained = to_the_end(scripted(make(Alone, train=train), SCORES, ends))
    assert trained.selection.state() == {"quality": 80.0, "epoch": 1}  # the first of equals
    assert same_bits(trained.result_weights()["student"], ends[epoch])


def test_the_best_epoch_survives_a_resume_and_worse_epochs(make: Callable[..., Engine]) -> None:
    train = {"epochs": 4, "select": "best"}
    ends: list[dict[str, Tensor]] = []
    first = scripted(make(Alone, train=train), SCORES, ends)
    run_steps(first, 10)  # in the middle of the third epoch
    tensors, state = first.state()
    tensors, state = save_ready(tensors), json.loads(json.dumps(state))
    second = scripted(make(Alone, train=train), SCORES, [])
    second.restore(tensors, state)
    to_the_end(second)
    assert second.selection.state() == {"quality": 80.0, "epoch": 1}
    assert same_bits(second.result_weights()["student"], ends[1])


class Showing(Alone):
    name = "showing"

    def __init__(self, options: Any, shapes: Any) -> None:
        super().__init__(options, shapes)
        self.register_buffer("steps", torch.zeros(()))

    def update(self, ctx: Any) -> None:
        self.steps += 1

    @classmethod
    def report_items(cls, run: Any) -> Iterator[Any]:
        yield from ()


@pytest.mark.parametrize(("select", "steps"), [("best", 8), ("last", 16)])
def test_the_weights_for_the_report_are_of_the_students_epoch(
    select: str, steps: int, make: Callable[..., Engine]
) -> None:
    train = {"epochs": 4, "select": select}
    first = scripted(make(Showing, train=train), SCORES, [])
    assert first.job.steps_per_epoch == 4
    run_steps(first, 10)
    second = scripted(make(Showing, train=train), SCORES, [])
    second.restore(*written(first))
    assert to_the_end(second).result_weights()["algorithm"] == {"steps": torch.tensor(float(steps))}


def test_the_best_epoch_needs_a_validation_split(make: Callable[..., Engine]) -> None:
    act = lambda: make(Alone, train={"select": "best"}, data={"validation": 0})  # noqa: E731
    assert refusal(NeedsError, act) == (
        "train.select: 'best' is chosen on the validation split, and data.validation leaves none"
    )


# --- precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_terms_are_float32_in_half_precision(precision: str, make: Callable[..., Engine]) -> None:
    trained = make(Everything, precision=precision, data={"options": {"size": (32, 32)}})
    ctx = context(trained)
    for outputs in (ctx.student, ctx.teacher, *ctx.peers):
        assert outputs.logits.dtype == torch.float32
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert torch.equal(ctx.student.logits, ctx.student.logits.to(half).float())  # computed in half precision
    assert trained.networks.optimized["student"].scaler.is_enabled() is (precision == "fp16")


def test_fp16_skips_steps_that_overflow_and_goes_on(make: Callable[..., Engine]) -> None:
    trained = make(Alone, precision="fp16")
    scaler = trained.networks.optimized["student"].scaler
    start = scaler.state_dict()
    scaler.load_state_dict({**start, "scale": 2.0**30})  # the gradient of any loss overflows at this scale
    before = weights_of(trained)["fc.weight"]
    run_steps(trained, 1)
    assert torch.equal(before, weights_of(trained)["fc.weight"])
    assert scaler.get_scale() == 2.0**29
    scaler.load_state_dict({**start, "scale": 2.0**8})
    run_steps(trained, 1)
    assert not torch.equal(before, weights_of(trained)["fc.weight"])


def test_fp16_resumes_bit_identically_with_its_scale(make: Callable[..., Engine]) -> None:
    whole = make(Alone, precision="fp16", train={"epochs": 2})
    expected = run_steps(whole, 8)
    first = make(Alone, precision="fp16", train={"epochs": 2})
    run_steps(first, 5)
    assert first.networks.optimized["student"].scaler.get_scale() < 2.0**16  # it has overflown already
    second = make(Alone, precision="fp16", train={"epochs": 2})
    second.restore(*written(first))
    assert same_bits(expected, run_steps(second, 3))
    assert (
        whole.networks.optimized["student"].scaler.state_dict()
        == second.networks.optimized["student"].scaler.state_dict()
    )


@pytest.mark.slow
def test_a_compiled_student_trains_like_a_plain_one(make: Callable[..., Engine]) -> None:
    plain = run_steps(make(), 2)
    compiled = make(train={"compile": True})
    assert compiled.networks.forward_student is not compiled.job.student
    for key, value in run_steps(compiled, 2).items():
        torch.testing.assert_close(value, plain[key], atol=1e-4, rtol=1e-3)


# --- state ------------------------------------------------------------------------------------------

#: A run with every kind of state at once; it is stopped in the middle of its second epoch of three.
FULL: dict[str, Any] = {
    "train": {"epochs": 3, "ema_decay": 0.9, "select": "best", "optimizer": {"name": "adamw", "lr": 0.01}}
}
STOPPED, END = 6, 12


def written(stopped: Engine) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as it comes back from the disk."""
    tensors, state = stopped.state()
    return save_ready(tensors), json.loads(json.dumps(state))


def everything_of(ended: Engine) -> dict[str, Any]:
    """All that a stage delivers and logs, and every tensor of its state at the end."""
    tensors, state = written(ended)
    delivered = {f"{n}/{k}": v.clone() for n, w in ended.result_weights().items() for k, v in w.items()}
    return {"tensors": tensors, "delivered": delivered, "rows": state["rows"], "best": state["best"]}


def alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return (
        same_bits(first["tensors"], second["tensors"])
        and same_bits(first["delivered"], second["delivered"])
        and (first["rows"], first["best"]) == (second["rows"], second["best"])
    )


@pytest.fixture(scope="module")
def unbroken(make: Callable[..., Engine]) -> dict[str, Any]:
    return everything_of(to_the_end(judged(make(Everything, **FULL))))


@pytest.fixture(scope="module")
def stopped(make: Callable[..., Engine]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    first = judged(make(Everything, **FULL))
    run_steps(first, STOPPED)
    return written(first)


def judged(trained: Engine) -> Engine:
    """The first epoch is the best, so that its weights must outlive the resume."""
    trained.job.validate = lambda network: {"top1_percent": 100.0 - trained.step}
    return trained


def resumed(make: Callable[..., Engine], tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Any]:
    second = judged(make(Everything, **FULL))
    second.restore(tensors, json.loads(json.dumps(state)))
    return everything_of(to_the_end(second))


def test_a_resumed_stage_ends_in_the_same_bits(make: Callable[..., Engine], unbroken: Any, stopped: Any) -> None:
    assert len(unbroken["rows"]) == 6
    assert alike(unbroken, resumed(make, *stopped))


def test_the_state_holds_every_kind(stopped: Any) -> None:
    tensors, _ = stopped
    kinds = {"/".join(key.split("/")[:2]) for key in tensors if key.startswith(("network", "optimizer", "algorithm"))}
    assert kinds == {
        *(f"{kind}/{name}" for kind in ("network", "optimizer") for name in ("student", "peer_0", "critic")),
        "algorithm/projector.weight",
        "algorithm/projector.bias",
        "algorithm/bank",
    }
    assert {key.split("/")[0] for key in tensors} == {"network", "optimizer", "algorithm", "ema", "best"}


GROUPS = {
    *(f"{kind}/{name}/" for kind in ("network", "optimizer") for name in ("student", "peer_0", "critic")),
    *("algorithm/projector", "algorithm/bank", "ema/", "best/"),
}


def test_a_state_that_lacks_tensors_is_refused_by_name(make: Callable[..., Engine], stopped: Any) -> None:
    tensors, state = stopped
    fresh = make(Everything, **FULL)
    for group in sorted(GROUPS):
        rest = {key: value for key, value in tensors.items() if not key.startswith(group)}
        first = min(tensors.keys() - rest.keys())
        text = refusal(CorruptError, lambda rest=rest: fresh.restore(rest, state))
        assert text.startswith(f"stage 'student': the saved state lacks {first}")


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_no_tensor_of_the_state_is_dispensable(
    group: str, make: Callable[..., Engine], unbroken: Any, stopped: Any
) -> None:
    """What was saved of each group is what the resumed run uses: with noise in its place it ends in other bits."""
    tensors, state = stopped
    spoiled = {
        key: value + 0.01 if key.startswith(group) and value.is_floating_point() else value
        for key, value in tensors.items()
    }
    assert not alike(unbroken, resumed(make, spoiled, state))


def test_no_entry_of_the_state_is_dispensable(make: Callable[..., Engine], stopped: Any) -> None:
    tensors, state = stopped
    fresh = make(Everything, **FULL)
    for key in state:
        with pytest.raises(KeyError, match=key):
            fresh.restore(tensors, {name: value for name, value in state.items() if name != key})


def test_the_global_random_state_changes_nothing(make: Callable[..., Engine]) -> None:
    models = {"student": {"args": {**WITHOUT_BATCHNORM, "drop_rate": 0.5}}}
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(run_steps(make(models=models), 2))
    assert same_bits(*ends)
    assert not same_bits(ends[0], run_steps(make(models=models, seed=1), 2))


def test_a_job_knows_its_algorithm_s_shapes(make: Callable[..., Engine]) -> None:
    job: Job = make(Everything).job
    shapes = job.algorithm.shapes
    assert (shapes.num_classes, shapes.num_samples, shapes.image) == (4, 48, (3, 16, 16))
    assert (len(shapes.teachers), len(shapes.peers)) == (1, 1)
