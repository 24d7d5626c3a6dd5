"""How weights get into a network and out of it."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo.errors import ModelError, in_words, plain

if TYPE_CHECKING:
    from kdzoo.models.network import Network


def load_weights(network: Network, path: Path) -> None:
    """Load a file of weights, strictly: every key and shape must be the model's own.

    Reads .safetensors, and .pt, .pth, .pth.tar and .th through ``weights_only``, which runs no code; the weights may
    lie below "state_dict" or "model" and their keys begin with "module.". Raises ModelError that lists the differences.
    """
    state = read_weights(path)
    state = {_file_name(network.model, key): value for key, value in state.items()}
    own = delivered_weights(network.model)
    for key, value in own.items():
        if key.endswith(".num_batches_tracked"):  # counted since torch 0.4.1, and read by nothing in eval mode
            state.setdefault(key, value)
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{path}: not weights of '{network.spec.name}' with {network.num_classes} classes"]
        for what, found in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)):
            if found:
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                lines.append(f"{what}: {', '.join(plain(key, 100) for key in found[:5])}{more}")  # a stranger's names
        raise ModelError("\n  ".join(lines))
    _check_types(path, state, own)
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"{path}: weights that are not finite: {', '.join(broken[:5])}")
    network.model.load_state_dict(state, strict=True)


def _check_types(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ModelError for tensors that are not plain, or of another kind of number than the model's."""
    wrong = []
    for key, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            wrong.append(f"{plain(key, 100)}, which is sparse, quantized or has no content")
        elif value.is_complex() or value.is_floating_point() != own[key].is_floating_point():
            wrong.append(f"{plain(key, 100)}, {value.dtype}, the model's {own[key].dtype}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ModelError(f"{path}: weights of another type: {'; '.join(wrong[:5])}{more}")


def delivered_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by the names that its file has.

    These are its own, unless it has a method ``file_name(key)``; then its ``load_state_dict`` takes both.
    """
    return {_file_name(model, key): value for key, value in model.state_dict().items()}


def _file_name(model: nn.Module, key: str) -> str:
    named: Any = getattr(model, "file_name", None)
    return key if named is None else str(named(key))


def files_beside(model: nn.Module, weights: str, classes: Sequence[str]) -> dict[str, bytes]:
    """Return what else a delivered model needs so that other libraries load the file ``weights``, by name.

    Nothing, unless the model has a method ``files_beside(weights, classes)``.
    """
    made: Any = getattr(model, "files_beside", None)
    return {} if made is None else dict(made(weights, classes))


def start_from(network: Network, other: Network) -> None:
    """Give ``network`` its first weights from another one, the teacher.

    One of the same tensors takes them all; any other must know how, by a method ``take_over(model)``. Raises
    ModelError where neither holds.
    """
    own, theirs = network.model.state_dict(), other.model.state_dict()
    if {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}:
        network.model.load_state_dict(theirs, strict=True)
        return
    take_over: Any = getattr(network.model, "take_over", None)
    if take_over is None:
        raise ModelError(
            f"model '{network.spec.name}': weights: teacher, but '{other.spec.name}' has other tensors, and this model "
            "has no rule for which to take; choose the teacher's own architecture or other weights"
        )
    with torch.no_grad():
        take_over(other.model)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running any code in it; raise ModelError when it is none."""
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that is too long
        raise ModelError(f"{path}: no such file of weights; weights are train, pretrained, hf-hub:<name> or a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        elif path.suffix in (".pt", ".pth", ".th") or path.name.endswith(".pth.tar"):
            with torch.serialization.safe_globals([argparse.Namespace]):  # plain values, which timm's script saves too
                content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ModelError(
                f"{path}: weights are read from .safetensors, .pt, .pth, .pth.tar and .th files, not '{path.suffix}'"
            )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors, so it could run code and was not read; save model.state_dict() instead"
        ) from error
    except ModelError:
        raise
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise ModelError(f"{path}: cannot be read as weights: {in_words(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path}: holds no tensors by name; model.state_dict() would be right")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def weights_sha256(module: nn.Module) -> str:
    """Hash every parameter and buffer of a module, bit by bit."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())
