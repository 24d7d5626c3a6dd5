"""What two processes of a group do to gradients and statistics, by hand: each check runs on both, in one started group.

The functions below CHECKS run in the processes and return tensors; the tests compare them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import processes
from test_distributed import free_port
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdzoo.training import sharding
from kdzoo.training.batch_norm import running_statistics, use_global_batch_norm
from kdzoo.training.gradient_averaging import GradientAveraging
from kdzoo.training.parallel import Ranks

Found = dict[str, Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Parameters of three kinds: reached by all, by one process only, by none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.unused = nn.Linear(6, 4)
        self.of_rank_1 = nn.Linear(6, 4)
        self.last = nn.Linear(6, 4)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor, rank: int) -> Tensor:
        pooled = self.norm(self.first(inputs)).mean((2, 3))
        return self.last(pooled) + (self.of_rank_1(pooled) if rank == 1 else 0)


def flat_average(parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """The plain way: all gradients in one tensor after backward."""
    reached = torch.tensor([float(p.grad is not None) for p in parameters])
    values = [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters]
    flat = torch.cat([*values, reached])
    torch.distributed.all_reduce(flat)
    means = flat[: -len(parameters)].split([p.numel() for p in parameters])
    ranks = flat[-len(parameters) :].tolist()
    return [mean.view(p.shape) / 2 if n else None for p, mean, n in zip(parameters, means, ranks, strict=True)]


def buckets(ranks: Ranks) -> Found:
    """Averages in buckets of several sizes and by hand, and how many were sent before backward had ended."""
    found: Found = {}
    for size in (1, 200, 10**9):
        net = Net()
        use_global_batch_norm(net)  # its collectives come between those of the buckets
        parameters = list(net.parameters())
        averaging = GradientAveraging(parameters, ranks, size)
        averaging.begin()
        net(draw(4, 3, 5, 5, seed=ranks.rank), ranks.rank).square().sum().backward()
        found[f"sent early {size}"] = averaging._next
        averaging.finish()
        found[f"averaged {size}"] = [p.grad for p in parameters]
        found[f"like the parameter {size}"] = all(p.grad is None or p.grad.stride() == p.stride() for p in parameters)
    net.zero_grad()
    net(draw(4, 3, 5, 5, seed=ranks.rank), ranks.rank).square().sum().backward()
    found["by hand"] = flat_average(parameters)
    found["names"] = [name for name, _ in net.named_parameters()]
    return found


def in_turn(ranks: Ranks) -> Found:
    """A discriminator, then the generator that it judges; and a batch in two parts."""
    torch.manual_seed(0)
    generator, judge = nn.Linear(3, 3), nn.Linear(3, 1)
    of_generator, of_judge = (
        GradientAveraging(generator.parameters(), ranks),
        GradientAveraging(judge.parameters(), ranks),
    )
    noise = draw(4, 3, seed=ranks.rank)
    of_judge.begin()
    judge(generator(noise).detach()).sum().backward()
    of_judge.finish()
    judged = judge.weight.grad.clone()
    of_generator.begin()
    judge(generator(noise)).square().sum().backward()
    of_generator.finish()
    judge.zero_grad()
    sent: list[int] = []
    start = ranks.start_sum
    ranks.start_sum = lambda values: sent.append(values.numel()) or start(values)  # type: ignore[method-assign]
    for part in (0, 1):
        if part == 1:
            of_judge.begin()
        judge(noise[2 * part : 2 * part + 2]).square().sum().backward()
        if part == 0:
            assert not sent, "only the last part of a batch communicates"
    of_judge.finish()
    ranks.start_sum = start  # type: ignore[method-assign]
    return {
        "judged": judged,
        "generated": generator.weight.grad,
        "whole": judge.weight.grad,
        "sent": sent,
        "inputs": noise,
        "weights": (generator.weight.detach(), generator.bias.detach(), judge.weight.detach(), judge.bias.detach()),
    }


def normalised(ranks: Ranks) -> Found:
    """BatchNorm over both processes, of which one has 3 samples and the other 5; and the mean of statistics."""
    found: Found = {}
    for dtype in (torch.float32, torch.bfloat16):
        norm = nn.BatchNorm2d(4)
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        use_global_batch_norm(norm)
        share = (3 * draw(8, 4, 5, 3) + 2)[slice(0, 3) if ranks.rank == 0 else slice(3, 8)].to(dtype).requires_grad_()
        output = norm(share)
        output.backward(torch.sin(output.detach().float() * 3).to(dtype))
        found[str(dtype)] = [output.detach(), share.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()]
    local = nn.BatchNorm2d(4)
    local(draw(8, 4, 5, 3, seed=ranks.rank))
    found["own"] = [each.clone() for each in running_statistics(local)]
    return found


def past_forward(ranks: Ranks) -> Found:
    """Gradients of features that a method other than ``forward`` takes, as timm's forward_intermediates does."""
    found: Found = {}
    for averaged_by in ("torch", "kdzoo"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        wrapped = DistributedDataParallel(net) if averaged_by == "torch" else net
        averaging = None if averaged_by == "torch" else GradientAveraging(net.parameters(), ranks)
        inputs = draw(4, 3, seed=ranks.rank)
        if averaging:
            averaging.begin()
        features = getattr(wrapped, "module", wrapped)[0](inputs)
        net[1](features).square().sum().backward()
        if averaging:
            averaging.finish()
        found[averaged_by] = net[0].weight.grad
    return found


class Blocks(nn.Module):
    """Two blocks and a head, which are run by two methods."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(inputs))

    def forward_features(self, inputs: Tensor) -> Tensor:
        return self.blocks(inputs)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


def sharded(ranks: Ranks) -> Found:
    """What each process holds of a network, its gradients and their norm; two forwards, then one backward."""
    sharding.BLOCK_PARAMETERS = 0
    net, projector = Blocks(), nn.Linear(4, 4)
    sharding.shard(net)
    parameters = [*net.parameters(), *projector.parameters()]
    inputs = draw(4, 3, seed=ranks.rank)
    averaging = GradientAveraging(projector.parameters(), ranks)
    averaging.begin()
    features = net.forward_features(inputs)
    (net.forward_head(projector(features)).sum() + net(-inputs).square().sum()).backward()
    averaging.finish()
    gradients = sharding.whole({str(index): parameter.grad.clone() for index, parameter in enumerate(parameters)})
    norm = sharding.clipped_norm(parameters, 0.01)
    return {
        "held": [sum(p.to_local().numel() for p in part.parameters()) for part in (*net.blocks, net.head)],
        "of": [sum(p.numel() for p in part.parameters()) for part in (*net.blocks, net.head)],
        "gradients": list(gradients.values()),
        "norm": norm,
        "clipped": sharding.clipped_norm(parameters, 1.0),
        "inputs": inputs,
        "projector": projector.state_dict(),
        "whole again": all(
            torch.equal(sharding.part_like(value, p).to_local(), p.to_local())
            for value, p in zip(sharding.whole(net.state_dict()).values(), net.parameters(), strict=True)
        ),
    }


CHECKS: tuple[Callable[[Ranks], Found], ...] = (buckets, in_turn, normalised, past_forward, sharded)


def member(rank: int, port: int, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        KDZOO_COLLECTIVE_TIMEOUT="30",
    )
    ranks = Ranks("cpu")
    torch.save({check.__name__: check(ranks) for check in CHECKS}, place / f"{rank}.pt")
    ranks.close()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    """What each of the two processes found."""
    place, port = tmp_path_factory.mktemp("group"), free_port()
    members = [processes.Process(target=member, args=(rank, port, place)) for rank in (0, 1)]
    for each in members:
        each.start()
    for each in members:
        each.join(100)
    assert [each.exitcode for each in members] == [0, 0]
    return [torch.load(place / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("size", [1, 200, 10**9])
def test_buckets_are_the_flat_average_to_the_last_bit(group: list[dict[str, Found]], size: int) -> None:
    for found in (each["buckets"] for each in group):
        for name, got, wanted in zip(found["names"], found[f"averaged {size}"], found["by hand"], strict=True):
            assert (got is None) == (wanted is None) == name.startswith("unused"), name
            assert got is None or torch.equal(got, wanted), name
        assert found[f"like the parameter {size}"]


def test_buckets_are_sent_while_backward_runs(group: list[dict[str, Found]]) -> None:
    early = [[each["buckets"][f"sent early {size}"] for size in (1, 200, 10**9)] for each in group]
    assert early == [[2, 0, 0], [4, 1, 0]], "up to the first parameter that a process does not reach"


def test_networks_that_train_in_turn_do_not_disturb_each_other(group: list[dict[str, Found]]) -> None:
    first, second = (each["in_turn"] for each in group)
    w, b, v, c = first["weights"]
    both = torch.cat([first["inputs"], second["inputs"]])
    judge, generator = v.clone().requires_grad_(), w.clone().requires_grad_()
    nn.functional.linear(nn.functional.linear(both, w, b), judge, c).sum().backward()
    nn.functional.linear(nn.functional.linear(both, generator, b), v, c).square().sum().backward()
    torch.testing.assert_close(first["judged"], judge.grad / 2)
    torch.testing.assert_close(first["generated"], generator.grad / 2)
    assert torch.equal(first["judged"], second["judged"])
    assert torch.equal(first["generated"], second["generated"])


def test_only_the_last_part_of_a_batch_communicates(group: list[dict[str, Found]]) -> None:
    first, second = (each["in_turn"] for each in group)
    _, _, v, c = first["weights"]
    judge = v.clone().requires_grad_()
    nn.functional.linear(torch.cat([first["inputs"], second["inputs"]]), judge, c).square().sum().backward()
    torch.testing.assert_close(first["whole"], judge.grad / 2)
    assert first["sent"] == second["sent"] == [3 + 1 + 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unequal_shares_are_normalised_as_one_batch(group: list[dict[str, Found]], dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    whole = (3 * draw(8, 4, 5, 3) + 2).to(dtype).requires_grad_()
    output = norm(whole)
    shares = [each["normalised"][str(dtype)] for each in group]
    output.backward(torch.sin(torch.cat([share[0] for share in shares]).float() * 3).to(dtype))
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(torch.cat([share[0] for share in shares]), output.detach(), **close)
    torch.testing.assert_close(torch.cat([share[1] for share in shares]), whole.grad, **close)
    for index, parameter in ((2, norm.weight), (3, norm.bias)):
        torch.testing.assert_close(shares[0][index] + shares[1][index], parameter.grad, **close)
    for index, buffer in zip((4, 5, 6), norm.buffers(), strict=True):
        torch.testing.assert_close(shares[0][index], buffer, atol=1e-5, rtol=1e-4)
        assert torch.equal(shares[0][index], shares[1][index])


def test_features_taken_past_forward_are_averaged_and_not_so_by_torch(group: list[dict[str, Found]]) -> None:
    """The reason of docs/decisions/0005: DistributedDataParallel says nothing, and each process trains its own way."""
    first, second = (each["past_forward"] for each in group)
    assert torch.equal(first["kdzoo"], second["kdzoo"])
    assert not torch.allclose(first["torch"], second["torch"], rtol=0.1), "averaged by now? then use it"
    torch.testing.assert_close(first["kdzoo"], (first["torch"] + second["torch"]) / 2)


def test_each_process_holds_half_of_each_block_and_the_gradients_are_those_of_the_whole(
    group: list[dict[str, Found]],
) -> None:
    first, second = (each["sharded"] for each in group)
    assert first["held"] != first["of"]
    assert [a + b for a, b in zip(first["held"], second["held"], strict=True)] == first["of"]
    assert first["whole again"]
    assert second["whole again"]
    net, projector = Blocks(), nn.Linear(4, 4)
    projector.load_state_dict(first["projector"])
    inputs = torch.cat([first["inputs"], second["inputs"]])
    loss = net.forward_head(projector(net.forward_features(inputs))).sum() + net(-inputs).square().sum()
    (loss / 2).backward()
    parameters = [*net.parameters(), *projector.parameters()]
    for got, parameter in zip(first["gradients"], parameters, strict=True):
        torch.testing.assert_close(got, parameter.grad)
    norm = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
    assert first["norm"] == second["norm"] == pytest.approx(norm)
    assert first["clipped"] == pytest.approx(0.01, rel=1e-4)
