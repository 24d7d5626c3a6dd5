"""What one process of a run does: nothing at all when it is alone, and the same numbers as alone in a group of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdzoo.errors import ContractError, DistributedError
from kdzoo.training import sharding
from kdzoo.training.batch_norm import turn_into_global, use_global_batch_norm
from kdzoo.training.gradient_averaging import GradientAveraging
from kdzoo.training.parallel import COLLECTIVE_TIMEOUT, Ranks, collective_timeout
from kdzoo.training.sharding import blocks
from kdzoo.training.step_context import Withheld


def test_a_single_process_is_rank_0_of_1_and_every_call_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks()
    assert (ranks.world, ranks.rank, ranks.first) == (1, 0, True)
    assert not dist.is_initialized()
    values = torch.rand(3)
    assert ranks.gather(values) is values
    assert ranks.mean(values) is values
    assert ranks.any(True, False) == [True, False]
    assert ranks.broadcast({"a": 1}) == {"a": 1}
    reached, unreached = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    reached.grad = gradient = torch.tensor([1.0, 2.0])
    averaging = GradientAveraging([reached, unreached], ranks)
    averaging.begin()
    averaging.finish()
    assert (reached.grad is gradient, unreached.grad) == (True, None)
    assert ranks.collect({"a": 1}) == [{"a": 1}]
    ranks.agree("the recipe", "x")
    ranks.barrier()
    ranks.close()


def test_a_hanging_rank_is_noticed_in_minutes() -> None:
    assert 60 <= COLLECTIVE_TIMEOUT.total_seconds() <= 600


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("KDZOO_COLLECTIVE_TIMEOUT", text)
    with pytest.raises(DistributedError) as caught:
        collective_timeout()
    message = "KDZOO_COLLECTIVE_TIMEOUT: must be seconds, above 0 and up to 86400, got "
    assert str(caught.value).startswith(message)


def test_a_gradient_that_comes_after_it_was_sent_is_refused() -> None:
    """As of a checkpointed part that runs backward by itself, twice in one update."""
    weight = nn.Parameter(torch.ones(2))
    averaging = GradientAveraging([weight], two_ranks())
    averaging.begin()
    weight.sum().backward()
    with pytest.raises(ContractError, match="computed the gradient of one parameter twice"):
        weight.sum().backward()


def test_a_parameter_may_be_frozen_at_first() -> None:
    frozen, free = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    averaging = GradientAveraging([frozen, free], two_ranks())
    for gradient in (None, [0.5, 0.5]):
        averaging.begin()
        (frozen + free).sum().backward()
        averaging.finish()
        assert free.grad.tolist() == [0.5, 0.5]
        assert (frozen.grad if gradient is None else frozen.grad.tolist()) == gradient
        frozen.requires_grad_()
        frozen.grad = free.grad = None


def two_ranks() -> Ranks:
    """A process of two that sends nothing."""
    ranks = Ranks()
    ranks.world = 2
    ranks.start_sum = lambda gradients: lambda: None  # type: ignore[method-assign]
    return ranks


def test_weights_that_no_process_has_whole_are_withheld() -> None:
    whole, part = nn.Linear(2, 2), nn.Linear(2, 2)
    modules = Withheld({"student": part}, {"teacher": whole}, "algorithm 'x'")
    assert modules["teacher"] is whole
    with pytest.raises(KeyError, match="peer_0"):
        modules["peer_0"]
    with pytest.raises(ContractError) as caught:
        modules["student"]
    assert str(caught.value) == (
        "algorithm 'x': reads the weights of 'student' in a step, of which train.shard leaves each process a part; set "
        "train.shard: false"
    )


def test_the_large_parts_of_a_network_are_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("test_vit")
    assert not list(blocks(model)), "all of it fits into one"
    monkeypatch.setattr(sharding, "BLOCK_PARAMETERS", 10_000)
    assert list(blocks(model)) == list(model.blocks)
    resnet = timm.create_model("test_resnet")
    assert [name for name, part in resnet.named_modules() if part in list(blocks(resnet))] == [
        f"layer{i}.0" for i in (1, 2, 3, 4)
    ]


def test_a_gpu_takes_the_fused_kernels() -> None:
    """Which cannot be run here: only the choice is tested."""
    with torch.device("meta"):
        norms = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4), timm.layers.BatchNormAct2d(4))
    for norm in norms:
        before = norm.state_dict().keys()
        turn_into_global(norm, on_gpu=True)
        assert isinstance(norm, nn.SyncBatchNorm)
        assert norm.state_dict().keys() == before
        assert norm.process_group is None
    plain = [nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4)]
    fused = [nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4)]
    inputs = batch(2, 4, 5, 3)
    for norm, other in zip(plain, fused, strict=True):
        turn_into_global(other, on_gpu=True)
        torch.testing.assert_close(other.eval()(inputs), norm.eval()(inputs))


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process, in which sums over all ranks are real collectives."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(norm: nn.Module, inputs: Tensor, steps: int = 3) -> list[Tensor]:
    """Outputs, gradients and running statistics of a few training steps, and then the answer in eval mode."""
    seen = []
    for step in range(steps):
        given = (inputs * (1 + step)).requires_grad_()
        outputs = norm(given)
        outputs.backward(torch.sin(torch.arange(outputs.numel())).view_as(outputs))
        seen += [outputs.detach(), given.grad]
    gradients = [parameter.grad for parameter in norm.parameters()]
    return [*seen, *gradients, *norm.state_dict().values(), norm.eval()(inputs).detach()]


def batch(*shape: int, mean: float = 0.5, spread: float = 1.0) -> Tensor:
    return mean + spread * torch.randn(shape, generator=torch.Generator().manual_seed(0))


NORMS = {
    "plain": lambda: nn.BatchNorm2d(4),
    "without weights": lambda: nn.BatchNorm2d(4, affine=False),
    "without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "timm's, with an activation": lambda: timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", NORMS)
def test_normalising_over_one_process_is_batch_normalisation(kind: str) -> None:
    alone, together = NORMS[kind](), NORMS[kind]()
    use_global_batch_norm(together)
    assert type(together) is not type(alone)
    assert together.state_dict().keys() == alone.state_dict().keys()
    inputs = batch(8, 4, 5, 3)
    for got, wanted in zip(trained(together, inputs), trained(alone, inputs), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 3)])
def test_one_dimension_is_normalised_too(shape: tuple[int, ...]) -> None:
    alone, together = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    use_global_batch_norm(together)
    for got, wanted in zip(trained(together, batch(*shape)), trained(alone, batch(*shape)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("group")
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    alone, together = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    use_global_batch_norm(together)
    far = batch(16, 4, 6, 5, mean=100.0, spread=0.1)
    torch.testing.assert_close(together(far), alone(far), atol=1e-3, rtol=0)


@pytest.mark.usefixtures("group")
def test_half_precision_goes_in_and_out() -> None:
    together = nn.BatchNorm2d(4)
    use_global_batch_norm(together)
    assert together(batch(8, 4, 5, 3).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_no_normalisation_of_a_network_is_left_out(name: str) -> None:
    model = timm.create_model(name)
    before = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    use_global_batch_norm(model)
    use_global_batch_norm(model)  # twice is once
    kinds = [type(part).__name__ for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(kinds) == before > 5
    assert all(kind.startswith("Global") for kind in kinds)


def test_an_unknown_kind_is_refused() -> None:
    class Ghost(nn.BatchNorm2d):
        pass

    with pytest.raises(DistributedError) as caught:
        use_global_batch_norm(nn.Sequential(Ghost(4)))
    assert str(caught.value) == (
        "Ghost cannot be normalised over several processes; known: BatchNorm1d, BatchNorm2d, BatchNormAct2d. Run one "
        "process, choose another model, or train.batch_norm: local"
    )
