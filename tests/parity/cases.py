"""Reference numbers: reading a set of them, and comparing ours with them.

A set is a folder with ``index.json`` (the conventions of each loss, its cases, their tolerances) and one ``.npz`` a
case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

OWN_SET = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Answer:
    """What an adapter returns: the loss, and further outputs by the name the case gives them."""

    loss: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One set of inputs of one loss, with the numbers that the reference gave."""

    folder: Path
    entry: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.entry["id"]

    @property
    def loss(self) -> str:
        return self.entry["loss"]

    @property
    def hyper(self) -> Mapping[str, Any]:
        return self.entry["hyper_parameters"]

    @property
    def gradients(self) -> Mapping[str, str]:
        """Input name -> name of its reference gradient."""
        return self.entry["outputs"]["gradients"]

    @property
    def tolerance(self) -> Mapping[str, float]:
        return self.entry["tolerance"]

    def arrays(self) -> dict[str, Tensor]:
        """Everything in the case's file, after its sha256 was checked."""
        path = self.folder / self.entry["file"]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert sha256 == self.entry["sha256"], f"{path}: sha256 is {sha256}, recorded is {self.entry['sha256']}"
        with np.load(path) as stored:
            return {key: torch.as_tensor(stored[key]) for key in stored.files}

    def inputs(self, arrays: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Fresh copies of the inputs, leaves of the graph where the reference has a gradient."""
        inputs = {}
        for described in self.entry["inputs"]:
            name = described["name"]
            value = arrays[name].clone()
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype)
            inputs[name] = value.requires_grad_(name in self.gradients)
        return inputs


def read_cases(folder: Path) -> list[Case]:
    """All cases of a set."""
    index = json.loads((folder / "index.json").read_text())
    return [Case(folder, entry) for entry in index["cases"]]


def compared(case: Case, adapters: Container[str]) -> Any:
    """A case as a parameter of a test: skipped with the reason where nothing here computes its loss."""
    reason = f"loss '{case.loss}' has no adapter in tests/parity/adapters.py"
    return pytest.param(case, id=case.name, marks=[] if case.loss in adapters else [pytest.mark.skip(reason=reason)])


def gradients_of(loss: Tensor, inputs: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The gradient of ``loss`` to each named input; 0 where it does not reach."""
    leaves = [inputs[name] for name in names]
    if not loss.requires_grad or not leaves:
        return {name: torch.zeros_like(inputs[name]) for name in names}
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if got is None else got
        for name, leaf, got in zip(names, leaves, found, strict=True)
    }


def assert_close(what: str, got: Tensor, want: Tensor, rtol: float, atol: float) -> None:
    """Fail unless |got - want| <= atol + rtol * |want| everywhere; a nan on either side fails."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, reference {tuple(want.shape)}"
    excess = (got.detach() - want).abs() / (atol + rtol * want.abs())
    worst = excess.max().item() if excess.numel() else 0.0
    assert worst <= 1.0, f"{what}: the largest difference is {worst:.3g} times what the case allows"


def compare(case: Case, arrays: Mapping[str, Tensor], inputs: Mapping[str, Tensor], answer: Answer) -> int:
    """Check loss, extras and gradients within the case's tolerance; returns how many tensors were compared."""
    allowed = case.tolerance
    plain = {"rtol": allowed["rtol"], "atol": allowed["atol"]}
    assert_close(f"{case.name}: loss", answer.loss, arrays[case.entry["outputs"]["loss"]], **plain)
    extras = case.entry["outputs"]["extras"]
    assert set(answer.extras) == set(extras), f"{case.name}: extras {sorted(answer.extras)}, reference {sorted(extras)}"
    for name in extras:
        assert_close(f"{case.name}: {name}", answer.extras[name], arrays[name], **plain)
    for name, gradient in gradients_of(answer.loss, inputs, case.gradients).items():
        want = arrays[case.gradients[name]]
        atol = allowed["grad_atol"]
        if want.numel():
            atol += allowed["grad_atol_rel_to_max"] * want.abs().max().item()
        assert_close(f"{case.name}: gradient of {name}", gradient, want, rtol=allowed["grad_rtol"], atol=atol)
    return 1 + len(extras) + len(case.gradients)
